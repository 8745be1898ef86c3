//! System calls that no program started by [`Detached`](super::Detached) ever needs, refused by the kernel.
//!
//! Landlock covers files, TCP and signals. This covers what it leaves: sockets of other kinds, unix sockets of
//! other programs among them (for programs that are passed all the sockets they use), io_uring (which opens sockets and files past a seccomp filter), other processes'
//! memory, and kernel interfaces with a record of local escapes. QEMU adds its own, longer filter.

use super::sys::Filter;

/// Which sockets a program may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// None: those it uses are passed to it.
    None,
    #[allow(dead_code, reason = "for the network's companion processes")]
    /// Unix and Internet sockets, and netlink for asking the kernel about routes.
    Internet,
}

/// Where one word of the kernel's `struct seccomp_data` is.
#[cfg(target_arch = "x86_64")]
mod data {
    pub(super) const NUMBER: u32 = 0;
    pub(super) const ARCHITECTURE: u32 = 4;
    pub(super) const FIRST_ARGUMENT: u32 = 16;
}

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;

/// From here on up, numbers belong to the x32 ABI (`__X32_SYSCALL_BIT` of asm/unistd.h).
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

#[cfg(target_arch = "x86_64")]
const REFUSED: [libc::c_long; 28] = [
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_personality,
];

/// The filter; `None` on a CPU for which there is none.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn filter(_sockets: Sockets) -> Option<Filter> {
    None
}

/// The filter; `None` on a CPU for which there is none.
#[cfg(target_arch = "x86_64")]
pub(super) fn filter(sockets: Sockets) -> Option<Filter> {
    let mut program = vec![
        load(data::ARCHITECTURE),
        // Another ABI's numbers mean other calls: nothing of ours uses one.
        jump_if_equal(ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(data::NUMBER),
        jump_if_at_least(X32, 0, 1),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).ok()?;
    for number in REFUSED {
        program.push(jump_if_equal(u32::try_from(number).ok()?, 0, 1));
        program.push(answer(refuse));
    }
    let families: &[libc::c_int] = match sockets {
        Sockets::None => &[],
        Sockets::Internet => &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK],
    };
    // socket(family, ...): the families that are let through, then a refusal.
    let skipped = u8::try_from(families.len() * 2 + 2).ok()?;
    program.push(jump_if_equal(u32::try_from(libc::SYS_socket).ok()?, 0, skipped));
    program.push(load(data::FIRST_ARGUMENT));
    for &family in families {
        program.push(jump_if_equal(u32::try_from(family).ok()?, 0, 1));
        program.push(answer(libc::SECCOMP_RET_ALLOW));
    }
    program.push(answer(refuse));
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    Some(Filter::new(program))
}

#[cfg(target_arch = "x86_64")]
fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    // The codes are all below 0x100.
    libc::sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}

#[cfg(target_arch = "x86_64")]
fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

#[cfg(target_arch = "x86_64")]
fn jump_if_equal(value: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, then, otherwise)
}

#[cfg(target_arch = "x86_64")]
fn jump_if_at_least(value: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, value, then, otherwise)
}

#[cfg(target_arch = "x86_64")]
fn answer(value: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, value, 0, 0)
}

/// What the filter does on this host.
pub(super) fn report(stands: &mut Vec<String>, open: &mut Vec<String>) {
    if filter(Sockets::None).is_none() {
        open.push("no system call filter of agentiso's own for this CPU".to_owned());
    } else {
        stands.push(
            "seccomp: no io_uring, no other process's memory, no namespaces or mounts, no sockets but those \
             it was given or, for the network process, Internet ones"
                .to_owned(),
        );
    }
}
