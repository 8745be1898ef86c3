use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{FakeHost, agent::serve_agent, host::FakeLanes};
use crate::{
    channel::{
        ChannelCapabilities, ChannelDevice, ChannelError, ChannelRecord, ChannelSpec, GuestChannel,
        GuestStream, Lane, PreparedChannel,
    },
    types::WorkspaceId,
};

/// Lanes for [`Lane::Work`] of one machine. As many as virtio-serial has.
const WORK_LANES: usize = 30;

/// Bytes that a connection holds in each direction before the writer waits.
const PIPE_BYTES: usize = 64 * 1024;

/// How often a booting machine is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A channel to the agents of [`FakeGuest`](super::FakeGuest)s.
#[derive(Clone)]
pub struct FakeChannel {
    host: FakeHost,
}

impl FakeChannel {
    pub(super) fn new(host: FakeHost) -> Self {
        Self { host }
    }

    /// The lanes, and whether a machine was ever launched on them.
    fn lanes(&self, id: WorkspaceId) -> Result<FakeLanes, ChannelError> {
        self.host.state().channels.get(&id).cloned().ok_or(ChannelError::Gone { id })
    }
}

async fn free_lane(lanes: &FakeLanes, lane: Lane) -> OwnedSemaphorePermit {
    let closed = || unreachable!("lanes are never closed");
    let work = Arc::clone(&lanes.work);
    match lane {
        Lane::Work => work.acquire_owned().await.unwrap_or_else(|_| closed()),
        Lane::Control => {
            let control = Arc::clone(&lanes.control);
            tokio::select! {
                biased;
                permit = control.acquire_owned() => permit.unwrap_or_else(|_| closed()),
                permit = work.acquire_owned() => permit.unwrap_or_else(|_| closed()),
            }
        }
    }
}

fn record_of(id: &WorkspaceId) -> ChannelRecord {
    ChannelRecord { id: *id, details: serde_json::Value::Null }
}

#[async_trait]
impl GuestChannel for FakeChannel {
    fn capabilities(&self) -> ChannelCapabilities {
        ChannelCapabilities { name: "fake".to_owned(), concurrent: WORK_LANES + 1, open: Vec::new() }
    }

    async fn prepare(&self, spec: ChannelSpec) -> Result<PreparedChannel, ChannelError> {
        self.host
            .call("channel.prepare", |state| {
                if !spec.run_dir.is_dir() {
                    return Err(ChannelError::Io {
                        operation: "open",
                        object: spec.run_dir.display().to_string(),
                        source: io::ErrorKind::NotFound.into(),
                    });
                }
                let lanes = FakeLanes {
                    work: Arc::new(Semaphore::new(WORK_LANES)),
                    control: Arc::new(Semaphore::new(1)),
                    machine_seen: false,
                };
                state.channels.insert(spec.id, lanes);
                Ok(PreparedChannel { device: ChannelDevice::Serial(Vec::new()), record: record_of(&spec.id) })
            })
            .await
    }

    async fn connect(
        &self,
        channel: &ChannelRecord,
        lane: Lane,
        limit: Duration,
    ) -> Result<GuestStream, ChannelError> {
        let id = channel.id;
        let entered = self.host.faults().enter("channel.connect").await?;
        let lanes = self.lanes(id)?;
        let deadline = tokio::time::Instant::now() + limit;
        let permit = tokio::time::timeout_at(deadline, free_lane(&lanes, lane)).await.map_err(|_| {
            ChannelError::Busy { id, lanes: WORK_LANES + usize::from(lane == Lane::Control), waited: limit }
        })?;
        let guest = loop {
            // A machine that was there and is not any more will not come back on this channel.
            let seen = self.lanes(id)?.machine_seen;
            match self.host.guest(id) {
                Some(guest) => break guest,
                None if seen => return Err(ChannelError::Gone { id }),
                None => {}
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(ChannelError::NoAnswer { id, waited: limit });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        self.host.spawn(serve_agent(far, guest));
        entered.leave().await;
        Ok(GuestStream::private(FakeConnection { stream: near, _lane: permit }))
    }

    async fn release(&self, channel: &ChannelRecord) -> Result<(), ChannelError> {
        self.host
            .call("channel.release", |state| {
                state.channels.remove(&channel.id);
                Ok(())
            })
            .await
    }

    async fn leftovers(&self) -> Result<Vec<ChannelRecord>, ChannelError> {
        self.host.call("channel.leftovers", |state| Ok(state.channels.keys().map(record_of).collect())).await
    }
}

/// A connection that holds its lane.
struct FakeConnection {
    stream: DuplexStream,
    _lane: OwnedSemaphorePermit,
}

impl AsyncRead for FakeConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for FakeConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use crate::testkit::{FakeHost, contract::fake::FakeChannelFixture};

    crate::channel_contract!(Ok(FakeChannelFixture::new(FakeHost::new()).await));
}
