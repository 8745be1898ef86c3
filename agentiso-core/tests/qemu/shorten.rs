//! Chains that get short while their machine runs, with data in every layer.
//!
//! The test writes through the machine's own disk device, as its guest would.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::Command,
};

use agentiso_core::{
    hypervisor::{Hypervisor, LaunchSpec, Machine, StreamStatus, qemu::Qemu},
    storage::{
        DiskChain, DiskOrigin, LayerFormat, MAX_CHAIN_DEPTH, Outcome, PendingSnapshot, ShortenPlan, Storage,
    },
    testkit::contract::{eventually, hypervisor::HypervisorFixture},
    types::{DiskId, SnapshotId},
};
use serde_json::{Value, json};

use crate::{fixture::Fixture, machines::fixture};

const MIB: u64 = 1 << 20;

/// Layers that the machine moves to.
const PIVOTS: u64 = 12;

/// Where every layer has something else.
const CONTESTED: u64 = 40 * MIB;

/// The second control socket of a machine, which nothing else uses here.
struct Control {
    commands: UnixStream,
    replies: BufReader<UnixStream>,
}

impl Control {
    fn of(machine: &Machine) -> Self {
        let commands = UnixStream::connect(machine.run_dir.join("qmp2")).unwrap();
        let replies = BufReader::new(commands.try_clone().unwrap());
        let mut control = Self { commands, replies };
        control.run("qmp_capabilities", json!({}));
        control
    }

    fn run(&mut self, command: &str, arguments: Value) -> Value {
        writeln!(self.commands, "{}", json!({ "execute": command, "arguments": arguments })).unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.replies.read_line(&mut line).unwrap() > 0, "{command}: the machine is gone");
            let mut reply: Value = serde_json::from_str(&line).unwrap();
            if let Some(returned) = reply.get_mut("return") {
                return returned.take();
            }
            assert!(reply.get("error").is_none(), "{command}: {line}");
        }
    }

    fn disk(&mut self, command: &str) {
        let arguments = json!({ "command-line": format!("qemu-io -d disk \"{command}\"") });
        let said = self.run("human-monitor-command", arguments);
        assert_eq!(said, "", "{command}");
    }

    fn write(&mut self, pattern: u64, offset: u64) {
        self.disk(&format!("write -q -P {pattern} {offset} 192k"));
    }
}

/// Reads a disk as a machine would that has only its files, and asserts what is where.
fn assert_content(chain: &DiskChain, expected: impl IntoIterator<Item = (u64, u64)>) {
    let node = chain.layers.iter().rev().fold(Value::Null, |beneath, layer| {
        let file = json!({ "driver": "file", "filename": layer.path, "locking": "off" });
        match layer.format {
            LayerFormat::Raw => json!({ "driver": "raw", "file": file }),
            LayerFormat::Qcow2 => json!({ "driver": "qcow2", "file": file, "backing": beneath }),
        }
    });
    let mut reader = Command::new("qemu-io");
    reader.arg("-r").arg(format!("json:{node}"));
    for (pattern, offset) in expected {
        reader.args(["-c", &format!("read -q -P {pattern} {offset} 192k")]);
    }
    let output = reader.output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
}

/// Evaluates to the fixture, or says why the test is skipped and ends it.
macro_rules! fixture_with_tools {
    () => {{
        if Command::new("qemu-io").arg("--version").output().is_err() {
            return println!("skipped: qemu-io is not installed");
        }
        fixture!()
    }};
}

struct Scene {
    qemu: Qemu,
    machine: Machine,
    disk: DiskId,
    snapshots: Vec<SnapshotId>,
    control: Control,
}

impl Scene {
    /// A machine that has moved to a new layer twelve times and has written something to each of them.
    async fn new(fixture: &Fixture) -> Self {
        let qemu = fixture.qemu().await;
        let machine = qemu.launch(fixture.new_spec().await).await.unwrap();
        let disk = fixture.disk_of(machine.id);
        let control = Control::of(&machine);
        let mut scene = Self { qemu, machine, disk, snapshots: Vec::new(), control };
        for number in 1..=PIVOTS {
            scene.control.write(number, number * MIB);
            scene.control.write(number, CONTESTED);
            scene.pivot(fixture).await;
        }
        scene
    }

