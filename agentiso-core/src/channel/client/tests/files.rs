use std::time::Duration;

use agentiso_guest::message::{Input, Reply, Request};
use tokio::time::Instant;

use super::fake::{Agent, serving};
use crate::channel::client::*;

fn is_protocol<T>(result: &Result<T, GuestError>) -> bool {
    matches!(result, Err(GuestError::Protocol { .. }))
}

fn entry(name: impl Into<String>) -> Entry {
    Entry { name: name.into(), kind: EntryKind::File, size: 1, mode: 0o644, modified: 0, target: None }
}

/// All data until its end.
async fn data_to_end(agent: &mut Agent) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let frame = agent.input().await?;
        match frame.message {
            Input::End => return Some(all),
            _ => all.extend(frame.payload),
        }
    }
}

#[tokio::test]
async fn file_is_read_in_chunks() {
    let client = serving(|request, mut agent| async move {
        assert_eq!(request, Request::FileRead { path: "/f".to_owned(), offset: 7, limit: Some(10) });
        agent.data(b"abcdef").await;
        agent.data(b"ghij").await;
        agent.reply(Reply::Done).await;
    });

    assert_eq!(client.read_file("/f", 7, 10).await.unwrap(), b"abcdefghij");
}

#[tokio::test]
async fn file_longer_than_asked_for_is_refused() {
    let client = serving(|_, mut agent| async move {
        agent.data(b"abcdef").await;
        agent.data(b"ghijk").await;
        agent.reply(Reply::Done).await;
    });

    let result = client.read_file("/f", 0, 10).await;

    assert!(is_protocol(&result), "{result:?}");
}

#[tokio::test]
async fn endless_file_is_refused_at_the_limit() {
    let client = serving(|_, mut agent| async move { while agent.data(&[0; 50_000]).await {} });

    let result = client.read_file("/f", 0, 1 << 20).await;

    assert!(is_protocol(&result), "{result:?}");
}

#[tokio::test]
async fn empty_chunks_without_end_are_refused() {
    let client = serving(|_, mut agent| async move { while agent.data(b"").await {} });

    let result = client.read_file("/f", 0, 10).await;

    assert!(is_protocol(&result), "{result:?}");
}

#[tokio::test]
async fn file_is_copied_to_a_writer() {
    let client = serving(|_, mut agent| async move {
        for _ in 0..40 {
            agent.data(&[b'x'; 1 << 20]).await;
        }
        agent.reply(Reply::Done).await;
    });
    let mut sink = tokio::io::sink();

    let total = client.read_file_to("/f", FileRange::default(), &mut sink).await.unwrap();

    assert_eq!(total, 40 << 20);
}

#[tokio::test(start_paused = true)]
async fn stalled_read_ends_thirty_seconds_after_its_last_chunk() {
    let client = serving(|_, mut agent| async move {
        agent.data(b"x").await;
        agent.stay_silent().await;
    });
    let began = Instant::now();

    let result = client.read_file("/f", 0, 10).await;

    assert!(matches!(result, Err(GuestError::Timeout { .. })), "{result:?}");
    assert_eq!(began.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn file_is_written_in_chunks_and_confirmed() {
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 253) as u8).collect();
    let expected = content.clone();
    let client = serving(move |request, mut agent| {
        let expected = expected.clone();
        async move {
            let write = Request::FileWrite { path: "/f".to_owned(), mode: Some(0o600), parents: true };
            assert_eq!(request, write);
            let received = data_to_end(&mut agent).await.unwrap();
            assert!(received == expected, "{} bytes", received.len());
            agent.reply(Reply::Done).await;
        }
    });
    let options = WriteOptions { mode: Some(0o600), parents: true };

    let total = client.write_file("/f", options, &mut &content[..]).await.unwrap();

    assert_eq!(total, 1_000_000);
}

#[tokio::test]
async fn guest_that_fails_early_says_why_while_data_is_still_being_sent() {
    let open = serving(|_, mut agent| async move {
        agent.input().await;
        let message = "disk full".to_owned();
        agent.reply(Reply::Error { code: ErrorCode::Exhausted, message }).await;
        std::future::pending::<()>().await;
    });
    let closing = serving(|_, mut agent| async move {
        let message = "disk full".to_owned();
        agent.reply(Reply::Error { code: ErrorCode::Exhausted, message }).await;
    });

    for client in [open, closing] {
        let result = client.write_file("/f", WriteOptions::default(), &mut &vec![0; 10 << 20][..]).await;

        assert!(matches!(result, Err(GuestError::Refused { code: ErrorCode::Exhausted, .. })), "{result:?}");
    }
}

