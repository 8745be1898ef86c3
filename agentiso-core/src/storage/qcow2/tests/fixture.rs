//! Storages in temporary folders, with contents written and read by QEMU's own tools.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

use async_trait::async_trait;
use tempfile::TempDir;

use crate::{
    storage::{
        DiskChain, LayerFormat, ShortenPlan, Storage,
        qcow2::{Qcow2Config, Qcow2Storage},
    },
    testkit::contract::storage::StorageFixture,
};

/// Where in the disk the mark is, in bytes: beyond the first subcluster.
const MARKER_OFFSET: u64 = 5 << 20;

/// A storage in a temporary folder.
pub(super) struct QemuFixture {
    folder: TempDir,
}

impl QemuFixture {
    /// Says why not, without qemu-io.
    pub(super) fn new() -> Result<Self, String> {
        Command::new("qemu-io").arg("--version").output().map_err(|error| format!("qemu-io: {error}"))?;
        Ok(Self { folder: tempfile::tempdir().unwrap() })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(super) async fn storage(&self) -> Qcow2Storage {
        storage_in(self.path(), 0).await
    }

    /// Names of the files in a part of the folder.
    pub(super) fn files_in(&self, part: &str) -> Vec<String> {
        files_in(&self.path().join(part))
    }
}

pub(super) async fn storage_in(folder: &Path, reserve_bytes: u64) -> Qcow2Storage {
    Qcow2Storage::open(Qcow2Config { folder: folder.to_owned(), reserve_bytes }).await.unwrap()
}

pub(super) fn files_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A chain as QEMU opens it: every layer by an explicit node, with what is beneath it.
pub(super) fn node(chain: &DiskChain) -> serde_json::Value {
    chain.layers.iter().rev().fold(serde_json::Value::Null, |beneath, layer| {
        let driver = match layer.format {
            LayerFormat::Raw => "raw",
            LayerFormat::Qcow2 => "qcow2",
        };
        let mut node = serde_json::json!({
            "driver": driver,
            "file": { "driver": "file", "filename": layer.path },
        });
        if layer.format == LayerFormat::Qcow2 {
            node["backing"] = beneath;
        }
        node
    })
}

fn qemu_io(chain: &DiskChain, options: &[&str], command: &str) -> Output {
    let mut line = Command::new("qemu-io");
    line.args(options).arg("-c").arg(command).arg(format!("json:{}", node(chain)));
    let output = line.output().unwrap();
    assert!(output.status.success(), "{line:?}: {output:?}");
    output
}

pub(super) fn write_marker(chain: &DiskChain, marker: u8) {
    qemu_io(chain, &[], &format!("write -P {marker} {MARKER_OFFSET} 4096"));
}

pub(super) fn read_marker(chain: &DiskChain) -> u8 {
    let output = qemu_io(chain, &["-r"], &format!("read -v {MARKER_OFFSET} 16"));
    let text = String::from_utf8(output.stdout).unwrap();
    // 00500000:  07 07 07 07 ...
    let byte = text.split_whitespace().nth(1).unwrap();
    u8::from_str_radix(byte, 16).unwrap()
}

/// Copies up what a plan drops, as a machine does: with QEMU's own job, in a process that has the layers open.
pub(super) fn pull_up(chain: &DiskChain, plan: &ShortenPlan) {
    let mut nodes = Vec::new();
    let mut beneath = serde_json::Value::Null;
    for (at, layer) in chain.layers.iter().enumerate().rev() {
        let name = format!("l{}", layer.id);
        let mut node = node(&DiskChain { layers: vec![layer.clone()] });
        node["node-name"] = name.clone().into();
        node["read-only"] = (at != 0).into();
        if layer.format == LayerFormat::Qcow2 {
            node["backing"] = beneath;
        }
        beneath = name.into();
        nodes.push(serde_json::json!({ "execute": "blockdev-add", "arguments": node }));
    }
    let job = serde_json::json!({ "execute": "block-stream", "arguments": {
        "job-id": "j", "device": format!("l{}", plan.top.id), "base-node": format!("l{}", plan.base),
        "backing-file": "", "auto-dismiss": false,
    }});
    let mut daemon = Command::new("qemu-storage-daemon")
        .args(["--chardev", "stdio,id=qmp", "--monitor", "qmp"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut commands = daemon.stdin.take().unwrap();
    let mut replies = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let hello = serde_json::json!({ "execute": "qmp_capabilities" });
    for command in std::iter::once(hello).chain(nodes).chain([job]) {
        writeln!(commands, "{command}").unwrap();
    }
    let is_over = |line: &str| line.contains("concluded") || line.contains("\"error\"");
    let last = replies.find_map(|line| line.ok().filter(|line| is_over(line))).unwrap();
    assert!(!last.contains("\"error\""), "{last}");
    writeln!(commands, "{}", serde_json::json!({ "execute": "quit" })).unwrap();
    // Until it has closed its files.
    replies.for_each(drop);
    assert!(daemon.wait().unwrap().success());
}

#[async_trait]
impl StorageFixture for QemuFixture {
    async fn open(&self) -> Box<dyn Storage> {
        Box::new(self.storage().await)
    }

    async fn open_full(&self) -> Box<dyn Storage> {
        Box::new(storage_in(self.path(), u64::MAX).await)
    }

    async fn write_marker(&self, chain: &DiskChain, marker: u8) {
        let chain = chain.clone();
        tokio::task::spawn_blocking(move || write_marker(&chain, marker)).await.unwrap();
    }

    async fn pull_up(&self, chain: &DiskChain, plan: &ShortenPlan) {
        let (chain, plan) = (chain.clone(), plan.clone());
        tokio::task::spawn_blocking(move || pull_up(&chain, &plan)).await.unwrap();
    }

    async fn read_marker(&self, chain: &DiskChain) -> u8 {
        let chain = chain.clone();
        tokio::task::spawn_blocking(move || read_marker(&chain)).await.unwrap()
    }
}
