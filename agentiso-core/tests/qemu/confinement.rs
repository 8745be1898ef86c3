//! What a machine's processes can do to the host, seen from outside.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf};

use agentiso_core::{
    hypervisor::{Hypervisor, Machine},
    types::ProcessRef,
};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::{
    fixture::{Fixture, is_root},
    machines::fixture,
};

async fn processes(fixture: &Fixture, machine: &Machine) -> Vec<ProcessRef> {
    let all = fixture.qemu().await.processes().await.unwrap();
    all.into_iter().filter(|(id, _)| *id == machine.id).map(|(_, process)| process).collect()
}

/// The status of each thread of a process. Workers come and go meanwhile.
fn statuses(process: &ProcessRef) -> Vec<BTreeMap<String, String>> {
    fs::read_dir(format!("/proc/{}/task", process.pid))
        .unwrap()
        .filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("status")).ok())
        .map(|status| {
            let fields = status.lines().filter_map(|line| line.split_once(':'));
            fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
        })
        .collect()
}

/// What each descriptor of a process names, and whether it can be written to. Some come and go meanwhile.
fn descriptors(process: &ProcessRef) -> Vec<(PathBuf, bool)> {
    fs::read_dir(format!("/proc/{}/fd", process.pid))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter_map(|entry| {
            let number = entry.file_name().into_string().unwrap();
            let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", process.pid)).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
            let access = i32::from_str_radix(flags, 8).unwrap() & libc::O_ACCMODE;
            Some((fs::read_link(entry.path()).ok()?, access != libc::O_RDONLY))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_thread_of_a_machine_has_any_privilege() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let spec = fixture.new_spec().await;
    let uid = spec.uid.map_or(rustix::process::geteuid().as_raw(), |uid| uid.0);
    let machine = qemu.launch(spec).await.unwrap();

    let both = processes(&fixture, &machine).await;

    assert_eq!(both.len(), 2, "QEMU and its log writer");
    let statuses: Vec<_> = both.iter().flat_map(statuses).collect();
    assert!(statuses.len() >= 4, "{} threads", statuses.len());
    for status in statuses {
        assert_eq!(status["Uid"], [uid.to_string().as_str(); 4].join("\t"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set} of {}", status["Name"]);
        }
        assert_eq!(status["NoNewPrivs"], "1");
        assert_eq!(status["Seccomp"], "2");
        // Only root can empty it; nobody can gain anything through it with no_new_privs.
        assert!(!is_root() || status["CapBnd"] == "0000000000000000");
        assert!(!is_root() || status["Groups"].is_empty());
    }
    qemu.kill(&machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_have_sessions_of_their_own_and_no_core_dumps() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let machine = qemu.launch(fixture.new_spec().await).await.unwrap();

    for process in processes(&fixture, &machine).await {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
        let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().to_owned();
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid)).unwrap();
        assert_eq!(session, process.pid.to_string());
        let core: Vec<_> =
            limits.lines().find(|l| l.contains("core file")).unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"]);
    }
    qemu.kill(&machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_can_write_to_its_topmost_layer_only() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let spec = fixture.new_spec().await;
    let top = spec.disk.layers[0].path.clone();
    let machine = qemu.launch(spec).await.unwrap();
    let writable_files = || -> Vec<PathBuf> {
        let mut paths: Vec<_> = descriptors(&machine.process)
            .into_iter()
            .filter(|(path, write)| *write && path.starts_with(fixture.path()))
            .map(|(path, _)| path)
            .collect();
        paths.sort();
        paths.dedup();
        paths
    };

    let before = writable_files();
    let next = fixture.new_layer(machine.id).await;
    qemu.pivot_disk(&machine, &next).await.unwrap();
    let after = writable_files();

    assert_eq!(before, [top]);
    assert_eq!(after, [next.path]);
    qemu.kill(&machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pivots_do_not_pile_up_descriptors_beyond_those_of_the_chain() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let machine = qemu.launch(fixture.new_spec().await).await.unwrap();
    let count = || descriptors(&machine.process).len();

    let before = count();
    for _ in 0..10 {
        let storage_layer = fixture.new_spec().await.disk.layers.swap_remove(0);
        qemu.pivot_disk(&machine, &storage_layer).await.unwrap();
    }

    // Each frozen layer is held by the descriptor that was passed and the one that QEMU made of it.
    assert!(count() <= before + 10 * 2 + 2, "{before} -> {}", count());
    qemu.kill(&machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn state_folder_stays_closed_to_machines() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let machine = qemu.launch(fixture.new_spec().await).await.unwrap();
    let own = rustix::process::geteuid().as_raw();

    let mut pending = vec![fixture.path().to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.uid(), own, "{}", path.display());
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert_eq!(fs::metadata(fixture.path()).unwrap().mode() & 0o077, 0);
    qemu.kill(&machine).await.unwrap();
}

/// Has QEMU itself try something, over the control socket that operations leave alone; returns what it answered.
async fn have_qemu_try(machine: &Machine, command: &str, arguments: serde_json::Value) -> String {
    let socket = tokio::net::UnixStream::connect(machine.run_dir.join("qmp2")).await.unwrap();
    let (read, mut write) = socket.into_split();
    let mut lines = BufReader::new(read).lines();
    let greeting = lines.next_line().await.unwrap().unwrap();
    assert!(greeting.contains("QMP"), "{greeting}");
    let attempt = serde_json::json!({ "execute": command, "arguments": arguments, "id": 2 });
    let commands = format!("{{\"execute\": \"qmp_capabilities\", \"id\": 1}}\n{attempt}\n");
    write.write_all(commands.as_bytes()).await.unwrap();
    loop {
        let line = lines.next_line().await.unwrap().unwrap();
        if line.contains("\"id\": 2") {
            return line;
        }
    }
}

fn file_node(path: &str) -> serde_json::Value {
    serde_json::json!({ "driver": "file", "node-name": "attempt", "filename": path, "read-only": true })
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_cannot_open_files_of_the_host() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let other = fixture.new_spec().await.disk.layers[0].path.clone();
    let machine = qemu.launch(fixture.new_spec().await).await.unwrap();
    // Readable by anyone as far as its mode goes: what keeps it closed is not the user id.
    let public = tempfile::Builder::new().prefix("agentiso-public-").tempfile().unwrap();
    fs::write(public.path(), [0; 512]).unwrap();
    crate::fixture::set_mode(public.path(), 0o666);

    for path in
        ["/etc/passwd", public.path().to_str().unwrap(), other.to_str().unwrap(), "/proc/self/environ"]
    {
        let answer = have_qemu_try(&machine, "blockdev-add", file_node(path)).await;
        assert!(answer.contains("Permission denied"), "{path}: {answer}");
    }
    qemu.kill(&machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_cannot_make_sockets() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let machine = qemu.launch(fixture.new_spec().await).await.unwrap();
    // A socket's path must be short, wherever this run keeps its temporary files.
    let folder = tempfile::Builder::new().prefix("agentiso-listening-").tempdir_in("/tmp").unwrap();
    let unix_path = folder.path().join("socket");
    let unix = std::os::unix::net::UnixListener::bind(&unix_path).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port().to_string();

    for backend in [
        serde_json::json!({"type": "socket", "data": {"server": false, "addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": port}}}}),
        serde_json::json!({"type": "socket", "data": {"server": false, "addr": {"type": "unix", "data": {"path": unix_path}}}}),
        serde_json::json!({"type": "udp", "data": {"remote": {"type": "inet", "data": {"host": "127.0.0.1", "port": port}}}}),
    ] {
        let arguments = serde_json::json!({ "id": "attempt", "backend": backend });
        let answer = have_qemu_try(&machine, "chardev-add", arguments).await;
        assert!(answer.contains("error") && answer.contains("ot permitted"), "{backend}: {answer}");
    }
    drop((unix, tcp));
    qemu.kill(&machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_file_is_root_s_alone_and_the_machine_s() {
    let fixture = fixture!();
    if !is_root() {
        return println!("skipped: not root, so the machine's files are this user's anyway");
    }
    let qemu = fixture.qemu().await;
    if qemu.capabilities().open.iter().any(|line| line.contains("memory files")) {
        return println!("skipped: no idmapped mounts here");
    }

    let machine = qemu.launch(fixture.new_spec().await).await.unwrap();

    let file = std::fs::metadata(fixture.path().join("memory/zero-128.ram")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o400, 0, 0));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", machine.process.pid)).unwrap();
    let inode = format!(" {} ", file.ino());
    assert!(maps.lines().any(|line| line.contains(&inode)), "its memory is that file: {maps}");
    qemu.kill(&machine).await.unwrap();
}
