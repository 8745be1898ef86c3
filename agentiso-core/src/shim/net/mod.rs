//! `agentiso-shim net NAME`: the network of one machine, as a process without privileges.
//!
//! Inherited descriptors: 3 a stream socket to QEMU (`-netdev stream`), 4 a listening unix socket for control. Ends
//! when QEMU closes its end.
//!
//! It begins with nothing allowed and no forward; the manager says what else over the control socket. Towards the
//! machine it is a gateway, a name server and, for connections, the other end: TCP ends here and begins again as an
//! ordinary socket of the host, UDP likewise. It is the only thing that stands between a machine and the host's own
//! addresses, so every destination is asked of the kernel before anything is sent there (see `policy`), and
//! everything a machine can make it hold is bounded: flows, buffers, frames, time.
//!
//! One thread, edge-triggered epoll, no timer but those of flows that have one to keep.

mod control;
mod core;
mod dhcp;
mod flow;
mod forward;
mod frames;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod link;
mod policy;
mod replies;
mod route;
mod stack;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{io::Errno, net::SendFlags};

use self::{
    control::Control,
    core::{Core, Ready, Token},
    forward::Forwards,
    link::{Inbound, Progress},
    policy::Guard,
    route::Routes,
    tcp::TcpTable,
    udp::UdpTable,
};
use super::{confine, sys};
use crate::network::user::protocol::{Counters, MAX_FORWARDS, Reply, Request};

/// Frames taken from the machine before everything else gets its turn.
const MAX_FRAMES: usize = 256;

/// Descriptors beside those of flows: the standard three, link, control and its clients, epoll, routes, listeners,
/// and some to spare.
const OTHER_DESCRIPTORS: usize = 32 + 2 * MAX_FORWARDS;

/// Descriptors that are enough for everything at once.
const MAX_DESCRIPTORS: usize = tcp::MAX_OUTWARD + tcp::MAX_FORWARDED + udp::MAX_FLOWS + OTHER_DESCRIPTORS;

/// Address space, in bytes. The flows' buffers take at most 108 MiB (see `tcp`), the rest little.
const MEMORY_BYTES: u64 = 384 * 1024 * 1024;

/// Runs until QEMU closes its end.
pub(super) fn main() -> io::Result<()> {
    let [link, control] = [sys::inherited(3)?, sys::inherited(4)?];
    let mut shim = Shim::new(link, control)?;
    shim.tables_for(descriptor_limit());
    confine::confine(confine::Allowance {
        network: true,
        file_bytes: 0,
        descriptors: MAX_DESCRIPTORS as u64,
        memory_bytes: MEMORY_BYTES,
    })?;
    shim.run()
}

/// How many descriptors this process may have, if it asks for all.
fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(MAX_DESCRIPTORS)
}

/// The network of one machine.
struct Shim {
    core: Core,
    guard: Guard,
    link: OwnedFd,
    inbound: Inbound,
    link_readable: bool,
    link_writable: bool,
    control: Control,
    forwards: Forwards,
    tcp: TcpTable,
    udp: UdpTable,
}

impl Shim {
    fn new(link: OwnedFd, control: OwnedFd) -> io::Result<Self> {
        let core = Core::new()?;
        rustix::io::ioctl_fionbio(&link, true)?;
        core.watch(&link, Token::Link)?;
        Ok(Self {
            control: Control::new(&core, control)?,
            core,
            guard: Guard::new(Routes::open()?),
            link,
            inbound: Inbound::new(),
            link_readable: false,
            link_writable: false,
            forwards: Forwards::new(),
            tcp: TcpTable::new(tcp::MAX_OUTWARD),
            udp: UdpTable::new(udp::MAX_FLOWS),
        })
    }

    /// Makes the tables as large as that many descriptors allow: forwards come first.
    fn tables_for(&mut self, descriptors: usize) {
        let spare = descriptors.saturating_sub(OTHER_DESCRIPTORS + tcp::MAX_FORWARDED);
        self.udp = UdpTable::new(udp::MAX_FLOWS.min(spare / 3));
        self.tcp = TcpTable::new(tcp::MAX_OUTWARD.min(spare - spare / 3));
    }

    fn run(&mut self) -> io::Result<()> {
        let mut more_frames = false;
        loop {
            match self.round(more_frames)? {
                Progress::Ended => return Ok(()),
                progress => more_frames = progress == Progress::More,
            }
        }
    }

