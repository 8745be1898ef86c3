//! Requests that carry secrets: values of environment variables, entropy. What this host held of them is overwritten when
//! it is no longer needed, so that neither a later bug that shows memory nor a core dump of the caller brings them back.

use std::{collections::BTreeMap, hint::black_box, io};

use agentiso_guest::message::{Command, Request};

/// Overwrites all that a buffer holds or held, and empties it.
pub(super) fn wipe(bytes: &mut Vec<u8>) {
    bytes.clear();
    // Up to the capacity: what lies behind the present end was there before.
    bytes.resize(bytes.capacity(), 0);
    // Nobody reads these zeros, so without this the compiler may leave them out.
    black_box(bytes.as_slice());
    bytes.clear();
}

fn wipe_text(text: String) {
    wipe(&mut text.into_bytes());
}

/// Whether a request carries secrets.
pub(super) fn is_secret(request: &Request) -> bool {
    match request {
        Request::EnvSet { .. } => true,
        Request::Exec { command, .. } | Request::JobStart { command } => !command.env.is_empty(),
        Request::Configure(configuration) => configuration.entropy.is_some(),
        _ => false,
    }
}

/// How long a request will be. A buffer that grows while it is filled leaves copies behind.
pub(super) fn encoded_len(request: &Request) -> usize {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // What cannot be encoded is told when it is.
    let _ = serde_json::to_writer(&mut counter, request);
    counter.0
}

/// A request that is overwritten when it is dropped, as far as it is secret.
pub(super) struct Guarded(pub(super) Request);

impl Drop for Guarded {
    fn drop(&mut self) {
        match &mut self.0 {
            Request::EnvSet { vars } => {
                std::mem::take(vars).into_values().flatten().for_each(wipe_text);
            }
            Request::Exec { command, .. } | Request::JobStart { command } => wipe_command(command),
            Request::Configure(configuration) => {
                configuration.entropy.take().into_iter().for_each(wipe_text);
            }
            _ => {}
        }
    }
}

fn wipe_command(command: &mut Command) {
    let env: BTreeMap<String, String> = std::mem::take(&mut command.env);
    env.into_values().for_each(wipe_text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiped_buffer_holds_nothing_of_what_it_held() {
        let mut bytes = b"secret and more".to_vec();
        bytes.truncate(6);

        wipe(&mut bytes);
        let room = bytes.capacity();
        bytes.resize(room, 1);

        assert!(room >= 15);
        assert!(bytes.iter().all(|byte| *byte == 1));
    }

    #[test]
    fn length_is_that_of_the_encoded_request() {
        let vars = [("A".to_owned(), Some("\"\u{1}x".to_owned()))].into();
        let request = Request::EnvSet { vars };
        let mut out = Vec::new();
        agentiso_guest::frame::encode_plain(&mut out, &request).unwrap();
        assert_eq!(encoded_len(&request) + 4, out.len());
    }
}
