use super::recovery::{Victim, called};
use super::tree::fork;
use super::{Scene, create, eventually};
use crate::channel::client::RawPath;
use crate::testkit::{Fault, METHODS};
use crate::{DiffSpec, EngineError, Host};

/// Differences as lines, such as `modified /f [content]`.
async fn diff(host: &Host, from: &str, to: &str, path: &str) -> Result<Vec<String>, EngineError> {
    let spec = DiffSpec { from: from.parse().unwrap(), to: to.parse().unwrap(), path: RawPath::new(path) };
    let mut stream = host.diff(spec).await?;
    let mut lines = Vec::new();
    while let Some(difference) = stream.next().await? {
        let what = serde_json::to_string(&difference.what).unwrap().replace('"', "");
        let change = serde_json::to_value(difference.change).unwrap();
        let size = |state: Option<crate::FileState>| state.map_or("-".to_owned(), |s| s.size.to_string());
        lines.push(format!(
            "{} {} {what} {}>{}",
            change.as_str().unwrap(),
            difference.path,
            size(difference.old),
            size(difference.new)
        ));
    }
    host.close().await;
    Ok(lines)
}

fn write(scene: &Scene, workspace: &crate::Workspace, files: &[(&str, &str)]) {
    let guest = scene.fakes.guest(workspace.id()).unwrap();
    for (path, content) in files {
        guest.write_file(path, *content);
    }
}

/// A workspace `p` with a snapshot `s`, changed since.
async fn changed(scene: &Scene) -> Host {
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    write(
        scene,
        &parent,
        &[("/a/gone", "1"), ("/a/kept", "22"), ("/b", "333"), ("/c", "old"), ("/same", "x")],
    );
    parent.snapshot("s").await.unwrap();
    scene.fakes.guest(parent.id()).unwrap().remove_file("/a/gone");
    write(scene, &parent, &[("/b", "4444"), ("/c", "new"), ("/d/e/f", "55555"), ("/same", "x")]);
    host
}

const CHANGES: [&str; 6] = [
    "deleted /a/gone [] 1>-",
    "modified /b [content] 3>4",
    "modified /c [content] 3>3",
    "added /d [] ->0",
    "added /d/e [] ->0",
    "added /d/e/f [] ->5",
];

