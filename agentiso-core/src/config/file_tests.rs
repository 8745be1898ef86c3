use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const WHOLE: &str = r#"
use = ["zfs", "vsock"]
forbid = ["tcg"]
require = ["kvm", "limits", "own-user", "nothing-open"]
qemu = "/opt/qemu/bin/qemu-system-x86_64"
templates = false

[zfs]
dataset = "tank/agentiso"
reserve_gib = 7

[netlink]
range = "10.77.0.0/16"
forwards_from = "anywhere"
resolver = "9.9.9.9"

[vsock]
first_cid = 1000
last_cid = 1999

[limits]
overhead_mib = 300
swap_mib = 16
disk_read_mib_per_s = 100
disk_write_mib_per_s = 50

[timeouts]
boot_s = 30
lock_s = 40
stop_grace_s = 6
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    let mut config = Config::at("/state");
    apply(&mut config, Path::new("/state/agentiso.toml"), text).map(|()| config)
}

fn problem(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn every_key_has_its_effect() {
    let config = parse(WHOLE).unwrap();

    assert_eq!(config.choices.forced, BTreeSet::from([Backend::Zfs, Backend::Vsock]));
    assert_eq!(config.choices.forbidden, BTreeSet::from([Backend::Tcg]));
    let all = [Requirement::Kvm, Requirement::Limits, Requirement::OwnUser, Requirement::NothingOpen];
    assert_eq!(config.require, BTreeSet::from(all));
    assert_eq!(config.qemu.as_deref(), Some(Path::new("/opt/qemu/bin/qemu-system-x86_64")));
    assert!(!config.templates);
    assert_eq!(config.zfs.dataset.as_deref(), Some("tank/agentiso"));
    assert_eq!(config.zfs.reserve_bytes, 7 << 30);
    assert_eq!(config.netlink.range.as_deref(), Some("10.77.0.0/16"));
    assert!(config.netlink.forwards_from_anywhere);
    assert_eq!(config.netlink.resolver, Some(Ipv4Addr::new(9, 9, 9, 9)));
    assert_eq!(config.vsock_cids, 1000..=1999);
    assert_eq!((config.limits.overhead_mib, config.limits.swap_mib), (300, 16));
    assert_eq!(config.limits.disk, Some(DiskLimits { read_bytes: 100 << 20, write_bytes: 50 << 20 }));
    assert_eq!(config.boot_timeout, Duration::from_secs(30));
    assert_eq!(config.lock_timeout, Duration::from_secs(40));
    assert_eq!(config.stop_grace, Duration::from_secs(6));
}

#[test]
fn empty_file_changes_nothing() {
    let config = parse("").unwrap();

    assert_eq!(format!("{config:?}"), format!("{:?}", Config::at("/state")));
}

/// Found by fuzzing: a key may be quoted and hold anything.
#[test]
fn error_steers_no_terminal_whatever_the_file_holds() {
    for text in ["\"\\u001b[31m\\n\\t\" = 1", "use = [\"\\u001b[2J\"]", "templates = \"\\u0007\""] {
        let problem = problem(text);

        assert!(!problem.contains(char::is_control), "{problem:?}");
        assert!(problem.contains("line 1"), "{problem}");
    }
}

#[test]
fn what_is_no_key_is_refused_with_its_line_and_what_was_meant() {
    let cases = [
        ("templates = true\nforbidd = []", "line 2", "did you mean `forbid`?"),
        ("[zfs]\ndatset = \"tank/a\"", "line 2", "did you mean `dataset`?"),
        ("[netlink]\nranges = \"10.0.0.0/8\"", "line 2", "did you mean `range`?"),
        ("use = [\"vsok\"]", "line 1", "did you mean `vsock`?"),
        ("require = [\"own_user\"]", "line 1", "did you mean `own-user`?"),
        ("[netlink]\nforwards_from = \"anywere\"", "line 2", "did you mean `anywhere`?"),
    ];
    for (text, line, meant) in cases {
        let problem = problem(text);
        assert!(problem.contains("/state/agentiso.toml"), "{problem}");
        assert!(problem.contains(line) && problem.contains(meant), "{text:?}: {problem}");
    }
    let far = problem("xyzzy = 1");
    assert!(far.contains("line 1") && !far.contains("did you mean"), "{far}");
}

#[test]
fn every_key_of_the_wrong_type_is_refused_with_its_line() {
    let mut section = String::new();
    let mut tried = 0;
    for (number, line) in WHOLE.lines().enumerate() {
        if line.starts_with('[') {
            section = line.to_owned();
        }
        let Some((key, _)) = line.split_once(" = ") else { continue };
        let text = format!("{section}\n{key} = {{ wrong = [1.5] }}");

        let problem = problem(&text);

        assert!(problem.contains("line 2"), "line {number}, {key}: {problem}");
        tried += 1;
    }
    assert_eq!(tried, 19);
}

#[test]
fn values_out_of_bounds_are_refused_and_the_bounds_are_said() {
    let cases = [
        ("qemu = \"qemu-system-x86_64\"", "absolute path"),
        ("[timeouts]\nboot_s = 0", "`timeouts.boot_s` is 0: it must be 1 to 86400"),
        ("[timeouts]\nlock_s = 86401", "`timeouts.lock_s` is 86401"),
        ("[limits]\noverhead_mib = 63", "`limits.overhead_mib` is 63: it must be 64"),
        ("[limits]\ndisk_read_mib_per_s = 10", "belong together"),
        ("[limits]\ndisk_read_mib_per_s = 0\ndisk_write_mib_per_s = 1", "must be 1 to"),
        ("[vsock]\nfirst_cid = 2", "begin at 3"),
        ("[vsock]\nfirst_cid = 20\nlast_cid = 10", "are no range"),
        ("[vsock]\nlast_cid = 4294967295", "are no range"),
        ("[netlink]\nrange = \"10.99.0.1\"", "`netlink.range`"),
        ("use = [\"kvm\", \"tcg\"]", "take one out of `use`"),
        ("use = [\"user\"]\nforbid = [\"user\"]", "out of `forbid`"),
        ("forbid = [\"zfs\", \"qcow2\"]", "everything there is for disks is forbidden"),
    ];
    for (text, expected) in cases {
        let problem = problem(text);
        assert!(problem.contains(expected), "{text:?}: {problem}");
    }
}

#[test]
fn bounds_themselves_are_allowed() {
    let config = parse(
        "[timeouts]\nboot_s = 1\nlock_s = 86400\n[limits]\noverhead_mib = 64\n[vsock]\nfirst_cid = 3\nlast_cid = 3",
    );

    assert_eq!(config.unwrap().vsock_cids, 3..=3);
}

#[test]
fn file_of_the_state_folder_counts_and_one_that_others_could_write_does_not() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(IN_STATE_DIR);
    std::fs::write(&path, "templates = false").unwrap();

    let (found, text) = find(folder.path()).unwrap().unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let refused = find(folder.path()).unwrap_err();

    assert_eq!((found, text.as_str()), (path, "templates = false"));
    assert!(refused.to_string().contains("chmod go-w"), "{refused}");
}

#[test]
fn file_that_is_too_long_or_no_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(IN_STATE_DIR);
    let most = usize::try_from(MAX_BYTES).unwrap();
    for (content, is_read) in [(vec![b'#'; most], true), (vec![b'#'; most + 1], false), (vec![0xff], false)] {
        std::fs::write(&path, content).unwrap();

        assert_eq!(find(folder.path()).is_ok(), is_read);
    }
}

proptest! {
    #[test]
    fn any_text_is_taken_or_refused(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_change_of_a_good_file_is_taken_or_refused(at in 0..WHOLE.len(), with in "\\PC{0,8}", cut in 0_usize..12) {
        let end = (at + cut).min(WHOLE.len());
        let _ = parse(&format!("{}{with}{}", &WHOLE[..at], &WHOLE[end..]));
    }
}
