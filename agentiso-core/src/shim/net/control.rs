//! The control socket: requests of the manager, one connection each.

use std::{collections::HashMap, io, os::fd::OwnedFd};

use rustix::{io::Errno, net::SocketFlags};

use super::core::{Core, Token};
use crate::network::user::protocol::{Reply, Request, body_len, encode};

/// Connections at once; a new one closes the oldest.
const MAX_CLIENTS: usize = 8;

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// The connections to the control socket.
pub(super) struct Control {
    socket: OwnedFd,
    clients: HashMap<u64, Client>,
}

struct Client {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// A connection that has ended or broke the protocol.
struct Gone;

impl Control {
    /// Takes over a listening socket.
    pub(super) fn new(core: &Core, socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        core.watch(&socket, Token::Control)?;
        Ok(Self { socket, clients: HashMap::new() })
    }

    /// Accepts what waits.
    pub(super) fn accept(&mut self, core: &mut Core) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // An error ends the round as an empty backlog does: the next connection is the next event.
        while let Ok(socket) = rustix::net::accept_with(&self.socket, flags) {
            if self.clients.len() >= MAX_CLIENTS
                && let Some(oldest) = self.clients.keys().min().copied()
            {
                self.clients.remove(&oldest);
            }
            let number = core.number();
            if core.watch(&socket, Token::Client(number)).is_ok() {
                let client = Client { socket, input: Vec::new(), output: Vec::new() };
                self.clients.insert(number, client);
            }
        }
    }

    /// Something became possible on a connection: answers its requests with what `act` says.
    pub(super) fn ready(&mut self, number: u64, mut act: impl FnMut(Request) -> Reply) {
        if let Some(client) = self.clients.get_mut(&number)
            && client.serve(&mut act).is_err()
        {
            self.clients.remove(&number);
        }
    }
}

impl Client {
    fn serve(&mut self, act: &mut impl FnMut(Request) -> Reply) -> Result<(), Gone> {
        loop {
            self.write()?;
            // The next request is not read before the last one's answer is gone.
            if !self.output.is_empty() {
                return Ok(());
            }
            match self.request()? {
                Some(request) => self.output = encode(&act(request)).map_err(|_| Gone)?,
                None if self.read()? => {}
                None => return Ok(()),
            }
        }
    }

    /// The first whole request that was read.
    fn request(&mut self) -> Result<Option<Request>, Gone> {
        let Some((header, rest)) = self.input.split_first_chunk::<4>() else { return Ok(None) };
        let len = body_len(*header).map_err(|_| Gone)?;
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let request = serde_json::from_slice(body).map_err(|_| Gone)?;
        self.input.drain(..header.len() + len);
        Ok(Some(request))
    }

    /// Reads once; `false` if there is nothing to read now.
    fn read(&mut self) -> Result<bool, Gone> {
        let mut chunk = [0; CHUNK_BYTES];
        match rustix::io::read(&self.socket, &mut chunk) {
            Ok(0) => Err(Gone),
            Ok(count) => {
                self.input.extend_from_slice(&chunk[..count]);
                Ok(true)
            }
            Err(Errno::AGAIN) => Ok(false),
            Err(Errno::INTR) => Ok(true),
            Err(_) => Err(Gone),
        }
    }

    fn write(&mut self) -> Result<(), Gone> {
        while !self.output.is_empty() {
            match super::write_to_peer(&self.socket, &self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }
}
