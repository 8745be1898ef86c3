//! The configuration file: what is accepted is within the bounds of docs/configuration.md and says the same when it is
//! taken again; what is refused is told on one line that steers no terminal.
#![no_main]

use std::{path::Path, time::Duration};

use agentiso_core::{Config, ConfigError};
use libfuzzer_sys::fuzz_target;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// 1 TiB, the most of whatever is given in MiB.
const MAX_MIB: u64 = 1024 * 1024;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("/state/agentiso.toml");
    match Config::at("/state").with_file(path, text) {
        Ok(config) => {
            check(&config);
            let again = config.clone().with_file(path, text).expect("what was taken is taken again");
            assert_eq!(format!("{again:?}"), format!("{config:?}"));
        }
        Err(ConfigError::Invalid { problem, .. }) => {
            assert!(!problem.contains(char::is_control), "an error steers a terminal: {problem:?}");
        }
        Err(ConfigError::Contradiction(_)) => {}
        Err(error) => panic!("a text is not read or written: {error}"),
    }
});

fn check(config: &Config) {
    assert!(config.choices.check().is_ok(), "choices that contradict each other");
    assert!(config.qemu.as_deref().is_none_or(Path::is_absolute));
    assert_eq!(config.state_dir, Path::new("/state"));
    for time in [config.boot_timeout, config.lock_timeout, config.stop_grace] {
        assert!((Duration::from_secs(1)..=DAY).contains(&time), "{time:?}");
    }
    let (first, last) = (*config.vsock_cids.start(), *config.vsock_cids.end());
    // 0 to 2 and the highest are the kernel's own.
    assert!((3..u32::MAX).contains(&first) && (first..u32::MAX).contains(&last), "{first} to {last}");
    let limits = &config.limits;
    assert!((64..=MAX_MIB).contains(&limits.overhead_mib.into()) && u64::from(limits.swap_mib) <= MAX_MIB);
    if let Some(disk) = &limits.disk {
        let allowed = 1 << 20..=MAX_MIB << 20;
        assert!(allowed.contains(&disk.read_bytes) && allowed.contains(&disk.write_bytes));
    }
    assert!(config.zfs.reserve_bytes <= MAX_MIB << 30);
}
