//! The whole engine with real machines, and this channel.

use std::collections::BTreeSet;

use agentiso_core::{
    ForkSpec, Host, Workspace, WorkspaceState,
    channel::{ChannelDevice, ChannelSpec, GuestChannel, vsock::VsockChannel},
    testkit::leases,
    types::WorkspaceId,
};

use crate::{
    fixture::{held, open_host},
    lab::{home, sh, throwaway},
};

async fn host() -> Option<Host> {
    match home() {
        Ok(_) => Some(open_host().await),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

#[tokio::test]
async fn state_folders_with_the_same_context_ids_do_not_take_each_others() {
    if let Err(reason) = home() {
        println!("skipped: {reason}");
        return;
    }
    // Far from those of the tests' state folder, and too few to be divided.
    let cids = 70_000..=70_003;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut prepared = Vec::new();
    for folder in folders.iter().chain(&folders) {
        let leases = leases(&folder.path().join("records.db")).unwrap();
        let channel = VsockChannel::open(leases).unwrap().with_cids(cids.clone());
        let id = WorkspaceId::random();
        let run_dir = folder.path().join(id.to_string());
        std::fs::create_dir(&run_dir).unwrap();
        prepared.push((channel.prepare(ChannelSpec { id, run_dir }).await.unwrap(), channel));
    }

    let cid = |device: &ChannelDevice| match device {
        ChannelDevice::Vsock { cid, .. } => *cid,
        other => panic!("{other:?}"),
    };
    let taken: BTreeSet<u32> = prepared.iter().map(|(prepared, _)| cid(&prepared.device)).collect();
    assert_eq!(taken, cids.collect(), "each has one that nobody else has");
    for (prepared, channel) in &prepared {
        channel.release(&prepared.record).await.unwrap();
    }
}

fn cid_of(workspace: &Workspace) -> u32 {
    let id = workspace.id();
    held().into_iter().find(|(_, owner)| *owner == id).expect("it has a context id").0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workspaces_are_made_forked_live_and_restored_with_context_ids_of_their_own() {
    let Some(host) = host().await else { return };
    let parent = throwaway(&host).await;
    assert!(parent.info().await.unwrap().isolation.channel.contains("vsock"));
    assert_eq!(sh(&parent, "ls /sys/class/virtio-ports | wc -l").await, "0", "no serial port");
    let mut seen = BTreeSet::from([cid_of(&parent)]);
    sh(&parent, "echo kept > /dev/shm/file").await;
    let counting = "sh -c 'n=0; while true; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.1; done' \
                    > /dev/null 2>&1 & echo $!";
    let pid = sh(&parent, counting).await;
    // Open while the machine is captured: it goes on in the parent.
    let long = {
        let parent = parent.clone();
        tokio::spawn(async move {
            sh(&parent, "echo begun; until test -e /dev/shm/go; do sleep 0.1; done; echo ended").await
        })
    };
    sh(&parent, "until test -s /dev/shm/count; do sleep 0.1; done").await;

    let report = parent.fork(ForkSpec { count: 2, ..ForkSpec::default() }).await.unwrap();

    assert!(report.failures.is_empty(), "{:?}", report.failures);
    println!("the parent stood still: {:?}", report.standstill);
    let goes_on = format!(
        "kill -0 {pid} && n=$(cat /dev/shm/count); until test $(cat /dev/shm/count) -gt $n; do sleep 0.1; done"
    );
    for worker in &report.workers {
        assert_eq!(worker.state, WorkspaceState::Running);
        let fork = host.workspace(&worker.name).await.unwrap();
        assert!(seen.insert(cid_of(&fork)), "{seen:?}");
        assert_eq!(sh(&fork, "cat /dev/shm/file").await, "kept");
        sh(&fork, &goes_on).await;
        assert_eq!(sh(&fork, "hostname").await, fork.name());
    }
    sh(&parent, &goes_on).await;
    sh(&parent, "touch /dev/shm/go").await;
    assert_eq!(long.await.unwrap(), "begun\nended");

    parent.snapshot("before").await.unwrap();
    sh(&parent, "echo changed > /dev/shm/file").await;
    parent.restore("before").await.unwrap();
    assert!(seen.insert(cid_of(&parent)), "a restored machine has a new one: {seen:?}");
    assert_eq!(sh(&parent, "cat /dev/shm/file").await, "kept");

    for worker in &report.workers {
        host.workspace(&worker.name).await.unwrap().destroy().await.unwrap();
    }
    parent.destroy().await.unwrap();
    assert_eq!(held(), []);
    let again = throwaway(&host).await;
    assert!(seen.insert(cid_of(&again)), "handed out again within the cool-down: {seen:?}");
    again.destroy().await.unwrap();
    host.close().await;
}
