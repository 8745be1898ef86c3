//! The machine's process dies in the middle of everything: whoever waits is told within moments, the workspace is seen as
//! stopped by a crash, nothing is left of what was half made, and it starts again with what its disk holds.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::crash::{Operation, operations, scene};
use super::recovery::called;
use super::{Scene, create, eventually, try_create};
use crate::hypervisor::Machine;
use crate::store::Store;
use crate::testkit::Fault;
use crate::types::WorkspaceId;
use crate::{EngineError, ForkSpec, Host, WorkspaceState};

/// How long a call takes in the middle of which a machine dies.
const CALL: Duration = Duration::from_millis(50);

/// Longest time until whoever waits is told. Boots may take 10 s here: nobody waits for a machine that is gone.
const TOLD_WITHIN: Duration = Duration::from_secs(8);

/// Methods that look at machines, and have no machine's part in them.
const ON_LOOKERS: [&str; 3] = ["hypervisor.processes", "network.processes", "channel.leftovers"];

/// The machine of a workspace as its record has it.
fn machine(scene: &Scene, id: WorkspaceId) -> Option<Machine> {
    let store = Store::open(&scene.config().layout().database()).unwrap();
    Some(store.get(id).unwrap()?.runtime?.machine)
}

/// An operation as it is called from a test that needs no other.
fn running_a_command(host: Host) -> std::pin::Pin<Box<dyn Future<Output = Result<(), EngineError>> + Send>> {
    Box::pin(async move { host.workspace("a").await?.exec("true").await.map(drop) })
}

fn pausing(host: Host) -> std::pin::Pin<Box<dyn Future<Output = Result<(), EngineError>> + Send>> {
    Box::pin(async move {
        let workspace = host.workspace("a").await?;
        workspace.pause().await?;
        workspace.resume().await
    })
}

/// The methods that an operation calls, apart from those of the looks that an opener takes.
async fn methods(operation: Operation) -> BTreeSet<&'static str> {
    let scene = scene().await;
    let host = scene.open().await;
    let before = scene.fakes.faults().calls().len();
    operation(host).await.unwrap();
    let mut called: BTreeSet<_> = scene.fakes.faults().calls().into_iter().skip(before).collect();
    called.retain(|method| !ON_LOOKERS.contains(method));
    called
}

/// The machine of workspace `a` dies while `method` is under way.
async fn dies_during(operation: Operation, method: &'static str) {
    let scene = scene().await;
    let host = scene.open().await;
    let workspace = host.workspace("a").await.unwrap();
    let victim = machine(&scene, workspace.id()).unwrap();
    let before = scene.fakes.faults().count(method);
    scene.fakes.faults().arm(method, 1, Fault::Delay(CALL));
    let begun = Instant::now();
    let working = tokio::spawn(operation(host.clone()));
    called(&scene, method, before + 1).await;

    scene.fakes.crash(&victim);

    let done = working.await.unwrap();
    assert!(begun.elapsed() < TOLD_WITHIN, "{method}: told after {:?}: {done:?}", begun.elapsed());
    scene.fakes.faults().disarm();
    // Nobody opens the state folder anew: whoever has it open goes on with it.
    let Ok(workspace) = host.workspace("a").await else {
        // It was destroyed, and that needs no machine.
        assert!(done.is_ok(), "{method}: {done:?}");
        return;
    };
    let summary = workspace.info().await.unwrap().summary;
    match machine(&scene, workspace.id()).filter(|now| *now != victim) {
        // A machine of its own was made since.
        Some(_) => assert_eq!(summary.state, WorkspaceState::Running, "{method}: {done:?}"),
        None => assert_eq!(summary.state, WorkspaceState::Stopped, "{method}: {done:?}"),
    }
    workspace.start().await.unwrap();
    assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "kept\n", "{method}: {done:?}");
    // A name that is not listed is free.
    let listed = workspace.snapshots().await.unwrap();
    if listed.iter().all(|snapshot| snapshot.name != "t") {
        workspace.snapshot("t").await.unwrap();
    }
    let forked = workspace.fork(ForkSpec::default()).await.unwrap();
    assert!(forked.failures.is_empty(), "{method}: {:?}", forked.failures);
    for summary in host.list().await.unwrap() {
        host.workspace(&summary.name).await.unwrap().destroy().await.unwrap();
    }
    scene.open().await;
    assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}: {done:?}");
}

