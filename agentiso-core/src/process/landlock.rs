//! What Landlock lets a confined program open.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};

/// The newest rights that are asked for. Those that the kernel does not know are left out, and [`report`] says so.
const NEWEST: ABI = ABI::V6;

/// What a program may open, everything else being refused; and whether it may use TCP.
#[derive(Debug, Default)]
pub(crate) struct FileRules {
    read_execute: Vec<Place>,
    read: Vec<Place>,
    write: Vec<Place>,
    allow_tcp: bool,
}

#[derive(Debug)]
enum Place {
    Path(PathBuf),
    Open(OwnedFd),
}

impl FileRules {
    /// Nothing may be opened, and no TCP port bound or connected to.
    pub(crate) fn nothing() -> Self {
        Self::default()
    }

    /// Files below may be read and executed. A place that does not exist is left out.
    pub(crate) fn read_execute(mut self, path: impl Into<PathBuf>) -> Self {
        self.read_execute.push(Place::Path(path.into()));
        self
    }

    /// Files below, or the file itself, may be read. A place that does not exist is left out.
    pub(crate) fn read(mut self, path: impl Into<PathBuf>) -> Self {
        self.read.push(Place::Path(path.into()));
        self
    }

    /// The file or folder behind a descriptor (`O_PATH` will do) may be read.
    pub(crate) fn read_open(mut self, place: OwnedFd) -> Self {
        self.read.push(Place::Open(place));
        self
    }

    /// Files below may be read, written, made and removed; no device nodes. A place that does not exist is left out.
    #[allow(dead_code, reason = "for device state files of memory snapshots")]
    pub(crate) fn write(mut self, path: impl Into<PathBuf>) -> Self {
        self.write.push(Place::Path(path.into()));
        self
    }

    /// TCP may be used.
    #[allow(dead_code, reason = "for the network's companion processes")]
    pub(crate) fn allow_tcp(mut self) -> Self {
        self.allow_tcp = true;
        self
    }

    /// Makes the kernel's form of it. `None` where the kernel has no Landlock.
    pub(super) fn build(self, program: impl AsFd) -> Result<Option<OwnedFd>, RulesetError> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?;
        if !self.allow_tcp {
            ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
        }
        let execute = make_bitflags!(AccessFs::{ReadFile | Execute});
        let read_execute = make_bitflags!(AccessFs::{ReadFile | ReadDir | Execute});
        let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
        let write = make_bitflags!(AccessFs::{
            ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeSock | RemoveFile
        });
        let mut created = ruleset.create()?.add_rule(PathBeneath::new(program, execute))?;
        let all = [(self.read_execute, read_execute), (self.read, read), (self.write, write)];
        for (places, access) in all {
            for place in places {
                created = match place {
                    Place::Open(open) => created.add_rule(beneath(&open, access))?,
                    Place::Path(path) => match PathFd::new(&path) {
                        Ok(open) => created.add_rule(beneath(&open, access))?,
                        // Nothing there: nothing to allow.
                        Err(_) => created,
                    },
                };
            }
        }
        Ok(created.into())
    }
}

/// A rule for a folder or a file; what only makes sense for a folder is left out for a file.
fn beneath<F: AsFd>(place: &F, access: BitFlags<AccessFs>) -> PathBeneath<&F> {
    let is_folder =
        rustix::fs::fstat(place).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir());
    PathBeneath::new(place, if is_folder { access } else { access & AccessFs::from_file(NEWEST) })
}

/// The version of Landlock that the kernel has; 0 for none.
pub(super) fn version() -> u32 {
    super::sys::landlock_version()
}

/// What Landlock does on this kernel and what it cannot do.
pub(super) fn report(stands: &mut Vec<String>, open: &mut Vec<String>) {
    let version = version();
    if version == 0 {
        open.push(
            "Landlock is missing: a process that was broken into could open every file its user id can read; boot a \
             kernel with CONFIG_SECURITY_LANDLOCK and landlock among lsm="
                .to_owned(),
        );
        return;
    }
    stands.push(format!("Landlock (version {version}): only the files it needs"));
    for (since, what) in [
        (3, "truncating files it cannot otherwise write (Linux 6.2 refuses it)"),
        (4, "TCP connections (Linux 6.7 refuses them)"),
        (5, "ioctls on devices it can open (Linux 6.10 refuses them)"),
        (6, "signals to processes of the same user and abstract unix sockets (Linux 6.12 refuses them)"),
    ] {
        if version < since {
            open.push(format!("this kernel's Landlock (version {version}) does not cover {what}"));
        }
    }
}

/// The folders that hold a program's libraries and data: the system's, and the program's own prefix when it lives
/// elsewhere (`/opt/x` for `/opt/x/bin/program`).
pub(crate) fn program_folders(program: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["/usr", "/lib", "/lib64"].map(PathBuf::from).into();
    let in_bin = program.parent().filter(|folder| folder.ends_with("bin"));
    if let Some(prefix) = in_bin.and_then(Path::parent).filter(|prefix| *prefix != Path::new("/")) {
        folders.push(prefix.to_owned());
    }
    folders
}
