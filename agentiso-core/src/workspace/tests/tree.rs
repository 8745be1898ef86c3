use super::{Scene, create};
use crate::hypervisor::MemoryUsage;
use crate::testkit::Fault;
use crate::types::{SnapshotName, WorkspaceName};
use crate::{ForkSpec, TreeNode, Workspace, WorkspaceState};

/// A fork of a workspace's snapshot `s`.
pub(super) async fn fork(host: &crate::Host, parent: &Workspace, name: &str) -> Workspace {
    let spec = ForkSpec {
        snapshot: Some(SnapshotName::new("s").unwrap()),
        name: Some(WorkspaceName::new(name).unwrap()),
        ..ForkSpec::default()
    };
    let report = parent.fork(spec).await.unwrap();
    assert_eq!(report.failure_count, 0, "{report:?}");
    host.workspace(name).await.unwrap()
}

/// `a[b[c],d]`, with `!` behind what is gone.
fn drawn(nodes: &[TreeNode]) -> String {
    let one = |node: &TreeNode| {
        let forks = if node.forks.is_empty() { String::new() } else { format!("[{}]", drawn(&node.forks)) };
        format!("{}{}{forks}", node.name, if node.gone { "!" } else { "" })
    };
    nodes.iter().map(one).collect::<Vec<_>>().join(",")
}

#[tokio::test]
async fn tree_shows_who_was_forked_from_whom() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let root = create(&host, "root").await;
    root.snapshot("s").await.unwrap();
    create(&host, "other").await;
    let one = fork(&host, &root, "one").await;
    fork(&host, &root, "two").await;
    one.snapshot("s").await.unwrap();
    fork(&host, &one, "deep").await;

    assert_eq!(drawn(&host.tree(None).await.unwrap()), "root[one[deep],two],other");
    assert_eq!(drawn(&host.tree(Some("one")).await.unwrap()), "one[deep]");
    assert!(host.tree(Some("nobody")).await.is_err());
}

#[tokio::test]
async fn destroyed_parent_stands_for_itself_while_forks_are_left() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let root = create(&host, "root").await;
    root.snapshot("s").await.unwrap();
    let one = fork(&host, &root, "one").await;
    let two = fork(&host, &root, "two").await;
    one.snapshot("s").await.unwrap();
    fork(&host, &one, "deep").await;

    root.destroy().await.unwrap();
    assert_eq!(drawn(&host.tree(None).await.unwrap()), "root![one[deep],two]");
    one.destroy().await.unwrap();
    assert_eq!(drawn(&host.tree(None).await.unwrap()), "root![two],one![deep]");
    two.destroy().await.unwrap();

    let tree = host.tree(None).await.unwrap();
    assert_eq!(drawn(&tree), "one![deep]");
    assert_eq!((tree[0].workspace_id, tree[0].state, tree[0].disk_used_bytes), (one.id(), None, None));
}

#[tokio::test]
async fn memory_and_disk_are_told_as_far_as_they_are_there() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    workspace.snapshot("s").await.unwrap();
    let fork = fork(&host, &workspace, "b").await;
    let usage = MemoryUsage { unique_bytes: 7, shared_bytes: 9, resident_bytes: 16 };
    scene.fakes.set_memory_usage(workspace.id(), usage);

    let running = workspace.info().await.unwrap();
    fork.stop().await.unwrap();
    let tree = host.tree(None).await.unwrap();

    assert_eq!((running.memory_unique_bytes, running.memory_shared_bytes), (Some(7), Some(9)));
    assert_eq!((tree[0].memory_unique_bytes, tree[0].memory_shared_bytes), (Some(7), Some(9)));
    assert_eq!(tree[0].disk_used_bytes, Some(running.disk_used_bytes));
    assert_eq!(tree[0].disk_shared_bytes, Some(running.disk_shared_bytes));
    let stopped = &tree[0].forks[0];
    assert_eq!((stopped.state, stopped.memory_unique_bytes), (Some(WorkspaceState::Stopped), None));
    assert_eq!(stopped.snapshot.as_deref(), Some("s"));
    assert_eq!(fork.info().await.unwrap().memory_unique_bytes, None);
}

#[tokio::test]
async fn what_cannot_be_measured_hides_nothing() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    create(&host, "a").await;
    scene.fakes.faults().arm("hypervisor.memory_usage", 1, Fault::Fail);
    scene.fakes.faults().arm("storage.usage", 1, Fault::Fail);

    let tree = host.tree(None).await.unwrap();

    assert_eq!(drawn(&tree), "a");
    assert_eq!((tree[0].memory_unique_bytes, tree[0].disk_used_bytes), (None, None));
}
