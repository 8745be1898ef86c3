//! Memory images in the state folder: `memory/images/ID/` with a manifest, the device state, a link to the base and,
//! where there is one, the difference. A folder that is being filled is named `ID.partial`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    super::files::{io_error, read_json},
    Run, base, difference, total,
};
use crate::{
    hypervisor::{Accelerator, HypervisorError, MemoryImage},
    types::{MemoryMib, SnapshotId, VcpuCount},
};

const MANIFEST: &str = "image.json";
const DEVICES: &str = "devices";
const DIFFERENCE: &str = "difference";
const BASE: &str = "base.ram";
const PARTIAL: &str = ".partial";

/// Which devices a machine has and in which order. To be raised with every change to the command line that a device
/// state could notice.
pub(in super::super) const LAYOUT: u32 = 1;

/// What a machine's network card is connected to, as an image has it. A tap takes work off the guest's hands that a
/// stream does not, which the guest's driver knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "CardRecord", rename_all = "snake_case")]
pub(in super::super) enum Card {
    None,
    Stream,
    Tap,
}

/// As it is recorded. Once it was only said whether there is one, when all were streams.
#[derive(Deserialize)]
#[serde(untagged)]
enum CardRecord {
    Present(bool),
    Kind(CardKind),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum CardKind {
    None,
    Stream,
    Tap,
}

impl From<CardRecord> for Card {
    fn from(record: CardRecord) -> Self {
        match record {
            CardRecord::Present(false) | CardRecord::Kind(CardKind::None) => Self::None,
            CardRecord::Present(true) | CardRecord::Kind(CardKind::Stream) => Self::Stream,
            CardRecord::Kind(CardKind::Tap) => Self::Tap,
        }
    }
}

impl std::fmt::Display for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Stream => "stream",
            Self::Tap => "tap",
        })
    }
}

/// Nobody writes to a base again. Machines that run under user ids of their own open it through
/// [`open_for`](crate::process::open_for).
const BASE_MODE: u32 = 0o400;

/// Written bytes above which an image gets a base of its own even if a single machine is started from it: copying
/// that much into a machine takes longer than the rest of its start.
const MOST_DIFFERENCE: u64 = 128 * 1024 * 1024;

/// How far the rates of two clocks may be apart, in parts per million, for a guest to be told that they are the same:
/// two measurements of one clock differ by a tenth of that.
const CLOCK_TOLERANCE_PPM: u64 = 1000;

/// What a machine must have in common with an image to be started from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Shape {
    pub(in super::super) layout: u32,
    pub(in super::super) qemu: String,
    pub(in super::super) accelerator: Accelerator,
    pub(in super::super) cpu: String,
    pub(in super::super) tsc_khz: u64,
    pub(in super::super) vcpus: VcpuCount,
    pub(in super::super) memory: MemoryMib,
    pub(in super::super) channel: String,
    pub(in super::super) nic: Card,
}

impl Shape {
    /// Why a machine of this shape, as it is now, cannot be started from an image of that one.
    pub(in super::super) fn obstacle(&self, image: &Shape) -> Option<String> {
        let clocks_apart = self.tsc_khz.abs_diff(image.tsc_khz).saturating_mul(1_000_000)
            > image.tsc_khz.saturating_mul(CLOCK_TOLERANCE_PPM);
        let differs = |what: &str, theirs: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
            Some(format!("it was made with {what} {theirs}, here it is {ours}"))
        };
        match () {
            () if self.qemu != image.qemu => differs("QEMU", &image.qemu, &self.qemu),
            () if self.layout != image.layout => {
                differs("agentiso's machine layout", &image.layout, &self.layout)
            }
            () if self.accelerator != image.accelerator => differs(
                "the accelerator",
                &format!("{:?}", image.accelerator),
                &format!("{:?}", self.accelerator),
            ),
            () if self.cpu != image.cpu => differs("the CPU", &image.cpu, &self.cpu),
            () if clocks_apart => differs("a clock of kHz", &image.tsc_khz, &self.tsc_khz),
            () if self.vcpus != image.vcpus => differs("vCPUs:", &image.vcpus, &self.vcpus),
            () if self.memory != image.memory => differs("MiB of memory:", &image.memory, &self.memory),
            () if self.channel != image.channel => {
                differs("a channel of kind", &image.channel, &self.channel)
            }
            () if self.nic != image.nic => differs("a network card of kind", &image.nic, &self.nic),
            () => None,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    shape: Shape,
    /// Whether there is a difference to the base.
    difference: bool,
}

/// The images of a state folder.
#[derive(Clone, Debug)]
pub(in super::super) struct Images {
    folder: PathBuf,
}

/// An image that is there.
#[derive(Debug)]
pub(in super::super) struct Image {
    folder: PathBuf,
    manifest: Manifest,
}

impl Images {
    pub(in super::super) fn of(state_dir: &Path) -> Self {
        Self { folder: state_dir.join("memory").join("images") }
    }