async fn dies_during_every_call(operation: Operation) {
    let methods = methods(operation).await;
    assert!(!methods.is_empty(), "an operation that calls nothing");
    for method in methods {
        dies_during(operation, method).await;
    }
}

macro_rules! dies_during_every_call {
    ($($test:ident: $operation:expr;)*) => {$(
        #[tokio::test]
        async fn $test() {
            dies_during_every_call($operation).await;
        }
    )*};
}

dies_during_every_call! {
    machine_that_dies_in_a_command_is_told_and_starts_again: running_a_command;
    machine_that_dies_in_a_snapshot_is_told_and_starts_again: operations::snapshot;
    machine_that_dies_in_a_disk_snapshot_is_told_and_starts_again: operations::disk_snapshot;
    machine_that_dies_in_a_fork_is_told_and_starts_again: operations::forking;
    machine_that_dies_in_a_restore_is_restored_all_the_same: operations::restoring;
    machine_that_dies_in_a_stop_is_stopped: operations::stopping;
    machine_that_dies_in_a_restart_is_started_all_the_same: operations::restarting;
    machine_that_dies_in_a_destroy_is_destroyed: operations::destroying;
    machine_that_dies_between_pause_and_resume_is_told_and_starts_again: pausing;
    machine_that_dies_while_its_policy_changes_is_told_and_starts_again: operations::changing_the_policy;
    machine_that_dies_while_a_port_is_forwarded_is_told_and_starts_again: operations::forwarding;
}

/// The machine that an operation has just made dies before its agent answers; who waits for it is told at once.
async fn dies_in_its_boot(
    operation: impl AsyncFnOnce(Host) -> Result<(), EngineError>,
) -> (Scene, EngineError) {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    workspace.exec("echo kept > /note; sync").await.unwrap();
    workspace.stop().await.unwrap();
    scene.fakes.set_boot_time(Duration::from_secs(3600));
    let begun = Instant::now();
    let (started, ()) = tokio::join!(operation(host), async {
        eventually("a machine boots", async || {
            let store = Store::open(&scene.config().layout().database()).unwrap();
            let all: Vec<_> = store.all().unwrap().into_iter().map(Result::unwrap).collect();
            let booting =
                all.iter().find_map(|row| row.runtime.as_ref().map(|runtime| runtime.machine.clone()));
            booting.is_some_and(|machine| {
                scene.fakes.crash(&machine);
                true
            })
        })
        .await;
    });
    assert!(begun.elapsed() < TOLD_WITHIN, "told after {:?}: {started:?}", begun.elapsed());
    scene.fakes.set_boot_time(Duration::ZERO);
    (scene, started.unwrap_err())
}

#[tokio::test]
async fn machine_that_dies_before_its_agent_answers_is_not_waited_for() {
    let (scene, error) = dies_in_its_boot(async |host| host.workspace("a").await?.start().await).await;

    assert!(matches!(error, EngineError::Start { .. }), "{error:?}");
    assert!(error.report().contains("is not running"), "{}", error.report());
    let host = scene.open().await;
    let workspace = host.workspace("a").await.unwrap();
    assert_eq!(workspace.info().await.unwrap().summary.state, WorkspaceState::Stopped);
    workspace.start().await.unwrap();
    assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "kept\n");
}

#[tokio::test]
async fn new_machine_that_dies_before_its_agent_answers_leaves_nothing() {
    let (scene, error) = dies_in_its_boot(async |host| try_create(&host, "b").await.map(drop)).await;

    assert!(error.report().contains("is not running"), "{}", error.report());
    let host = scene.open().await;
    assert_eq!(host.list().await.unwrap().len(), 1);
    create(&host, "b").await.destroy().await.unwrap();
    host.workspace("a").await.unwrap().destroy().await.unwrap();
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn paused_machine_that_dies_is_seen_as_crashed_and_starts_again() {
    let scene = scene().await;
    let host = scene.open().await;
    let workspace = host.workspace("a").await.unwrap();
    workspace.pause().await.unwrap();

    scene.fakes.crash(&machine(&scene, workspace.id()).unwrap());

    let summary = workspace.info().await.unwrap().summary;
    assert_eq!((summary.state, summary.crashed), (WorkspaceState::Stopped, true));
    assert!(matches!(workspace.resume().await, Err(EngineError::WrongState { .. })));
    assert_eq!(workspace.info().await.unwrap().summary.state, WorkspaceState::Stopped);
    workspace.start().await.unwrap();
    assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "kept\n");
}
