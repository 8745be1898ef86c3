//! Gives the machine its identity: host name, machine id, network, clock, entropy, disk size.

mod identity;
mod netlink;
mod network;

use std::fs::File;
use std::os::linux::fs::MetadataExt;

use agentiso_guest::limits::MAX_ENTROPY_BYTES;
use agentiso_guest::message::Configuration;
use rustix::time::{ClockId, Timespec, clock_settime};

pub(crate) use identity::adopt_host_name;
pub(crate) use network::loopback_up;

use crate::failure::Failure;
use crate::sys::ioctl;

/// Puts a configuration into force. Everything is checked before anything is changed.
///
/// # Errors
/// The first part that is wrong, or that the system refused; what came before it in the order of
/// [`Configuration`]'s fields is in force then.
pub(crate) fn apply(configuration: &Configuration) -> Result<(), Failure> {
    let hostname = configuration.hostname.as_deref().map(identity::check_host_name).transpose()?;
    let machine_id = configuration.machine_id.as_deref().map(identity::check_machine_id).transpose()?;
    let network = configuration.network.as_ref().map(network::check).transpose()?;
    let time = configuration.time_ns.map(check_time).transpose()?;
    let entropy = configuration.entropy.as_deref().map(check_entropy).transpose()?;
    if let Some(name) = hostname {
        identity::set_host_name(name)?;
    }
    if let Some(id) = machine_id {
        identity::set_machine_id(id)?;
    }
    if let Some(network) = network {
        network::set(&network)?;
    }
    if let Some(time) = time {
        clock_settime(ClockId::Realtime, time)
            .map_err(|error| Failure::system("setting the clock", error))?;
    }
    if let Some(entropy) = entropy {
        add_entropy(&entropy)?;
    }
    if configuration.grow_root {
        grow_root()?;
    }
    Ok(())
}

fn check_time(nanoseconds: u64) -> Result<Timespec, Failure> {
    const SECOND: u64 = 1_000_000_000;
    let out_of_range = || Failure::invalid("setting the clock: the time is out of range");
    Ok(Timespec {
        tv_sec: i64::try_from(nanoseconds / SECOND).map_err(|_| out_of_range())?,
        tv_nsec: i64::try_from(nanoseconds % SECOND).map_err(|_| out_of_range())?,
    })
}

fn check_entropy(digits: &str) -> Result<Vec<u8>, Failure> {
    // The digits themselves are a secret and never part of an error.
    let wrong = || {
        Failure::invalid(format!(
            "adding entropy: expected an even number of hexadecimal digits, at most {MAX_ENTROPY_BYTES} bytes' worth"
        ))
    };
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) || digits.len() > 2 * MAX_ENTROPY_BYTES {
        return Err(wrong());
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong()))
        .collect()
}

fn add_entropy(entropy: &[u8]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::io("adding entropy", &error);
    let random = File::options().write(true).open("/dev/random").map_err(failed)?;
    ioctl::add_entropy(&random, entropy).map_err(|error| failed(error.into()))
}

/// Grows the root file system to its disk, if the disk is larger.
fn grow_root() -> Result<(), Failure> {
    let doing = "growing the root file system";
    let failed = |error: std::io::Error| Failure::io(doing, &error);
    let root = File::open("/").map_err(failed)?;
    let device_number = root.metadata().map_err(failed)?.st_dev();
    let (major, minor) = (rustix::fs::major(device_number), rustix::fs::minor(device_number));
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))
        .map_err(|error| Failure::io(format!("{doing}: finding its disk"), &error))?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).ok_or_else(|| {
        Failure::new(agentiso_guest::message::ErrorCode::NotFound, format!("{doing}: its disk has no name"))
    })?;
    let disk = File::open(format!("/dev/{name}")).map_err(failed)?;
    let bytes = ioctl::block_device_bytes(&disk).map_err(|error| Failure::system(doing, error))?;
    let size = rustix::fs::statvfs("/").map_err(|error| Failure::system(doing, error))?;
    // The kernel accepts the size it has already; it refuses a smaller one.
    let blocks = bytes / size.f_bsize.max(1);
    ioctl::ext4_resize(&root, blocks)
        .map_err(|error| Failure::system(format!("{doing} to {blocks} blocks"), error))
}
