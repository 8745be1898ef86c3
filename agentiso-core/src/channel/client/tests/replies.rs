use std::{collections::BTreeMap, time::Duration};

use agentiso_guest::{
    hello::Nonce,
    message::{Reply, Request},
};
use tokio::time::{Instant, sleep};

use super::fake::{encoded, serving};
use crate::channel::client::*;

fn entry(name: &str) -> Entry {
    Entry { name: name.to_owned(), kind: EntryKind::File, size: 1, mode: 0o644, modified: 0, target: None }
}

fn job(id: u64) -> Job {
    let command = "sleep\u{1b}[2J".to_owned();
    Job { id, pid: 9, command, exit: None, stdout_bytes: 0, stderr_bytes: 0 }
}

/// A client of an agent that answers every request with these bytes, sealed for whom `nonce` says.
fn answering(bytes: Vec<u8>) -> GuestClient {
    serving(move |_, mut agent| {
        let bytes = bytes.clone();
        async move {
            agent.raw(&bytes).await;
            agent.stay_silent().await;
        }
    })
}

fn answering_with(reply: &Reply) -> GuestClient {
    answering(encoded(reply, &[], Nonce::from_bytes([0; 16])))
}

fn is_protocol<T>(result: &Result<T, GuestError>) -> bool {
    matches!(result, Err(GuestError::Protocol { .. }))
}

#[tokio::test]
async fn reply_of_another_operation_is_refused_everywhere() {
    let entry = answering_with(&Reply::Entry { entry: entry("a") });
    assert!(is_protocol(&entry.ping().await));
    assert!(is_protocol(&entry.info().await));
    assert!(is_protocol(&entry.job_list().await));
    assert!(is_protocol(&entry.job_poll(1).await));
    assert!(is_protocol(&entry.job_wait(1, None).await));
    assert!(is_protocol(&entry.job_start(Command::default()).await));
    assert!(is_protocol(&entry.list_files("/").await));
    assert!(is_protocol(&entry.read_file("/a", 0, 1).await));
    assert!(is_protocol(&entry.edit_file("/a", "b", "c").await));
    assert!(is_protocol(&entry.configure(Configure::default()).await));
    assert!(is_protocol(&entry.env_set(BTreeMap::new()).await));
    assert!(is_protocol(&entry.env_clear().await));
    assert!(is_protocol(&entry.freeze(uuid::Uuid::from_u128(1), Duration::from_secs(1)).await));
    assert!(is_protocol(&entry.thaw(uuid::Uuid::from_u128(1)).await));
    assert!(is_protocol(&entry.sync().await));
    assert!(is_protocol(&entry.shutdown(Duration::ZERO).await));
    assert!(is_protocol(&entry.exec_collect(ExecSpec::shell(""), CollectOptions::default()).await));
    assert!(is_protocol(&entry.write_file("/a", WriteOptions::default(), &mut &b"x"[..]).await));

    let done = answering_with(&Reply::Done);
    assert!(is_protocol(&done.stat_file("/a").await));
    assert!(is_protocol(&done.job_start(Command::default()).await));
    assert!(is_protocol(&done.exec_collect(ExecSpec::shell(""), CollectOptions::default()).await));
    assert!(is_protocol(&done.job_attach(1).await.unwrap().next().await));
}

