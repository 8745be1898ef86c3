//! The contract of [`Hypervisor`].

mod disk;
mod end;

use std::time::{Duration, Instant};

use async_trait::async_trait;
pub use disk::*;
pub use end::*;

use super::{PATIENCE, eventually, names_in, through_text};
use crate::{
    hypervisor::{Hypervisor, HypervisorError, LaunchSpec, Machine, MachineLog, MachineStatus},
    storage::DiskLayer,
};

/// What the hypervisor at hand supplies. Dropping it removes what the check left.
#[async_trait]
pub trait HypervisorFixture: Send + Sync {
    /// Opens the hypervisor, each time as another process would.
    async fn open(&self) -> Box<dyn Hypervisor>;

    /// A new machine that starts and stays: another id, folder and disk each time. Its guest prints something on the
    /// console and does not power off by itself.
    async fn spec(&self) -> LaunchSpec;

    /// Specs whose launch must fail, each with a name: no kernel, a layer that is not there, and the like.
    async fn broken_specs(&self) -> Vec<(&'static str, LaunchSpec)>;

    /// A new empty layer that a machine of [`Self::spec`] can pivot to.
    async fn empty_layer(&self, machine: &Machine) -> DiskLayer;

    /// Ends the machine's process from outside, as a crash would.
    async fn crash(&self, machine: &Machine);
}

/// The contract of [`Hypervisor`] as tests; see the module `testkit::contract`.
#[macro_export]
macro_rules! hypervisor_contract {
    ($fixture:expr) => {
        $crate::contract_tests!(
            hypervisor,
            $fixture,
            [
                launched_machine_runs,
                failed_launch_leaves_nothing,
                dropped_launch_leaves_nothing,
                pause_and_resume_are_idempotent,
                machine_is_operated_from_its_record_alone,
                machines_do_not_affect_each_other,
                pivot_moves_to_the_new_layer,
                pivot_works_while_paused,
                pivot_to_a_missing_layer_changes_nothing,
                stream_leaves_the_layers_of_the_plan,
                cancelled_stream_lets_the_disk_pivot,
                stream_of_another_chain_changes_nothing,
                wait_exit_is_false_while_it_runs,
                crash_is_noticed,
                operations_on_an_exited_machine_say_gone,
                kill_leaves_only_logs,
                kill_ends_a_paused_machine,
                kill_of_a_crashed_machine_removes_the_rest,
                another_process_of_the_same_number_is_not_the_machine,
                memory_usage_is_told_while_it_runs,
                log_tail_is_the_newest_bytes,
                log_of_an_unknown_folder_is_empty,
                running_machines_are_listed,
                listed_process_is_killed_by_its_identity_alone,
            ]
        );
        $crate::contract_tests!(
            memory,
            $fixture,
            [
                captured_machine_runs_on,
                captured_machine_stands_still_if_asked,
                machines_begin_with_an_image,
                capture_moves_the_disk,
                capture_whose_disk_fails_leaves_the_machine_running,
                dropped_capture_leaves_the_machine_running,
                capture_is_refused_where_it_cannot_be,
                deleted_image_is_gone_and_its_machines_go_on,
            ]
        );
    };
}

async fn status(hypervisor: &dyn Hypervisor, machine: &Machine) -> MachineStatus {
    hypervisor.status(machine).await.unwrap()
}

async fn is_listed(hypervisor: &dyn Hypervisor, machine: &Machine) -> bool {
    hypervisor.processes().await.unwrap().contains(&(machine.id, machine.process.clone()))
}

/// A machine that launched.
pub async fn launched_machine_runs(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let spec = fixture.spec().await;
    let (id, run_dir) = (spec.id, spec.run_dir.clone());

    let machine = hypervisor.launch(spec).await.unwrap();

    assert_eq!(machine.id, id);
    assert_eq!(machine.run_dir, run_dir);
    assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Running);
    assert!(hypervisor.is_alive(&machine));
    hypervisor.kill(&machine).await.unwrap();
}

/// "On failure no process and no file of it is left."
pub async fn failed_launch_leaves_nothing(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    for (name, spec) in fixture.broken_specs().await {
        let (id, run_dir) = (spec.id, spec.run_dir.clone());
        let before = names_in(&run_dir);

        let result = hypervisor.launch(spec).await;

        assert!(result.is_err(), "{name}: launched");
        let of_it = hypervisor.processes().await.unwrap().into_iter().any(|(other, _)| other == id);
        assert!(!of_it, "{name}: a process is left");
        let new: Vec<String> = names_in(&run_dir).difference(&before).cloned().collect();
        assert!(new.is_empty(), "{name}: left {new:?}");
    }
}

/// "... and when the future is dropped."
pub async fn dropped_launch_leaves_nothing(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    for patience_ms in [0, 2, 10, 30, 60] {
        let spec = fixture.spec().await;
        let (id, run_dir) = (spec.id, spec.run_dir.clone());
        let before = names_in(&run_dir);

        let launched =
            tokio::time::timeout(Duration::from_millis(patience_ms), hypervisor.launch(spec)).await;

        match launched {
            Ok(result) => hypervisor.kill(&result.unwrap()).await.unwrap(),
            Err(_) => {
                eventually("no process is left", async || {
                    hypervisor.processes().await.unwrap().into_iter().all(|(other, _)| other != id)
                })
                .await;
                eventually("no file is left", async || names_in(&run_dir).is_subset(&before)).await;
            }
        }
    }
}

/// "Already paused: no effect." "Already running: no effect."
pub async fn pause_and_resume_are_idempotent(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();

    hypervisor.resume(&machine).await.unwrap();
    assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Running);
    for _ in 0..2 {
        hypervisor.pause(&machine).await.unwrap();
        assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Paused);
    }
    for _ in 0..2 {
        hypervisor.resume(&machine).await.unwrap();
        assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Running);
    }
    hypervisor.kill(&machine).await.unwrap();
}

