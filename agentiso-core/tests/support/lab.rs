//! What tests of the lab have in common. Each program uses some of it.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{FileExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use agentiso_core::{
    Host, Workspace, WorkspaceSpec,
    hypervisor::MachineLog,
    storage::Storage,
    types::{BaseId, DiskGib, MemoryMib, Resources},
};
use tempfile::TempDir;

/// What a machine may take to boot: in the lab, KVM's CPU is itself emulated.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// Names a state folder with an image, whose disk is a file.
const SEED_VARIABLE: &str = "AGENTISO_TEST_SEED";

/// Names the tests' own state folder.
const HOME_VARIABLE: &str = "AGENTISO_HOME";

/// A folder that this variable of the lab names, or why there is none.
fn folder(variable: &str) -> Result<PathBuf, String> {
    std::env::var_os(variable)
        .filter(|_| std::env::var_os("AGENTISO_LAB").is_some())
        .map(PathBuf::from)
        .ok_or_else(|| "this is not the lab; `cargo xtask lab` runs it".to_owned())
}

/// The state folder that tests share, or why there is none.
pub(crate) fn home() -> Result<PathBuf, String> {
    folder(HOME_VARIABLE)
}

/// The state folder whose image tests copy, or why there is none.
pub(crate) fn seed() -> Result<PathBuf, String> {
    folder(SEED_VARIABLE)
}

/// Runs a program to its end.
pub(crate) fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// What a test has done to the lab is undone when this is dropped, also when the test fails.
#[must_use]
pub(crate) struct Undo(pub(crate) &'static str);

impl Drop for Undo {
    fn drop(&mut self) {
        // Of a kind that is only printed: the test has an outcome already.
        let output = Command::new("sh").args(["-ec", self.0]).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("{} was not undone: {output:?}", self.0);
        }
    }
}

/// A workspace that is gone with the process that made it.
pub(crate) async fn throwaway(host: &Host) -> Workspace {
    host.create(WorkspaceSpec { throwaway: true, ..WorkspaceSpec::new("debian") }).await.unwrap()
}

/// A machine for pools that are small.
pub(crate) fn small() -> WorkspaceSpec {
    let resources = Resources {
        memory_mb: MemoryMib::new(256).unwrap(),
        disk_gb: DiskGib::new(1).unwrap(),
        ..Resources::default()
    };
    WorkspaceSpec::new("debian").resources(resources)
}

/// Runs something in a guest that must succeed.
pub(crate) async fn sh(workspace: &Workspace, line: &str) -> String {
    let output = match workspace.exec(line).await {
        Ok(output) => output,
        Err(error) => {
            let console = workspace.logs(MachineLog::Console, 4096).await.unwrap_or_default();
            let state = workspace.info().await.map(|info| (info.summary.state, info.summary.crashed));
            panic!("{line}: {error:?}; {state:?}, console: {}", String::from_utf8_lossy(&console));
        }
    };
    assert!(output.success(), "{line}: {}", output.stderr_text());
    output.stdout_text().trim().to_owned()
}

/// A state folder with the seed's programs and image, but for the image's disk. Where there is room for memory.
pub(crate) fn home_without_disks(seed: &Path) -> TempDir {
    let private = std::fs::Permissions::from_mode(0o700);
    let home = tempfile::Builder::new().permissions(private).tempdir_in(seed.parent().unwrap()).unwrap();
    for part in ["lib", "images"] {
        run(&format!("cp -a {}/{part} {}/", seed.display(), home.path().display()));
    }
    home
}

/// Puts the disk of the seed's image into a storage.
pub(crate) async fn copy_image(seed: &Path, storage: &dyn Storage) -> BaseId {
    let bases = std::fs::read_dir(seed.join("disks/bases")).unwrap();
    let mut bases = bases.map(|entry| entry.unwrap().path());
    let file = bases.find(|path| path.extension().is_some_and(|extension| extension == "raw")).unwrap();
    let base: BaseId = file.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let chain = storage.begin_base(base, file.metadata().unwrap().len()).await.unwrap();
    copy(&file, &chain.layers[0].path);
    storage.seal_base(base).await.unwrap();
    base
}

/// Copies a file onto a device, but for the zeros.
fn copy(from: &Path, to: &Path) {
    let (mut from, to) = (File::open(from).unwrap(), File::options().write(true).open(to).unwrap());
    let zeros = vec![0; 1 << 20];
    let (mut chunk, mut at) = (zeros.clone(), 0);
    loop {
        let count = from.read(&mut chunk).unwrap();
        if count == 0 {
            break;
        }
        if chunk[..count] != zeros[..count] {
            to.write_all_at(&chunk[..count], at).unwrap();
        }
        at += count as u64;
    }
    to.sync_all().unwrap();
}

/// Makes the QEMU of this control socket want more memory, as a guest that has broken into it could.
pub(crate) fn hog_memory(socket: &Path, bytes: u64) {
    let socket = UnixStream::connect(socket).unwrap();
    let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
    lines.next().unwrap().unwrap();
    (&socket).write_all(b"{\"execute\": \"qmp_capabilities\"}\n").unwrap();
    lines.next().unwrap().unwrap();
    let order = format!(
        "{{\"execute\": \"object-add\", \"arguments\": {{\"qom-type\": \"memory-backend-ram\", \"id\": \"hog\", \
         \"size\": {bytes}, \"prealloc\": true}}}}\n"
    );
    (&socket).write_all(order.as_bytes()).unwrap();
    // The end of the connection, or an answer that must not come.
    let answer = lines
        .find(|line| line.as_ref().map_or(true, |line| line.contains("return") || line.contains("error")));
    println!("the hog said {answer:?}");
}

/// Another process that runs one of this program's helpers, killed when this is dropped.
pub(crate) struct OtherProcess(Child);

impl OtherProcess {
    pub(crate) fn start(helper: &str, variables: &[(&str, &Path)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", helper]).stdout(Stdio::null());
        Self(command.envs(variables.iter().copied()).spawn().unwrap())
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
