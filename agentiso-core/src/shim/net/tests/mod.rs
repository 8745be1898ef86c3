//! The network process against a machine that speaks Ethernet to it, in this process.
//!
//! What needs no privilege runs anywhere. What needs an internet runs in network namespaces of its own, as root; it
//! says that it was skipped where it cannot (see `lab`).

mod bulk;
mod confined;
mod forwards;
mod guest;
mod hostile;
mod lab;
mod link;
mod outward;
mod policy;
mod stack;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::IpAddr,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    thread::JoinHandle,
    time::Duration,
};

use self::guest::Guest;
use super::Shim;
use crate::network::{
    NetworkPolicy,
    user::protocol::{Counters, Reply, Request, body_len, encode},
};
use crate::types::{GuestPort, HostPort};

/// Longest wait for anything that has to happen.
const DEADLINE: Duration = Duration::from_secs(60);

/// A network process in a thread of the network namespace that it was made in.
struct Running {
    _folder: tempfile::TempDir,
    control: std::path::PathBuf,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

/// Starts one, with the machine at its other end.
fn start() -> (Running, Guest) {
    let (shim, stream) = raw();
    (shim, Guest::new(stream))
}

/// Starts one, with the bare socket at its other end.
fn raw() -> (Running, UnixStream) {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("net.sock");
    let listener = UnixListener::bind(&control).unwrap();
    let (qemu, link) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || Shim::new(OwnedFd::from(link), OwnedFd::from(listener))?.run());
    (Running { _folder: folder, control, thread: Some(thread) }, qemu)
}

impl Running {
    fn ask(&self, request: &Request) -> Reply {
        let mut stream = UnixStream::connect(&self.control).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&encode(request).unwrap()).unwrap();
        let mut header = [0; 4];
        stream.read_exact(&mut header).unwrap();
        let mut body = vec![0; body_len(header).unwrap()];
        stream.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn counters(&self) -> Counters {
        let Reply::Status { counters } = self.ask(&Request::Status) else { panic!("another reply") };
        counters
    }

    /// Lets the machine work until no TCP flow is left.
    fn until_no_flow(&self, guest: &mut Guest) {
        guest.until(|_| (self.counters().tcp_flows == 0).then_some(()));
    }

    fn set_policy(&self, policy: NetworkPolicy, resolvers: &[&str]) {
        let resolvers: Vec<IpAddr> = resolvers.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(self.ask(&Request::SetPolicy { policy, resolvers }), Reply::Done);
    }

    fn forward(&self, guest: u16, host: Option<u16>) -> Reply {
        self.ask(&Request::AddForward { guest: guest_port(guest), host: host.map(host_port) })
    }

    /// Adds a forward from a free port, which it returns.
    fn forwarded(&self, guest: u16) -> u16 {
        let Reply::Forwarded { host } = self.forward(guest, None) else { panic!("another reply") };
        host.get()
    }

    fn remove_forward(&self, guest: u16) {
        assert_eq!(self.ask(&Request::RemoveForward { guest: guest_port(guest) }), Reply::Done);
    }

    fn forwards(&self) -> BTreeMap<GuestPort, HostPort> {
        let Reply::Forwards { forwards } = self.ask(&Request::Forwards) else { panic!("another reply") };
        forwards.into_iter().collect()
    }

    /// Ends it by closing the machine's end, and says how it ended.
    fn end(mut self, guest: impl Drop) -> std::io::Result<()> {
        drop(guest);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn guest_port(port: u16) -> GuestPort {
    GuestPort::new(port.into()).unwrap()
}

fn host_port(port: u16) -> HostPort {
    HostPort::new(port.into()).unwrap()
}

fn internet() -> NetworkPolicy {
    NetworkPolicy { allow_internet: true, ..NetworkPolicy::default() }
}

/// Bytes that look random and are the same each time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
