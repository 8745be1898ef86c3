//! The empty file system of a new image: the one thing that the host writes onto a disk of a machine.

use std::path::Path;

use super::command::{CommandError, MKE2FS};

/// Name of the file system, for people who look at a disk.
const LABEL: &str = "agentiso-root";

/// Online growth is possible up to this many blocks of 4 KiB: the largest disk of a workspace, 100 GiB.
const MAX_BLOCKS: u64 = 100 * 1024 * 1024 / 4;

/// Size of the journal, in MiB. Every machine writes through all of it sooner or later, onto its own layer.
const JOURNAL_MIB: u32 = 16;

/// What kernels of the last ten years read and write. Named one by one, so that no host's mke2fs.conf changes it.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Says that the disk reads as zeros already, so that inode tables need not be written, neither now nor by the first
/// kernel that mounts it. Known since e2fsprogs 1.47.
const PREZEROED: &str = "assume_storage_prezeroed=1";

/// The same for an older mke2fs: writes the tables, 32 MiB for each GiB.
const ZEROED: &str = "lazy_itable_init=0";

/// Makes an ext4 file system that fills `disk`, a file of zeros. Blocks.
///
/// Nothing is reserved for root, which is all that a guest has, and the root folder belongs to it whoever runs this.
pub(super) fn format(disk: &Path) -> Result<(), CommandError> {
    match format_with(disk, PREZEROED) {
        Err(CommandError::Failed { stderr, .. }) if stderr.contains("Bad option") => {
            format_with(disk, ZEROED)
        }
        other => other,
    }
}

fn format_with(disk: &Path, tables: &str) -> Result<(), CommandError> {
    let extended = format!("{tables},nodiscard,root_owner=0:0,resize={MAX_BLOCKS}");
    let journal = format!("size={JOURNAL_MIB}");
    let mut command = MKE2FS.command()?;
    command
        .env("MKE2FS_CONFIG", "/dev/null")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-I",
            "256",
            "-m",
            "0",
            "-e",
            "remount-ro",
            "-L",
            LABEL,
        ])
        .args(["-O", FEATURES, "-J", &journal, "-E", &extended])
        .arg(disk);
    MKE2FS.run_command("make a file system", command).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn option_that_an_older_mke2fs_lacks_is_done_without() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        std::fs::File::create(&disk).unwrap().set_len(1 << 28).unwrap();
        let refused = format_with(&disk, "no_such_option=1").unwrap_err();
        assert!(refused.to_string().contains("Bad option"), "{refused}");
        assert!(format_with(&disk, ZEROED).is_ok());
    }

    #[test]
    fn formatted_disk_is_clean_sparse_and_roots() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk,with=odd name");
        std::fs::File::create(&disk).unwrap().set_len(1 << 30).unwrap();

        format(&disk).unwrap();

        let used = std::fs::metadata(&disk).unwrap().blocks() * 512;
        assert!(used < 8 << 20, "{used}");
        let check =
            std::process::Command::new("/usr/sbin/e2fsck").args(["-f", "-n"]).arg(&disk).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        let stat = std::process::Command::new("/usr/sbin/debugfs")
            .args(["-R", "stat <2>"])
            .arg(&disk)
            .output()
            .unwrap();
        let stat = String::from_utf8(stat.stdout).unwrap();
        assert!(stat.contains("User:     0") && stat.contains("Group:     0"), "{stat}");
    }
}