#[tokio::test]
async fn confirmation_before_the_end_is_refused() {
    let client = serving(|_, mut agent| async move {
        agent.reply(Reply::Done).await;
        agent.stay_silent().await;
    });

    let result = client.write_file("/f", WriteOptions::default(), &mut &vec![0; 10 << 20][..]).await;

    assert!(is_protocol(&result), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn guest_that_takes_no_data_is_given_up_after_thirty_seconds() {
    let client = serving(|_, agent| async move {
        let _held = agent;
        std::future::pending::<()>().await;
    });
    let began = Instant::now();

    let result = client.write_file("/f", WriteOptions::default(), &mut &vec![0; 1 << 20][..]).await;

    assert!(matches!(result, Err(GuestError::Timeout { .. })), "{result:?}");
    assert_eq!(began.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn dropped_sink_never_says_end() {
    let (told, heard) = tokio::sync::oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let client = serving(move |_, mut agent| {
        let told = told.lock().unwrap().take().unwrap();
        async move {
            told.send(data_to_end(&mut agent).await).unwrap();
        }
    });
    let mut sink = client.create_file("/f", WriteOptions::default()).await.unwrap();
    sink.write(b"part").await.unwrap();

    drop(sink);

    assert_eq!(heard.await.unwrap(), None);
}

#[tokio::test]
async fn failing_reader_of_the_caller_is_told_apart() {
    struct Broken;
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::Error::other("broken")))
        }
    }
    let client = serving(|_, agent| agent.stay_silent());

    let result = client.write_file("/f", WriteOptions::default(), &mut Broken).await;

    assert!(matches!(result, Err(GuestError::Local { .. })), "{result:?}");
}

#[tokio::test]
async fn folder_is_listed_from_several_replies() {
    let client = serving(|_, mut agent| async move {
        for part in 0..3 {
            let entries = (0..512).map(|n| entry(format!("{part}-{n}"))).collect();
            agent.reply(Reply::Entries { entries }).await;
        }
        agent.reply(Reply::Done).await;
    });

    assert_eq!(client.list_files("/").await.unwrap().len(), 1536);
}

#[tokio::test]
async fn endless_or_empty_lists_are_refused() {
    let endless = serving(|_, mut agent| async move {
        let entries: Vec<_> = (0..512).map(|n| entry(n.to_string())).collect();
        while agent.reply(Reply::Entries { entries: entries.clone() }).await {}
    });
    let empty =
        serving(
            |_, mut agent| async move { while agent.reply(Reply::Entries { entries: Vec::new() }).await {} },
        );
    let crowded = serving(|_, mut agent| async move {
        let entries = (0..513).map(|n| entry(n.to_string())).collect();
        agent.reply(Reply::Entries { entries }).await;
        agent.stay_silent().await;
    });
    let long = serving(|_, mut agent| async move {
        let entries: Vec<_> = (0..500).map(|_| entry("x".repeat(8000))).collect();
        while agent.reply(Reply::Entries { entries: entries.clone() }).await {}
    });

    for client in [endless, empty, crowded, long] {
        let result = client.list_files("/").await;

        assert!(is_protocol(&result), "{:?}", result.err());
    }
}

#[tokio::test]
async fn names_that_are_no_component_are_refused() {
    for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b"] {
        let client = serving(move |_, mut agent| async move {
            agent.reply(Reply::Entries { entries: vec![entry(name)] }).await;
            agent.reply(Reply::Done).await;
        });

        let result = client.list_files("/").await;

        assert!(is_protocol(&result), "{name:?}");
    }
}

#[tokio::test]
async fn name_of_a_described_path_is_checked() {
    for (name, is_fine) in [("a", true), ("/", true), ("", true), ("..", false), ("a/b", false)] {
        let client = serving(move |_, mut agent| async move {
            agent.reply(Reply::Entry { entry: entry(name) }).await;
        });

        assert_eq!(client.stat_file("/x").await.is_ok(), is_fine, "{name:?}");
    }
}

#[tokio::test]
async fn archives_stream_both_ways() {
    let client = serving(|request, mut agent| async move {
        match request {
            Request::ArchiveRead { follow: true, .. } => {
                agent.data(b"tar").await;
                agent.reply(Reply::Done).await;
            }
            Request::ArchiveWrite { compression: Compression::Detect, preserve: true, .. } => {
                assert_eq!(data_to_end(&mut agent).await.unwrap(), b"tartar");
                agent.reply(Reply::Done).await;
            }
            other => panic!("{other:?}"),
        }
    });

    let mut stream = client.read_archive("/d", true).await.unwrap();
    assert_eq!(stream.chunk().await.unwrap(), Some(b"tar".to_vec()));
    assert_eq!(stream.chunk().await.unwrap(), None);
    assert_eq!(stream.chunk().await.unwrap(), None);
    let mut sink = client.write_archive("/d", Compression::Detect, true).await.unwrap();
    sink.write(b"tar").await.unwrap();
    sink.write(b"tar").await.unwrap();
    sink.finish().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn freeze_waits_as_long_as_it_was_told() {
    let client = serving(|request, agent| async move {
        assert!(matches!(request, Request::Freeze { timeout_ms: 2000, .. }));
        agent.stay_silent().await;
    });
    let began = Instant::now();

    let result = client.freeze(uuid::Uuid::from_u128(1), Duration::from_secs(2)).await;

    assert!(matches!(result, Err(GuestError::Timeout { .. })), "{result:?}");
    assert_eq!(began.elapsed().as_secs(), 7);
}
