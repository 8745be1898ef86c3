//! The contract of `GuestChannel` on serial slots, each served by an agent in this process as QEMU would serve it: one
//! client at a time.

use std::{any::Any, os::fd::OwnedFd, os::unix::net::UnixListener, thread::JoinHandle};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::SerialChannel;
use crate::{
    channel::{ChannelDevice, ChannelRecord, ChannelSpec, GuestChannel},
    testkit::{FakeGuest, FakeHost, contract::channel::ChannelFixture, serve_agent},
    types::WorkspaceId,
};

/// Gives out run folders whose paths are longer than a socket address can be.
struct SerialFixture {
    home: TempDir,
}

impl SerialFixture {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }
}

/// A thread that serves a machine's slots. It and its sockets are gone when this was dropped.
struct Serving {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the agent panicked");
        }
    }
}

async fn serve_slot(socket: OwnedFd, guest: FakeGuest) {
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        serve_agent(stream, guest.clone()).await;
    }
}

#[async_trait]
impl ChannelFixture for SerialFixture {
    async fn open(&self) -> Box<dyn GuestChannel> {
        Box::new(SerialChannel::new())
    }

    async fn spec(&self) -> ChannelSpec {
        let id = WorkspaceId::random();
        let run_dir = self.home.path().join("x".repeat(200)).join(id.to_string());
        std::fs::create_dir_all(&run_dir).unwrap();
        ChannelSpec { id, run_dir }
    }

    async fn boot(&self, device: ChannelDevice, _: &ChannelRecord) -> Box<dyn Any + Send> {
        let ChannelDevice::Serial(sockets) = device else { panic!("serial slots prepare {device:?}") };
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let guest = FakeGuest::detached(&FakeHost::new());
            runtime.block_on(async move {
                for socket in sockets {
                    tokio::spawn(serve_slot(socket, guest.clone()));
                }
                let _ = stopped.await;
            });
        });
        Box::new(Serving { stop: Some(stop), thread: Some(thread) })
    }
}

crate::channel_contract!(Ok(SerialFixture::new()));
