//! Moving a machine's disk to new layers, and pulling layers together, while it is there.

use super::{HypervisorFixture, status};
use crate::{
    hypervisor::{Machine, MachineStatus, StreamStatus},
    storage::{DiskLayer, LayerId, ShortenPlan},
    testkit::contract::eventually,
};

/// The active layer is the first of the chain, then the one pivoted to. "Already on that layer: no effect."
pub async fn pivot_moves_to_the_new_layer(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let spec = fixture.spec().await;
    let first = spec.disk.layers[0].id.clone();
    let machine = hypervisor.launch(spec).await.unwrap();

    assert_eq!(hypervisor.active_layer(&machine).await.unwrap(), first);
    for _ in 0..3 {
        let layer = fixture.empty_layer(&machine).await;
        for _ in 0..2 {
            hypervisor.pivot_disk(&machine, &layer).await.unwrap();
            assert_eq!(hypervisor.active_layer(&machine).await.unwrap(), layer.id);
        }
    }
    assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Running);
    hypervisor.kill(&machine).await.unwrap();
}

/// A paused machine pivots and stays paused.
pub async fn pivot_works_while_paused(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();
    let layer = fixture.empty_layer(&machine).await;

    hypervisor.pause(&machine).await.unwrap();
    hypervisor.pivot_disk(&machine, &layer).await.unwrap();

    assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Paused);
    assert_eq!(hypervisor.active_layer(&machine).await.unwrap(), layer.id);
    hypervisor.kill(&machine).await.unwrap();
}

/// "On failure the machine goes on with the layer it had." A later pivot works.
pub async fn pivot_to_a_missing_layer_changes_nothing(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let machine = hypervisor.launch(fixture.spec().await).await.unwrap();
    let before = hypervisor.active_layer(&machine).await.unwrap();
    let layer = fixture.empty_layer(&machine).await;
    let missing =
        DiskLayer { id: LayerId::random(), path: layer.path.with_file_name("missing"), ..layer.clone() };

    let result = hypervisor.pivot_disk(&machine, &missing).await;

    assert!(result.is_err());
    assert_eq!(hypervisor.active_layer(&machine).await.unwrap(), before);
    assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Running);
    hypervisor.pivot_disk(&machine, &layer).await.unwrap();
    assert_eq!(hypervisor.active_layer(&machine).await.unwrap(), layer.id);
    hypervisor.kill(&machine).await.unwrap();
}

/// A running machine that has pivoted a few times, and the plan to leave it its topmost and its lowest layer.
async fn machine_with_layers(fixture: &dyn HypervisorFixture) -> (Machine, ShortenPlan) {
    let hypervisor = fixture.open().await;
    let spec = fixture.spec().await;
    let mut layers = spec.disk.layers.clone();
    let machine = hypervisor.launch(spec).await.unwrap();
    for _ in 0..3 {
        let layer = fixture.empty_layer(&machine).await;
        hypervisor.pivot_disk(&machine, &layer).await.unwrap();
        layers.insert(0, layer);
    }
    let top = layers.remove(0);
    let base = layers.pop().unwrap().id;
    let dropped = layers.into_iter().map(|layer| layer.id).collect();
    (machine, ShortenPlan { top, dropped, base, beneath: 1 })
}

async fn is_streamed(fixture: &dyn HypervisorFixture, machine: &Machine, plan: &ShortenPlan) -> bool {
    fixture.open().await.stream_disk(machine, plan).await.unwrap() == StreamStatus::Done
}

/// "Starts the copying, or says how far it is", to any process, and "Done, each time from then on". The machine runs
/// on and pivots as before.
pub async fn stream_leaves_the_layers_of_the_plan(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let (machine, plan) = machine_with_layers(fixture).await;

    let first = hypervisor.stream_disk(&machine, &plan).await.unwrap();
    eventually("all is copied", async || is_streamed(fixture, &machine, &plan).await).await;

    assert!(matches!(first, StreamStatus::Running { .. }), "{first:?}");
    assert!(is_streamed(fixture, &machine, &plan).await);
    assert_eq!(hypervisor.cancel_stream(&machine, &plan).await.unwrap(), StreamStatus::Done);
    assert_eq!(hypervisor.active_layer(&machine).await.unwrap(), plan.top.id);
    assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Running);
    let layer = fixture.empty_layer(&machine).await;
    hypervisor.pivot_disk(&machine, &layer).await.unwrap();
    assert_eq!(hypervisor.active_layer(&machine).await.unwrap(), layer.id);
    hypervisor.kill(&machine).await.unwrap();
}

/// "It can pivot then." Nothing under way: "Idle". The copying can begin again.
pub async fn cancelled_stream_lets_the_disk_pivot(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let (machine, mut plan) = machine_with_layers(fixture).await;

    let nothing = hypervisor.cancel_stream(&machine, &plan).await.unwrap();
    hypervisor.stream_disk(&machine, &plan).await.unwrap();
    let cancelled = fixture.open().await.cancel_stream(&machine, &plan).await.unwrap();
    let layer = fixture.empty_layer(&machine).await;
    hypervisor.pivot_disk(&machine, &layer).await.unwrap();

    assert_eq!(nothing, StreamStatus::Idle);
    // It may have come to its end before it was given up.
    match cancelled {
        StreamStatus::Idle => plan.dropped.insert(0, plan.top.id),
        _ => plan.dropped = vec![plan.top.id],
    }
    plan.top = layer;
    assert_eq!(hypervisor.active_layer(&machine).await.unwrap(), plan.top.id);
    eventually("all is copied", async || is_streamed(fixture, &machine, &plan).await).await;
    hypervisor.kill(&machine).await.unwrap();
}

/// "Fails if the machine's topmost layer is another."
pub async fn stream_of_another_chain_changes_nothing(fixture: &dyn HypervisorFixture) {
    let hypervisor = fixture.open().await;
    let (machine, plan) = machine_with_layers(fixture).await;
    let other = ShortenPlan { top: fixture.empty_layer(&machine).await, ..plan.clone() };

    assert!(hypervisor.stream_disk(&machine, &other).await.is_err());

    assert_eq!(hypervisor.cancel_stream(&machine, &other).await.unwrap(), StreamStatus::Idle);
    assert_eq!(hypervisor.active_layer(&machine).await.unwrap(), plan.top.id);
    assert_eq!(status(&*hypervisor, &machine).await, MachineStatus::Running);
    eventually("all is copied", async || is_streamed(fixture, &machine, &plan).await).await;
    hypervisor.kill(&machine).await.unwrap();
}
