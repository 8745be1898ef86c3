//! Ports of the host's loopback that lead to ports of the machine.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
};

use super::{
    core::{Core, Token},
    frames,
    tcp::TcpTable,
};
use crate::network::user::protocol::{MAX_FORWARDS, Reply};
use crate::types::{GuestPort, HostPort};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// How often a free port is looked for that is free on both loopback addresses.
const MAX_PICKS: usize = 64;

/// How long accepting rests when the host has run out of something.
const REST: Duration = Duration::from_millis(100);

/// The forwards in force.
pub(super) struct Forwards {
    ports: BTreeMap<GuestPort, HostPort>,
    listeners: HashMap<u64, Listener>,
}

struct Listener {
    guest: GuestPort,
    socket: OwnedFd,
    /// There may be connections to accept.
    ready: bool,
    timer: Option<Instant>,
}

impl Forwards {
    pub(super) fn new() -> Self {
        Self { ports: BTreeMap::new(), listeners: HashMap::new() }
    }

    pub(super) fn ports(&self) -> &BTreeMap<GuestPort, HostPort> {
        &self.ports
    }

    /// Adds a forward. On any other answer than "forwarded", nothing was changed.
    pub(super) fn add(&mut self, core: &mut Core, guest: GuestPort, host: Option<HostPort>) -> Reply {
        if let Some(&host) = self.ports.get(&guest) {
            return Reply::AlreadyForwarded { host };
        }
        if self.ports.len() >= MAX_FORWARDS {
            return Reply::Failed {
                reason: format!("a machine has at most {MAX_FORWARDS} forwards: remove one"),
            };
        }
        let outcome = match host {
            Some(port) => listen_on(port).map(|sockets| (port, sockets)),
            None => listen_anywhere(),
        };
        let (port, sockets) = match (outcome, host) {
            (Ok(listening), _) => listening,
            (Err(Errno::ADDRINUSE), Some(port)) => return Reply::PortTaken { port },
            (Err(error), _) => {
                return Reply::Failed { reason: format!("could not listen on the host's loopback: {error}") };
            }
        };
        for socket in sockets {
            let number = core.number();
            if let Err(error) = core.watch(&socket, Token::Listener(number)) {
                self.listeners.retain(|_, listener| listener.guest != guest);
                return Reply::Failed { reason: format!("could not wait for connections: {error}") };
            }
            self.listeners.insert(number, Listener { guest, socket, ready: false, timer: None });
        }
        self.ports.insert(guest, port);
        Reply::Forwarded { host: port }
    }

    /// Ends a forward and its connections, if there is one.
    pub(super) fn remove(&mut self, core: &mut Core, tcp: &mut TcpTable, guest: GuestPort) {
        if self.ports.remove(&guest).is_some() {
            self.listeners.retain(|_, listener| listener.guest != guest);
            tcp.end_forward(core, guest);
        }
    }

    /// Connections came, or the rest is over.
    pub(super) fn ready(&mut self, number: u64) {
        if let Some(listener) = self.listeners.get_mut(&number) {
            listener.ready = true;
        }
    }

    /// Accepts what there is and room for. What there is no room for waits in the backlog.
    pub(super) fn accept(&mut self, core: &mut Core, tcp: &mut TcpTable) {
        for (number, listener) in &mut self.listeners {
            while listener.ready && tcp.has_room_for_forwarded() {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                match rustix::net::accept_with(&listener.socket, flags) {
                    Ok(connection) => {
                        if core.out.guest().is_none() {
                            frames::ask_for_guest(&mut core.out);
                        }
                        tcp.forward(core, listener.guest, connection);
                    }
                    Err(Errno::AGAIN) => listener.ready = false,
                    Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                        listener.ready = false;
                        let due = Some(core.now + REST);
                        core.set_timer(Token::Listener(*number), &mut listener.timer, due);
                    }
                    // Of the connection that was there, not of the listener (accept(2)).
                    Err(_) => {}
                }
            }
        }
    }
}

/// Picks a port that is free on both loopback addresses.
fn listen_anywhere() -> Result<(HostPort, Vec<OwnedFd>), Errno> {
    for _ in 0..MAX_PICKS {
        let probe = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = SocketAddr::try_from(rustix::net::getsockname(&probe)?)?;
        let Ok(port) = HostPort::new(address.port().into()) else { continue };
        match on_both(port, probe) {
            Err(Errno::ADDRINUSE) => {}
            outcome => return outcome.map(|sockets| (port, sockets)),
        }
    }
    Err(Errno::ADDRINUSE)
}

fn listen_on(port: HostPort) -> Result<Vec<OwnedFd>, Errno> {
    on_both(port, listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port.get())))?)
}

/// Adds the listener for IPv6, if the host has it.
fn on_both(port: HostPort, first: OwnedFd) -> Result<Vec<OwnedFd>, Errno> {
    match listen(SocketAddr::from((Ipv6Addr::LOCALHOST, port.get()))) {
        Ok(second) => Ok(vec![first, second]),
        Err(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) => Ok(vec![first]),
        Err(error) => Err(error),
    }
}

fn listen(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // A port may be forwarded again while connections of its last forward linger. Two listeners still exclude
    // each other.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
