//! Lanes to one machine's agent, held by at most one connection each, whatever process that is in.
//!
//! A lane is a lock file in the machine's run folder, and whoever holds that lock owns the lane. The lock belongs to an
//! open file, so the kernel releases it when its holder closes the connection, ends, or is killed. Nothing is brokered
//! by a process, and no lock outlives its holder. The last lane is kept for control.
//!
//! - `folder.rs`: the files of a machine, the search for a free lane.
//! - `waiting.rs`: sleeping until a lane becomes free.
//! - `stream.rs`: a connection that holds its lane.
//! - `sys.rs`: the one thing that needs `unsafe`.

mod folder;
mod stream;
mod sys;
mod waiting;

use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;

use self::folder::Search;
use self::waiting::LaneBell;
use super::{ChannelError, Lane};
use crate::types::WorkspaceId;

pub(super) use self::folder::RunDir;
pub(super) use self::stream::Held;

/// Takes a free lane of the `count` that a machine has, and makes its connection.
///
/// `connect` is called with the lane's number; it must not wait. When it says `NOENT` or `CONNREFUSED`, nobody listens;
/// with `AGAIN`, the next lane is tried.
///
/// The search begins at another lane each time, so that one that went bad is not everybody's first choice. When all
/// are taken, this sleeps until one is given back.
///
/// # Errors
/// [`ChannelError::Gone`] if nobody listens or the lanes were removed, [`ChannelError::Busy`] if none became free until
/// the limit.
pub(super) async fn take<T>(
    run_dir: &RunDir,
    id: WorkspaceId,
    (lane, count): (Lane, u32),
    limit: Duration,
    mut connect: impl FnMut(u32) -> Result<T, Errno>,
) -> Result<Held<T>, ChannelError> {
    let deadline = Instant::now() + limit;
    let order = folder::search_order(lane, count);
    let mut bell = None;
    loop {
        match run_dir.search(&order, &mut connect)? {
            Search::Connected(held) => return Ok(held),
            Search::NobodyListens => return Err(ChannelError::Gone { id }),
            Search::AllTaken => {}
        }
        // The bell is hung up before the next search, so that no lane becomes free unheard between the two.
        let rang = match &mut bell {
            None => {
                bell = Some(LaneBell::hang(run_dir)?);
                Instant::now() < deadline
            }
            Some(bell) => bell.wait_until(deadline).await?,
        };
        if !rang {
            return Err(ChannelError::Busy { id, lanes: order.len(), waited: limit });
        }
    }
}
