//! Machines that end: killed, crashed, or gone and somebody else's number.

use std::time::Duration;

use super::{HypervisorFixture, is_listed, status};
use crate::{
    hypervisor::{Hypervisor, HypervisorError, Machine, MachineStatus},
    storage::ShortenPlan,
    testkit::contract::{PATIENCE, names_in},
};

/// A machine whose process dies has exited, for those who wait and those who look.
pub async fn crash_is_noticed(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();
    let waiter = fixture.open().await;

    let (exited, ()) = tokio::join!(waiter.wait_exit(&machine, PATIENCE), async {
        tokio::task::yield_now().await;
        fixture.crash(&machine).await;
    });

    assert!(exited.unwrap());
    assert!(!hypervisor.is_alive(&machine));
    assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Exited);
    assert!(!is_listed(&*hypervisor, &machine).await);
    hypervisor.kill(&machine).await.unwrap();
}

/// Nothing but [`HypervisorError::Gone`] for a machine that is not there.
pub async fn operations_on_an_exited_machine_say_gone(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();
    let layer = fixture.empty_layer(&machine).await;
    let plan = ShortenPlan { top: layer.clone(), dropped: Vec::new(), base: layer.id.clone(), beneath: 1 };
    fixture.crash(&machine).await;
    assert!(hypervisor.wait_exit(&machine, PATIENCE).await.unwrap());

    let results = [
        ("pause", hypervisor.pause(&machine).await),
        ("resume", hypervisor.resume(&machine).await),
        ("active_layer", hypervisor.active_layer(&machine).await.map(drop)),
        ("pivot_disk", hypervisor.pivot_disk(&machine, &layer).await),
        ("stream_disk", hypervisor.stream_disk(&machine, &plan).await.map(drop)),
        ("cancel_stream", hypervisor.cancel_stream(&machine, &plan).await.map(drop)),
        ("power_button", hypervisor.power_button(&machine).await),
    ];

    for (operation, result) in results {
        let gone = matches!(result, Err(HypervisorError::Gone { id }) if id == machine.id);
        assert!(gone, "{operation}: {result:?}");
    }
    hypervisor.kill(&machine).await.unwrap();
}

/// Asserts that nothing is left of a machine but logs.
async fn assert_removed(hypervisor: &dyn Hypervisor, machine: &Machine) {
    assert!(!hypervisor.is_alive(machine));
    assert_eq!(status(hypervisor, machine).await, MachineStatus::Exited);
    assert!(hypervisor.wait_exit(machine, Duration::ZERO).await.unwrap());
    let of_it: Vec<_> =
        hypervisor.processes().await.unwrap().into_iter().filter(|(id, _)| *id == machine.id).collect();
    assert!(of_it.is_empty(), "left {of_it:?}");
    let rest: Vec<String> =
        names_in(&machine.run_dir).into_iter().filter(|name| !name.ends_with(".log")).collect();
    assert!(rest.is_empty(), "left {rest:?}");
}

/// "Ends the machine at once, waits until it is gone, and removes what belonged to its process." "Idempotent."
pub async fn kill_leaves_only_logs(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();

    for _ in 0..2 {
        hypervisor.kill(&machine).await.unwrap();
        assert_removed(&*hypervisor, &machine).await;
    }
}

/// A paused machine is killed as a running one is.
pub async fn kill_ends_a_paused_machine(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();
    hypervisor.pause(&machine).await.unwrap();

    hypervisor.kill(&machine).await.unwrap();

    assert_removed(&*hypervisor, &machine).await;
}

/// "Already gone: only the removal."
pub async fn kill_of_a_crashed_machine_removes_the_rest(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();
    fixture.crash(&machine).await;

    fixture.open().await.kill(&machine).await.unwrap();

    assert_removed(&*hypervisor, &machine).await;
}

/// "A process that has the number but not the start time of the record is another one." It is not killed either.
pub async fn another_process_of_the_same_number_is_not_the_machine(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();
    let folder = fixture.spec().await.run_dir;
    let mut earlier = Machine { run_dir: folder, ..machine.clone() };
    earlier.process.start_ticks -= 1;
    let mut earlier_boot = earlier.clone();
    earlier_boot.process = machine.process.clone();
    earlier_boot.process.boot_id = "00000000-0000-0000-0000-000000000000".to_owned();

    for other in [earlier, earlier_boot] {
        assert!(!hypervisor.is_alive(&other));
        assert_eq!(status(&*hypervisor, &other).await, MachineStatus::Exited);
        assert!(hypervisor.wait_exit(&other, Duration::ZERO).await.unwrap());
        hypervisor.kill(&other).await.unwrap();
        assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Running);
    }
    hypervisor.kill(&machine).await.unwrap();
}
