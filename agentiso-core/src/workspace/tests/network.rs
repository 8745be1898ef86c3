use super::{Scene, create};
use crate::network::{MAX_GROUPS, NetworkError};
use crate::types::{GuestPort, HostPort};
use crate::{EngineError, PolicyChange, StoreError};

fn guest(port: u64) -> GuestPort {
    GuestPort::new(port).unwrap()
}

fn host_port(port: u64) -> HostPort {
    HostPort::new(port).unwrap()
}

#[tokio::test]
async fn forwards_are_in_force_again_after_a_restart() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    let forward = workspace.add_forward(guest(80), None).await.unwrap();

    workspace.stop().await.unwrap();
    assert!(!scene.fakes.is_listening(forward.host_port));
    workspace.start().await.unwrap();

    assert!(scene.fakes.is_listening(forward.host_port));
    assert_eq!(workspace.forwards().await.unwrap(), [forward]);
    workspace.remove_forward(guest(80)).await.unwrap();
    assert!(!scene.fakes.is_listening(forward.host_port));
    assert!(matches!(workspace.remove_forward(guest(80)).await, Err(EngineError::Parameters { .. })));
}

#[tokio::test]
async fn taken_ports_are_refused_and_change_nothing() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (one, two) = (create(&host, "one").await, create(&host, "two").await);
    scene.fakes.occupy_port(host_port(9000));
    one.add_forward(guest(80), Some(host_port(9001))).await.unwrap();
    one.stop().await.unwrap();

    let foreign = two.add_forward(guest(80), Some(host_port(9000))).await;
    let promised = two.add_forward(guest(80), Some(host_port(9001))).await;

    assert!(matches!(foreign, Err(EngineError::Network(NetworkError::PortTaken { .. }))), "{foreign:?}");
    assert!(matches!(promised, Err(EngineError::Store(StoreError::PortTaken { .. }))), "{promised:?}");
    assert!(two.forwards().await.unwrap().is_empty());
    assert!(!scene.fakes.is_listening(host_port(9001)));
}

#[tokio::test]
async fn policy_changes_are_partial_and_keep_forwards() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    let forward = workspace.add_forward(guest(80), None).await.unwrap();

    let on = PolicyChange { allow_internet: Some(true), ..PolicyChange::default() };
    workspace.set_policy(on).await.unwrap();
    let ports = PolicyChange { allowed_ports: Some(vec![443]), ..PolicyChange::default() };
    let policy = workspace.set_policy(ports).await.unwrap();

    assert!(policy.allow_internet);
    assert_eq!(policy.allowed_ports, [443]);
    assert_eq!(scene.fakes.policy(workspace.id()), Some(policy));
    assert!(scene.fakes.is_listening(forward.host_port));
}

#[tokio::test]
async fn groups_that_cannot_be_are_refused_and_change_nothing() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    let groups = |count: usize| {
        let names = (0..count).map(|n| format!("team-{n}").parse().unwrap());
        PolicyChange { groups: Some(names.collect()), ..PolicyChange::default() }
    };

    let too_many = workspace.set_policy(groups(MAX_GROUPS + 1)).await;
    let kept_apart = workspace.set_policy(groups(1)).await;

    let count = MAX_GROUPS + 1;
    assert!(
        matches!(&too_many, Err(EngineError::Network(NetworkError::TooManyGroups { count: found })) if *found == count),
        "{too_many:?}"
    );
    assert!(
        matches!(kept_apart, Err(EngineError::Network(NetworkError::Unsupported { .. }))),
        "{kept_apart:?}"
    );
    assert!(workspace.info().await.unwrap().network.groups.is_empty());
    workspace.set_policy(groups(0)).await.unwrap();
}

#[tokio::test]
async fn create_with_a_forward_that_is_taken_leaves_nothing() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    scene.fakes.occupy_port(host_port(9000));
    let mut spec = crate::WorkspaceSpec::new("test");
    spec.forwards.insert(guest(80), Some(host_port(9000)));

    let refused = host.create(spec).await.unwrap_err();

    assert!(refused.report().contains("host port 9000 is in use"), "{}", refused.report());
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}