    /// Opens an image.
    pub(in super::super) fn open(&self, id: SnapshotId) -> Result<Image, HypervisorError> {
        let folder = self.folder.join(id.to_string());
        let manifest = read_json(&folder.join(MANIFEST)).ok_or(HypervisorError::NoImage { image: id })?;
        Ok(Image { folder, manifest })
    }

    /// The images there are, finished or not.
    pub(in super::super) fn list(&self) -> Result<Vec<SnapshotId>, HypervisorError> {
        let failed = |source| io_error("list", &self.folder, source);
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let id = name.to_str().map(|name| name.strip_suffix(PARTIAL).unwrap_or(name));
            found.extend(id.and_then(|id| id.parse::<SnapshotId>().ok()));
        }
        Ok(found)
    }

    /// Removes an image, finished or not.
    pub(in super::super) fn remove(&self, id: SnapshotId) -> Result<(), HypervisorError> {
        for name in [id.to_string(), format!("{id}{PARTIAL}")] {
            let folder = self.folder.join(name);
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &folder, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Begins an image.
    pub(in super::super) fn begin(&self, id: SnapshotId) -> Result<Draft, HypervisorError> {
        let finished = self.folder.join(id.to_string());
        let folder = self.folder.join(format!("{id}{PARTIAL}"));
        let failed = |source| io_error("create", &folder, source);
        if finished.exists() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let mut private = DirBuilder::new();
        private.mode(0o700);
        private.recursive(true).create(&self.folder).map_err(failed)?;
        private.recursive(false).create(&folder).map_err(failed)?;
        Ok(Draft { folder, finished, done: false })
    }
}

impl Image {
    pub(in super::super) fn shape(&self) -> &Shape {
        &self.manifest.shape
    }

    /// The base, by its path: machines get a link to it.
    pub(in super::super) fn base(&self) -> PathBuf {
        self.folder.join(BASE)
    }

    /// The device state.
    pub(in super::super) fn devices(&self) -> Result<File, HypervisorError> {
        let path = self.folder.join(DEVICES);
        File::open(&path).map_err(|error| io_error("open", &path, error))
    }

    /// The difference to the base, if there is one.
    pub(in super::super) fn difference(&self) -> Result<Option<File>, HypervisorError> {
        if !self.manifest.difference {
            return Ok(None);
        }
        let path = self.folder.join(DIFFERENCE);
        File::open(&path).map(Some).map_err(|error| io_error("open", &path, error))
    }

    /// What people are told of it; `now` is the shape that machines have here.
    pub(in super::super) fn describe(&self, now: &Shape) -> Result<MemoryImage, HypervisorError> {
        let shape = self.shape();
        let mut image = MemoryImage {
            vcpus: shape.vcpus,
            memory: shape.memory,
            unique_bytes: 0,
            shared_bytes: 0,
            obstacle: now.obstacle(shape),
        };
        for name in [MANIFEST, DEVICES, DIFFERENCE, BASE] {
            let path = self.folder.join(name);
            match fs::metadata(&path) {
                Ok(file) if file.nlink() > 1 => image.shared_bytes += file.blocks() * 512,
                Ok(file) => image.unique_bytes += file.blocks() * 512,
                Err(error) if error.kind() == io::ErrorKind::NotFound && name == DIFFERENCE => {}
                Err(error) => return Err(io_error("inspect", &path, error)),
            }
        }
        Ok(image)
    }
}

/// An image that is being made. Dropped before it is finished, nothing of it is left.
#[derive(Debug)]
pub(in super::super) struct Draft {
    folder: PathBuf,
    finished: PathBuf,
    done: bool,
}

/// What a machine's memory holds.
#[derive(Debug)]
pub(in super::super) struct Content<'a> {
    /// The base that the machine has.
    pub(in super::super) base: PathBuf,
    /// What it has written since.
    pub(in super::super) runs: &'a [Run],
    /// What is in those, one after another.
    pub(in super::super) bytes: &'a [u8],
    /// How many machines are to be started from it.
    pub(in super::super) restores: u32,
}

impl Draft {
    /// The file for the device state, for writing only: that is how QEMU asks for it.
    pub(in super::super) fn devices(&self) -> Result<File, HypervisorError> {
        create(&self.folder.join(DEVICES), 0o600)
    }

