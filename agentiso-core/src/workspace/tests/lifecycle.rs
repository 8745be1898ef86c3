use std::time::Duration;

use super::{Scene, create, eventually, try_create};
use crate::testkit::Fault;
use crate::types::{DiskGib, Resources, WorkspaceName};
use crate::{EngineError, WorkspaceSpec, WorkspaceState};

#[tokio::test]
async fn create_gives_a_running_configured_machine() {
    let scene = Scene::new().await;
    let host = scene.open().await;

    let workspace = create(&host, "my_project").await;

    let info = workspace.info().await.unwrap();
    assert_eq!(info.summary.state, WorkspaceState::Running);
    assert!(info.pid.is_some() && info.boot_time_ms.is_some() && info.summary.ip.is_some());
    let configured = scene.fakes.guest(workspace.id()).unwrap().configuration();
    assert_eq!(configured.hostname.as_deref(), Some("my-project"));
    assert_eq!(configured.machine_id, Some(workspace.id().as_uuid().simple().to_string()));
    assert!(configured.network.is_some() && configured.time_ns.is_some() && configured.grow_root);
    assert_eq!(configured.entropy.map(|digits| digits.len()), Some(128));
    let output = workspace.exec("echo hello").await.unwrap();
    assert_eq!((output.exit_code(), output.stdout_text().as_ref()), (0, "hello\n"));
}

#[tokio::test]
async fn workspace_whose_disk_is_being_made_is_told_of() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    scene.fakes.faults().arm("storage.create_disk", 1, Fault::Delay(Duration::from_secs(2)));
    let making = {
        let host = host.clone();
        tokio::spawn(async move { create(&host, "a").await })
    };
    eventually("the record is there", async || !host.list().await.unwrap().is_empty()).await;

    let info = host.workspace("a").await.unwrap().info().await.unwrap();

    assert_eq!((info.summary.state, info.disk_used_bytes), (WorkspaceState::Creating, 0));
    let made = making.await.unwrap();
    assert_eq!(made.info().await.unwrap().summary.state, WorkspaceState::Running);
}

#[tokio::test]
async fn destroy_leaves_nothing() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;

    workspace.destroy().await.unwrap();

    assert_eq!(scene.leftovers().await, Vec::<String>::new());
    assert!(host.list().await.unwrap().is_empty());
    assert!(matches!(workspace.info().await, Err(EngineError::NoSuchWorkspace { .. })));
}

#[tokio::test]
async fn bad_input_is_refused_and_leaves_nothing() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let unknown = host.create(WorkspaceSpec::new("no-such-image")).await;
    assert!(unknown.unwrap_err().to_string().contains("there is no image no-such-image"));
    let mut inter_vm = WorkspaceSpec::new("test");
    inter_vm.policy.allow_inter_vm = true;

    let refused = host.create(inter_vm).await;

    assert!(matches!(refused, Err(EngineError::Network(_))), "{refused:?}");
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn disk_smaller_than_the_image_is_refused() {
    let scene = Scene::new().await;
    let base = scene.add_image("large", (2 << 30) + 1).await;
    let host = scene.open().await;
    let resources = Resources { disk_gb: DiskGib::new(2).unwrap(), ..Resources::default() };

    let refused = host.create(WorkspaceSpec::new("large").resources(resources)).await.unwrap_err();

    assert_eq!(refused.to_string(), "a disk of 2 GiB is smaller than image large, which needs 3 GiB");
    assert_eq!(scene.leftovers().await, [format!("base {base}")]);
}

#[tokio::test]
async fn two_creates_of_one_name_make_one_workspace() {
    let scene = Scene::new().await;
    let (one, two) = (scene.open().await, scene.open().await);

    let (first, second) = tokio::join!(try_create(&one, "same"), try_create(&two, "same"));

    assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1);
    let refused = first.err().or(second.err()).unwrap();
    assert!(matches!(refused, EngineError::NameTaken { .. }), "{refused:?}");
    assert_eq!(one.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn stop_then_start_keeps_files_and_both_are_idempotent() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    workspace.exec("echo kept > /note").await.unwrap();

    for _ in 0..2 {
        workspace.stop().await.unwrap();
    }
    assert_eq!(workspace.info().await.unwrap().summary.state, WorkspaceState::Stopped);
    assert!(matches!(workspace.exec("true").await, Err(EngineError::WrongState { .. })));
    for _ in 0..2 {
        workspace.start().await.unwrap();
    }

    assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "kept\n");
}

#[tokio::test]
async fn pause_keeps_commands_out_until_resume() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;

    workspace.pause().await.unwrap();

    let refused = workspace.exec("true").await.unwrap_err();
    assert!(refused.next_step().unwrap().contains("agentiso resume a"), "{refused:?}");
    workspace.resume().await.unwrap();
    assert!(workspace.exec("true").await.unwrap().success());
    workspace.pause().await.unwrap();
    workspace.stop().await.unwrap();
    assert_eq!(workspace.info().await.unwrap().summary.state, WorkspaceState::Stopped);
}

