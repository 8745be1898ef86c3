//! A pool of this host.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    device::{self, Closings},
    kernel::{Answer, Change, Detail, Kernel, KernelError, Volumes},
    names::{self, Container, Root, Tag},
    sys::{Map, Value, Zfs},
};

/// Volumes that one look into the kernel describes. Each may have twenty snapshots and more; the kernel gives a program
/// a limited memory.
const PAGE: usize = 64;

/// How often a program that a signal interrupted is begun anew. It had not run then, or only looked.
const MAX_INTERRUPTIONS: usize = 100;

/// How long to wait for a device to appear, or for whoever looks at one (udev's probes) to close it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Block size of volumes, in bytes. Small writes of a guest cost a read and a write of one block; a smaller one costs
/// more memory for metadata and compresses less.
pub(super) const BLOCK_BYTES: u64 = 16 << 10;

/// `volmode=dev`: the host shows the volume, but does not look for partitions in what a guest wrote.
const VOLUME_MODE_DEVICE: u64 = 2;

/// A program, after what all of them begin with.
macro_rules! program {
    ($($part:literal),+) => {
        concat!(include_str!("programs/common.lua"), $(include_str!(concat!("programs/", $part, ".lua"))),+)
    };
}

/// When a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// At once. It can change nothing.
    Now,
    /// While the pool writes out what is to be written. Whatever it changes is on stable storage afterwards.
    Synchronous,
}

/// Where our datasets are, through the libraries.
#[derive(Debug)]
pub(super) struct Pool {
    zfs: Zfs,
    root: Root,
    state: String,
}

impl Pool {
    pub(super) fn new(zfs: Zfs, root: Root, state: String) -> Self {
        Self { zfs, root, state }
    }

    /// What some datasets are, those that are there.
    pub(super) fn inspect(&self, names: &[String]) -> Result<BTreeMap<String, FileSystem>, KernelError> {
        let arguments = [("names", set(names)), ("state", text(names::STATE))];
        let answer = self.run(program!("inspect"), Run::Now, &arguments)?;
        let mut found = BTreeMap::new();
        for name in answer.keys() {
            let answer = Answer::new(Answer::new(&answer, name).list(name)?, name);
            let is_file_system = answer.text("type") == Some("filesystem");
            found.insert(
                name.clone(),
                FileSystem { is_file_system, state: answer.text("state").map(str::to_owned) },
            );
        }
        Ok(found)
    }

    /// Makes a file system that is mounted nowhere.
    pub(super) fn create_file_system(&self, name: &str) -> Result<(), KernelError> {
        let properties = [
            (names::STATE, text(&self.state)),
            ("mountpoint", text("none")),
            ("canmount", Value::Number(0)),
            // LZ4. As all of these, inherited by the volumes.
            ("compression", Value::Number(15)),
            ("volmode", Value::Number(VOLUME_MODE_DEVICE)),
            ("snapdev", Value::Number(0)),
        ];
        let properties = properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(self.zfs.create_file_system(name, &properties)?)
    }

    /// Runs a program in the kernel and returns the list that it returned.
    fn run(&self, program: &str, run: Run, arguments: &[(&str, Value)]) -> Result<Map, KernelError> {
        let arguments: Map =
            arguments.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut interruptions = 0;
        loop {
            match self.zfs.program(self.root.pool(), program, run == Run::Synchronous, &arguments) {
                Ok(mut answer) => match answer.remove("return") {
                    Some(Value::List(map)) => return Ok(map),
                    _ => return Err(KernelError::Answer("a list".to_owned())),
                },
                Err((error, _))
                    if error.kind() == io::ErrorKind::Interrupted && interruptions < MAX_INTERRUPTIONS =>
                {
                    interruptions += 1;
                }
                Err((error, answer)) => {
                    return Err(match answer.get("error") {
                        Some(Value::Text(complaint)) => KernelError::Program(complaint.clone()),
                        Some(other) => KernelError::Program(format!("{other:?}")),
                        None => error.into(),
                    });
                }
            }
        }
    }

    fn try_change(&self, name: &str, change: Change<'_>) -> Result<(), KernelError> {
        let mut arguments = vec![
            ("name", text(name)),
            ("root", text(self.root.as_str())),
            ("is", text(names::IS)),
            ("ours", text(&names::ours(&self.state))),
        ];
        arguments.extend(match change {
            Change::Set(property, value) => {
                vec![("change", text("set")), ("property", text(property)), ("value", text(value))]
            }
            Change::Clear(property) => vec![("change", text("clear")), ("property", text(property))],
            Change::Promote => vec![("change", text("promote"))],
            Change::Destroy => vec![("change", text("destroy"))],
        });
        let answer = self.run(program!("change"), Run::Synchronous, &arguments)?;
        let answer = Answer::new(&answer, name);
        if let Some(reason) = answer.text("refused") {
            return Err(KernelError::Refused(reason.to_owned()));
        }
        match i32::try_from(answer.number("error")?) {
            Ok(0) => Ok(()),
            Ok(number) => Err(io::Error::from_raw_os_error(number).into()),
            Err(_) => Err(KernelError::Answer("an error number".to_owned())),
        }
    }
}

