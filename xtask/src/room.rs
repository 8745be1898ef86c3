//! Whether the disks have room for what will be made. Without it a run fails half way, each test in its own words.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use crate::run::{self, Done, Failure};

const MIB_PER_GIB: f64 = 1024.0;

/// What a run will write somewhere.
pub(crate) struct Need<'a> {
    /// A folder that exists.
    pub(crate) folder: &'a Path,
    /// What it will hold at the most, in MiB. What it holds already counts.
    pub(crate) mib: u64,
    /// What is written, for people.
    pub(crate) what: &'static str,
}

/// Refuses if a file system has less room than what is to be written to it. Changes nothing.
pub(crate) fn check(needs: &[Need<'_>]) -> Done {
    let mut systems: BTreeMap<PathBuf, System<'_>> = BTreeMap::new();
    for need in needs {
        let (mount, free) = free_mib(need.folder)?;
        let missing = need.mib.saturating_sub(held_mib(need.folder));
        let system = systems.entry(mount).or_insert_with(|| System { free, wanted: 0, needs: Vec::new() });
        system.wanted += missing;
        system.needs.push(need);
    }
    systems.iter().try_for_each(|(mount, system)| system.check(mount))
}

/// A file system with all that is to be written to it.
struct System<'a> {
    free: u64,
    wanted: u64,
    needs: Vec<&'a Need<'a>>,
}

impl System<'_> {
    fn check(&self, mount: &Path) -> Done {
        if self.free >= self.wanted {
            return Ok(());
        }
        let parts = self.needs.iter().map(|need| format!("{} ({})", need.what, need.folder.display()));
        Err(Failure::new(format!(
            "{} has {:.1} GiB free, and {:.1} GiB are needed for {}: make room there, or build elsewhere with \
             CARGO_TARGET_DIR and keep temporary files elsewhere with TMPDIR",
            mount.display(),
            in_gib(self.free),
            in_gib(self.wanted),
            parts.collect::<Vec<_>>().join(" and "),
        )))
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is shown with one digit behind the point")]
fn in_gib(mib: u64) -> f64 {
    mib as f64 / MIB_PER_GIB
}

/// Where the file system of a folder is mounted, and what an ordinary user could still write to it.
fn free_mib(folder: &Path) -> Done<(PathBuf, u64)> {
    let said = run::output(Command::new("df").arg("-Pm").arg("--").arg(folder))?;
    free_of(&said)
        .ok_or_else(|| Failure::new(format!("df says nothing of {} that is understood", folder.display())))
}

/// From df's POSIX format: device, blocks, used, available, part in use, mount point.
fn free_of(said: &str) -> Option<(PathBuf, u64)> {
    let line = said.lines().nth(1)?;
    let (_, after_device) = line.rsplit_once("% ")?;
    let free = line.split_whitespace().rev().nth(after_device.split_whitespace().count() + 1)?;
    Some((PathBuf::from(after_device), free.parse().ok()?))
}

/// What a folder takes. 0 where that cannot be told: then more room is asked for.
fn held_mib(folder: &Path) -> u64 {
    // Files that are removed meanwhile fail it, but not its number.
    let said = Command::new("du").arg("-sm").arg("--").arg(folder).output().ok();
    said.and_then(|said| String::from_utf8_lossy(&said.stdout).split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "Filesystem     1048576-blocks  Used Available Capacity Mounted on\n";

    #[test]
    fn room_is_read_from_df() {
        let plain = format!("{HEADING}/dev/vda                257924 13000     79510      15% /\n");
        assert_eq!(free_of(&plain), Some((PathBuf::from("/"), 79510)));
        let spaces = format!("{HEADING}a b   257924 13000     79510      15% /mnt/two words\n");
        assert_eq!(free_of(&spaces), Some((PathBuf::from("/mnt/two words"), 79510)));
        assert_eq!(free_of(HEADING), None);
        assert_eq!(free_of(""), None);
    }

    #[test]
    fn too_little_room_is_refused_with_what_it_was_for() {
        let folder = std::env::temp_dir();
        let need = |mib| Need { folder: &folder, mib, what: "the build" };
        check(&[need(0), need(0)]).unwrap();
        let refusal = check(&[need(u64::MAX / 4), need(u64::MAX / 4)]).unwrap_err().to_string();
        assert!(refusal.contains("the build") && refusal.contains("CARGO_TARGET_DIR"), "{refusal}");
        assert!(refusal.contains(&folder.display().to_string()), "{refusal}");
    }

    #[test]
    fn what_a_folder_holds_is_not_needed_again() {
        let system = |free, wanted| System { free, wanted, needs: Vec::new() };
        system(10, 10).check(Path::new("/")).unwrap();
        system(9, 10).check(Path::new("/")).unwrap_err();
        let folder = std::env::temp_dir().join(format!("xtask-room-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("file"), vec![1_u8; 3 << 20]).unwrap();
        let held = held_mib(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!((3..=4).contains(&held), "{held}");
        assert_eq!(held_mib(&folder), 0);
    }
}
