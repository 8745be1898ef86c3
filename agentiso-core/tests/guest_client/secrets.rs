//! What this host held of secrets is gone when an operation is over.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
};

use agentiso_core::channel::client::{CollectOptions, Command, ExecSpec};

use crate::agent::Agent;

/// What hides the pattern that is looked for from the search itself.
const MASK: u8 = 0x55;

/// Parts of memory larger than this are no heap of a test.
const MAX_PART_BYTES: usize = 256 * 1024 * 1024;

/// A secret that this process holds in a masked form only, from its first digit on.
fn masked() -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"ghijklmnopqrstuv";
    let random = || agentiso_core::types::WorkspaceId::random().as_uuid().into_bytes();
    let bytes = [random(), random(), random()];
    let halves = bytes.iter().flatten().flat_map(|byte| [byte >> 4, byte & 0xf]);
    halves.map(|half| DIGITS[usize::from(half)] ^ MASK).collect()
}

fn unmasked(masked: &[u8]) -> String {
    // Room for all from the start: a text that grows leaves pieces of itself behind.
    let mut text = String::with_capacity(masked.len());
    text.extend(masked.iter().map(|byte| char::from(byte ^ MASK)));
    text
}

/// How often the secret is in this process's writable memory.
fn copies(masked: &[u8]) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = File::open("/proc/self/mem").unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.split_whitespace().nth(1).unwrap().starts_with("rw")) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let length = usize::try_from(u64::from_str_radix(to, 16).unwrap() - from).unwrap();
        let mut bytes = vec![0; length.min(MAX_PART_BYTES)];
        memory.seek(SeekFrom::Start(from)).unwrap();
        if memory.read_exact(&mut bytes).is_ok() {
            // The first eight bytes of a freed block are the allocator's; what is looked for is what follows them.
            let pattern = &masked[16..];
            let is_it =
                |window: &[u8]| window.iter().zip(pattern).all(|(byte, masked)| byte ^ MASK == *masked);
            found += bytes.windows(pattern.len()).filter(|window| is_it(window)).count();
        }
        // What was read is a copy too.
        bytes.fill(0);
        std::hint::black_box(&bytes);
    }
    found
}

#[tokio::test]
async fn search_finds_a_secret_that_is_there() {
    let hidden = masked();
    let kept = unmasked(&hidden);

    assert!(copies(&hidden) > 0);
    drop(std::hint::black_box(kept));
}

#[tokio::test]
async fn values_of_variables_are_overwritten_after_use() {
    let agent = Agent::start();
    let (set, run, started) = (masked(), masked(), masked());

    agent.client.env_set([("TOKEN".to_owned(), Some(unmasked(&set)))].into()).await.unwrap();
    let spec = ExecSpec::shell("test -n \"$TOKEN\" && test -n \"$OTHER\"").env("OTHER", unmasked(&run));
    let output = agent.client.exec_collect(spec, CollectOptions::default()).await.unwrap();
    let command = Command {
        argv: vec!["/bin/true".to_owned()],
        env: [("OTHER".to_owned(), unmasked(&started))].into(),
        ..Command::default()
    };
    agent.client.job_start(command).await.unwrap();

    assert!(output.success(), "the variables did not arrive");
    assert_eq!((copies(&set), copies(&run), copies(&started)), (0, 0, 0));
}
