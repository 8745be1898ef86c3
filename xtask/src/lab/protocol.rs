//! What the lab says about its tests while it runs them: lines on a port that only one program in it has open, the
//! tests' output by its length. Whatever a test, or the kernel, prints cannot be taken for a result.

use std::io::{self, BufRead, Read, Write};

/// Longest line, in bytes. Names of tests are shorter.
const MAX_LINE: u64 = 4096;

/// Most bytes of output in one message.
pub(crate) const MAX_OUTPUT: usize = 64 * 1024;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Passed,
    Failed,
    /// It said `skipped:`.
    Skipped,
    /// It was ended.
    TimedOut,
}

impl Status {
    const WORDS: [(Self, &'static str); 4] = [
        (Self::Passed, "ok"),
        (Self::Failed, "FAILED"),
        (Self::Skipped, "skipped"),
        (Self::TimedOut, "TIMED-OUT"),
    ];

    /// As it is shown and sent.
    pub(crate) fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(status, _)| *status == self).map_or("", |(_, word)| word)
    }

    fn of_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(_, of)| *of == word).map(|(status, _)| *status)
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// So many tests will be run.
    Plan(usize),
    /// This one is.
    Begin(String),
    /// It has printed this.
    Output(Vec<u8>),
    /// It has ended.
    End { status: Status, millis: u64 },
    /// All have ended, so many of them.
    Done(usize),
}

impl Message {
    /// Sends it.
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Plan(count) => writeln!(to, "plan {count}")?,
            Self::Begin(name) => writeln!(to, "begin {name}")?,
            Self::Output(bytes) => {
                writeln!(to, "output {}", bytes.len())?;
                to.write_all(bytes)?;
            }
            Self::End { status, millis } => writeln!(to, "end {} {millis}", status.word())?,
            Self::Done(count) => writeln!(to, "done {count}")?,
        }
        to.flush()
    }

    /// Receives one. `None` at the end of the stream, in the middle of a message too: the lab may go at any time.
    pub(crate) fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = Vec::new();
        from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        let Some(line) = line.strip_suffix(b"\n") else { return Ok(None) };
        let text = String::from_utf8_lossy(line).into_owned();
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, format!("no message: {text:?}"));
        let (kind, rest) = text.split_once(' ').ok_or_else(unknown)?;
        let number = |text: &str| text.parse::<usize>().map_err(|_| unknown());
        Ok(Some(match kind {
            "plan" => Self::Plan(number(rest)?),
            "begin" => Self::Begin(rest.to_owned()),
            "output" => {
                let length = number(rest)?;
                if length > MAX_OUTPUT {
                    return Err(unknown());
                }
                let mut bytes = vec![0; length];
                match from.read_exact(&mut bytes) {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                    done => done?,
                }
                Self::Output(bytes)
            }
            "end" => {
                let (word, millis) = rest.split_once(' ').ok_or_else(unknown)?;
                let status = Status::of_word(word).ok_or_else(unknown)?;
                Self::End { status, millis: millis.parse().map_err(|_| unknown())? }
            }
            "done" => Self::Done(number(rest)?),
            _ => return Err(unknown()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(bytes: &[u8]) -> io::Result<Vec<Message>> {
        let mut from = bytes;
        let mut messages = Vec::new();
        while let Some(message) = Message::read(&mut from)? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn messages_arrive_as_they_were_sent_whatever_a_test_prints() {
        let messages = [
            Message::Plan(2),
            Message::Begin("lab_kvm::a test".to_owned()),
            Message::Output(b"\nend ok 1\ndone 1\n\xff\0".to_vec()),
            Message::Output(Vec::new()),
            Message::End { status: Status::TimedOut, millis: 12 },
            Message::Done(1),
        ];
        let mut bytes = Vec::new();
        for message in &messages {
            message.write(&mut bytes).unwrap();
        }

        assert_eq!(read_all(&bytes).unwrap(), messages);
    }

    #[test]
    fn stream_that_breaks_off_has_no_half_messages() {
        for broken in ["do", "done 1", "output 5\nabc", ""] {
            assert_eq!(read_all(broken.as_bytes()).unwrap(), [], "{broken}");
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        for wrong in ["hello\n", "end fine 3\n", "plan -1\n", "output 65537\n", "end ok\n"] {
            assert!(read_all(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
