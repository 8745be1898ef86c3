//! QEMU's firmware configuration device (fw_cfg): files that the host gives to a machine.
//!
//! The device belongs to the QEMU that runs the machine now, so a machine that was restored or forked reads what its own
//! QEMU was started with. The kernel's driver (`qemu_fw_cfg`, which our initramfs loads) finds the files once and asks the
//! device for the content at each read. Its numbers for the files stay true in another QEMU, for ours all have the same
//! files.
//!
//! Reaching the device's I/O ports from here (`ioperm`) would spare the driver, and a copy in memory that the kernel has
//! freed. But where a hypervisor itself runs under QEMU's emulator, a restored machine gets a fault for it: that emulator
//! looks for a task segment marked "available", which a hypervisor rightly restores as "busy".

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use agentiso_guest::key::{KEY_BYTES, KEY_FILE};

const BY_NAME: &str = "/sys/firmware/qemu_fw_cfg/by_name";

/// Kept open: what is mounted on /sys later is the business of those who use the machine.
static KEY: OnceLock<File> = OnceLock::new();

/// Reads the key that the host has given to this machine. `None` if it gave none, or one of another length.
pub(crate) fn read_key() -> Option<[u8; KEY_BYTES]> {
    let file = match KEY.get() {
        Some(file) => file,
        None => {
            let opened = File::open(format!("{BY_NAME}/{KEY_FILE}/raw")).ok()?;
            KEY.get_or_init(|| opened)
        }
    };
    let mut key = [0; KEY_BYTES];
    let mut more = [0];
    file.read_exact_at(&mut key, 0).ok()?;
    (file.read_at(&mut more, KEY_BYTES as u64).ok()? == 0).then_some(key)
}
