//! The connection as a byte stream.

use std::io::{self, Read, Write};

use agentiso_guest::message::Input;

use crate::failure::{Failure, Stop};
use crate::serve::{Connection, Lost};

/// Bytes of data that one reply carries.
const CHUNK_BYTES: usize = 256 * 1024;

/// Reads the payload of [`Input::Data`] up to [`Input::End`].
pub(super) struct DataReader<'a> {
    connection: &'a mut Connection,
    chunk: Vec<u8>,
    read: usize,
    ended: bool,
    stopped: Option<Stop>,
}

impl<'a> DataReader<'a> {
    pub(super) fn new(connection: &'a mut Connection) -> Self {
        Self { connection, chunk: Vec::new(), read: 0, ended: false, stopped: None }
    }

    fn next_chunk(&mut self) -> Result<(), Stop> {
        let frame = self.connection.receive_input()?;
        match frame.message {
            Input::Data { .. } => {
                self.chunk = frame.payload;
                self.read = 0;
            }
            Input::End => self.ended = true,
            _ => {
                return Err(Failure::invalid("unpacking an archive: only data and its end can follow").into());
            }
        }
        Ok(())
    }

    /// What stopped the stream if it was the stream, else `failure`.
    pub(super) fn why_it_failed(self, failure: Failure) -> Stop {
        self.stopped.unwrap_or(Stop::Failed(failure))
    }

    /// Waits for the end of the stream, behind which nothing of the archive may come.
    pub(super) fn finish(mut self) -> Result<(), Stop> {
        while !self.ended {
            self.next_chunk()?;
        }
        Ok(())
    }
}

impl Read for DataReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.chunk.len() && !self.ended {
            if let Err(stop) = self.next_chunk() {
                self.stopped = Some(stop);
                return Err(io::Error::other("the stream of data stopped"));
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.read);
        buffer[..count].copy_from_slice(&self.chunk[self.read..self.read + count]);
        self.read += count;
        if self.read == self.chunk.len() {
            self.chunk = Vec::new();
            self.read = 0;
        }
        Ok(count)
    }
}

/// Writes data as [`Reply::Data`](agentiso_guest::message::Reply::Data), in pieces of a good size.
pub(super) struct DataWriter<'a> {
    connection: &'a mut Connection,
    chunk: Vec<u8>,
    lost: Option<Lost>,
}

impl<'a> DataWriter<'a> {
    pub(super) fn new(connection: &'a mut Connection) -> Self {
        Self { connection, chunk: Vec::with_capacity(CHUNK_BYTES), lost: None }
    }

    fn send(&mut self) -> io::Result<()> {
        if !self.chunk.is_empty() {
            let sent = self.connection.send_data(&self.chunk);
            self.chunk.clear();
            if let Err(lost) = sent {
                self.lost = Some(lost);
                return Err(io::Error::other("the connection is lost"));
            }
        }
        Ok(())
    }

    /// How the connection was lost, if it was.
    pub(super) fn into_lost(self) -> Option<Lost> {
        self.lost
    }
}

impl Write for DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        if self.chunk.len() == CHUNK_BYTES {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
