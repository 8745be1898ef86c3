//! Serial slots: virtio-serial ports named `agentiso.N`, one thread each, waiting for the host.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agentiso_guest::SERIAL_PORT_PREFIX;
use agentiso_guest::hello::{HelloScanner, Nonce};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::connection::{Connection, Lost};
use super::greeting::{Between, NoHello, next_hello};
use super::session;
use crate::agent::{Agent, start_thread};

const PORTS: &str = "/sys/class/virtio-ports";
/// Pause between two tries to open a port that its host has not acknowledged yet.
const OPEN_RETRY: Duration = Duration::from_millis(5);

/// The ports that have a thread.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    served: BTreeSet<OsString>,
}

impl Slots {
    /// Whether no port has been found yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.served.is_empty()
    }

    /// Starts a thread for each port that has our name and none yet.
    pub(crate) fn look(&mut self, agent: &Arc<Agent>) {
        let Ok(ports) = std::fs::read_dir(PORTS) else { return };
        for port in ports.flatten() {
            let device = port.file_name();
            let named = std::fs::read_to_string(port.path().join("name"))
                .is_ok_and(|name| name.trim_end().starts_with(SERIAL_PORT_PREFIX));
            if !named || self.served.contains(&device) {
                continue;
            }
            let path = Path::new("/dev").join(&device);
            let own = Arc::clone(agent);
            if start_thread("slot", move || serve_port(&own, &path)).is_ok() {
                self.served.insert(device);
            }
        }
    }
}

fn serve_port(agent: &Arc<Agent>, path: &Path) {
    let mut between = Between::Fresh(HelloScanner::new());
    let mut last = None;
    loop {
        let port = open_port(path);
        let Ok(mut connection) = Connection::on_port(port) else {
            // Descriptors will be free again.
            std::thread::sleep(Duration::from_secs(1));
            continue;
        };
        // A fault of the agent's own ends the connection, never the slot.
        let served =
            catch_unwind(AssertUnwindSafe(|| serve_open_port(agent, &mut connection, between, &mut last)));
        between = served.unwrap_or(Between::Unknown);
        // Closing the port discards what it holds.
    }
}

/// Serves one connection after the other until the port must be reset. Returns what is known of what comes then.
///
/// `last` is the nonce that was served last, whatever happened to the port since: its hello may be sent again, its request
/// must not be carried out again.
fn serve_open_port(
    agent: &Arc<Agent>,
    connection: &mut Connection,
    mut between: Between,
    last: &mut Option<Nonce>,
) -> Between {
    let mut next = None;
    loop {
        let hello = match next.take() {
            Some(hello) => hello,
            None => match next_hello(connection, &mut between, None) {
                Ok(hello) => hello,
                Err(NoHello::Reset | NoHello::Closed) => return Between::Unknown,
            },
        };
        if *last == Some(hello.hello) {
            continue;
        }
        if !connection.wait_for_host() {
            // Its request was not begun. A host that is there after all says hello again.
            between = Between::after_end(connection.forget_input());
            continue;
        }
        *last = Some(hello.hello);
        match session::run(agent, connection, &hello, None) {
            Ok(()) => between = Between::Framed,
            Err(Lost::Replaced(hello)) => next = Some(hello),
            // Everything was read: whatever comes is a new connection's.
            Err(Lost::Gone) => between = Between::after_end(connection.forget_input()),
            // The port's host is a new one, or none yet: what comes once the port was closed is a new connection's.
            Err(Lost::Detached) => return Between::Fresh(HelloScanner::new()),
            Err(Lost::Malformed(_) | Lost::Stalled | Lost::TooLarge) => return Between::Unknown,
        }
    }
}

/// Opens the port; waits while its host has not acknowledged it, or a process in the guest holds it.
fn open_port(path: &Path) -> OwnedFd {
    let mut pause = OPEN_RETRY;
    loop {
        match open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()) {
            Ok(port) => return port,
            Err(Errno::NXIO | Errno::NOENT | Errno::INTR) => {}
            Err(_) => pause = Duration::from_secs(1),
        }
        std::thread::sleep(pause);
    }
}
