use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    AGENT, AssetError, Assets, BinaryKind, INITRAMFS, LIB_FOLDER, MANIFEST, MODULES_TAR, SHIM, VMLINUX,
    locate,
    manifest::{FileRecord, KernelRecord, Manifest},
};
use crate::file_lock::FileLock;
use crate::image::{
    files::{self, Sha256Digest, Sha256Writer},
    initramfs,
    kernel::{self, KernelError, KernelSource, ModuleTree},
    modules_tar,
    progress::{Progress, ProgressSink, Stage},
};

/// Most bytes of a packed kernel.
const MAX_KERNEL_BYTES: u64 = 512 * 1024 * 1024;

/// What is installed, from where.
#[derive(Clone, Debug, Default)]
pub struct InstallOptions {
    /// The agent; if none, it is looked for in `search`.
    pub agent: Option<PathBuf>,
    /// The companion program; if none, it is looked for in `search`.
    pub shim: Option<PathBuf>,
    /// Folders with agent and shim; if none are given, the running executable's own and `../lib/agentiso` from there.
    pub search: Vec<PathBuf>,
    /// The kernel; if none, what is installed stays, and where nothing is it is [`KernelSource::Apt`].
    pub kernel: Option<KernelSource>,
}

/// What [`install`] did.
#[derive(Clone, Debug)]
pub struct InstallReport {
    /// What is now installed.
    pub assets: Assets,
    /// The files of `lib` that were written; empty if everything was there and right.
    pub written: Vec<&'static str>,
}

/// Fills a state folder's `lib`. What is there and was made from the same agent, shim and kernel stays untouched;
/// what is missing, damaged or made from another one is made anew. Blocks, up to a minute when it fetches a kernel.
///
/// Two at once wait for each other. Each file appears whole; on failure, or if the process is killed, those not yet
/// written are as before and the next run completes them.
///
/// # Errors
/// No agent or shim, no kernel, disk full.
pub fn install(
    state: &Path,
    options: &InstallOptions,
    progress: ProgressSink<'_>,
) -> Result<InstallReport, AssetError> {
    let lib = state.join(LIB_FOLDER);
    files::create_private_folder(&lib).map_err(AssetError::io("create", &lib))?;
    let lock = state.join("locks/init.lock");
    let _lock = FileLock::acquire(&lock).map_err(AssetError::io("lock", &lock))?;
    files::remove_temporary_files(&lib).map_err(AssetError::io("clean", &lib))?;

    let own_folders =
        if options.search.is_empty() { locate::default_folders() } else { options.search.clone() };
    let agent = BinaryKind::Agent.read(options.agent.as_deref(), &own_folders)?;
    let shim = BinaryKind::Shim.read(options.shim.as_deref(), &own_folders)?;
    let installed = match Manifest::read(&lib.join(MANIFEST)) {
        // A damaged manifest is as good as none; one of a later version is not ours to overwrite.
        Err(error @ (AssetError::TooNew { .. } | AssetError::Io { .. })) => return Err(error),
        other => other.ok().flatten(),
    };
    let mut work = Work { lib, files: BTreeMap::new(), written: Vec::new(), progress };

    let kernel = work.kernel(installed.as_ref(), options.kernel.as_ref())?;
    let initramfs_inputs = work.initramfs(installed.as_ref(), &kernel, &agent)?;
    work.binary(installed.as_ref(), AGENT, &agent)?;
    work.binary(installed.as_ref(), SHIM, &shim)?;

    let manifest = Manifest::new(kernel.record, initramfs_inputs, work.files);
    if installed.as_ref() != Some(&manifest) {
        manifest.write(&work.lib.join(MANIFEST))?;
    }
    Ok(InstallReport { assets: Assets::load(state)?, written: work.written })
}

/// Files are readable by all: the folder above them is private, but a machine's own user id must be able to open them
/// through a passed descriptor.
struct Work<'a> {
    lib: PathBuf,
    files: BTreeMap<String, FileRecord>,
    written: Vec<&'static str>,
    progress: ProgressSink<'a>,
}

/// The kernel that is installed now; `modules` is its unpacked modules folder if it was unpacked in this run.
struct InstalledKernel {
    record: KernelRecord,
    unpacked: Option<(tempfile::TempDir, PathBuf)>,
}

