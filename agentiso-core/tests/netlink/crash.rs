//! A process that changes the network is killed at each of its steps: whoever opens the state folder next finds
//! everything that it made, removes it, and harms nothing else.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
};

use agentiso_core::{
    network::{Network, NetworkPolicy, NetworkRecord, netlink::NetlinkNetwork},
    types::GuestPort,
};
use serde::{Deserialize, Serialize};

use crate::{
    fixture::{State, everything, forward, in_namespace, internet, internet_on, start},
    guest::{Guest, Namespace, accept, connect, sh, talk},
};

/// Where the other process finds what it is to do.
const ORDER: &str = "AGENTISO_TEST_ORDER";

/// The calls by which anything changes: messages to the kernel, devices, settings, files and their names.
const STEPS: [&str; 5] = ["sendto", "ioctl", "write", "rename", "unlink"];

/// More steps of one kind than there are.
const MANY: u32 = 200;

/// Fewer steps than any work has: a test in which fewer were killed has not tried them.
const FEW: u32 = 10;

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    folder: std::path::PathBuf,
    state_id: String,
    work: Work,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Work {
    Attach,
    Forward(NetworkRecord),
    RemoveForward(NetworkRecord),
    Policy(NetworkRecord, NetworkPolicy),
    Detach(NetworkRecord),
}

fn all() -> NetworkPolicy {
    NetworkPolicy { groups: ["team".parse().unwrap()].into(), ..internet_on() }
}

fn port() -> GuestPort {
    GuestPort::new(81).unwrap()
}

/// What the other process does. Not a test of its own.
#[test]
#[ignore = "the tests of this module run it in a process of its own"]
fn worker() {
    let order: Order = serde_json::from_str(&std::env::var(ORDER).unwrap()).unwrap();
    let state = State::again(&order.folder, &order.state_id);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let network = state.open().await;
        match order.work {
            Work::Attach => drop(network.attach(state.spec(&all())).await.unwrap()),
            Work::Forward(record) => drop(network.add_forward(&record, port(), None).await.unwrap()),
            Work::RemoveForward(record) => network.remove_forward(&record, port()).await.unwrap(),
            Work::Policy(record, policy) => network.update_policy(&record, &policy).await.unwrap(),
            Work::Detach(record) => network.detach(&record).await.unwrap(),
        }
    });
}