    /// Writes the memory and completes the image.
    pub(in super::super) fn finish(
        mut self,
        shape: Shape,
        content: &Content<'_>,
        durable: bool,
    ) -> Result<(), HypervisorError> {
        let difference = self.write_memory(&shape, content, durable)?;
        let path = self.folder.join(MANIFEST);
        let failed = |error| io_error("write", &path, error);
        let manifest = serde_json::to_vec(&Manifest { shape, difference }).map_err(|e| failed(e.into()))?;
        let mut file = create(&path, 0o600)?;
        file.write_all(&manifest).map_err(failed)?;
        if durable {
            file.sync_all().map_err(failed)?;
            let devices = self.folder.join(DEVICES);
            File::open(&devices).and_then(|f| f.sync_all()).map_err(|e| io_error("sync", &devices, e))?;
            File::open(&self.folder).and_then(|f| f.sync_all()).map_err(failed)?;
        }
        fs::rename(&self.folder, &self.finished).map_err(|e| io_error("complete", &self.finished, e))?;
        self.done = true;
        if let Some(parent) = self.finished.parent().filter(|_| durable) {
            File::open(parent).and_then(|f| f.sync_all()).map_err(|e| io_error("sync", parent, e))?;
        }
        Ok(())
    }

    /// Writes the memory, as a difference or a base of its own. `true` for a difference.
    fn write_memory(
        &self,
        shape: &Shape,
        content: &Content<'_>,
        durable: bool,
    ) -> Result<bool, HypervisorError> {
        let old = File::open(&content.base).map_err(|e| io_error("open", &content.base, e))?;
        let old_bytes = base::used_bytes(&old).map_err(|e| io_error("inspect", &content.base, e))?;
        let difference = prefers_difference(old_bytes, total(content.runs), content.restores);
        let path = self.folder.join(if difference { DIFFERENCE } else { BASE });
        let failed = |error| io_error("write", &path, error);
        let mut file = create(&path, 0o600)?;
        if difference {
            let link = self.folder.join(BASE);
            fs::hard_link(&content.base, &link).map_err(|e| io_error("link", &link, e))?;
            difference::write(&mut file, content.runs, content.bytes).map_err(failed)?;
        } else {
            let old = (old_bytes > 0).then_some(&old);
            base::write(&file, old, shape.memory.bytes(), content.runs, content.bytes).map_err(failed)?;
            file.set_permissions(PermissionsExt::from_mode(BASE_MODE)).map_err(failed)?;
        }
        if durable {
            file.sync_all().map_err(failed)?;
        }
        Ok(difference)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            tracing::warn!(path = %self.folder.display(), %error, "an unfinished memory image was left behind");
        }
    }
}

/// Whether to keep what was written as a difference, which is copied into every machine that is started from it, or to
/// make a base of its own, which is copied once and shared.
fn prefers_difference(base: u64, written: u64, restores: u32) -> bool {
    base > 0
        && written <= MOST_DIFFERENCE
        && written.saturating_mul(u64::from(restores)) <= base.saturating_add(written)
}

fn create(path: &Path, mode: u32) -> Result<File, HypervisorError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| io_error("create", path, error))
}

#[cfg(test)]
mod tests {
    use super::super::PAGE;
    use super::*;

    fn shape() -> Shape {
        Shape {
            layout: LAYOUT,
            qemu: "10.0.2".into(),
            accelerator: Accelerator::Tcg,
            cpu: "max".into(),
            tsc_khz: 2_000_000,
            vcpus: VcpuCount::new(2).unwrap(),
            memory: MemoryMib::new(128).unwrap(),
            channel: "serial".into(),
            nic: Card::Stream,
        }
    }

    struct Scratch {
        folder: tempfile::TempDir,
        images: Images,
        zero: PathBuf,
    }

    fn scratch() -> Scratch {
        let folder = tempfile::tempdir().unwrap();
        let zero = folder.path().join("zero");
        File::create(&zero).unwrap().set_len(shape().memory.bytes()).unwrap();
        Scratch { images: Images::of(folder.path()), zero, folder }
    }

