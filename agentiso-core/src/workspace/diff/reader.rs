//! Who reads the files of one side: its own machine, or a helper's.

use super::DiffSide;
use crate::channel::client::{Configure, GuestClient};
use crate::error::EngineError;
use crate::network::NetworkPolicy;
use crate::session::Claimant;
use crate::storage::DiskOrigin;
use crate::store::WorkspaceRecord;
use crate::types::{WorkspaceId, WorkspaceName, guest_hostname};
use crate::workspace::create::{Naming, Plan};
use crate::workspace::engine::{Callers, Engine};
use crate::workspace::info::{ForkOrigin, WorkspaceState};
use crate::workspace::machine::Begin;
use crate::workspace::snapshot::Draft;

/// Somebody who reads the files of one side.
#[derive(Debug)]
pub(super) struct Reader {
    /// Whose files, for errors.
    pub(super) name: String,
    pub(super) client: GuestClient,
    /// The helper to be destroyed afterwards.
    helper: Option<WorkspaceId>,
}

impl Engine {
    /// Finds or makes who reads the files of one side.
    pub(super) async fn reader(&self, side: &DiffSide, callers: Callers) -> Result<Reader, EngineError> {
        let record = self.find(&side.workspace).await?;
        match self.own_machine(side, &record)? {
            Some(reader) => Ok(reader),
            None => self.helper(side, record.id, callers).await,
        }
    }

    /// The workspace's own machine, if it runs and no snapshot was asked for.
    fn own_machine(&self, side: &DiffSide, record: &WorkspaceRecord) -> Result<Option<Reader>, EngineError> {
        if side.snapshot.is_some() || self.living(record).is_none() {
            return Ok(None);
        }
        if record.state == WorkspaceState::Paused {
            return Err(EngineError::WrongState {
                workspace: record.name.to_string(),
                state: WorkspaceState::Paused,
                operation: "compared",
                remedy: format!(
                    "let it run first (`agentiso resume {0}`), or compare a snapshot of it (`{0}@SNAPSHOT`)",
                    record.name
                ),
            });
        }
        Ok(Some(Reader { name: side.to_string(), client: self.client(record)?, helper: None }))
    }

    /// Makes a throwaway workspace that begins with the disk in question, and boots it.
    async fn helper(
        &self,
        side: &DiffSide,
        id: WorkspaceId,
        callers: Callers,
    ) -> Result<Reader, EngineError> {
        let (lock, parent) = self.lock_record(id).await?;
        // It may have been started while we waited for the lock.
        if let Some(reader) = self.own_machine(side, &parent)? {
            return Ok(reader);
        }
        let (snapshot, snapshot_name) = match &side.snapshot {
            Some(name) => {
                let snapshot = self.find_snapshot(&parent, name).await?;
                (snapshot.id, Some(snapshot.name))
            }
            None => {
                let hidden = format!("diff:{}", crate::types::SnapshotId::random());
                (self.take_snapshot(&parent, &Draft::hidden(&hidden)).await?.id, None)
            }
        };
        let plan =
            helper_plan(&parent, DiskOrigin::Snapshot { disk: parent.disk(), snapshot }, snapshot_name)?;
        let reserved = self.reserve(&plan).await;
        // The helper has a disk of its own; its parent is free.
        drop(lock);
        let reserved = match reserved {
            Ok(reserved) => reserved,
            Err(error) => {
                self.drop_hidden_snapshots(id).await;
                return Err(error);
            }
        };
        let helper = self.complete(reserved, &plan, callers).await?;
        let as_before = Configure {
            hostname: Some(guest_hostname(&parent.name)),
            machine_id: Some(parent.id.as_uuid().simple().to_string()),
            ..Configure::default()
        };
        let ready = async {
            let client = self.client(&helper)?;
            // Its boot has written a name and an id of its own to its copy of the files.
            client.configure(as_before).await.map_err(|error| super::failed(helper.name.as_str(), error))?;
            Ok(client)
        };
        match ready.await {
            Ok(client) => Ok(Reader { name: side.to_string(), client, helper: Some(helper.id) }),
            Err(error) => {
                self.destroy_helper(helper.id).await;
                Err(error)
            }
        }
    }

    /// Removes what was made to read one side.
    pub(super) async fn put_away(&self, reader: Reader) {
        if let Some(id) = reader.helper {
            self.destroy_helper(id).await;
        }
    }

    async fn destroy_helper(&self, id: WorkspaceId) {
        let destroyed = async {
            let (lock, mut record) = self.lock_record(id).await?;
            self.kill_strays(&[id]).await?;
            self.erase(&mut record).await?;
            lock.remove();
            Ok::<_, EngineError>(())
        };
        match destroyed.await {
            // Somebody else removed it.
            Ok(()) | Err(EngineError::NoSuchWorkspace { .. }) => {}
            // It goes with this process, at the latest when the state folder is opened next.
            Err(error) => tracing::warn!(%id, error = %error.report(), "could not remove a helper"),
        }
    }
}

fn helper_plan(
    parent: &WorkspaceRecord,
    origin: DiskOrigin,
    snapshot: Option<String>,
) -> Result<Plan, EngineError> {
    let random = WorkspaceId::random().to_string();
    Ok(Plan {
        naming: Naming::Exactly(WorkspaceName::new(format!("diff-{}", &random[..8]))?),
        image: parent.image.clone(),
        base: parent.base,
        origin,
        begin: Begin::Boot,
        resources: parent.resources,
        policy: NetworkPolicy::default(),
        forwards: std::collections::BTreeMap::new(),
        throwaway: true,
        // Nobody's to use: it goes when the comparison has ended.
        claimant: Claimant::Operator,
        forked_from: Some(ForkOrigin { workspace_id: parent.id, name: parent.name.to_string(), snapshot }),
        pooled: false,
    })
}
