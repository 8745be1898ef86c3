//! The disks of one run, and what its machine begins with.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use super::binaries::Binaries;
use super::image::Image;
use super::plan::{self, Plan};
use super::recipe::BOOT_MODULES;
use crate::build::Built;
use crate::homes::Seed;
use crate::run::{self, Done, Failure};

/// Room for everything of one run. The file takes as much as is written.
const RUN_DISK: &str = "24G";

/// The lab's first program, and what goes there.
const INIT: &str = include_str!("init.sh");
const BOOT: &str = include_str!("boot.sh");

/// The pool that the lab makes.
const POOL: &str = "labpool";

/// A folder with the files of one run.
pub(crate) struct Disks {
    folder: PathBuf,
}

/// What goes into a run.
pub(crate) struct Contents<'a> {
    pub(crate) built: &'a Built,
    pub(crate) seed: &'a Seed,
    pub(crate) binaries: &'a Binaries,
    pub(crate) target: &'a Path,
}

impl Disks {
    /// Makes them in an empty folder.
    pub(crate) fn make(folder: &Path, image: &Image, plan: &Plan, contents: &Contents<'_>) -> Done<Self> {
        fs::create_dir_all(folder).map_err(run::at("create", folder))?;
        let disks = Self { folder: folder.to_owned() };
        disks.initramfs(image)?;
        let overlay = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
        run::run(Command::new("qemu-img").args(overlay).arg(image.root()).arg(disks.root()))?;
        let tree = folder.join("tree");
        stage(&tree, plan, contents)?;
        let mut make = Command::new("mke2fs");
        make.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"]).arg(&tree).arg(disks.run());
        run::run(make.arg(RUN_DISK).env("PATH", super::path_with_system_folders()))?;
        fs::remove_dir_all(&tree).map_err(run::at("remove", &tree))?;
        Ok(disks)
    }

    pub(crate) fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("root.qcow2")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.folder.join("run.ext4")
    }

    fn initramfs(&self, image: &Image) -> Done {
        let path = self.initrd();
        let mut archive = Newc::create(&path).map_err(run::at("write", &path))?;
        let read = |path: PathBuf| fs::read(&path).map_err(run::at("read", &path));
        let mut files = vec![
            ("init".to_owned(), 0o755, BOOT.as_bytes().to_vec()),
            ("lab-init".to_owned(), 0o755, INIT.as_bytes().to_vec()),
            ("bin/busybox".to_owned(), 0o755, read(image.busybox())?),
            ("modules/order".to_owned(), 0o644, BOOT_MODULES.join(" ").into_bytes()),
        ];
        for module in BOOT_MODULES {
            files.push((format!("modules/{module}.ko"), 0o644, read(image.module(module))?));
        }
        for folder in ["bin", "modules"] {
            archive.entry(folder, 0o040_755, &[]).map_err(run::at("write", &path))?;
        }
        for (name, mode, content) in &files {
            archive.entry(name, 0o100_000 | mode, content).map_err(run::at("write", &path))?;
        }
        archive.finish().map_err(run::at("write", &path))
    }
}

