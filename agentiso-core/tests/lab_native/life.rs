//! A workspace's life, and what its channel and its limits keep out.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use agentiso_core::{Backend, BackendKind, ForkSpec, Workspace};
use agentiso_guest::{
    PROTOCOL_GENERATION, VSOCK_PORT,
    frame::{encode, encode_plain},
    hello::{Hello, Nonce, Verdict, WelcomeScanner},
    key::{MachineKey, Proof, Side},
    message::Request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_vsock::{VsockAddr, VsockStream};

use crate::{
    fixture::{Native, run, sh, spec},
    lab::hog_memory,
};

/// How long an agent may take to answer a stranger, or to hang up.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workspace_lives_forks_and_goes_back_on_everything_native() {
    let Some(native) = Native::new().await else { return };
    let host = native.open().await;

    let begun = Instant::now();
    let parent = host.create(spec()).await.unwrap();
    println!("first create: {:?}", begun.elapsed());
    assert_eq!(sh(&parent, "echo $((6 * 7))").await, "42");
    let info = parent.info().await.unwrap();
    println!("{:#?}", info.isolation);
    let used: Vec<_> = info.isolation.backends.iter().map(|choice| (choice.kind, choice.used)).collect();
    assert_eq!(
        used,
        [
            (BackendKind::Cpu, Backend::Kvm),
            (BackendKind::Disks, Backend::Zfs),
            (BackendKind::Network, Backend::Netlink),
            (BackendKind::Channel, Backend::Vsock),
            (BackendKind::Limits, Backend::Cgroup),
        ]
    );
    assert_eq!(info.isolation.level, "vm-kvm");
    assert!(info.usage.is_some_and(|usage| usage.memory_bytes > 0 && usage.threads > 1), "{:?}", info.usage);
    sh(&parent, "echo one > /root/file; sync; echo two > /root/late; echo in memory > /dev/shm/file").await;

    let snapshot = parent.snapshot("before").await.unwrap();
    println!("snapshot: {snapshot:?}");
    let report = parent.fork(ForkSpec { count: 3, ..ForkSpec::default() }).await.unwrap();
    println!("fork: the parent stood still {:?}", report.standstill);
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    sh(&parent, "echo changed > /root/file; sync").await;
    let mut addresses = BTreeSet::from([info.summary.ip.unwrap()]);
    for worker in &report.workers {
        let fork = host.workspace(&worker.name).await.unwrap();
        assert_eq!(sh(&fork, "cat /root/file /root/late /dev/shm/file").await, "one\ntwo\nin memory");
        assert!(addresses.insert(fork.info().await.unwrap().summary.ip.unwrap()));
    }
    parent.restore("before").await.unwrap();
    assert_eq!(sh(&parent, "cat /root/file /root/late /dev/shm/file").await, "one\ntwo\nin memory");
    parent.destroy().await.unwrap();
    for worker in &report.workers {
        let fork = host.workspace(&worker.name).await.unwrap();
        assert_eq!(sh(&fork, "hostname").await, worker.name);
        fork.destroy().await.unwrap();
    }
    // What is left is the template that the first one was made from.
    host.remove_image("debian").await.unwrap();
    assert_eq!(native.left(), [""; 0]);
    host.close().await;
}

/// What is in a machine's run folder.
fn run_file(native: &Native, workspace: &Workspace, name: &str) -> PathBuf {
    native.home.join("run").join(workspace.id().to_string()).join(name)
}

fn key_of(native: &Native, workspace: &Workspace) -> MachineKey {
    MachineKey::from_bytes(
        std::fs::read(run_file(native, workspace, "vsock.key")).unwrap().try_into().unwrap(),
    )
}

fn cid_of(workspace: &Workspace) -> u32 {
    let lines = run("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | tr '\\n' ' ' || true");
    let own = format!("-{}", workspace.id());
    let words: Vec<&str> = lines.split(' ').collect();
    let at = words.iter().position(|word| word.starts_with("agentiso-") && word.ends_with(&own)).unwrap();
    let cid = words[at..].iter().find_map(|word| word.split_once("guest-cid=")).unwrap().1;
    cid.split(',').next().unwrap().parse().unwrap()
}

