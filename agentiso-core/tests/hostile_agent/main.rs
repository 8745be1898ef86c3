//! Agents that do their worst, against the real client over real sockets. Whatever they do, each operation ends in its
//! time, this process stays within its bounds, and another machine's operations work meanwhile.
//!
//! The agent is a test build (feature `hostile` of agentiso-guest) that behaves until it is told not to.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[allow(dead_code, reason = "other tests need more of it")]
#[path = "../guest_client/agent.rs"]
mod agent;
mod operations;
#[path = "../support/process.rs"]
mod process;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use agentiso_core::channel::client::{CollectOptions, ExecSpec};
use tokio::task::JoinSet;

use self::agent::{Agent, wait_for};
use self::operations::{Tried, operations};
use self::process::{descriptors, status};

/// Longest time for an operation on the machine that behaves.
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(20);

/// Memory that all operations together may take, in KiB: what each may hold is a message of 1 MiB, twice while it is
/// taken apart.
const MEMORY_KIB: u64 = 96 * 1024;

/// How often each operation is tried, all at once.
const ROUNDS: usize = 3;

/// The agent that can be told to misbehave, built apart from the one of other tests.
fn hostile_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(program) = std::env::var_os("AGENTISO_TEST_HOSTILE_AGENT") {
            return PathBuf::from(program);
        }
        // This program is target/debug/deps/hostile_agent-HASH.
        let here = std::env::current_exe().unwrap();
        let target = here.ancestors().nth(3).unwrap().join("hostile");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "agentiso-guest", "--features", "hostile"])
            .args(["--bin", "agentiso-guest", "--target-dir"])
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(built.status.success(), "the agent: {}", String::from_utf8_lossy(&built.stderr));
        target.join("debug/agentiso-guest")
    })
}

async fn tell(agent: &Agent, mode: &str) {
    let spec = ExecSpec::program(["agentiso-hostile", mode]);
    let told = agent.client.exec_collect(spec, CollectOptions::default()).await.unwrap();
    assert!(told.success(), "there is no mode {mode}");
}

/// Tries everything on a machine whose agent misbehaves in this way; returns what came of it.
async fn survive(mode: &str) -> Vec<Tried> {
    let neighbour = Agent::start();
    let agent = Agent::start_program(hostile_program());
    let client = agent.client.clone().with_connect_limit(Duration::from_secs(3));
    neighbour.client.ping().await.unwrap();
    tell(&agent, mode).await;
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let pid = std::process::id();
    let own = |field| status(pid, field).unwrap();
    let (memory, threads, open) = (own("VmRSS:"), own("Threads:"), descriptors(pid).unwrap());

    let mut tries = JoinSet::new();
    for _ in 0..ROUNDS {
        operations(&client, &mut tries);
    }
    let all = tries.len();
    let mut results = Vec::new();
    let mut served = 0;
    while results.len() < all {
        tokio::select! {
            tried = tries.join_next() => results.push(tried.unwrap().unwrap()),
            output = neighbour.client.exec_collect(ExecSpec::shell("echo fine"), CollectOptions::default()) => {
                assert_eq!(output.unwrap().stdout_text(), "fine\n", "another machine's answer");
                served += 1;
            }
        }
    }
    let begun = Instant::now();
    let output = neighbour.client.exec_collect(ExecSpec::shell("echo fine"), CollectOptions::default()).await;
    assert_eq!(output.unwrap().stdout_text(), "fine\n");
    assert!(begun.elapsed() < NEIGHBOUR_LIMIT, "another machine took {:?}", begun.elapsed());

    let (peak, now) = (own("VmHWM:"), own("Threads:"));
    println!(
        "{mode}: {} KiB more at most, {served} commands of the neighbour meanwhile",
        peak.saturating_sub(memory)
    );
    assert!(peak < memory + MEMORY_KIB, "memory went from {memory} to {peak} KiB");
    assert!(now <= threads + 8, "threads went from {threads} to {now}");
    drop((client, agent));
    wait_for("descriptors are given back", || descriptors(pid).unwrap() <= open + 2);
    results
}

fn assert_all_fail(results: &[Tried]) {
    for (name, result) in results {
        assert!(result.is_err(), "{name} succeeded");
    }
}

macro_rules! every_operation_fails {
    ($($test:ident: $mode:literal;)*) => {$(
        #[tokio::test]
        async fn $test() {
            assert_all_fail(&survive($mode).await);
        }
    )*};
}

every_operation_fails! {
    noise_is_never_taken_for_an_answer: "random";
    huge_lengths_are_refused_and_cost_nothing: "huge-length";
    replayed_answers_are_never_taken: "replay";
    agent_that_never_reads_is_given_up: "deaf";
    agent_that_sends_a_byte_a_second_is_given_up: "slow";
    flood_of_messages_that_are_not_due_is_refused: "flood";
    agent_that_hangs_up_is_an_error: "hang-up";
    agent_that_ends_is_an_error: "reboot";
    agent_that_takes_all_memory_costs_the_host_none: "exhaust";
}

#[tokio::test]
async fn answers_out_of_order_are_refused() {
    assert_all_fail(&survive("out-of-order").await);
}

#[tokio::test]
async fn payload_of_another_connection_is_refused() {
    assert_all_fail(&survive("wrong-seal").await);
}

#[tokio::test]
async fn endless_output_is_cut_and_given_up() {
    let (commands, others): (Vec<_>, Vec<_>) =
        survive("endless").await.into_iter().partition(|(name, _)| *name == "exec");

    // How much of a command's output is kept was looked at when it ended.
    assert_eq!(commands.len(), ROUNDS);
    assert_all_fail(&others);
}

/// What a guest says of itself is its own business; that it is in order is checked all the same.
#[tokio::test]
async fn lies_are_believed_of_that_machine_alone() {
    let results = survive("lies").await;

    for (name, result) in results {
        match name {
            // Well-formed, and all that a host can ask for.
            "ping" | "exec" | "read" | "archive" | "environment" | "write" | "list" => {}
            // What must hold is checked: the clock, and replies of the kind that is due.
            _ => assert!(result.is_err(), "{name} succeeded"),
        }
    }
}
