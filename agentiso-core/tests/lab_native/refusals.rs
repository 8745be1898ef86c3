//! What a host lacks, or cannot do, is said with the remedy, and changes nothing.

use std::os::unix::fs::PermissionsExt;

use agentiso_core::{Backend, Config, Host, WorkspaceSpec, prepare_zfs};

use crate::fixture::{Native, Undo, config, pool, run};

fn empty_home() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o700)).tempdir().unwrap()
}

/// The whole message of opening a host that must fail.
async fn refused(config: Config) -> String {
    let report = Host::open(config).await.map(drop).unwrap_err().report();
    println!("{report}");
    report
}

#[tokio::test]
async fn doctor_says_which_backend_of_each_kind_is_used() {
    let Some(native) = Native::new().await else { return };
    let file = native.home.join("agentiso.toml");
    let disks = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("use = [\"netlink\"]\n{disks}")).unwrap();

    let told = run(&format!("AGENTISO_HOME={} $AGENTISO_BIN doctor", native.home.display()));

    println!("{told}");
    for (kind, backend) in
        [("cpu", "kvm"), ("disks", "zfs"), ("network", "netlink"), ("channel", "vsock"), ("limits", "cgroup")]
    {
        let expected = ["ok", kind, &format!("{backend}:")].map(str::to_owned);
        let is = |line: &str| line.split_whitespace().take(3).eq(expected.iter());
        assert!(told.lines().any(is), "{kind}");
    }
    assert!(told.contains("Machines can run."));
}

#[tokio::test]
async fn pool_that_is_not_there_is_named_with_what_makes_one() {
    if pool().is_none() {
        return;
    }
    let home = empty_home();
    let config = Config::at(home.path());

    let report = prepare_zfs(&config, "nosuchpool").await.unwrap_err().report();

    println!("{report}");
    assert!(report.contains("nosuchpool") && report.contains("zpool create"), "{report}");
    assert!(!config.file().exists());
    let report = refused(config.zfs("nosuchpool/agentiso")).await;
    assert!(report.contains("zpool import"), "{report}");
}

#[tokio::test]
async fn module_that_is_not_loaded_is_named_with_what_loads_it() {
    if pool().is_none() {
        return;
    }
    let home = empty_home();
    let _undo = Undo(
        "modprobe vhost_vsock
         for i in 1 2 3 4 5; do [ -e /dev/vhost-vsock ] && break; sleep 1; done
         [ -e /dev/vhost-vsock ] || mknod /dev/vhost-vsock c 10 241
         chmod 666 /dev/vhost-vsock",
    );
    run("modprobe -r vhost_vsock; rm -f /dev/vhost-vsock");

    let report = refused(Config::at(home.path()).force(Backend::Vsock)).await;
    let chosen = Host::open(Config::at(home.path())).await.unwrap().isolation();

    assert!(report.contains("modprobe vhost_vsock"), "{report}");
    let channel = chosen.backends.iter().find(|choice| choice.used == Backend::Serial).unwrap();
    assert!(channel.passed_over.remedy.as_ref().unwrap().contains("modprobe vhost_vsock"), "{channel:?}");
}

#[tokio::test]
async fn devices_that_are_not_there_are_named_with_the_modules_that_make_them() {
    if pool().is_none() {
        return;
    }
    let home = empty_home();
    let _undo = Undo("mv /dev/no-kvm /dev/kvm || true; mv /dev/net/no-tun /dev/net/tun");
    run("mv /dev/kvm /dev/no-kvm; mv /dev/net/tun /dev/net/no-tun");

    let kvm = refused(Config::at(home.path()).force(Backend::Kvm)).await;
    let netlink = refused(Config::at(home.path()).force(Backend::Netlink)).await;

    assert!(kvm.contains("/dev/kvm") && kvm.contains("kvm_amd"), "{kvm}");
    assert!(netlink.contains("/dev/net/tun") && netlink.contains("modprobe tun"), "{netlink}");
}

#[tokio::test]
async fn range_that_is_in_use_is_named_with_the_interface() {
    if pool().is_none() {
        return;
    }
    let home = empty_home();
    let _undo = Undo("ip link del taken0");
    run("ip link add taken0 type dummy; ip addr add 10.99.3.4/24 dev taken0; ip link set taken0 up");

    let report = refused(Config::at(home.path()).force(Backend::Netlink)).await;

    assert!(report.contains("taken0") && report.contains("10.99.0.0/16"), "{report}");
    assert!(report.contains("configure another range"), "{report}");
}

#[tokio::test]
async fn disk_that_the_pool_has_no_room_for_is_refused_and_leaves_nothing() {
    let Some(native) = Native::new().await else { return };
    let host = native.open().await;

    let report = host.create(WorkspaceSpec::new("debian")).await.map(drop).unwrap_err().report();

    println!("{report}");
    // How much there is and is needed, and both remedies.
    for words in ["MiB are free", "needed", "agentiso prune", "zpool add"] {
        assert!(report.contains(words), "{report}");
    }
    assert_eq!(native.left(), [""; 0]);
    host.close().await;
}

#[tokio::test]
async fn ordinary_user_is_told_what_needs_root() {
    let Some(native) = Native::new().await else { return };
    let bin = std::env::var("AGENTISO_BIN").unwrap();
    let home = empty_home();
    std::os::unix::fs::chown(home.path(), Some(65_534), Some(65_534)).unwrap();
    let told = |text: &str| {
        let file = home.path().join("agentiso.toml");
        std::fs::write(&file, text).unwrap();
        std::os::unix::fs::chown(&file, Some(65_534), Some(65_534)).unwrap();
        let line = format!(
            "setpriv --reuid 65534 --regid 65534 --clear-groups env AGENTISO_HOME={} {bin} ls 2>&1 || true",
            home.path().display()
        );
        let told = run(&line);
        println!("{told}");
        told
    };

    let zfs = told(&format!("[zfs]\ndataset = \"{}\"\n", native.dataset));
    let netlink = told("use = [\"netlink\"]\n");

    for (report, what) in [(zfs, "ZFS"), (netlink, "network")] {
        assert!(report.contains("root") && report.contains(what), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_folder_does_not_leave_its_pool_with_disks_in_it() {
    let Some(native) = Native::new().await else { return };
    native.open().await.close().await;

    let files = Config { zfs: Default::default(), ..config(&native.home) };
    let report = refused(files).await;

    assert!(report.contains(&native.dataset) && report.contains("agentiso image rm"), "{report}");
    native.open().await.close().await;
}
