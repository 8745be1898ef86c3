//! Who was forked from whom.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::info::{ForkOrigin, WorkspaceState};
use crate::error::EngineError;
use crate::hypervisor::{HypervisorError, MemoryUsage};
use crate::store::WorkspaceRecord;
use crate::types::WorkspaceId;

/// A workspace and what was forked from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeNode {
    /// Its id.
    pub workspace_id: WorkspaceId,
    /// Its name; of one that is gone, what it was called when its newest fork was made.
    pub name: String,
    /// Whether it was destroyed, and only its forks are left. Nothing but id, name and forks is known of it then.
    pub gone: bool,
    /// What it does.
    pub state: Option<WorkspaceState>,
    /// Whether its machine ended without having been asked to.
    pub crashed: bool,
    /// When it was created, in seconds since 1970.
    pub created_at: Option<u64>,
    /// The named snapshot of the one above that it began from.
    pub snapshot: Option<String>,
    /// Memory of the host that its machine alone takes up, in bytes; none while it has no machine.
    pub memory_unique_bytes: Option<u64>,
    /// Memory that its machine shares with others, in bytes; none while it has no machine.
    pub memory_shared_bytes: Option<u64>,
    /// Space its disk takes up on the host, without what it shares with others, in bytes.
    pub disk_used_bytes: Option<u64>,
    /// Space it shares with its image and other workspaces, in bytes.
    pub disk_shared_bytes: Option<u64>,
    /// What was forked from it, in order of creation.
    pub forks: Vec<TreeNode>,
}

impl TreeNode {
    /// These trees without the nodes that are not in `ids`; what hung below one of those is a root.
    pub(crate) fn only(trees: Vec<Self>, ids: &BTreeSet<WorkspaceId>) -> Vec<Self> {
        let mut order = Order::new();
        let mut nodes = BTreeMap::new();
        // Without recursion, as below.
        let mut waiting: Vec<_> = trees.into_iter().rev().map(|tree| (tree, None)).collect();
        while let Some((mut node, parent)) = waiting.pop() {
            let seen = ids.contains(&node.workspace_id);
            let id = seen.then_some(node.workspace_id);
            waiting.extend(std::mem::take(&mut node.forks).into_iter().rev().map(|fork| (fork, id)));
            if seen {
                order.push((node.workspace_id, parent));
                nodes.insert(node.workspace_id, node);
            }
        }
        assemble(&order, nodes)
    }
}

impl Engine {
    /// Memory of a workspace's machine, if it has one and that can be found out.
    pub(super) async fn memory_usage(&self, record: &WorkspaceRecord) -> Option<MemoryUsage> {
        let runtime = self.living(record)?;
        match self.backends.hypervisor.memory_usage(&runtime.machine).await {
            Ok(usage) => Some(usage),
            // It ended meanwhile.
            Err(HypervisorError::Gone { .. }) => None,
            Err(error) => {
                tracing::warn!(workspace = %record.name, %error, "could not find out how much memory it uses");
                None
            }
        }
    }

    /// All workspaces as a forest, or the tree below one of them.
    pub(super) async fn tree(&self, root: Option<&str>) -> Result<Vec<TreeNode>, EngineError> {
        let mut records = Vec::new();
        for row in self.records(|store| store.all()).await? {
            match row {
                Ok(record) => records.push(record),
                Err(error) => tracing::warn!(%error, "left a damaged record out"),
            }
        }
        let lineage = Lineage::of(&records);
        let order = match root {
            Some(given) => lineage.below(self.find(given).await?.id),
            None => lineage.all(),
        };
        let records: BTreeMap<_, _> = records.into_iter().map(|record| (record.id, record)).collect();
        let mut nodes = BTreeMap::new();
        for (id, _) in &order {
            let node = match records.get(id) {
                Some(record) => self.tree_node(record).await,
                None => gone(*id, lineage.gone.get(id)),
            };
            nodes.insert(*id, node);
        }
        Ok(assemble(&order, nodes))
    }

