//! The rate of the host's time stamp counter.
//!
//! QEMU's emulator shows guests the host's counter, and a microvm has no timer that a kernel could measure it with:
//! told a wrong rate, guest time runs fast or slow; told none, about half of all boots hang.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    files::{self, io_error},
    sys,
};
use crate::{hypervisor::HypervisorError, process::boot_id};

/// Where it is kept, in the state folder.
const CACHE: &str = "tsc.json";

#[derive(Serialize, Deserialize)]
struct Known {
    boot_id: String,
    khz: u64,
}

/// The rate in kHz. Measured once for each boot of the host, which takes 200 ms.
pub(super) fn khz(state_dir: &Path) -> Result<u64, HypervisorError> {
    let boot_id = boot_id().map_err(|e| io_error("read", Path::new("/proc/sys/kernel/random/boot_id"), e))?;
    let known: Option<Known> = files::read_json(&state_dir.join(CACHE));
    if let Some(known) = known.filter(|known| known.boot_id == boot_id && known.khz > 0) {
        return Ok(known.khz);
    }
    let khz = sys::measure_tsc_khz();
    files::remember(state_dir, CACHE, &Known { boot_id: boot_id.to_owned(), khz });
    Ok(khz)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_measured_alike_and_kept() {
        let state = tempfile::tempdir().unwrap();

        let first = khz(state.path()).unwrap();
        let kept = khz(state.path()).unwrap();
        let again = sys::measure_tsc_khz();

        assert_eq!(first, kept);
        // Tens of ppm apart in practice; CI hosts are busy.
        assert!(first.abs_diff(again) * 1000 < first, "{first} {again}");
        assert!((100_000..20_000_000).contains(&first), "{first}");
    }

    #[test]
    fn rate_of_another_boot_is_not_used() {
        let state = tempfile::tempdir().unwrap();
        files::write_json(state.path(), CACHE, &Known { boot_id: "another".to_owned(), khz: 7 }).unwrap();

        assert_ne!(khz(state.path()).unwrap(), 7);
    }
}