/// Does the work in another process, which is killed when it is about to make its so many-th call of this name. Returns
/// whether it lived to the end instead.
fn killed_at(state: &State, work: &Work, step: &str, count: u32) -> bool {
    let order = Order {
        folder: state.folder.path().to_owned(),
        state_id: state.config.state_id.clone(),
        work: work.clone(),
    };
    let mut command = Command::new("strace");
    command
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={step}")])
        .args(["-e", &format!("inject={step}:signal=KILL:when={count}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "crash::worker", "--ignored", "--nocapture"])
        .env(ORDER, serde_json::to_string(&order).unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let output = command.output().unwrap();
    let was_killed = output.status.signal() == Some(9) || output.status.code() == Some(128 + 9);
    assert!(was_killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    !was_killed
}

/// Runs a test that kills, unless this host has nothing to kill with, which it says.
fn with_killer<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if Command::new("strace").arg("-V").output().is_err() {
        println!("skipped: strace is not installed");
        return;
    }
    in_namespace(test);
}

/// Kills the work at each of its steps, and looks at what is left each time.
async fn at_each_step<F: Future<Output = ()>>(state: &State, work: &Work, look: impl Fn() -> F) {
    let mut times = 0;
    for step in STEPS {
        for count in 1..=MANY {
            let lived = killed_at(state, work, step, count);
            look().await;
            if lived {
                println!("{step}: killed {} times", count - 1);
                break;
            }
            assert!(count < MANY, "{step}");
            times += 1;
        }
    }
    assert!(times >= FEW, "{times}");
}

/// Opens the state folder as the next process does and removes what nobody knows of.
async fn tidy(state: &State, known: &[&NetworkRecord]) -> NetlinkNetwork {
    let network = state.open().await;
    for record in network.leftovers().await.unwrap() {
        if known.iter().all(|known| known.id != record.id) {
            network.detach(&record).await.unwrap();
        }
    }
    network
}

/// Something of somebody else's.
fn foreign() {
    sh("nft add table inet foreign; nft add chain inet foreign f '{ type filter hook forward priority 0; }';
        nft add rule inet foreign f tcp dport 9 drop; nft add table inet agentiso; ip link add agbr type bridge");
}

fn is_served(guest: &Guest, port: u16) -> bool {
    let listener = guest.listen(80);
    connect(([127, 0, 0, 1], port)).is_ok_and(|mut client| talk(&mut client, &mut accept(&listener).0))
}

#[test]
fn first_attach_that_is_killed_leaves_nothing() {
    with_killer(async || {
        let _outside = internet::connect_host();
        foreign();
        let before = everything_settled();
        let state = State::new();

        at_each_step(&state, &Work::Attach, async || {
            let network = tidy(&state, &[]).await;
            assert_same(&everything_settled(), &before);
            assert_eq!(network.leftovers().await.unwrap(), []);
        })
        .await;
    });
}

#[test]
fn later_attach_that_is_killed_leaves_what_was_there() {
    with_killer(async || {
        let _outside = internet::connect_host();
        foreign();
        let state = State::new();
        let network = state.open().await;
        let guest = start(&network, &state, &all()).await;
        let port = forward(&network, &guest.record, 80).await.get();
        let before = everything_settled();

        at_each_step(&state, &Work::Attach, async || {
            tidy(&state, &[&guest.record]).await;
            assert_same(&everything_settled(), &before);
            assert!(is_served(&guest, port));
        })
        .await;
    });
}

/// A machine whose connections and forwards are to survive whatever happens to a change.
struct Changed {
    state: State,
    guest: Guest,
    kept: u16,
    before: Vec<String>,
    _outside: Namespace,
}

impl Changed {
    async fn new() -> Self {
        let _outside = internet::connect_host();
        let state = State::new();
        let network = state.open().await;
        let guest = start(&network, &state, &NetworkPolicy::default()).await;
        let kept = forward(&network, &guest.record, 80).await.get();
        // Once there and back: forwarding stays on until the last card goes.
        network.update_policy(&guest.record, &all()).await.unwrap();
        network.update_policy(&guest.record, &NetworkPolicy::default()).await.unwrap();
        Self { before: everything_settled(), state, guest, kept, _outside }
    }

    /// Opens the state folder again and takes back whatever has come of the change.
    async fn undo(&self) {
        let record = &self.guest.record;
        let network = tidy(&self.state, &[record]).await;
        assert!(is_served(&self.guest, self.kept));
        network.update_policy(record, &NetworkPolicy::default()).await.unwrap();
        network.remove_forward(record, port()).await.unwrap();
        assert_same(&everything_settled(), &self.before);
    }
}

#[test]
fn change_of_policy_that_is_killed_is_made_whole_or_undone() {
    with_killer(async || {
        let changed = Changed::new().await;
        let work = Work::Policy(changed.guest.record.clone(), all());

        at_each_step(&changed.state, &work, async || changed.undo().await).await;
    });
}

#[test]
fn forward_that_is_killed_is_made_whole_or_undone() {
    with_killer(async || {
        let changed = Changed::new().await;
        let work = Work::Forward(changed.guest.record.clone());

        at_each_step(&changed.state, &work, async || changed.undo().await).await;
    });
}

#[test]
fn end_of_a_forward_that_is_killed_is_made_whole_or_undone() {
    with_killer(async || {
        let changed = Changed::new().await;
        let record = &changed.guest.record;
        let forward_again =
            async || changed.state.open().await.add_forward(record, port(), None).await.unwrap();
        forward_again().await;

        at_each_step(&changed.state, &Work::RemoveForward(record.clone()), async || {
            changed.undo().await;
            forward_again().await;
        })
        .await;
    });
}

#[test]
fn detach_that_is_killed_is_finished_by_the_next() {
    with_killer(async || {
        let _outside = internet::connect_host();
        foreign();
        let pristine = everything_settled();
        let state = State::new();
        let mut times = 0;
        for step in STEPS {
            for count in 1..=MANY {
                let network = state.open().await;
                let guest = start(&network, &state, &all()).await;
                forward(&network, &guest.record, 80).await;
                let lived = killed_at(&state, &Work::Detach(guest.record.clone()), step, count);

                let network = tidy(&state, &[]).await;
                assert_eq!(network.leftovers().await.unwrap(), []);
                assert_same(&everything_settled(), &pristine);
                if lived {
                    println!("{step}: killed {} times", count - 1);
                    break;
                }
                assert!(count < MANY, "{step}");
                times += 1;
            }
        }
        assert!(times >= FEW, "{times}");
    });
}

/// Line by line, without what goes on counting, and in an order of its own.
fn settled(everything: &str) -> Vec<String> {
    let is_count = |words: &[&str]| matches!(words, ["packets" | "bytes", _] | [_, "packets" | "bytes"]);
    let without_counts = |line: &str| {
        let words: Vec<&str> = std::iter::once("").chain(line.split_whitespace()).collect();
        let kept = words.windows(2).filter(|pair| !is_count(pair)).map(|pair| pair[1]);
        kept.collect::<Vec<_>>().join(" ")
    };
    let mut lines: Vec<String> = everything.lines().map(without_counts).collect();
    lines.sort();
    lines
}

#[track_caller]
fn assert_same(now: &[String], before: &[String]) {
    let without = |one: &[String], other: &[String]| {
        one.iter().filter(|line| !other.contains(line)).cloned().collect::<Vec<_>>()
    };
    let difference = (without(now, before), without(before, now));
    assert_eq!(
        (&difference, now.len()),
        (&Default::default(), before.len()),
        "what is new, and what is gone"
    );
}

fn everything_settled() -> Vec<String> {
    settled(&everything())
}