    /// Everything gets its turn once. Waits for something to do unless there is some already; says whether there is
    /// more.
    fn round(&mut self, more_to_do: bool) -> io::Result<Progress> {
        for ready in self.core.wait(more_to_do)? {
            self.ready(ready);
        }
        for token in self.core.take_due() {
            self.due(token);
        }
        for token in self.core.take_put_off() {
            self.put_off(token);
        }
        let taken = self.take_frames()?;
        if taken == Progress::Ended {
            return Ok(taken);
        }
        self.forwards.accept(&mut self.core, &mut self.tcp);
        if self.link_writable && !self.core.out.is_empty() {
            match self.core.out.flush(&self.link)? {
                Progress::Ended => return Ok(Progress::Ended),
                Progress::Blocked => self.link_writable = false,
                Progress::More => {}
            }
        }
        // Frames that were left for want of room.
        let is_more = taken == Progress::More && self.core.out.has_room();
        Ok(if is_more { Progress::More } else { Progress::Blocked })
    }

    /// Something became possible on a descriptor.
    fn ready(&mut self, ready: Ready) {
        match ready.token {
            Token::Link => {
                self.link_readable |= ready.readable;
                self.link_writable |= ready.writable;
            }
            Token::Control => self.control.accept(&mut self.core),
            Token::Client(number) => {
                let (core, guard) = (&mut self.core, &mut self.guard);
                let (forwards, tcp, udp) = (&mut self.forwards, &mut self.tcp, &mut self.udp);
                self.control.ready(number, |request| act(core, guard, forwards, tcp, udp, request));
            }
            Token::Listener(number) => self.forwards.ready(number),
            Token::Tcp(number) => self.tcp.ready(&mut self.core, number, ready.readable, ready.writable),
            Token::Udp(number) => self.udp.ready(&mut self.core, &mut self.guard, number),
        }
    }

    /// A timer fired.
    fn due(&mut self, token: Token) {
        match token {
            Token::Link | Token::Control | Token::Client(_) => {}
            Token::Listener(number) => self.forwards.ready(number),
            Token::Tcp(number) => self.tcp.pump(&mut self.core, number),
            Token::Udp(number) => self.udp.timer(&mut self.core, &mut self.guard, number),
        }
    }

    /// There is room for what was put off.
    fn put_off(&mut self, token: Token) {
        match token {
            Token::Udp(number) => self.udp.ready(&mut self.core, &mut self.guard, number),
            token => self.due(token),
        }
    }

    /// Takes frames from the machine while there is room for answers.
    fn take_frames(&mut self) -> io::Result<Progress> {
        for _ in 0..MAX_FRAMES {
            if !self.core.out.has_room() {
                return Ok(Progress::More);
            }
            match self.inbound.next()? {
                Some(bytes) => {
                    let (core, guard) = (&mut self.core, &mut self.guard);
                    frames::frame(core, guard, &mut self.tcp, &mut self.udp, bytes);
                }
                None if self.link_readable => match self.inbound.fill(&self.link)? {
                    Progress::Blocked => self.link_readable = false,
                    Progress::Ended => return Ok(Progress::Ended),
                    Progress::More => {}
                },
                None => return Ok(Progress::Blocked),
            }
        }
        Ok(Progress::More)
    }
}

/// Does what the manager asks.
fn act(
    core: &mut Core,
    guard: &mut Guard,
    forwards: &mut Forwards,
    tcp: &mut TcpTable,
    udp: &mut UdpTable,
    request: Request,
) -> Reply {
    match request {
        Request::Status => Reply::Status {
            counters: Counters { tcp_flows: tcp.len() as u64, udp_flows: udp.len() as u64, ..core.counters },
        },
        Request::SetPolicy { policy, resolvers } => {
            guard.set(policy, resolvers);
            tcp.enforce(core, guard);
            udp.enforce(core, guard);
            Reply::Done
        }
        Request::AddForward { guest, host } => forwards.add(core, guest, host),
        Request::RemoveForward { guest } => {
            forwards.remove(core, tcp, guest);
            Reply::Done
        }
        Request::Forwards => Reply::Forwards {
            forwards: forwards.ports().iter().map(|(&guest, &host)| (guest, host)).collect(),
        },
    }
}

/// Writes to a socket whose other end may have gone: that is an error, and never a signal, in whatever program this runs.
fn write_to_peer(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)
}
