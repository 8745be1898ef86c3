//! QEMU's side of the machine protocol, spoken by whoever broke into it.

use std::{
    io::Write,
    os::unix::net::UnixStream as StdStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{net::UnixStream, runtime::Builder};

use super::qmp::{Qmp, QmpError};

/// Bytes that a socket takes without anybody reading.
const MAX_BYTES: usize = 64 * 1024;

/// All that QEMU says is there from the beginning, and then its end: nothing has to be waited for.
const LIMIT: Duration = Duration::from_secs(10);

/// Greets and runs two commands against a QEMU that says `bytes` and hangs up.
///
/// # Panics
/// It had to be waited for; a client that failed answered once more; a reply without the command's id was taken.
pub fn qmp(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
    let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
    let Ok((ours, mut theirs)) = StdStream::pair() else { return };
    if theirs.write_all(bytes).is_err() || theirs.shutdown(std::net::Shutdown::Write).is_err() {
        return;
    }
    let begun = Instant::now();
    runtime.block_on(async {
        if ours.set_nonblocking(true).is_ok()
            && let Ok(stream) = UnixStream::from_std(ours)
        {
            talk(stream, bytes).await;
        }
    });
    assert!(begun.elapsed() < LIMIT / 2, "a QEMU that has hung up is waited for");
}

async fn talk(stream: UnixStream, said: &[u8]) {
    let Ok(mut qmp) = Qmp::greet(stream, LIMIT).await else { return };
    assert!(answers(said, 1), "a greeting that was not said");
    for (number, command) in [(2, "query-status"), (3, "cont")] {
        let done = qmp.execute::<Value>(command, json!({}), LIMIT).await;
        match done {
            Ok(_) | Err(QmpError::Refused { .. }) => {
                assert!(answers(said, number), "an answer to {command} that was not given");
            }
            // A result of another type than was asked for: the reply itself was whole.
            Err(QmpError::Malformed { .. }) => {}
            Err(_) => {
                let again = qmp.execute::<Value>(command, json!({}), LIMIT).await;
                assert!(matches!(again, Err(QmpError::Broken { .. })), "a broken client goes on: {again:?}");
            }
        }
    }
    let _ = qmp.event("an event", LIMIT).await;
    let _ = qmp.wait_event("an event", |event| event.event == "STOP", LIMIT).await;
}

/// Whether one of the lines is an answer to the command with this number.
fn answers(said: &[u8], number: u64) -> bool {
    said.split(|byte| *byte == b'\n').any(|line| {
        serde_json::from_slice::<Value>(line)
            .is_ok_and(|line| line.get("id").and_then(Value::as_u64) == Some(number))
    })
}