    async fn tree_node(&self, record: &WorkspaceRecord) -> TreeNode {
        let (state, crashed) = self.present_state(record);
        let memory = self.memory_usage(record).await;
        let disk = match self.backends.storage.usage(record.disk()).await {
            Ok(usage) => Some(usage),
            // Being made or removed: it is there without a disk for a moment.
            Err(error) => {
                tracing::debug!(workspace = %record.name, %error, "could not find out how much disk it uses");
                None
            }
        };
        TreeNode {
            workspace_id: record.id,
            name: record.name.to_string(),
            gone: false,
            state: Some(state),
            crashed,
            created_at: Some(record.created_at),
            snapshot: record.forked_from.as_ref().and_then(|origin| origin.snapshot.clone()),
            memory_unique_bytes: memory.map(|memory| memory.unique_bytes),
            memory_shared_bytes: memory.map(|memory| memory.shared_bytes),
            disk_used_bytes: disk.as_ref().map(|disk| disk.unique_bytes),
            disk_shared_bytes: disk.as_ref().map(|disk| disk.shared_bytes),
            forks: Vec::new(),
        }
    }
}

fn gone(id: WorkspaceId, name: Option<&String>) -> TreeNode {
    TreeNode {
        workspace_id: id,
        name: name.cloned().unwrap_or_else(|| id.to_string()),
        gone: true,
        state: None,
        crashed: false,
        created_at: None,
        snapshot: None,
        memory_unique_bytes: None,
        memory_shared_bytes: None,
        disk_used_bytes: None,
        disk_shared_bytes: None,
        forks: Vec::new(),
    }
}

/// Each workspace with the one it hangs below, a parent before its forks.
type Order = Vec<(WorkspaceId, Option<WorkspaceId>)>;

/// Who was forked from whom, in order of creation.
struct Lineage {
    ids: Vec<WorkspaceId>,
    forks: BTreeMap<WorkspaceId, Vec<WorkspaceId>>,
    /// Parents without a record, with their last known names.
    gone: BTreeMap<WorkspaceId, String>,
    /// What hangs below nothing that has a record.
    roots: Vec<WorkspaceId>,
}

impl Lineage {
    fn of(records: &[WorkspaceRecord]) -> Self {
        let present: BTreeSet<_> = records.iter().map(|record| record.id).collect();
        let mut lineage = Self {
            ids: records.iter().map(|record| record.id).collect(),
            forks: BTreeMap::new(),
            gone: BTreeMap::new(),
            roots: Vec::new(),
        };
        for record in records {
            match &record.forked_from {
                None => lineage.roots.push(record.id),
                Some(ForkOrigin { workspace_id, name, .. }) => {
                    if !present.contains(workspace_id)
                        && lineage.gone.insert(*workspace_id, name.clone()).is_none()
                    {
                        lineage.roots.push(*workspace_id);
                    }
                    lineage.forks.entry(*workspace_id).or_default().push(record.id);
                }
            }
        }
        lineage
    }

    fn all(&self) -> Order {
        let mut seen = BTreeSet::new();
        let mut order = Vec::new();
        // Roots first; what then was not seen are records that name each other, which must not hide them.
        for id in self.roots.iter().chain(&self.ids) {
            self.walk(*id, &mut seen, &mut order);
        }
        order
    }

    fn below(&self, root: WorkspaceId) -> Order {
        let mut order = Vec::new();
        self.walk(root, &mut BTreeSet::new(), &mut order);
        order
    }

    fn walk(&self, root: WorkspaceId, seen: &mut BTreeSet<WorkspaceId>, order: &mut Order) {
        let mut waiting = vec![(root, None)];
        while let Some((id, parent)) = waiting.pop() {
            if seen.insert(id) {
                order.push((id, parent));
                let forks = self.forks.get(&id).into_iter().flatten();
                waiting.extend(forks.rev().map(|fork| (*fork, Some(id))));
            }
        }
    }
}

/// Hangs each node below its parent. Without recursion: forks of forks can be many.
fn assemble(order: &Order, mut nodes: BTreeMap<WorkspaceId, TreeNode>) -> Vec<TreeNode> {
    let mut forks: BTreeMap<Option<WorkspaceId>, Vec<TreeNode>> = BTreeMap::new();
    for (id, parent) in order.iter().rev() {
        let Some(mut node) = nodes.remove(id) else { continue };
        node.forks = forks.remove(&Some(*id)).unwrap_or_default();
        node.forks.reverse();
        forks.entry(*parent).or_default().push(node);
    }
    let mut roots = forks.remove(&None).unwrap_or_default();
    roots.reverse();
    roots
}