/// What tests find in their environment.
pub(crate) fn environment() -> Vec<(String, String)> {
    let folder = plan::FOLDER;
    [
        ("AGENTISO_LAB", "1".to_owned()),
        ("AGENTISO_VM_TESTS", "1".to_owned()),
        ("AGENTISO_HOME", format!("{folder}/home")),
        ("AGENTISO_TEST_SEED", format!("{folder}/seed")),
        ("AGENTISO_TEST_POOL", POOL.to_owned()),
        ("AGENTISO_BIN", format!("{folder}/bin/agentiso")),
        ("TMPDIR", format!("{folder}/tmp")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Puts everything of a run into a folder, by hard links where the file system allows it.
fn stage(tree: &Path, plan: &Plan, contents: &Contents<'_>) -> Done {
    let make = |path: &Path| fs::create_dir_all(path).map_err(run::at("create", path));
    for folder in ["bin", "tmp", "programs", plan::TESTS] {
        make(&tree.join(folder))?;
    }
    for state in ["seed", "home"] {
        contents.seed.clone_to(&tree.join(state))?;
    }
    for program in ["agentiso", "agentiso-mcp", "agentiso-shim", "agentiso-guest"] {
        link(&contents.built.folder.join(program), &tree.join("bin").join(program))?;
    }
    for (name, path) in &contents.binaries.tests {
        link(path, &tree.join(plan::TESTS).join(name))?;
    }
    for path in &contents.binaries.programs {
        let name = path.file_name().ok_or_else(|| Failure::new("a program has no name"))?;
        link(path, &tree.join("programs").join(name))?;
    }
    let own = std::env::current_exe()
        .map_err(|error| Failure::new(format!("could not find this program: {error}")))?;
    link(&own, &tree.join("xtask"))?;
    write(&tree.join(plan::FILE), 0o644, &plan.text())?;
    let exports =
        plan.environment.iter().map(|(name, value)| format!("export {name}={}\n", run::quoted(value)));
    write(&tree.join("environment"), 0o644, &exports.collect::<String>())?;
    write(&tree.join("prepare"), 0o755, &prepare(contents)?)
}

/// Tests know the programs that cargo built for them by where it put them: they are there in the lab too.
fn prepare(contents: &Contents<'_>) -> Done<String> {
    let mut script = "#!/bin/sh -e\nchmod 1777 /lab/tmp\n".to_owned();
    for program in &contents.binaries.programs {
        let (Some(folder), Some(name)) = (program.parent(), program.file_name()) else {
            return Err(Failure::new(format!("cargo has put a program at {}", program.display())));
        };
        let folder_word = run::quoted(folder.as_os_str());
        let target = run::quoted(Path::new("/lab/programs").join(name));
        script.push_str(&format!("mkdir -p {folder_word}\nln -s {target} {}\n", run::quoted(program)));
    }
    // Where a program that was built there looks for its repository, there is a folder at least.
    script.push_str(&format!("mkdir -p {}\n", run::quoted(contents.target)));
    Ok(script)
}

fn link(from: &Path, to: &Path) -> Done {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(|_| ())).map_err(run::at("copy", from))
}

fn write(path: &Path, mode: u32, text: &str) -> Done {
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create_new(true).mode(mode).open(path).map_err(run::at("create", path))?;
    file.write_all(text.as_bytes()).map_err(run::at("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(run::at("write", path))
}

/// An archive as the kernel unpacks it into its first file system (cpio, newc).
struct Newc {
    file: File,
    inode: u32,
}

impl Newc {
    fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: File::create(path)?, inode: 0 })
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> std::io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| std::io::ErrorKind::InvalidInput)?;
        // Number, mode, user, group, links, time, size, four numbers of devices, the name's size, no checksum.
        let numbers = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let header: String = numbers.iter().map(|number| format!("{number:08x}")).collect();
        write!(self.file, "070701{header}{name}\0")?;
        self.pad()?;
        self.file.write_all(content)?;
        self.pad()
    }

    fn pad(&mut self) -> std::io::Result<()> {
        let over = self.file.stream_position()? % 4;
        let zeros = [0; 4];
        let needed = usize::try_from((4 - over) % 4).unwrap_or(0);
        self.file.write_all(zeros.get(..needed).unwrap_or_default())
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.file.flush()
    }
}

/// The end of a file, for people.
pub(crate) fn tail(path: &Path, bytes: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(std::io::SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut tail = Vec::new();
        file.take(bytes).read_to_end(&mut tail)?;
        Ok(tail)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_is_one_that_cpio_reads() {
        let folder = std::env::temp_dir().join(format!("xtask-newc-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("archive");
        let mut archive = Newc::create(&path).unwrap();
        archive.entry("a", 0o040_755, &[]).unwrap();
        archive.entry("a/file", 0o100_640, b"hello").unwrap();
        archive.finish().unwrap();

        let mut cpio = Command::new("cpio");
        cpio.args(["-i", "--quiet"]).current_dir(&folder).stdin(File::open(&path).unwrap());
        let done = cpio.status().unwrap();
        let content = fs::read_to_string(folder.join("a/file")).unwrap();
        let mode = fs::metadata(folder.join("a/file")).unwrap().permissions().mode();
        fs::remove_dir_all(&folder).unwrap();

        assert!(done.success());
        assert_eq!((content.as_str(), mode & 0o777), ("hello", 0o640));
    }
}