#[tokio::test]
async fn length_out_of_bounds_is_an_error_at_once() {
    for length in [0, 128 * 1024 + 1, 32 << 20, (32 << 20) + 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let result = answering(length.to_be_bytes().to_vec()).ping().await;

        assert!(is_protocol(&result), "{length}: {result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn truncated_reply_is_given_up_at_its_deadline() {
    let client = answering(b"\0\0\x01\0{".to_vec());
    let began = Instant::now();

    let result = client.ping().await;

    assert!(matches!(result, Err(GuestError::Timeout { after: CHUNK_DEADLINE, .. })), "{result:?}");
    assert_eq!(began.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn reply_of_one_byte_a_second_is_given_up_at_its_deadline() {
    let client = serving(|_, mut agent| async move {
        let reply = Reply::Error { code: ErrorCode::Failed, message: "x".repeat(100) };
        for byte in encoded(&reply, &[], Nonce::from_bytes([0; 16])) {
            agent.raw(&[byte]).await;
            sleep(Duration::from_secs(1)).await;
        }
    });

    let result = client.ping().await;

    assert!(matches!(result, Err(GuestError::Timeout { .. })), "{result:?}");
}

#[tokio::test]
async fn deeply_nested_or_wide_json_is_an_error() {
    let nested = "[".repeat(100_000);
    let wide = format!("{{\"x\":[{}0],\"re\":\"jobs\",\"jobs\":[]}}", "0,".repeat(60_000));
    for json in [nested, wide, "{}".to_owned(), "null".to_owned(), "\u{0}".to_owned()] {
        let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());

        let result = answering(bytes).ping().await;

        assert!(is_protocol(&result), "{result:?}");
    }
}

#[tokio::test]
async fn payload_sealed_for_another_connection_is_refused() {
    let client = answering(encoded(&Reply::Data { payload: 3 }, b"old", Nonce::from_bytes([7; 16])));

    let result = client.read_file("/a", 0, 100).await;

    assert!(is_protocol(&result), "{result:?}");
}

#[tokio::test]
async fn lost_connection_is_told_from_an_answer() {
    let client = serving(|_, agent| async move { drop(agent) });

    let result = client.configure(Configure::default()).await;

    assert!(matches!(result, Err(GuestError::Disconnected { .. })), "{result:?}");
}

#[tokio::test]
async fn shutdown_that_ends_the_connection_has_succeeded() {
    let client = serving(|request, agent| async move {
        assert_eq!(request, Request::Shutdown { grace_ms: 2000 });
        drop(agent);
    });

    client.shutdown(Duration::from_secs(2)).await.unwrap();
}

#[tokio::test]
async fn refusal_is_cleaned_and_cut() {
    let message = format!("no such file\n\x1b[2J{}", "x".repeat(5000));
    let client = answering_with(&Reply::Error { code: ErrorCode::NotFound, message });

    let error = client.stat_file("/a").await.unwrap_err();

    let text = error.to_string();
    assert!(text.starts_with("could not describe a file: no such file  [2Jxxx"), "{text}");
    assert!(text.chars().count() < 1100 && !text.contains('\n'), "{text}");
    assert_eq!(error.exit_status(), 127);
}

#[tokio::test]
async fn texts_that_the_guest_tells_of_itself_are_cleaned() {
    let info = GuestInfo {
        kernel: "6.1\n".to_owned(),
        hostname: "\x1b]0;x\x07".to_owned(),
        uptime_ms: 1,
        memory_kib: 2,
        memory_available_kib: 3,
        root_bytes: 4,
        root_free_bytes: 5,
    };
    let client = answering_with(&Reply::Info { info: Box::new(info) });

    let info = client.info().await.unwrap();

    assert_eq!((&*info.kernel, &*info.hostname, info.root_free_bytes), ("6.1 ", " ]0;x ", 5));
}

#[tokio::test(start_paused = true)]
async fn sync_has_fifteen_seconds() {
    let client = serving(|_, agent| agent.stay_silent());
    let began = Instant::now();

    let result = client.sync().await;

    assert!(matches!(result, Err(GuestError::Timeout { after: SYNC_DEADLINE, .. })), "{result:?}");
    assert_eq!(began.elapsed().as_secs(), 15);
}

#[tokio::test]
async fn jobs_are_listed_with_clean_commands() {
    let client = answering_with(&Reply::Jobs { jobs: vec![job(1), job(2)] });

    let jobs = client.job_list().await.unwrap();

    assert_eq!(
        jobs.iter().map(|job| (job.id, &*job.command)).collect::<Vec<_>>(),
        [(1, "sleep [2J"), (2, "sleep [2J")]
    );
}

#[tokio::test]
async fn more_jobs_than_an_agent_keeps_are_refused() {
    let result = answering_with(&Reply::Jobs { jobs: (0..513).map(job).collect() }).job_list().await;

    assert!(is_protocol(&result), "{result:?}");
}

#[tokio::test]
async fn job_report_has_output_and_state() {
    let client = serving(|request, mut agent| async move {
        assert_eq!(request, Request::JobWait { job: 5, timeout_ms: Some(1500) });
        agent.stdout(b"a").await;
        agent.stderr(b"b").await;
        agent.stdout(b"c").await;
        agent.reply(Reply::Job { job: job(5) }).await;
    });

    let report = client.job_wait(5, Some(Duration::from_millis(1500))).await.unwrap();

    assert_eq!((report.stdout, report.stderr, report.job.id), (b"ac".to_vec(), b"b".to_vec(), 5));
}

#[tokio::test]
async fn job_report_of_another_job_is_refused() {
    let result = answering_with(&Reply::Job { job: job(6) }).job_poll(5).await;

    assert!(is_protocol(&result), "{result:?}");
}

#[tokio::test]
async fn job_report_with_endless_output_is_refused() {
    let client = serving(|_, mut agent| async move { while agent.stdout(&[b'x'; 60_000]).await {} });

    let result = client.job_poll(5).await;

    assert!(is_protocol(&result), "{result:?}");
}
