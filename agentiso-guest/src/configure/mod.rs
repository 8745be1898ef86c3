//! Gives the machine its identity: host name, machine id, network, entropy, disk size, clock; and lets its hooks know.

mod hooks;
mod identity;
mod netlink;
mod network;

use std::fs::{self, File};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use agentiso_guest::limits::MAX_ENTROPY_BYTES;
use agentiso_guest::message::{Configuration, Reply};
use rustix::time::{ClockId, Timespec, clock_settime};

pub(crate) use identity::adopt_host_name;
pub(crate) use network::loopback_up;

use crate::agent::{Agent, lock};
use crate::exec::adopt_stranded;
use crate::failure::{Failure, Stop};
use crate::serve::Connection;
use crate::sys::ioctl;

/// Puts a configuration into force. Everything is checked before anything is changed.
///
/// The order: connections of another life end (in a clone), host name, machine id, network, entropy, disk, clock, hooks.
/// The clock is late because the time that the steps before it take need not be accounted for then.
///
/// # Errors
/// The first part that is wrong, or that the system refused; what came before it is in force then. Or the connection is
/// lost.
pub(crate) fn apply(
    agent: &Agent,
    connection: &mut Connection,
    configuration: &Configuration,
) -> Result<Reply, Stop> {
    // The request was complete with the last bytes that came.
    let read_at = connection.last_input();
    let hostname = configuration.hostname.as_deref().map(identity::check_host_name).transpose()?;
    let machine_id = configuration.machine_id.as_deref().map(identity::check_machine_id).transpose()?;
    let network = configuration.network.as_ref().map(network::check).transpose()?;
    let time = configuration.time_ns.map(check_time).transpose()?;
    let entropy = configuration.entropy.as_deref().map(check_entropy).transpose()?;
    if configuration.clone {
        agent.sessions.detach_others(connection.member())?;
        adopt_stranded(agent);
    }
    if let Some(name) = hostname {
        identity::set_host_name(name)?;
    }
    if let Some(id) = &machine_id {
        identity::set_machine_id(id)?;
    }
    if let Some(network) = network {
        network::set(&network)?;
    }
    if let Some(entropy) = entropy {
        add_entropy(&entropy)?;
    }
    if configuration.grow_root {
        grow_root()?;
    }
    if let Some(time) = time {
        set_clock(time, read_at)?;
    }
    if configuration.run_hooks {
        let uname = rustix::system::uname();
        let own_name = uname.nodename().to_string_lossy();
        let own_id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let hostname = hostname.unwrap_or(&own_name);
        let machine_id = machine_id.as_deref().unwrap_or(own_id.trim());
        hooks::run(agent, connection, &hooks::Identity { hostname, machine_id })?;
    }
    Ok(Reply::Configured {
        realtime_ns: nanoseconds(ClockId::Realtime),
        monotonic_ns: nanoseconds(ClockId::Monotonic),
        elapsed_ns: u64::try_from(read_at.elapsed().as_nanos()).unwrap_or(u64::MAX),
    })
}

/// Sets the wall clock to the time that was right when the request was read.
fn set_clock(time: Timespec, read_at: Instant) -> Result<(), Failure> {
    let now = Duration::try_from(time)
        .ok()
        .and_then(|time| time.checked_add(read_at.elapsed()))
        .and_then(|now| Timespec::try_from(now).ok())
        .ok_or_else(|| Failure::invalid("setting the clock: the time is out of range"))?;
    clock_settime(ClockId::Realtime, now).map_err(|error| Failure::system("setting the clock", error))
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
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

/// The disk of the root file system, and the size in bytes that the file system was grown to.
///
/// It is in memory, and so in every copy of the machine: one whose disk is as large need not look again.
static GROWN: Mutex<Option<(PathBuf, u64)>> = Mutex::new(None);

/// Grows the root file system to its disk, if the disk is larger.
fn grow_root() -> Result<(), Failure> {
    let doing = "growing the root file system";
    let failed = |error: std::io::Error| Failure::io(doing, &error);
    let size_of = |path: &Path| {
        let disk = File::open(path).map_err(failed)?;
        ioctl::block_device_bytes(&disk).map_err(|error| Failure::system(doing, error))
    };
    let mut grown = lock(&GROWN);
    if let Some((path, bytes)) = &*grown
        && size_of(path) == Ok(*bytes)
    {
        return Ok(());
    }
    let root = File::open("/").map_err(failed)?;
    let device_number = root.metadata().map_err(failed)?.st_dev();
    let (major, minor) = (rustix::fs::major(device_number), rustix::fs::minor(device_number));
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))
        .map_err(|error| Failure::io(format!("{doing}: finding its disk"), &error))?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).ok_or_else(|| {
        Failure::new(agentiso_guest::message::ErrorCode::NotFound, format!("{doing}: its disk has no name"))
    })?;
    let path = Path::new("/dev").join(name);
    let bytes = size_of(&path)?;
    let size = rustix::fs::statvfs("/").map_err(|error| Failure::system(doing, error))?;
    // The kernel accepts the size it has already; it refuses a smaller one.
    let blocks = bytes / size.f_bsize.max(1);
    ioctl::ext4_resize(&root, blocks)
        .map_err(|error| Failure::system(format!("{doing} to {blocks} blocks"), error))?;
    *grown = Some((path, bytes));
    Ok(())
}