/// Connects as any process of the host can, says hello, and asks for a file to be made. What is answered until the agent
/// hangs up.
async fn intrude(cid: u32, nonce: Nonce, proof: Option<Proof>) -> Vec<u8> {
    let mut stream = VsockStream::connect(VsockAddr::new(cid, VSOCK_PORT)).await.unwrap();
    let mut bytes = Vec::new();
    let hello = Hello { hello: nonce, generation: PROTOCOL_GENERATION, request: true, proof };
    encode_plain(&mut bytes, &hello).unwrap();
    let command = agentiso_guest::message::Command {
        argv: ["/bin/touch", "/root/intruded"].map(str::to_owned).into(),
        ..Default::default()
    };
    let request = Request::Exec { command, stdin: false, tty: None, timeout_ms: None };
    encode(&mut bytes, &request, &[], nonce).unwrap();
    AsyncWriteExt::write_all(&mut stream, &bytes).await.unwrap();
    let mut answer = Vec::new();
    // One that hangs up with unread input resets the connection.
    let _ = tokio::time::timeout(PATIENCE, AsyncReadExt::read_to_end(&mut stream, &mut answer))
        .await
        .expect("it hangs up");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_know_a_machines_key_gets_nothing_and_clones_have_other_ones() {
    let Some(native) = Native::shared().await else { return };
    let host = native.open().await;
    let parent = host.create(spec()).await.unwrap();
    let report = parent.fork(ForkSpec { count: 1, ..ForkSpec::default() }).await.unwrap();
    let fork = host.workspace(&report.workers[0].name).await.unwrap();
    let (own, other) = (key_of(&native, &parent), key_of(&native, &fork));
    let (cid, nonce) = (cid_of(&parent), Nonce::from_bytes([9; 16]));

    assert_ne!(own, other);
    assert_eq!(intrude(cid, nonce, None).await, b"", "without a proof nothing is said");
    // Not with the key of the clone, and the clone not with that of the machine it was made from.
    for (cid, key) in [(cid, &other), (cid_of(&fork), &own)] {
        let answer = intrude(cid, nonce, Some(key.proof(Side::Host, nonce))).await;
        let (welcome, rest) = WelcomeScanner::new(nonce).feed(&answer).unwrap().unwrap();
        assert_eq!((welcome.verdict, welcome.proof, rest.len()), (Verdict::WrongKey, None, 0));
    }
    for workspace in [&parent, &fork] {
        assert_eq!(sh(workspace, "ls /root/intruded 2>/dev/null || echo none").await, "none");
    }
    // On no command line; an ordinary user of the guest cannot get at it either.
    let digits: String = own.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!run("cat /proc/[0-9]*/cmdline 2>/dev/null || true").contains(&digits));
    let ports = "setpriv --reuid 65534 --clear-groups head -c 1 /dev/port 2>&1 || echo refused";
    assert!(sh(&parent, ports).await.contains("refused"));
    // A machine that starts again has another.
    parent.stop().await.unwrap();
    parent.start().await.unwrap();
    assert_ne!(key_of(&native, &parent), own);
    assert_eq!(sh(&parent, "echo here").await, "here");
    for workspace in [parent, fork] {
        workspace.destroy().await.unwrap();
    }
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_hog_is_ended_by_its_limit_and_nobody_else_is() {
    let Some(native) = Native::shared().await else { return };
    let host = native.open().await;
    let hog = host.create(spec()).await.unwrap();
    let other = host.create(spec()).await.unwrap();
    let socket = run_file(&native, &hog, "qmp");

    tokio::task::spawn_blocking(move || hog_memory(&socket, 2 << 30)).await.unwrap();

    let deadline = Instant::now() + PATIENCE;
    while !hog.info().await.unwrap().summary.crashed {
        assert!(Instant::now() < deadline, "the hog runs on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(sh(&other, "echo here").await, "here");
    hog.start().await.unwrap();
    assert_eq!(sh(&hog, "echo again").await, "again");
    for workspace in [hog, other] {
        workspace.destroy().await.unwrap();
    }
    host.close().await;
}