    async fn pivot(&mut self, fixture: &Fixture) {
        let (storage, snapshot) = (fixture.storage(), SnapshotId::random());
        let PendingSnapshot::Pivot { to } = storage.begin_snapshot(self.disk, snapshot).await.unwrap() else {
            unreachable!("qcow2 pivots")
        };
        self.qemu.pivot_disk(&self.machine, &to).await.unwrap();
        storage.finish_snapshot(self.disk, snapshot, Outcome::Commit).await.unwrap();
        self.snapshots.push(snapshot);
    }

    /// Starts QEMU's copying as agentiso does, but so slowly that it does not end by itself.
    fn stream_slowly(&mut self, plan: &ShortenPlan) {
        let arguments = json!({
            "job-id": "shorten", "device": format!("l{}", plan.top.id), "base-node": format!("l{}", plan.base),
            "backing-file": "", "filter-node-name": format!("s{}", plan.top.id), "auto-dismiss": false,
            "speed": 65536,
        });
        self.control.run("block-stream", arguments);
    }

    async fn plan(&self, fixture: &Fixture) -> ShortenPlan {
        fixture.storage().shorten_plan(self.disk, MAX_CHAIN_DEPTH).await.unwrap().unwrap()
    }

    /// Waits until a process that was not there when it began sees the end.
    async fn wait_until_streamed(&self, fixture: &Fixture, plan: &ShortenPlan) {
        eventually("all is copied", async || {
            let status = fixture.qemu().await.stream_disk(&self.machine, plan).await.unwrap();
            status == StreamStatus::Done
        })
        .await;
    }

    /// Ends the machine without any warning, asserts what is then on its disk, and starts it anew.
    async fn assert_content_after_a_crash(&mut self, fixture: &Fixture, contested: u64) {
        fixture.crash(&self.machine).await;
        self.qemu.kill(&self.machine).await.unwrap();
        let chain = fixture.storage().open_disk(self.disk).await.unwrap();
        assert_whole_content(&chain, contested);
        self.machine =
            self.qemu.launch(LaunchSpec { disk: chain, ..fixture.new_spec().await }).await.unwrap();
        self.control = Control::of(&self.machine);
    }

    /// Descriptors of the machine that lead to layers, each layer once.
    fn open_layers(&self) -> usize {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.machine.process.pid)).unwrap();
        let paths = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        let layers = paths.filter(|path| path.extension().is_some_and(|ending| ending == "qcow2"));
        layers.collect::<std::collections::BTreeSet<_>>().len()
    }
}

