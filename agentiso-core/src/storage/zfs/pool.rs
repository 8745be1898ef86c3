//! A pool of this host.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    device::{self, Closings},
    kernel::{Answer, Change, Kernel, KernelError, Volumes},
    names::{self, Container, PREFIX, Root, Tags},
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
const BLOCK_BYTES: u64 = 16 << 10;

/// `volmode=dev`: the host shows the volume, but does not look for partitions in what a guest wrote.
const VOLUME_MODE_DEVICE: u64 = 2;

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

    /// What a file system is; `None` if it is not there.
    pub(super) fn inspect(&self, name: &str) -> Result<Option<FileSystem>, KernelError> {
        let answer = self.run(
            include_str!("programs/inspect.lua"),
            false,
            &[("name", text(name)), ("prefix", text(PREFIX))],
        )?;
        let answer = Answer::new(&answer, name);
        if !answer.is_true("exists") {
            return Ok(None);
        }
        Ok(Some(FileSystem {
            is_file_system: answer.text("type") == Some("filesystem"),
            tags: answer.tags()?,
        }))
    }

    /// Makes a file system that is mounted nowhere.
    pub(super) fn create_file_system(&self, name: &str, tags: &Tags) -> Result<(), KernelError> {
        let mut properties = tag_properties(tags);
        for (property, value) in [
            ("mountpoint", text("none")),
            ("canmount", Value::Number(0)),
            // LZ4. As all of these, inherited by the volumes.
            ("compression", Value::Number(15)),
            ("volmode", Value::Number(VOLUME_MODE_DEVICE)),
            ("snapdev", Value::Number(0)),
        ] {
            properties.insert(property.to_owned(), value);
        }
        Ok(self.zfs.create_file_system(name, &properties)?)
    }

    /// Runs a program in the kernel and returns the list that it returned.
    fn run(&self, program: &str, synchronous: bool, arguments: &[(&str, Value)]) -> Result<Map, KernelError> {
        let arguments: Map =
            arguments.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut interruptions = 0;
        loop {
            match self.zfs.program(self.root.pool(), program, synchronous, &arguments) {
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
            ("tag", text(&names::property(names::STATE))),
            ("state", text(&self.state)),
        ];
        arguments.extend(match change {
            Change::Set(tag, value) => vec![
                ("change", text("set")),
                ("property", text(&names::property(tag))),
                ("value", text(value)),
            ],
            Change::Clear(tag) => {
                vec![("change", text("clear")), ("property", text(&names::property(tag)))]
            }
            Change::Promote => vec![("change", text("promote"))],
            Change::Destroy => vec![("change", text("destroy"))],
        });
        let answer = self.run(include_str!("programs/change.lua"), true, &arguments)?;
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

/// What is known of a file system.
#[derive(Debug)]
pub(super) struct FileSystem {
    pub(super) is_file_system: bool,
    pub(super) tags: Tags,
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// Names as a program takes them.
fn set<'a>(names: impl IntoIterator<Item = &'a String>) -> Value {
    Value::List(names.into_iter().map(|name| (name.clone(), Value::Bool(true))).collect())
}

fn tag_properties(tags: &Tags) -> Map {
    tags.iter().map(|(tag, value)| (names::property(tag), text(value))).collect()
}

impl Kernel for Pool {
    fn volumes(&self, settled: bool) -> Result<Volumes, KernelError> {
        let containers = Container::ALL.map(|container| self.root.container(container));
        let answer = self.run(
            include_str!("programs/names.lua"),
            false,
            &[("root", text(self.root.as_str())), ("containers", set(&containers))],
        )?;
        let answer = Answer::new(&answer, self.root.as_str());
        let available = answer.number("available")?;
        let names: Vec<&String> = answer.list("volumes")?.keys().collect();
        let mut volumes = BTreeMap::new();
        for page in names.chunks(PAGE) {
            let described = self.run(
                include_str!("programs/describe.lua"),
                settled,
                &[("names", set(page.iter().copied())), ("prefix", text(PREFIX))],
            )?;
            for (name, value) in described {
                let Value::List(map) = value else { return Err(KernelError::Answer(name)) };
                let volume = Answer::new(&map, &name).volume()?;
                // What others keep there is none of our business.
                if volume.tags.get(names::STATE) == Some(&self.state) {
                    volumes.insert(name, volume);
                }
            }
        }
        Ok(Volumes { volumes, available })
    }

    fn create_volume(&self, name: &str, bytes: u64, tags: &Tags) -> Result<(), KernelError> {
        let mut properties = tag_properties(tags);
        properties.insert("volsize".to_owned(), Value::Number(bytes.next_multiple_of(BLOCK_BYTES)));
        properties.insert("volblocksize".to_owned(), Value::Number(BLOCK_BYTES));
        Ok(self.zfs.create_volume(name, &properties)?)
    }

    fn clone_snapshot(&self, name: &str, origin: &str, bytes: u64, tags: &Tags) -> Result<(), KernelError> {
        let mut properties = tag_properties(tags);
        properties.insert("volsize".to_owned(), Value::Number(bytes.next_multiple_of(BLOCK_BYTES)));
        Ok(self.zfs.clone_snapshot(name, origin, &properties)?)
    }

    fn snapshot(&self, name: &str, tags: &Tags) -> Result<(), KernelError> {
        Ok(self.zfs.snapshot(name, &tag_properties(tags))?)
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
