//! What a host lacks, and what is said about it. Nothing is left of the attempt.

use std::future::Future;

use agentiso_core::network::{NetworkError, netlink::NetlinkNetwork};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, set_thread_uid};

use crate::{
    fixture::{State, everything, obstacle},
    guest::{leave_host, sh},
};

/// What opening says in a namespace of its own that lacks something, and whether that has left everything as it was.
fn refusal(state: &State, lacking: impl FnOnce() + Send) -> NetworkError {
    let attempt = || {
        leave_host();
        let before = everything();
        // Its own threads: what this one lacks, those that it starts lack too, and no others.
        let error = std::thread::scope(|scope| {
            let lesser = scope.spawn(|| {
                lacking();
                block_on(NetlinkNetwork::open(state.config.clone())).unwrap_err()
            });
            lesser.join().unwrap()
        });
        assert_eq!(everything(), before);
        assert!(!state.folder.path().join("network").exists());
        error
    };
    std::thread::scope(|scope| scope.spawn(attempt).join().unwrap())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[track_caller]
fn assert_says(error: &NetworkError, words: &[&str]) {
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

/// `None` where these tests cannot run, which it says.
fn state() -> Option<State> {
    match obstacle() {
        Some(reason) => {
            println!("skipped: {reason}");
            None
        }
        None => Some(State::new()),
    }
}

#[test]
fn ordinary_user_is_told_to_be_root_or_to_use_the_other_network() {
    let Some(state) = state() else { return };

    let error = refusal(&state, || set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap());

    assert!(matches!(error, NetworkError::Missing { .. }), "{error:?}");
    assert_says(&error, &["privilege", "run as root", "user network"]);
}

#[test]
fn root_of_a_container_without_the_capability_is_told_which() {
    let Some(state) = state() else { return };
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };

    let error = refusal(&state, || set_capabilities(None, none).unwrap());

    assert!(matches!(error, NetworkError::Missing { .. }), "{error:?}");
    assert_says(&error, &["CAP_NET_ADMIN", "--cap-add NET_ADMIN", "user network"]);
}

#[test]
fn host_without_tun_is_told_the_module() {
    let Some(state) = state() else { return };

    let error = refusal(&state, || {
        // SAFETY: this flag gives this thread its own mounts and working directory; no memory or descriptor table is
        // unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        sh("mount --make-rprivate /; mount -t tmpfs none /dev/net");
    });

    assert!(matches!(error, NetworkError::Missing { .. }), "{error:?}");
    assert_says(&error, &["/dev/net/tun", "modprobe tun"]);
}

#[test]
fn kernel_without_nftables_is_told_the_module() {
    let Some(state) = state() else { return };

    let error = refusal(&state, refuse_netfilter);

    assert!(matches!(error, NetworkError::Missing { .. }), "{error:?}");
    assert_says(&error, &["nftables", "modprobe nf_tables"]);
}

/// Makes netlink sockets to netfilter impossible for this thread, and those it starts, as in a kernel without it.
fn refuse_netfilter() {
    const NETLINK_NETFILTER: u32 = 12;
    let number = |value: i64| u32::try_from(value).unwrap();
    let load = |offset: u32| libc::sock_filter {
        code: u16::try_from(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS).unwrap(),
        jt: 0,
        jf: 0,
        k: offset,
    };
    // Goes on with the next step if equal, otherwise with the last but one.
    let equal = |k: u32, otherwise: u8| libc::sock_filter {
        code: u16::try_from(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K).unwrap(),
        jt: 0,
        jf: otherwise,
        k,
    };
    let answer = |k: u32| libc::sock_filter {
        code: u16::try_from(libc::BPF_RET | libc::BPF_K).unwrap(),
        jt: 0,
        jf: 0,
        k,
    };
    // Of struct seccomp_data: the call's number, the low halves of the first and the third argument.
    let mut program = [
        load(0),
        equal(number(libc::SYS_socket), 5),
        load(16),
        equal(u32::try_from(libc::AF_NETLINK).unwrap(), 3),
        load(32),
        equal(NETLINK_NETFILTER, 1),
        answer(libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPROTONOSUPPORT).unwrap()),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program =
        libc::sock_fprog { len: u16::try_from(program.len()).unwrap(), filter: program.as_mut_ptr() };
    // SAFETY: takes numbers alone. The thread, and what it starts, get no more privileges; nothing is done with that.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program and its length are right, and the kernel has copied both when this returns.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn range_of_a_route_of_another_interface_is_refused_with_a_remedy() {
    let Some(state) = state() else { return };

    let prepare =
        || sh("ip link add lan type bridge; ip link set lan up; ip route add 10.99.128.0/17 dev lan");
    let attempt = || {
        leave_host();
        prepare();
        block_on(NetlinkNetwork::open(state.config.clone())).unwrap_err()
    };
    let error = std::thread::scope(|scope| scope.spawn(attempt).join().unwrap());

    assert!(matches!(error, NetworkError::Unsupported { .. }), "{error:?}");
    assert_says(&error, &["10.99.0.0/16", "lan", "a route to 10.99.128.0/17", "another range"]);
}
