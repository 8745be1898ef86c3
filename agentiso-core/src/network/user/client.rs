//! The manager's end of a shim's control socket.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{AtFlags, Mode, OFlags};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::protocol::{Reply, Request, body_len, encode};

/// The control socket's name in a machine's run folder.
const SOCKET: &str = "net.sock";

/// How long a shim may take to answer. It does in less than a millisecond, unless the host is starved.
const LIMIT: Duration = Duration::from_secs(10);

/// A machine's run folder, opened, so that its path may have any length: that of a socket may not.
pub(super) struct RunFolder(OwnedFd);

impl RunFolder {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", self.0.as_raw_fd()))
    }

    /// Listens on the control socket, anew if there was one.
    pub(super) fn listen(&self) -> io::Result<UnixListener> {
        self.remove_socket()?;
        UnixListener::bind(self.socket())
    }

    /// Removes the control socket, if there is one.
    pub(super) fn remove_socket(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.0, SOCKET, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Connects and asks one thing.
    pub(super) async fn ask(&self, request: &Request) -> io::Result<Reply> {
        self.connect().await?.ask(request).await
    }

    /// Connects, for several questions.
    pub(super) async fn connect(&self) -> io::Result<Client> {
        Ok(Client { stream: UnixStream::connect(self.socket()).await? })
    }
}

/// A connection to a shim.
pub(super) struct Client {
    stream: UnixStream,
}

impl Client {
    /// Asks one thing.
    pub(super) async fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        let message = encode(request)?;
        tokio::time::timeout(LIMIT, self.exchange(&message)).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer within 10 seconds"))
        })
    }

    async fn exchange(&mut self, message: &[u8]) -> io::Result<Reply> {
        self.stream.write_all(message).await?;
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).await?;
        let mut body = Vec::new();
        let len = body_len(header)?;
        // Grows with what arrives, not with what was announced.
        (&mut self.stream).take(len as u64).read_to_end(&mut body).await?;
        if body.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&body)?)
    }
}

/// Whether an error says that there is no shim any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof)
}
