use super::recovery::{Victim, called};
use super::{Scene, create, eventually, try_create};
use crate::testkit::Fault;
use crate::types::{GuestPort, MemoryMib, Resources};
use crate::{EngineError, PoolSpec, WorkspaceSpec, WorkspaceState};

fn pool_of(size: u32) -> PoolSpec {
    PoolSpec { image: "test".into(), resources: Resources::default(), size }
}

fn launches(scene: &Scene) -> usize {
    scene.fakes.faults().count("hypervisor.launch")
}

#[tokio::test]
async fn workspace_is_taken_from_the_pool_which_fills_again() {
    let scene = Scene::with_templates().await;
    let host = scene.open().await;
    let pool = host.pool(pool_of(2)).await.unwrap();
    pool.filled().await.unwrap();
    assert_eq!((pool.ready(), launches(&scene)), (2, 3));
    assert!(host.list().await.unwrap().is_empty(), "what waits is nobody's business");

    let mut spec = WorkspaceSpec::new("test").name("a").unwrap().allow_internet(true);
    spec.forwards.insert(GuestPort::new(80).unwrap(), None);
    let taken = host.create(spec).await.unwrap();

    assert!(taken.is_from_pool());
    assert_eq!(taken.exec("hostname").await.unwrap().stdout_text(), "a\n");
    let info = taken.info().await.unwrap();
    assert_eq!(info.summary.state, WorkspaceState::Running);
    assert!(info.network.allow_internet && scene.fakes.policy(taken.id()).unwrap().allow_internet);
    assert_eq!(info.port_forwards.len(), 1);
    assert!(!info.summary.throwaway);
    pool.filled().await.unwrap();
    assert_eq!(launches(&scene), 4);
    pool.close().await;
    taken.destroy().await.unwrap();
    host.remove_image("test").await.unwrap();
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn another_size_is_not_taken_from_the_pool() {
    let scene = Scene::with_templates().await;
    let host = scene.open().await;
    let pool = host.pool(pool_of(1)).await.unwrap();
    pool.filled().await.unwrap();
    let larger = Resources { memory_mb: MemoryMib::new(1024).unwrap(), ..Resources::default() };

    let made = host.create(WorkspaceSpec::new("test").resources(larger)).await.unwrap();

    assert!(!made.is_from_pool());
    assert_eq!(made.info().await.unwrap().summary.resources, larger);
    assert_eq!(pool.ready(), 1);
    pool.close().await;
}

#[tokio::test]
async fn taken_name_is_refused_before_anything_is_taken() {
    let scene = Scene::with_templates().await;
    let host = scene.open().await;
    create(&host, "a").await;
    let pool = host.pool(pool_of(1)).await.unwrap();
    pool.filled().await.unwrap();

    let refused = try_create(&host, "a").await;

    assert!(matches!(refused, Err(EngineError::NameTaken { .. })), "{refused:?}");
    assert_eq!(pool.ready(), 1);
    pool.close().await;
}

#[tokio::test]
async fn machine_that_died_or_does_not_answer_is_replaced_by_one_that_is_made() {
    for method in ["hypervisor.resume", "agent.configure"] {
        let scene = Scene::with_templates().await;
        let host = scene.open().await;
        let pool = host.pool(pool_of(1)).await.unwrap();
        pool.filled().await.unwrap();
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let made = try_create(&host, "a").await.unwrap();

        assert_eq!(made.exec("hostname").await.unwrap().stdout_text(), "a\n", "{method}");
        pool.filled().await.unwrap();
        pool.close().await;
        made.destroy().await.unwrap();
        host.remove_image("test").await.unwrap();
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}");
    }
}

#[tokio::test]
async fn pool_of_a_killed_process_is_destroyed_by_the_next_opener() {
    let scene = Scene::with_templates().await;
    let victim = Victim::stuck_in(&scene, async |host| {
        let pool = host.pool(pool_of(2)).await.unwrap();
        pool.filled().await.unwrap();
        std::future::pending::<()>().await;
        drop(pool);
    })
    .await;
    called(&scene, "hypervisor.pause", 2).await;

    victim.kill();

    eventually("nothing waits any more", async || {
        let host = scene.open().await;
        scene.backends().hypervisor.processes().await.unwrap().is_empty()
            && host.list().await.unwrap().is_empty()
    })
    .await;
    scene.open().await.remove_image("test").await.unwrap();
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn size_of_a_pool_is_bounded() {
    let scene = Scene::with_templates().await;
    let host = scene.open().await;
    for (size, valid) in [(0, false), (1, true), (20, true), (21, false)] {
        let pool = host.pool(pool_of(size)).await;
        assert_eq!(pool.is_ok(), valid, "{size}");
        if let Ok(pool) = pool {
            pool.close().await;
        }
    }
}