/// "Every method but `launch` works from a record alone, in any process of the same user."
pub async fn machine_is_operated_from_its_record_alone(fixture: &dyn HypervisorFixture) {
    let record = {
        let launcher = fixture.open().await;
        through_text(&launcher.launch(fixture.spec().await).await.unwrap())
    };
    let hypervisor = fixture.open().await;

    assert_eq!(status(&*hypervisor, &record).await, MachineStatus::Running);
    hypervisor.pause(&record).await.unwrap();
    assert_eq!(status(&*fixture.open().await, &record).await, MachineStatus::Paused);
    hypervisor.resume(&record).await.unwrap();
    let layer = fixture.empty_layer(&record).await;
    hypervisor.pivot_disk(&record, &layer).await.unwrap();
    assert_eq!(fixture.open().await.active_layer(&record).await.unwrap(), layer.id);
    fixture.open().await.kill(&record).await.unwrap();
    assert_eq!(status(&*hypervisor, &record).await, MachineStatus::Exited);
}

/// What is done to one machine leaves another alone.
pub async fn machines_do_not_affect_each_other(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let one = hypervisor.launch(fixture.spec().await).await.unwrap();
    let other = hypervisor.launch(fixture.spec().await).await.unwrap();

    hypervisor.pause(&one).await.unwrap();
    assert_eq!(status(&*hypervisor, &other).await, MachineStatus::Running);
    hypervisor.kill(&one).await.unwrap();

    assert_eq!(status(&*hypervisor, &other).await, MachineStatus::Running);
    assert!(is_listed(&*hypervisor, &other).await);
    hypervisor.kill(&other).await.unwrap();
}

/// "`false` if the time was over first": not before, and not much later.
pub async fn wait_exit_is_false_while_it_runs(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();
    let limit = Duration::from_millis(100);
    let begin = Instant::now();

    let exited = hypervisor.wait_exit(&machine, limit).await.unwrap();

    assert!(!exited);
    assert!(begin.elapsed() >= limit, "after {:?}", begin.elapsed());
    assert!(begin.elapsed() < PATIENCE, "after {:?}", begin.elapsed());
    hypervisor.kill(&machine).await.unwrap();
}

/// "The newest bytes of a log of a machine, running or not."
pub async fn log_tail_is_the_newest_bytes(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();
    let tail = async |max_bytes| {
        hypervisor.log_tail(&machine.run_dir, MachineLog::Console, max_bytes).await.unwrap()
    };

    eventually("the guest printed something", async || tail(1 << 20).await.len() >= 16).await;
    hypervisor.kill(&machine).await.unwrap();

    // Dead machines print nothing more; the log may still be on its way to where it is kept.
    eventually("the log is at rest", async || {
        let before = tail(1 << 20).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        before == tail(1 << 20).await
    })
    .await;
    let whole = tail(1 << 20).await;
    assert!(whole.len() >= 16);
    assert_eq!(tail(7).await, whole[whole.len() - 7..]);
    assert_eq!(tail(0).await, b"");
}

/// "Empty if there is none."
pub async fn log_of_an_unknown_folder_is_empty(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let empty_folder = fixture.spec().await.run_dir;
    for log in [MachineLog::Console, MachineLog::Stderr] {
        assert_eq!(hypervisor.log_tail(&empty_folder, log, 100).await.unwrap(), b"");
        assert_eq!(hypervisor.log_tail(&empty_folder.join("missing"), log, 100).await.unwrap(), b"");
    }
}

/// "How much of the host's memory the machine takes up." "Gone if it has exited."
pub async fn memory_usage_is_told_while_it_runs(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = through_text(&hypervisor.launch(fixture.spec().await).await.unwrap());

    let usage = fixture.open().await.memory_usage(&machine).await.unwrap();
    hypervisor.pause(&machine).await.unwrap();
    let paused = hypervisor.memory_usage(&machine).await.unwrap();
    hypervisor.kill(&machine).await.unwrap();
    let gone = hypervisor.memory_usage(&machine).await;

    for usage in [usage, paused] {
        assert!(usage.unique_bytes > 0 && usage.shared_bytes > 0, "{usage:?}");
        assert!(usage.shared_bytes < usage.resident_bytes, "{usage:?}");
        assert!(usage.resident_bytes <= usage.unique_bytes + usage.shared_bytes, "{usage:?}");
    }
    assert!(matches!(gone, Err(HypervisorError::Gone { .. })), "{gone:?}");
}

/// Processes are listed under the workspace they carry in their name.
pub async fn running_machines_are_listed(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let one = hypervisor.launch(fixture.spec().await).await.unwrap();
    let other = hypervisor.launch(fixture.spec().await).await.unwrap();

    assert!(is_listed(&*fixture.open().await, &one).await);
    assert!(is_listed(&*hypervisor, &other).await);
    hypervisor.kill(&one).await.unwrap();
    assert!(!is_listed(&*hypervisor, &one).await);
    assert!(is_listed(&*hypervisor, &other).await);
    hypervisor.kill(&other).await.unwrap();
}

/// "Ends a process that `processes` listed, and waits until it is gone." "Another process has its number by now: no
/// effect."
pub async fn listed_process_is_killed_by_its_identity_alone(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();
    let mut earlier = machine.process.clone();
    earlier.start_ticks -= 1;

    hypervisor.kill_process(&earlier).await.unwrap();
    assert!(hypervisor.is_alive(&machine));
    for _ in 0..2 {
        fixture.open().await.kill_process(&machine.process).await.unwrap();
        assert!(!hypervisor.is_alive(&machine));
    }

    hypervisor.kill(&machine).await.unwrap();
}