/// Asserts that every layer's data is there, and in the contested place the newest.
fn assert_whole_content(chain: &DiskChain, contested: u64) {
    let of_layers = (1..=PIVOTS).map(|number| (number, number * MIB));
    assert_content(chain, of_layers.chain([(contested, CONTESTED), (0, 50 * MIB)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_layers_become_few_while_the_guest_writes() {
    let fixture = fixture_with_tools!();
    let mut scene = Scene::new(&fixture).await;
    let before = fixture.storage().open_disk(scene.disk).await.unwrap();
    let plan = scene.plan(&fixture).await;
    assert_eq!(before.layers.len() as u64, PIVOTS + 2);

    let begun = scene.qemu.stream_disk(&scene.machine, &plan).await.unwrap();
    scene.control.write(77, CONTESTED);
    scene.wait_until_streamed(&fixture, &plan).await;
    fixture.storage().finish_shorten(scene.disk, &plan).await.unwrap();

    assert!(matches!(begun, StreamStatus::Running { .. }), "{begun:?}");
    let after = fixture.storage().open_disk(scene.disk).await.unwrap();
    assert_eq!(after.layers.len(), plan.beneath + 1);
    assert!(after.layers.len() <= MAX_CHAIN_DEPTH);
    assert_eq!(scene.open_layers(), plan.beneath, "all but the base are qcow2");
    let header = std::fs::read(&plan.top.path).unwrap();
    assert_eq!(header[16..20], [0; 4], "the topmost layer's name of the file beneath it has no bytes");
    // While the machine runs and still has its tables in memory: what is in the files is all there is after a power
    // failure.
    assert_whole_content(&after, 77);
    scene.assert_content_after_a_crash(&fixture, 77).await;
    scene.qemu.kill(&scene.machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_before_are_what_they_were() {
    let fixture = fixture_with_tools!();
    let scene = Scene::new(&fixture).await;
    let plan = scene.plan(&fixture).await;
    scene.wait_until_streamed(&fixture, &plan).await;
    fixture.storage().finish_shorten(scene.disk, &plan).await.unwrap();
    scene.qemu.kill(&scene.machine).await.unwrap();

    for number in [1, 7, PIVOTS] {
        let fork = DiskId::random();
        let snapshot = scene.snapshots[usize::try_from(number).unwrap() - 1];
        let origin = DiskOrigin::Snapshot { disk: scene.disk, snapshot };
        fixture.storage().create_disk(fork, origin, plan.top.bytes).await.unwrap();
        let chain = fixture.storage().open_disk(fork).await.unwrap();
        assert_content(&chain, [(number, CONTESTED), (number, number * MIB), (0, (number + 1) * MIB)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copying_outlives_whoever_began_it() {
    let fixture = fixture_with_tools!();
    let mut scene = Scene::new(&fixture).await;
    let plan = scene.plan(&fixture).await;
    scene.stream_slowly(&plan);

    let seen = fixture.qemu().await.stream_disk(&scene.machine, &plan).await.unwrap();
    let active = fixture.qemu().await.active_layer(&scene.machine).await.unwrap();
    let layers = scene.open_layers();
    scene.control.run("block-job-set-speed", json!({ "device": "shorten", "speed": 0 }));
    scene.wait_until_streamed(&fixture, &plan).await;
    // The process that saw the end died before it noted it; another notes it later.
    let again = scene.plan(&fixture).await;
    scene.wait_until_streamed(&fixture, &again).await;
    fixture.storage().finish_shorten(scene.disk, &again).await.unwrap();

    assert!(matches!(seen, StreamStatus::Running { .. }), "{seen:?}");
    assert_eq!(active, plan.top.id);
    assert_eq!(layers as u64, PIVOTS + 1);
    assert_eq!(again, plan);
    scene.assert_content_after_a_crash(&fixture, PIVOTS).await;
    scene.qemu.kill(&scene.machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_that_dies_in_the_middle_of_copying_loses_nothing() {
    let fixture = fixture_with_tools!();
    let mut scene = Scene::new(&fixture).await;
    let plan = scene.plan(&fixture).await;
    scene.stream_slowly(&plan);
    scene.control.write(78, CONTESTED);
    scene.control.disk("flush");

    scene.assert_content_after_a_crash(&fixture, 78).await;

    assert_eq!(scene.plan(&fixture).await, plan, "the plan is still to be followed");
    scene.wait_until_streamed(&fixture, &plan).await;
    fixture.storage().finish_shorten(scene.disk, &plan).await.unwrap();
    scene.assert_content_after_a_crash(&fixture, 78).await;
    scene.qemu.kill(&scene.machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn given_up_copying_leaves_a_disk_that_pivots() {
    let fixture = fixture_with_tools!();
    let mut scene = Scene::new(&fixture).await;
    let plan = scene.plan(&fixture).await;
    scene.stream_slowly(&plan);
    let to = fixture.empty_layer(&scene.machine).await;

    let refused = scene.qemu.pivot_disk(&scene.machine, &to).await;
    let status = scene.qemu.cancel_stream(&scene.machine, &plan).await.unwrap();
    scene.pivot(&fixture).await;

    assert!(refused.is_err(), "a disk whose layers are being copied does not pivot");
    assert_eq!(status, StreamStatus::Idle);
    let next = scene.plan(&fixture).await;
    assert!(next.dropped.contains(&plan.top.id));
    scene.wait_until_streamed(&fixture, &next).await;
    fixture.storage().finish_shorten(scene.disk, &next).await.unwrap();
    scene.assert_content_after_a_crash(&fixture, PIVOTS).await;
    scene.qemu.kill(&scene.machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_layers_are_not_too_many_to_get_rid_of() {
    let fixture = fixture_with_tools!();
    let mut scene = Scene::new(&fixture).await;
    for _ in PIVOTS..40 {
        scene.pivot(&fixture).await;
    }
    let plan = scene.plan(&fixture).await;

    scene.wait_until_streamed(&fixture, &plan).await;
    fixture.storage().finish_shorten(scene.disk, &plan).await.unwrap();

    assert_eq!(scene.open_layers(), plan.beneath);
    scene.assert_content_after_a_crash(&fixture, PIVOTS).await;
    scene.qemu.kill(&scene.machine).await.unwrap();
}
