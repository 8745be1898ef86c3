//! The engine against a simple model: any sequence of operations, with the process killed in between, leaves what the
//! model says.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Scene, try_create};
use crate::types::SnapshotName;
use crate::{ForkSpec, Host, Workspace, WorkspaceState};

const NAMES: [&str; 3] = ["a", "b", "c"];
const SNAPSHOTS: [&str; 2] = ["s", "t"];

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Destroy(usize),
    Start(usize),
    Stop(usize),
    Write(usize, u8),
    Snapshot(usize, usize),
    Restore(usize, usize),
    DeleteSnapshot(usize, usize),
    Fork { from: usize, snapshot: Option<usize>, to: usize },
    Reopen,
}

/// What a workspace should be.
#[derive(Clone, Debug, Default)]
struct Expected {
    running: bool,
    note: u8,
    /// In order of their taking.
    snapshots: Vec<Taken>,
}

/// What a snapshot should be.
#[derive(Clone, Debug)]
struct Taken {
    /// Its name.
    which: usize,
    /// What the note was.
    note: u8,
    /// Whether the workspace was running.
    memory: bool,
    /// Workspaces that began from it.
    forks: Vec<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    let (name, snapshot) = (0..NAMES.len(), 0..SNAPSHOTS.len());
    prop_oneof![
        4 => name.clone().prop_map(Step::Create),
        1 => name.clone().prop_map(Step::Destroy),
        2 => name.clone().prop_map(Step::Start),
        2 => name.clone().prop_map(Step::Stop),
        4 => (name.clone(), any::<u8>()).prop_map(|(name, note)| Step::Write(name, note)),
        3 => (name.clone(), snapshot.clone()).prop_map(|(name, snapshot)| Step::Snapshot(name, snapshot)),
        2 => (name.clone(), snapshot.clone()).prop_map(|(name, snapshot)| Step::Restore(name, snapshot)),
        1 => (name.clone(), snapshot.clone()).prop_map(|(name, snapshot)| Step::DeleteSnapshot(name, snapshot)),
        3 => (name.clone(), proptest::option::of(snapshot), name)
            .prop_map(|(from, snapshot, to)| Step::Fork { from, snapshot, to }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    workspaces: BTreeMap<usize, Expected>,
}

impl Model {
    /// Does a step to the model and to the engine, and compares whether it was possible.
    async fn step(&mut self, host: &Host, step: &Step) {
        let expected = self.expect(step);
        let happened = perform(host, step).await;
        assert_eq!(happened.is_ok(), expected, "{step:?}: {happened:?}");
    }

    fn expect(&mut self, step: &Step) -> bool {
        match *step {
            Step::Create(name) => {
                let free = !self.workspaces.contains_key(&name);
                self.workspaces.entry(name).or_insert(Expected { running: true, ..Expected::default() });
                free
            }
            Step::Destroy(name) => {
                for other in self.workspaces.values_mut() {
                    other.snapshots.iter_mut().for_each(|taken| taken.forks.retain(|fork| *fork != name));
                }
                self.workspaces.remove(&name).is_some()
            }
            Step::Start(name) => self.change(name, |workspace| {
                workspace.running = true;
                true
            }),
            Step::Stop(name) => self.change(name, |workspace| {
                workspace.running = false;
                true
            }),
            Step::Write(name, note) => self.change(name, |workspace| {
                if workspace.running {
                    workspace.note = note;
                }
                workspace.running
            }),
            Step::Snapshot(name, snapshot) => self.change(name, |workspace| {
                let free = workspace.find(snapshot).is_none();
                if free {
                    workspace.snapshots.push(Taken {
                        which: snapshot,
                        note: workspace.note,
                        memory: workspace.running,
                        forks: Vec::new(),
                    });
                }
                free
            }),
            Step::Restore(name, snapshot) => self.change(name, |workspace| match workspace.find(snapshot) {
                Some(at) => {
                    workspace.note = workspace.snapshots[at].note;
                    // Memory runs on, whatever the workspace did.
                    workspace.running |= workspace.snapshots[at].memory;
                    workspace.snapshots.truncate(at + 1);
                    true
                }
                None => false,
            }),
            Step::DeleteSnapshot(name, snapshot) => {
                self.change(name, |workspace| match workspace.find(snapshot) {
                    Some(at) if workspace.snapshots[at].forks.is_empty() => {
                        workspace.snapshots.remove(at);
                        true
                    }
                    _ => false,
                })
            }
            Step::Fork { from, snapshot, to } => {
                let Some(parent) = self.workspaces.get_mut(&from) else { return false };
                let at = snapshot.map(|snapshot| parent.find(snapshot));
                let note = match at {
                    Some(None) => return false,
                    Some(Some(at)) => parent.snapshots[at].note,
                    None => parent.note,
                };
                if self.workspaces.contains_key(&to) {
                    return false;
                }
                if let (Some(Some(at)), Some(parent)) = (at, self.workspaces.get_mut(&from)) {
                    parent.snapshots[at].forks.push(to);
                }
                self.workspaces.insert(to, Expected { running: true, note, ..Expected::default() });
                true
            }
            Step::Reopen => true,
        }
    }

    fn change(&mut self, name: usize, change: impl FnOnce(&mut Expected) -> bool) -> bool {
        self.workspaces.get_mut(&name).is_some_and(change)
    }

    /// Compares everything.
    async fn compare(&self, host: &Host) {
        let listed = host.list().await.unwrap();
        assert_eq!(listed.len(), self.workspaces.len());
        for (name, expected) in &self.workspaces {
            let workspace = host.workspace(NAMES[*name]).await.unwrap();
            let info = workspace.info().await.unwrap();
            assert_eq!(info.summary.state == WorkspaceState::Running, expected.running);
            let snapshots: Vec<_> = info.snapshots.into_iter().map(|snapshot| snapshot.name).collect();
            let names: Vec<_> = expected.snapshots.iter().map(|taken| SNAPSHOTS[taken.which]).collect();
            assert_eq!(snapshots, names);
            if expected.running {
                let note = workspace.exec("cat /note").await.unwrap();
                let written =
                    if expected.note == 0 { "0\n".to_owned() } else { format!("{}\n", expected.note) };
                assert_eq!(note.stdout_text(), written);
            }
        }
    }
}

impl Expected {
    fn find(&self, snapshot: usize) -> Option<usize> {
        self.snapshots.iter().position(|taken| taken.which == snapshot)
    }
}

async fn perform(host: &Host, step: &Step) -> Result<(), crate::EngineError> {
    let find =
        async |name: usize| -> Result<Workspace, crate::EngineError> { host.workspace(NAMES[name]).await };
    match *step {
        Step::Create(name) => {
            let workspace = try_create(host, NAMES[name]).await?;
            workspace.exec("echo 0 > /note").await.map(drop)
        }
        Step::Destroy(name) => find(name).await?.destroy().await,
        Step::Start(name) => find(name).await?.start().await,
        Step::Stop(name) => find(name).await?.stop().await,
        Step::Write(name, note) => find(name).await?.exec(&format!("echo {note} > /note")).await.map(drop),
        Step::Snapshot(name, snapshot) => find(name).await?.snapshot(SNAPSHOTS[snapshot]).await.map(drop),
        Step::Restore(name, snapshot) => find(name).await?.restore(SNAPSHOTS[snapshot]).await.map(drop),
        Step::DeleteSnapshot(name, snapshot) => find(name).await?.delete_snapshot(SNAPSHOTS[snapshot]).await,
        Step::Fork { from, snapshot, to } => {
            let spec = ForkSpec {
                snapshot: snapshot.map(|snapshot| SnapshotName::new(SNAPSHOTS[snapshot])).transpose()?,
                name: Some(crate::types::WorkspaceName::new(NAMES[to])?),
                ..ForkSpec::default()
            };
            find(from).await?.fork(spec).await.map(drop)
        }
        Step::Reopen => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_does_what_the_model_does(steps in proptest::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let scene = Scene::new().await;
            let mut host = scene.open().await;
            let mut model = Model::default();
            for step in &steps {
                if matches!(step, Step::Reopen) {
                    host = scene.open().await;
                }
                model.step(&host, step).await;
            }
            model.compare(&host).await;
            for summary in host.list().await.unwrap() {
                host.workspace(&summary.name).await.unwrap().destroy().await.unwrap();
            }
            assert_eq!(scene.leftovers().await, Vec::<String>::new());
        });
    }
}