#[tokio::test]
async fn running_workspace_is_compared_with_its_snapshot() {
    let scene = Scene::new().await;
    let host = changed(&scene).await;

    let lines = diff(&host, "p@s", "p", "/").await.unwrap();

    assert_eq!(lines, CHANGES);
    assert_eq!(host.list().await.unwrap().len(), 1, "the helper is gone");
    assert_eq!(diff(&host, "p", "p", "/").await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn stopped_workspaces_are_read_by_helpers_that_leave_nothing() {
    let scene = Scene::new().await;
    let host = changed(&scene).await;
    let parent = host.workspace("p").await.unwrap();
    fork(&host, &parent, "f").await.stop().await.unwrap();
    parent.stop().await.unwrap();
    let booted = scene.fakes.faults().count("hypervisor.launch");

    let lines = diff(&host, "f", "p", "/").await.unwrap();

    assert_eq!(lines, CHANGES);
    assert_eq!(scene.fakes.faults().count("hypervisor.launch") - booted, 2);
    assert_eq!(host.list().await.unwrap().len(), 2);
    assert_eq!(parent.snapshots().await.unwrap().len(), 1);
    for name in ["f", "p"] {
        host.workspace(name).await.unwrap().destroy().await.unwrap();
    }
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn part_of_the_files_is_compared_alone() {
    let scene = Scene::new().await;
    let host = changed(&scene).await;

    assert_eq!(diff(&host, "p@s", "p", "/a/").await.unwrap(), ["deleted /a/gone [] 1>-"]);
    assert_eq!(diff(&host, "p@s", "p", "/b").await.unwrap(), ["modified /b [content] 3>4"]);
    assert_eq!(
        diff(&host, "p", "p@s", "/d/e").await.unwrap(),
        ["deleted /d/e [] 0>-", "deleted /d/e/f [] 5>-"]
    );
    let nowhere = diff(&host, "p@s", "p", "/nowhere").await.unwrap_err();
    assert!(nowhere.to_string().contains("there is no /nowhere"), "{nowhere}");
    assert!(matches!(diff(&host, "p@s", "p", "a").await, Err(EngineError::Parameters { .. })));
    assert_eq!(host.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn many_doubtful_files_come_in_order() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    let names: Vec<String> = (0..700).map(|number| format!("/many/{number:04}")).collect();
    let old: Vec<_> = names.iter().map(|name| (name.as_str(), "old")).collect();
    write(&scene, &parent, &old);
    parent.snapshot("s").await.unwrap();
    let new: Vec<_> = names.iter().map(|name| (name.as_str(), "new")).step_by(2).collect();
    write(&scene, &parent, &new);

    let lines = diff(&host, "p@s", "p", "/").await.unwrap();

    let expected: Vec<_> =
        names.iter().step_by(2).map(|name| format!("modified {name} [content] 3>3")).collect();
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn paused_and_unknown_are_refused_with_what_to_do() {
    let scene = Scene::new().await;
    let host = changed(&scene).await;
    let parent = host.workspace("p").await.unwrap();
    parent.pause().await.unwrap();

    let paused = diff(&host, "p", "p", "/").await.unwrap_err();
    let no_snapshot = diff(&host, "p@nothing", "p@s", "/").await.unwrap_err();
    let nobody = diff(&host, "nobody", "p@s", "/").await.unwrap_err();

    assert!(paused.next_step().unwrap().contains("agentiso resume p"), "{paused}");
    assert!(matches!(no_snapshot, EngineError::NoSuchSnapshot { .. }), "{no_snapshot}");
    assert!(matches!(nobody, EngineError::NoSuchWorkspace { .. }), "{nobody}");
    assert_eq!(host.list().await.unwrap().len(), 1, "the other side's helper is gone too");
}

#[tokio::test]
async fn failed_comparison_leaves_nothing_whatever_failed() {
    for method in METHODS {
        let scene = Scene::new().await;
        let host = changed(&scene).await;
        host.workspace("p").await.unwrap().stop().await.unwrap();
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let compared = diff(&host, "p@s", "p", "/").await;

        scene.fakes.faults().disarm();
        host.close().await;
        if let Ok(lines) = &compared {
            assert_eq!(lines, &CHANGES, "{method}");
        }
        // What could not be removed goes with this process; here that does not end, so it is removed by name.
        for summary in host.list().await.unwrap() {
            assert!(summary.name == "p" || summary.throwaway, "{method}: {summary:?}");
            host.workspace(&summary.name).await.unwrap().destroy().await.unwrap();
        }
        scene.open().await;
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}: {compared:?}");
    }
}

#[tokio::test]
async fn abandoned_comparison_removes_its_helpers() {
    for method in ["hypervisor.launch", "agent.configure", "agent.walk", "agent.hash"] {
        let scene = Scene::new().await;
        let host = changed(&scene).await;
        scene.fakes.faults().arm(method, 1, Fault::Hang);
        let before = scene.fakes.faults().count(method);
        let spec =
            DiffSpec { from: "p@s".parse().unwrap(), to: "p".parse().unwrap(), path: RawPath::new("/") };

        let stream = host.diff(spec).await.unwrap();
        called(&scene, method, before + 1).await;
        drop(stream);
        host.close().await;

        assert_eq!(host.list().await.unwrap().len(), 1, "{method}");
    }
}

#[tokio::test]
async fn helper_of_a_killed_process_goes_with_it() {
    let scene = Scene::new().await;
    let host = changed(&scene).await;
    scene.fakes.faults().arm("agent.walk", 1, Fault::Hang);
    let victim = Victim::stuck_in(&scene, async |host| drop(diff(&host, "p@s", "p", "/").await)).await;
    called(&scene, "agent.walk", 1).await;
    let helper = host.list().await.unwrap().into_iter().find(|summary| summary.throwaway).unwrap();
    assert!(helper.name.starts_with("diff-"), "{helper:?}");

    victim.kill();

    // In this test the process that owned the helper lives on: its record is made one of a process that does not.
    eventually("the helper is gone", async || {
        let store = crate::store::Store::open(&scene.config().layout().database()).unwrap();
        if let Some(mut record) = store.get(helper.workspace_id).unwrap() {
            let owner = crate::types::ProcessRef { start_ticks: 0, ..record.throwaway_of.unwrap() };
            record.throwaway_of = Some(owner);
            store.update(&record).unwrap();
        }
        scene.open().await.list().await.unwrap().len() == 1
    })
    .await;
}