impl Work<'_> {
    fn kernel(
        &mut self,
        installed: Option<&Manifest>,
        wanted: Option<&KernelSource>,
    ) -> Result<InstalledKernel, AssetError> {
        // A kernel that is named is unpacked again each time: the file of that name may be another one by now.
        if wanted.is_none()
            && let Some(manifest) = installed
            && self.keep(manifest, VMLINUX)?
            && self.keep(manifest, MODULES_TAR)?
        {
            return Ok(InstalledKernel { record: manifest.kernel.clone(), unpacked: None });
        }
        (self.progress)(Progress::begin(Stage::Kernel));
        let scratch = self.scratch()?;
        // Repairs come from where the kernel came from.
        let source = wanted
            .or(installed.map(|manifest| &manifest.kernel.source))
            .unwrap_or(&KernelSource::Apt)
            .clone();
        let tree = kernel::unpack(&source, scratch.path())?;
        let packed = read_bounded(&tree.kernel, MAX_KERNEL_BYTES)?;
        let sha256 = Sha256Digest::of(&packed);
        let vmlinux = kernel::extract_vmlinux(&tree.kernel, packed)?;
        let modules = ModuleTree::read(&tree.modules)?;
        modules.guest_load_order()?;
        self.write(VMLINUX, 0o644, installed, |file| file.write_all(&vmlinux.image))?;
        (self.progress)(Progress::begin(Stage::Modules));
        self.write(MODULES_TAR, 0o644, installed, |file| {
            modules_tar::write(&tree.modules, io::BufWriter::new(file))
        })?;
        let record = KernelRecord {
            source,
            description: tree.description,
            release: modules.release().to_owned(),
            packed: vmlinux.packed,
            sha256,
        };
        Ok(InstalledKernel { record, unpacked: Some((scratch, tree.modules)) })
    }

    /// Returns the digest of what the initramfs is made from.
    fn initramfs(
        &mut self,
        installed: Option<&Manifest>,
        kernel: &InstalledKernel,
        agent: &[u8],
    ) -> Result<Sha256Digest, AssetError> {
        let modules_digest =
            self.files.get(MODULES_TAR).map(|record| record.sha256.as_str()).unwrap_or_default();
        let inputs = format!("{} {modules_digest}", Sha256Digest::of(agent));
        let inputs = Sha256Digest::of(inputs.as_bytes());
        if let Some(manifest) = installed
            && manifest.initramfs_inputs == inputs
            && self.keep(manifest, INITRAMFS)?
        {
            return Ok(inputs);
        }
        (self.progress)(Progress::begin(Stage::Initramfs));
        let archive = if let Some((_, modules)) = &kernel.unpacked {
            initramfs::build(agent, &ModuleTree::read(modules)?)?
        } else {
            let scratch = self.scratch()?;
            let tar = self.lib.join(MODULES_TAR);
            let modules = modules_tar::read(&tar, scratch.path()).map_err(AssetError::io("unpack", tar))?;
            initramfs::build(agent, &ModuleTree::read(&modules)?)?
        };
        self.write(INITRAMFS, 0o644, installed, |file| file.write_all(&archive))?;
        Ok(inputs)
    }

    fn binary(
        &mut self,
        installed: Option<&Manifest>,
        name: &'static str,
        content: &[u8],
    ) -> Result<(), AssetError> {
        if let Some(manifest) = installed
            && manifest.digest(name) == Some(&Sha256Digest::of(content))
            && self.keep(manifest, name)?
        {
            return Ok(());
        }
        self.write(name, 0o755, installed, |file| file.write_all(content))
    }

    /// Keeps an installed file if its content is what was installed.
    fn keep(&mut self, manifest: &Manifest, name: &'static str) -> Result<bool, AssetError> {
        let path = self.lib.join(name);
        let Some(record) = manifest.files.get(name) else { return Ok(false) };
        match Sha256Digest::of_file(&path) {
            Ok(digest) if digest == record.sha256 => {
                self.files.insert(name.to_owned(), record.clone());
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(AssetError::io("read", path)(error)),
        }
    }

    fn write(
        &mut self,
        name: &'static str,
        mode: u32,
        installed: Option<&Manifest>,
        write: impl FnOnce(&mut Digesting<'_>) -> io::Result<()>,
    ) -> Result<(), AssetError> {
        let path = self.lib.join(name);
        // A kernel that was named is unpacked each time; what came of it may be what is there.
        let intact = installed.map_or(Ok(false), |manifest| self.keep(manifest, name))?;
        let before = self.files.remove(name).filter(|_| intact);
        let mut record = None;
        files::replace(&path, mode, |file| {
            let mut file = Digesting { file, digest: Sha256Writer::default(), bytes: 0 };
            write(&mut file)?;
            record = Some(FileRecord { bytes: file.bytes, sha256: file.digest.finish() });
            Ok(())
        })
        .map_err(AssetError::io("write", &path))?;
        if before != record {
            self.written.push(name);
        }
        if let Some(record) = record {
            self.files.insert(name.to_owned(), record);
        }
        Ok(())
    }

    /// A folder that is removed with the value, and by the next run if this one is killed.
    fn scratch(&self) -> Result<tempfile::TempDir, AssetError> {
        tempfile::Builder::new()
            .prefix(files::TEMPORARY_PREFIX)
            .tempdir_in(&self.lib)
            .map_err(AssetError::io("make a temporary folder in", &self.lib))
    }
}

/// Writes a file and digests what it writes.
struct Digesting<'a> {
    file: &'a mut File,
    digest: Sha256Writer,
    bytes: u64,
}

impl Write for Digesting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(bytes.get(..written).unwrap_or_default());
        self.bytes += u64::try_from(written).unwrap_or(u64::MAX);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, KernelError> {
    let metadata = fs::metadata(path).map_err(KernelError::io("read", path))?;
    if metadata.len() > limit {
        return Err(KernelError::NotBootable {
            file: path.to_owned(),
            reason: format!("it has more than {limit} bytes"),
        });
    }
    fs::read(path).map_err(KernelError::io("read", path))
}