/// What is known of a dataset that should be a file system.
#[derive(Debug)]
pub(super) struct FileSystem {
    pub(super) is_file_system: bool,
    /// The state folder that it is tagged with.
    pub(super) state: Option<String>,
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// Names as a program takes them.
fn set(names: impl IntoIterator<Item = impl Into<String>>) -> Value {
    Value::List(names.into_iter().map(|name| (name.into(), Value::Bool(true))).collect())
}

impl Pool {
    /// What programs that look at volumes need to know.
    fn looking(&self, snapshots: bool) -> Vec<(&'static str, Value)> {
        vec![
            ("root", text(self.root.as_str())),
            ("containers", set(Container::ALL.map(|container| self.root.container(container)))),
            ("bases", text(&format!("{}/", self.root.container(Container::Bases)))),
            ("is", text(names::IS)),
            ("removed", text(names::REMOVED)),
            ("pending", text(names::PENDING)),
            ("snapshots", Value::Bool(snapshots)),
        ]
    }

    /// The properties of a new volume or snapshot, with those that only volumes have.
    fn properties(&self, tag: &Tag, of_volumes: &[(&str, u64)]) -> Map {
        let numbers = of_volumes.iter().map(|(name, value)| ((*name).to_owned(), Value::Number(*value)));
        numbers.chain([(names::IS.to_owned(), text(&tag.write(&self.state)))]).collect()
    }
}

impl Kernel for Pool {
    fn find(&self, ids: &[Uuid], detail: Detail) -> Result<Volumes, KernelError> {
        let mut arguments = self.looking(detail != Detail::Volumes);
        arguments.push(("ids", set(ids.iter().map(Uuid::to_string))));
        arguments.push(("available", Value::Bool(detail == Detail::Space)));
        let answer = self.run(program!("volumes", "find"), Run::Now, &arguments)?;
        let answer = Answer::new(&answer, self.root.as_str());
        let available = if detail == Detail::Space { answer.number("available")? } else { 0 };
        Ok(Volumes { volumes: answer.volumes(&self.state)?, available })
    }

    fn all(&self) -> Result<Volumes, KernelError> {
        let looking = self.looking(true);
        let answer = self.run(program!("names"), Run::Now, &looking)?;
        let names: Vec<&String> = Answer::new(&answer, self.root.as_str()).list("names")?.keys().collect();
        let mut volumes = BTreeMap::new();
        for page in names.chunks(PAGE) {
            let names = [("names", set(page.iter().copied()))];
            let page = self.run(program!("volumes", "page"), Run::Now, &[&looking[..], &names].concat())?;
            volumes.append(&mut Answer::new(&page, self.root.as_str()).volumes(&self.state)?);
        }
        // Each clone is named by what it was cloned from: no need to ask it.
        let origins: Vec<(String, String)> = volumes
            .values()
            .flat_map(|volume| &volume.snapshots)
            .flat_map(|(origin, snapshot)| {
                snapshot.clones.iter().map(|clone| (clone.clone(), origin.clone()))
            })
            .collect();
        for (clone, origin) in origins {
            if let Some(volume) = volumes.get_mut(&clone) {
                volume.origin = Some(origin);
            }
        }
        Ok(Volumes { volumes, available: 0 })
    }

    fn written(&self, names: &[&str]) -> Result<BTreeMap<String, u64>, KernelError> {
        let mut written = BTreeMap::new();
        for page in names.chunks(PAGE) {
            // A synchronous program runs when everything written before it has got its place.
            let arguments = [("names", set(page.iter().copied()))];
            let answer = self.run(program!("written"), Run::Synchronous, &arguments)?;
            let answer_of = Answer::new(&answer, self.root.as_str());
            for name in answer.keys() {
                written.insert(name.clone(), answer_of.number(name)?);
            }
        }
        Ok(written)
    }

    fn create_volume(&self, name: &str, tag: &Tag) -> Result<(), KernelError> {
        let properties = self.properties(tag, &[("volsize", tag.bytes), ("volblocksize", BLOCK_BYTES)]);
        Ok(self.zfs.create_volume(name, &properties)?)
    }

    fn clone_snapshot(&self, name: &str, origin: &str, tag: &Tag) -> Result<(), KernelError> {
        Ok(self.zfs.clone_snapshot(name, origin, &self.properties(tag, &[("volsize", tag.bytes)]))?)
    }

    fn snapshot(&self, name: &str, tag: &Tag) -> Result<(), KernelError> {
        Ok(self.zfs.snapshot(name, &self.properties(tag, &[]))?)
    }

    fn change(&self, name: &str, change: Change<'_>) -> Result<(), KernelError> {
        let until = Instant::now() + PATIENCE;
        let mut closings = None;
        loop {
            let busy = match self.try_change(name, change) {
                Err(error) if error.number() == Some(libc::EBUSY) && !name.contains('@') => error,
                other => return other,
            };
            // Somebody has it open, for a moment: udev looks into each new device. It may have been closed before the
            // watch began, hence a second attempt before the first wait.
            match &closings {
                None => match Closings::watch(name, until)? {
                    None => return Err(busy),
                    watch => closings = watch,
                },
                Some(closings) => {
                    if !closings.wait(until)? {
                        return Err(busy);
                    }
                }
            }
        }
    }

    fn device(&self, volume: &str) -> Result<PathBuf, KernelError> {
        Ok(device::find(volume, Instant::now() + PATIENCE)?)
    }
}
