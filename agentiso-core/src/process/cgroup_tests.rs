//! On a pretended hierarchy: a folder with the files that the kernel would show. The real one is tested in the lab.

use super::*;

/// A hierarchy in which this process is in `/user/me`; `user` and all below belong to it.
struct Pretended(tempfile::TempDir);

impl Pretended {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pretended = Self(folder);
        pretended.group("user", "cpu io memory pids");
        pretended.group("user/me", "");
        pretended.group("user/agentiso", "cpu io memory pids");
        pretended
    }

    fn group(&self, path: &str, controllers: &str) {
        let group = self.0.path().join(path);
        fs::create_dir_all(&group).unwrap();
        for (file, text) in [
            ("cgroup.controllers", controllers),
            ("cgroup.subtree_control", controllers),
            ("cgroup.procs", ""),
        ] {
            fs::write(group.join(file), text).unwrap();
        }
    }

    fn find(&self) -> Result<Cgroups, CgroupError> {
        Cgroups::below(self.0.path().to_owned(), "/user/me", "state")
    }
}

fn limits() -> Limits {
    Limits { memory_bytes: 1 << 30, swap_bytes: 0, cpus: 2, tasks: 256, io: Some("8:0 rbps=1000".to_owned()) }
}

#[test]
fn limits_are_written_into_a_group_of_the_machines_own() {
    let pretended = Pretended::new();
    let cgroups = pretended.find().unwrap();
    let id = WorkspaceId::random();

    let path = cgroups.make(id, &limits()).unwrap().keep();

    assert_eq!(path, pretended.0.path().join(format!("user/agentiso/state-{id}")));
    assert_eq!(cgroups.name_of(&path), format!("0::/user/agentiso/state-{id}"));
    for (file, value) in [
        ("memory.max", "1073741824"),
        ("memory.oom.group", "1"),
        ("cpu.max", "200000 100000"),
        ("pids.max", "256"),
        ("io.max", "8:0 rbps=1000"),
    ] {
        assert_eq!(fs::read_to_string(path.join(file)).unwrap(), value, "{file}");
    }
}

#[test]
fn usage_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("memory.current", "4096\n"),
        ("cpu.stat", "usage_usec 77\nuser_usec 70\nsystem_usec 7\n"),
        ("pids.current", "3\n"),
    ] {
        fs::write(folder.path().join(file), text).unwrap();
    }

    assert_eq!(used(folder.path()).unwrap(), Used { memory_bytes: 4096, cpu_us: 77, tasks: 3 });
}

#[test]
fn sweep_removes_empty_groups_of_this_state_folder_that_nobody_is_about_to_use() {
    let pretended = Pretended::new();
    let cgroups = pretended.find().unwrap();
    let folder = pretended.0.path().join("user/agentiso");
    let [stray, starting, others] =
        ["state", "state", "other"].map(|state| folder.join(format!("{state}-{}", WorkspaceId::random())));
    for path in [&stray, &starting, &others, &folder.join("state-notes")] {
        fs::create_dir(path).unwrap();
    }
    let about_to = File::open(&starting).unwrap();
    flock(&about_to, FlockOperation::NonBlockingLockExclusive).unwrap();

    assert_eq!(cgroups.sweep().unwrap(), 1);

    assert!(!stray.exists() && starting.exists() && others.exists());
    drop(about_to);
    assert_eq!(cgroups.sweep().unwrap(), 1);
    assert!(folder.join("state-notes").exists());
}

#[test]
fn missing_controller_is_refused_with_the_reason() {
    let pretended = Pretended::new();
    pretended.group("user", "cpu pids");

    let error = pretended.find().unwrap_err();

    assert!(matches!(error, CgroupError::Unavailable { .. }));
    assert!(error.to_string().contains("no controller memory"), "{error}");
}

#[test]
fn host_without_the_second_version_is_refused_with_the_remedy() {
    let v1 = "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    let both = format!("{v1}31 25 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw\n");

    assert!(mount_point(v1).unwrap_err().to_string().contains("unified_cgroup_hierarchy"));
    assert_eq!(mount_point(&both).unwrap(), Path::new("/sys/fs/cgroup/unified"));
    assert_eq!(own_group("4:pids:/x\n0::/a/b\n").unwrap(), "/a/b");
    assert_eq!(own_group("4:pids:/x\n"), None);
}
