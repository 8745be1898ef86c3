use std::os::fd::OwnedFd;

use super::*;

const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(10);
const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n{\"return\": {}, \"id\": 1}\n";

/// A client that was greeted, and the other end of its connection. The next command has id 2.
async fn client() -> (Qmp, UnixStream) {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(GREETING.as_bytes()).await.unwrap();
    let qmp = Qmp::greet(near, LATER).await.unwrap();
    let mut first = Vec::new();
    while !first.ends_with(b"\n") {
        far.read_buf(&mut first).await.unwrap();
    }
    assert!(String::from_utf8(first).unwrap().contains("qmp_capabilities"));
    (qmp, far)
}

/// What a first command makes of these bytes, which arrive one piece after the other.
async fn outcome(pieces: &[&str]) -> (Result<Value, QmpError>, Qmp) {
    let (mut qmp, mut far) = client().await;
    let pieces: Vec<String> = pieces.iter().map(|&piece| piece.to_owned()).collect();
    let peer = tokio::spawn(async move {
        for piece in pieces {
            far.write_all(piece.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        far
    });
    let result = qmp.execute("query-status", json!({}), Duration::from_secs(2)).await;
    drop(peer.await.unwrap());
    (result, qmp)
}

#[tokio::test]
async fn reply_to_the_command_is_returned() {
    let (result, _) = outcome(&["{\"return\": {\"a\": 1}, \"id\": 2}\n"]).await;

    assert_eq!(result.unwrap(), json!({"a": 1}));
}

#[tokio::test]
async fn reply_in_pieces_is_put_together() {
    let (result, _) = outcome(&["{\"return\"", ": {\"a\": 1}, \"i", "d\": 2}", "\n"]).await;

    assert_eq!(result.unwrap(), json!({"a": 1}));
}

#[tokio::test]
async fn events_between_are_kept_for_later() {
    let (result, mut qmp) =
        outcome(&["{\"event\": \"STOP\"}\n{\"event\": \"RESUME\"}\n{\"return\": {}, \"id\": 2}\n"]).await;

    result.unwrap();
    for name in ["STOP", "RESUME"] {
        assert_eq!(qmp.event("events", LATER).await.unwrap().event, name);
    }
}

#[tokio::test]
async fn event_that_is_not_there_yet_is_waited_for() {
    let (mut qmp, mut far) = client().await;
    let waiting = qmp.event("events", LATER);
    far.write_all(b"{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\n").await.unwrap();

    let event = waiting.await.unwrap();

    assert_eq!((event.event.as_str(), event.data), ("MIGRATION", json!({"status": "completed"})));
}

#[tokio::test]
async fn endless_events_take_bounded_memory() {
    let flood = "{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 1}}\n".repeat(10_000);
    let (result, qmp) = outcome(&[&flood, "{\"return\": {}, \"id\": 2}\n"]).await;

    result.unwrap();
    assert_eq!(qmp.events.len(), MAX_EVENTS);
}

#[tokio::test]
async fn refusal_is_a_typed_error_and_leaves_the_connection_usable() {
    let (mut qmp, mut far) = client().await;
    let refusal = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u001b[2J\"}, \"id\": 2}\n";
    far.write_all(refusal.as_bytes()).await.unwrap();
    far.write_all(b"{\"return\": {}, \"id\": 3}\n").await.unwrap();

    let first = qmp.execute::<Value>("stop", json!({}), LATER).await;
    let second = qmp.execute::<Value>("cont", json!({}), LATER).await;

    assert_eq!(first.unwrap_err().to_string(), "QEMU refused stop: no [2J (GenericError)");
    second.unwrap();
}

#[tokio::test]
async fn what_is_no_reply_to_the_command_ends_the_connection() {
    for bad in [
        "garbage\n",
        "\n",
        "{}\n",
        "[]\n",
        "{\"return\": {}}\n",
        "{\"return\": {}, \"id\": 1}\n",
        "{\"return\": {}, \"id\": 3}\n{\"return\": {}, \"id\": 2}\n",
        "{\"return\": {}, \"id\": \"2\"}\n",
        "{\"id\": 2}\n",
        "{\"return\": {}, \"error\": {\"class\": \"a\", \"desc\": \"b\"}, \"id\": 2}\n",
        "{\"event\": 7}\n",
        "\u{0}\n",
    ] {
        let (result, mut qmp) = outcome(&[bad]).await;

        let error = result.unwrap_err();
        assert!(
            matches!(error, QmpError::Malformed { .. } | QmpError::WrongReply { .. }),
            "{bad:?}: {error}"
        );
        let next = qmp.execute::<Value>("stop", json!({}), LATER).await;
        assert!(matches!(next, Err(QmpError::Broken { .. })), "{bad:?}");
    }
}

#[tokio::test]
async fn line_without_end_is_refused() {
    let (mut qmp, mut far) = client().await;
    let peer = tokio::spawn(async move {
        // Ends when the client hangs up.
        while far.write_all(&[b'x'; 4096]).await.is_ok() {}
    });

    let result = qmp.execute::<Value>("stop", json!({}), LATER).await;

    assert!(matches!(result, Err(QmpError::TooLong { .. })));
    assert!(qmp.unread.capacity() < 3 * MAX_LINE_BYTES);
    drop(qmp);
    peer.await.unwrap();
}

#[tokio::test]
async fn silence_is_a_timeout_and_a_late_reply_answers_nothing() {
    let (mut qmp, mut far) = client().await;

    let late = qmp.execute::<Value>("stop", json!({}), SOON).await;
    far.write_all(b"{\"return\": {\"late\": true}, \"id\": 2}\n").await.unwrap();
    let next = qmp.execute::<Value>("query-status", json!({}), LATER).await;

    assert!(matches!(late, Err(QmpError::Timeout { command: "stop", .. })));
    assert!(matches!(next, Err(QmpError::Broken { .. })));
}

#[tokio::test]
async fn cancelled_command_ends_the_connection() {
    let (mut qmp, _far) = client().await;

    let cancelled = timeout(SOON, qmp.execute::<Value>("stop", json!({}), LATER)).await;
    let next = qmp.execute::<Value>("cont", json!({}), LATER).await;

    assert!(cancelled.is_err() && matches!(next, Err(QmpError::Broken { .. })));
}

#[tokio::test]
async fn closed_connection_is_said_so() {
    let (mut qmp, far) = client().await;
    drop(far);

    let result = qmp.execute::<Value>("stop", json!({}), LATER).await;

    assert!(matches!(result, Err(QmpError::Closed { .. } | QmpError::Io { .. })));
}

#[tokio::test]
async fn greeting_of_something_else_is_refused() {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"{\"hello\": 1}\n").await.unwrap();

    assert!(matches!(Qmp::greet(near, LATER).await, Err(QmpError::Malformed { .. })));
}

#[tokio::test]
async fn events_before_the_greeting_are_somebody_else_s() {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"{\"event\": \"STOP\"}\n{\"event\": \"JOB_STATUS_CHANGE\", \"data\": {}}\n")
        .await
        .unwrap();
    far.write_all(GREETING.as_bytes()).await.unwrap();

    let qmp = Qmp::greet(near, LATER).await.unwrap();

    assert!(qmp.events.is_empty());
}

#[tokio::test]
async fn no_greeting_is_a_timeout() {
    let (near, _far) = UnixStream::pair().unwrap();

    assert!(matches!(Qmp::greet(near, SOON).await, Err(QmpError::Timeout { .. })));
}

#[tokio::test]
async fn descriptor_travels_with_its_command() {
    let (mut qmp, far) = client().await;
    let (read, write) = std::io::pipe().unwrap();
    let far = far.into_std().unwrap();
    far.set_nonblocking(false).unwrap();
    let peer = std::thread::spawn(move || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let mut fds: Vec<OwnedFd> = Vec::new();
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut buffers = [io::IoSliceMut::new(&mut bytes)];
            let flags = rustix::net::RecvFlags::empty();
            let count = rustix::net::recvmsg(&far, &mut buffers, &mut ancillary, flags).unwrap().bytes;
            line.extend_from_slice(&bytes[..count]);
            for message in ancillary.drain() {
                if let rustix::net::RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
        }
        std::io::Write::write_all(&mut &far, b"{\"return\": {\"fdset-id\": 5}, \"id\": 2}\n").unwrap();
        (line, fds)
    });
    let reply: Value = qmp.execute_with_fd("add-fd", json!({}), write.as_fd(), LATER).await.unwrap();

    let (line, fds) = peer.join().unwrap();
    let received = fds.into_iter().map(std::fs::File::from).collect::<Vec<_>>();
    drop(write);
    std::io::Write::write_all(&mut &received[0], b"through").unwrap();
    drop(received);
    let mut text = String::new();
    io::Read::read_to_string(&mut { read }, &mut text).unwrap();
    assert_eq!(reply, json!({"fdset-id": 5}));
    assert!(String::from_utf8(line).unwrap().contains("add-fd"));
    assert_eq!(text, "through");
}
