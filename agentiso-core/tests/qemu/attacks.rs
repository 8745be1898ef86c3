//! What a guest that broke its QEMU, or whoever chose names and paths, might try on the host.

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::Path,
};

use agentiso_core::hypervisor::{Hypervisor, LaunchSpec, Machine};

use crate::{
    fixture::{Fixture, set_mode},
    machines::fixture,
};

/// The file that a forged header leads to.
const SECRET: &[u8] = b"the content of a file of the host";

/// Header extensions and flags of qcow2 (QEMU's docs/interop/qcow2.txt).
const BACKING_OFFSET_AT: u64 = 8;
const INCOMPATIBLE_AT: u64 = 72;
const EXTERNAL_DATA_FILE: u64 = 4;
/// Behind the header of version 3 and before the first cluster is over.
const NAME_AT: u64 = 512;

/// Every file that a process has open or mapped.
fn files_of(machine: &Machine) -> Vec<String> {
    let process = format!("/proc/{}", machine.process.pid);
    let open = fs::read_dir(format!("{process}/fd")).unwrap().flatten();
    let mut files: Vec<String> = open
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    files.extend(fs::read_to_string(format!("{process}/maps")).unwrap().lines().map(str::to_owned));
    files
}

/// Writes into a layer what a QEMU that a guest has broken could.
fn forge(layer: &Path, forge: impl Fn(&mut fs::File)) {
    let mut file = fs::OpenOptions::new().write(true).open(layer).unwrap();
    forge(&mut file);
}

fn put(file: &mut fs::File, at: u64, bytes: &[u8]) {
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

fn backing(file: &mut fs::File, name: &[u8]) {
    put(file, NAME_AT, name);
    put(file, BACKING_OFFSET_AT, &NAME_AT.to_be_bytes());
    put(file, BACKING_OFFSET_AT + 8, &u32::try_from(name.len()).unwrap().to_be_bytes());
}

/// Starts a machine from a disk whose header was forged. It is refused, or runs with the files of its record alone.
async fn forged_header_reaches_nothing(how: impl Fn(&mut fs::File, &Path)) {
    let fixture = Fixture::new().await.unwrap();
    let qemu = fixture.qemu().await;
    // Readable by anyone: what keeps it closed is not its mode.
    let secret = tempfile::Builder::new().prefix("agentiso-secret-").tempfile().unwrap();
    fs::write(secret.path(), [SECRET, &[0; 4096]].concat()).unwrap();
    set_mode(secret.path(), 0o666);
    let spec = fixture.new_spec().await;
    forge(&spec.disk.layers[0].path, |file| how(file, secret.path()));

    let launched = qemu.launch(spec).await;

    if let Ok(machine) = launched {
        let secret = secret.path().to_str().unwrap();
        assert!(!files_of(&machine).iter().any(|file| file.contains(secret)), "it has the host's file open");
        qemu.kill(&machine).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_backing_file_reaches_nothing() {
    let _ = fixture!();
    forged_header_reaches_nothing(|file, secret| backing(file, secret.as_os_str().as_encoded_bytes())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_json_backing_file_reaches_nothing() {
    let _ = fixture!();
    forged_header_reaches_nothing(|file, secret| {
        let name = format!(
            "json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}",
            secret.display()
        );
        backing(file, name.as_bytes());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_external_data_file_reaches_nothing() {
    let _ = fixture!();
    forged_header_reaches_nothing(|file, secret| {
        let name = secret.as_os_str().as_encoded_bytes();
        put(file, INCOMPATIBLE_AT, &EXTERNAL_DATA_FILE.to_be_bytes());
        // The extension that names it, right behind the header.
        put(file, 104, &0x4441_5441_u32.to_be_bytes());
        put(file, 108, &u32::try_from(name.len()).unwrap().to_be_bytes());
        put(file, 112, name);
    })
    .await;
}

/// Texts that mean something to QEMU's options, to shells, to JSON or to terminals.
const HOSTILE: [&str; 7] =
    ["a,file=b", "-evil-option", "a b", "a\"b'c", "a\nb", "json:{}", "$(touch pwned);`id`|&\u{1b}[31m"];

#[tokio::test(flavor = "multi_thread")]
async fn names_and_paths_never_reach_the_command_line() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    for name in HOSTILE {
        let folder = fixture.path().join(name);
        fs::create_dir(&folder).unwrap();
        let run_dir = folder.join("run");
        fs::create_dir(&run_dir).unwrap();
        let mut spec = fixture.new_spec().await;
        for (file, path) in [("vmlinux", &mut spec.kernel), ("initramfs", &mut spec.initramfs)] {
            let copy = folder.join(file);
            fs::copy(&*path, &copy).unwrap();
            *path = copy;
        }
        let layer = &mut spec.disk.layers[0].path;
        let moved = folder.join("layer");
        fs::rename(&*layer, &moved).unwrap();
        *layer = moved;

        let machine = qemu.launch(LaunchSpec { run_dir, ..spec }).await.unwrap();

        let line = fs::read(format!("/proc/{}/cmdline", machine.process.pid)).unwrap();
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        assert!(!words.iter().any(|word| word.contains(name)), "{name:?} is in {words:?}");
        let state = fixture.path().to_str().unwrap();
        assert!(!words.iter().any(|word| word.contains(state)), "a path is in {words:?}");
        assert!(!Path::new("pwned").exists());
        qemu.kill(&machine).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_has_no_file_that_is_not_its_own() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let spec = fixture.new_spec().await;
    let mut own: Vec<String> =
        spec.disk.layers.iter().map(|layer| layer.path.to_str().unwrap().to_owned()).collect();
    own.extend([&spec.kernel, &spec.initramfs].map(|path| path.to_str().unwrap().to_owned()));
    let machine = qemu.launch(spec).await.unwrap();

    let open: Vec<(String, u64)> = fs::read_dir(format!("/proc/{}/fd", machine.process.pid))
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let path = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
            Some((path, fs::metadata(entry.path()).ok()?.ino()))
        })
        .collect();
    // Its memory may be opened through a mount of that one file, which is then the mount's root.
    let memory = fs::metadata(fixture.path().join("memory/zero-128.ram")).unwrap().ino();

    let kernels = ["socket:", "pipe:", "anon_inode:", "/dev/null", "/memfd:"];
    for (file, inode) in &open {
        let is_own =
            own.contains(file) || kernels.iter().any(|kind| file.starts_with(kind)) || *inode == memory;
        assert!(is_own, "{file}, of {open:?}");
    }
    qemu.kill(&machine).await.unwrap();
}