#[tokio::test]
async fn a_name_an_id_and_the_beginning_of_an_id_find_a_workspace() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let id = create(&host, "a.b").await.id();
    let text = id.to_string();

    for given in ["a.b", &text, &text[..8], &text.to_uppercase()[..13]] {
        assert_eq!(host.workspace(given).await.unwrap().id(), id, "{given}");
    }
    for given in ["", "b", &text[..7], "../x", "%%%%%%%%"] {
        assert!(matches!(host.workspace(given).await, Err(EngineError::NoSuchWorkspace { .. })), "{given}");
    }
}

#[tokio::test]
async fn abandoned_create_leaves_nothing() {
    let scene = Scene::new().await;
    scene.fakes.set_boot_time(Duration::from_secs(600));
    let host = scene.open().await;

    let abandoned = tokio::time::timeout(Duration::from_millis(300), try_create(&host, "a")).await;

    assert!(abandoned.is_err());
    host.close().await;
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
    assert!(host.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn list_and_exec_do_not_wait_for_a_boot() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let running = create(&host, "running").await;
    scene.fakes.set_boot_time(Duration::from_secs(600));
    let booting = tokio::spawn({
        let host = host.clone();
        async move { try_create(&host, "booting").await }
    });
    eventually("the second workspace boots", async || host.list().await.unwrap().len() == 2).await;

    let soon = Duration::from_secs(5);
    let listed = tokio::time::timeout(soon, host.list()).await.unwrap().unwrap();
    let output = tokio::time::timeout(soon, running.exec("echo hi")).await.unwrap().unwrap();

    assert_eq!(listed.len(), 2);
    assert_eq!(output.stdout_text(), "hi\n");
    booting.abort();
}

#[tokio::test]
async fn a_machine_that_powers_itself_off_is_seen_as_crashed_and_starts_again() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    workspace.exec("echo kept > /note; sync").await.unwrap();

    scene.fakes.guest(workspace.id()).unwrap().power_off();

    let summary = workspace.info().await.unwrap().summary;
    assert_eq!((summary.state, summary.crashed), (WorkspaceState::Stopped, true));
    assert!(matches!(workspace.exec("true").await, Err(EngineError::WrongState { .. })));
    workspace.start().await.unwrap();
    assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "kept\n");
    assert!(!workspace.info().await.unwrap().summary.crashed);
}

#[tokio::test]
async fn stop_ends_a_machine_whose_agent_does_not_answer() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    scene.fakes.faults().arm("agent.shutdown", 1, crate::testkit::Fault::Fail);

    workspace.stop().await.unwrap();

    assert_eq!(workspace.info().await.unwrap().summary.state, WorkspaceState::Stopped);
    assert!(scene.fakes.guest(workspace.id()).is_none());
    assert!(scene.fakes.faults().count("hypervisor.power_button") == 1);
}

#[tokio::test]
async fn prune_removes_unused_images_only_when_asked_to() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    assert!(host.prune(false).await.unwrap().images.is_empty());
    let refused = host.images().remove("test").await.unwrap_err();
    assert!(refused.to_string().contains("in use by 1 workspace"), "{refused}");
    workspace.destroy().await.unwrap();

    let looked = host.prune(true).await.unwrap();
    assert_eq!(looked.images.len(), 1);
    assert_eq!(host.images().list().await.unwrap().len(), 1);
    let done = host.prune(false).await.unwrap();

    assert_eq!(done.images.len(), 1);
    assert!(host.images().list().await.unwrap().is_empty());
}

#[tokio::test]
async fn keep_makes_a_throwaway_stay() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let spec = WorkspaceSpec { throwaway: true, ..WorkspaceSpec::new("test") };
    let workspace = host.create(spec).await.unwrap();
    assert!(workspace.info().await.unwrap().summary.throwaway);

    workspace.keep().await.unwrap();

    assert!(!workspace.info().await.unwrap().summary.throwaway);
    assert!(WorkspaceName::new(workspace.name()).is_ok());
}

#[tokio::test]
async fn workspace_that_goes_while_somebody_looks_is_told_as_gone() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "w").await;
    let looked = scene.fakes.faults().count("storage.usage");
    scene.fakes.faults().arm("storage.usage", 1, Fault::Delay(Duration::from_millis(300)));
    let looking = tokio::spawn({
        let workspace = workspace.clone();
        async move { workspace.info().await }
    });
    eventually("somebody looks", async || scene.fakes.faults().count("storage.usage") > looked).await;

    workspace.destroy().await.unwrap();

    let told = looking.await.unwrap();
    assert!(matches!(told, Err(EngineError::NoSuchWorkspace { .. })), "{told:?}");
}
