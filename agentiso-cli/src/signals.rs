//! Signals that ask us to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    error::CliError,
    exit::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
};

/// The signals that ask a program to end. While this exists, and ever after, they no longer end it by themselves.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Signals {
    /// Begins to listen.
    pub(crate) fn new() -> Result<Self, CliError> {
        let listen =
            |kind| signal(kind).map_err(|source| CliError::local("could not listen for signals", source));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            quit: listen(SignalKind::quit())?,
        })
    }

    /// Waits for the next one and returns its number. Cancel safe.
    pub(crate) async fn next(&mut self) -> u8 {
        // A stream of signals never ends while the runtime lives.
        tokio::select! {
            _ = self.interrupt.recv() => SIGINT,
            _ = self.terminate.recv() => SIGTERM,
            _ = self.hangup.recv() => SIGHUP,
            _ = self.quit.recv() => SIGQUIT,
        }
    }

    /// Awaits the future, unless a signal comes first: the future is dropped then, which undoes what it had begun.
    pub(crate) async fn unless<T>(
        &mut self,
        future: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        tokio::select! {
            result = future => result,
            signal = self.next() => Err(CliError::Interrupted { signal }),
        }
    }
}

/// Does something, unless a signal comes first.
pub(crate) async fn interruptible<T>(
    future: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    Signals::new()?.unless(future).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signal_drops_the_work_and_is_named() {
        let (held, dropped) = tokio::sync::oneshot::channel::<()>();
        let work = async move {
            let _held = held;
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
            std::future::pending::<Result<(), CliError>>().await
        };

        let result = interruptible(work).await;

        assert!(matches!(result, Err(CliError::Interrupted { signal: SIGTERM })), "{result:?}");
        assert!(dropped.await.is_err());
    }
}