    fn make(scratch: &Scratch, base: &Path, restores: u32) -> SnapshotId {
        let id = SnapshotId::random();
        let draft = scratch.images.begin(id).unwrap();
        draft.devices().unwrap().write_all(b"state").unwrap();
        let runs = [Run { offset: 3 * PAGE, bytes: PAGE }];
        let content = Content { base: base.to_owned(), runs: &runs, bytes: &[7; 4096], restores };
        draft.finish(shape(), &content, true).unwrap();
        id
    }

    #[test]
    fn first_image_is_a_base_and_the_next_a_difference_that_shares_it() {
        let scratch = scratch();

        let first = scratch.images.open(make(&scratch, &scratch.zero, 1)).unwrap();
        assert!(first.difference().unwrap().is_none());
        assert_eq!(first.describe(&shape()).unwrap().shared_bytes, 0);
        let id = make(&scratch, &first.base(), 1);
        let second = scratch.images.open(id).unwrap();

        assert!(second.difference().unwrap().is_some());
        let described = second.describe(&shape()).unwrap();
        assert!(described.shared_bytes >= PAGE && described.unique_bytes >= PAGE, "{described:?}");
        assert_eq!(described.obstacle, None);
        scratch.images.remove(id).unwrap();
        assert_eq!(first.describe(&shape()).unwrap().shared_bytes, 0);
    }

    #[test]
    fn image_for_many_is_a_base_of_its_own() {
        let scratch = scratch();
        let first = scratch.images.open(make(&scratch, &scratch.zero, 1)).unwrap();

        let second = scratch.images.open(make(&scratch, &first.base(), 16)).unwrap();

        assert!(second.difference().unwrap().is_none());
        assert_eq!(second.describe(&shape()).unwrap().shared_bytes, 0);
    }

    #[test]
    fn unfinished_image_is_listed_and_not_opened_and_goes_when_it_is_dropped() {
        let scratch = scratch();
        let id = SnapshotId::random();

        let draft = scratch.images.begin(id).unwrap();
        assert_eq!(scratch.images.list().unwrap(), [id]);
        assert!(matches!(scratch.images.open(id), Err(HypervisorError::NoImage { .. })));
        assert!(scratch.images.begin(id).is_err());
        drop(draft);

        assert!(scratch.images.list().unwrap().is_empty());
        assert!(scratch.folder.path().exists());
    }

    #[test]
    fn what_differs_is_said() {
        let now = shape();
        let other = |change: &dyn Fn(&mut Shape)| {
            let mut image = shape();
            change(&mut image);
            now.obstacle(&image)
        };
        assert_eq!(other(&|image| image.tsc_khz += 100), None);
        let text = other(&|image| image.qemu = "9.2.0".into()).unwrap();
        assert_eq!(text, "it was made with QEMU 9.2.0, here it is 10.0.2");
        for changed in [
            other(&|image| image.layout += 1),
            other(&|image| image.accelerator = Accelerator::Kvm),
            other(&|image| image.cpu = "AMD".into()),
            other(&|image| image.tsc_khz = 3_000_000),
            other(&|image| image.vcpus = VcpuCount::new(1).unwrap()),
            other(&|image| image.memory = MemoryMib::new(256).unwrap()),
            other(&|image| image.channel = "vsock".into()),
            other(&|image| image.nic = Card::None),
            other(&|image| image.nic = Card::Tap),
        ] {
            assert!(changed.is_some());
        }
    }

    #[test]
    fn card_of_an_older_image_is_a_stream() {
        let mut older = serde_json::to_value(shape()).unwrap();
        assert_eq!(older["nic"], "stream");
        older["nic"] = true.into();
        assert_eq!(serde_json::from_value::<Shape>(older).unwrap(), shape());
    }

    #[test]
    fn difference_is_chosen_where_it_is_cheaper() {
        const MIB: u64 = 1024 * 1024;
        assert!(!prefers_difference(0, MIB, 1));
        assert!(prefers_difference(100 * MIB, 50 * MIB, 1));
        assert!(prefers_difference(100 * MIB, 50 * MIB, 3));
        assert!(!prefers_difference(100 * MIB, 50 * MIB, 4));
        assert!(!prefers_difference(400 * MIB, 129 * MIB, 1));
    }
}
