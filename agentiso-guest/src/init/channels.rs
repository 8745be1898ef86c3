//! Opens every channel to the host that the machine has: serial slots and vsock. Never a network socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agentiso_guest::VSOCK_PORT;
use agentiso_guest::limits::{CHANNEL_RETRY_MS, CHANNEL_TRIES};

use super::uevents::Uevents;
use crate::agent::Agent;
use crate::console::say;
use crate::serve::gate::{self, Gate};
use crate::serve::slots::Slots;
use crate::serve::streams;
use crate::sys::vsock;

/// The virtio-serial devices that have their driver.
const SERIAL_DRIVER: &str = "/sys/bus/virtio/drivers/virtio_console";
/// How long the ports of a device that is there may take to appear: under emulation, 31 of them take a second or more.
const PORT_LIMIT: Duration = Duration::from_secs(15);

/// Starts serving. Ports that appear later are found through the announcements that are returned.
///
/// # Errors
/// No channel device has appeared: nobody could ever reach this machine.
pub(crate) fn open(agent: &Arc<Agent>) -> Result<(Slots, Uevents), String> {
    // Before the first look, so that nothing appears unnoticed between look and wait.
    let uevents = Uevents::open().map_err(|error| format!("listening for devices: {error}"))?;
    let mut slots = Slots::default();
    let begin = Instant::now();
    let mut tries = 0;
    while tries < CHANNEL_TRIES && begin.elapsed() < PORT_LIMIT {
        let has_vsock = open_vsock(agent);
        slots.look(agent);
        let next_try = Instant::now() + Duration::from_millis(CHANNEL_RETRY_MS);
        while !has_vsock && slots.is_empty() && Instant::now() < next_try {
            uevents.wait(next_try);
            if uevents.take_any("virtio-ports") {
                slots.look(agent);
            }
        }
        if has_vsock || !slots.is_empty() {
            return Ok((slots, uevents));
        }
        if !has_serial_device() {
            tries += 1;
        }
    }
    Err(format!(
        "no channel to the host: neither a virtio-serial port named agentiso.N nor vsock after {CHANNEL_TRIES} tries, \
         {CHANNEL_RETRY_MS} ms apart. The kernel needs the modules virtio_mmio and virtio_console, or virtio_mmio and \
         vmw_vsock_virtio_transport, and QEMU the devices"
    ))
}

fn has_serial_device() -> bool {
    std::fs::read_dir(SERIAL_DRIVER).is_ok_and(|mut entries| {
        entries
            .any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("virtio")))
    })
}

fn open_vsock(agent: &Arc<Agent>) -> bool {
    if !vsock::has_address() {
        return false;
    }
    if gate::machine_key().is_none() {
        // Anybody on the host can connect there.
        say("vsock is not served: QEMU was not given a key for this machine");
        return false;
    }
    let opened = vsock::listen(VSOCK_PORT)
        .map_err(std::io::Error::from)
        .and_then(|socket| streams::serve(agent, socket, Gate::Machine));
    if let Err(error) = &opened {
        say(&format!("vsock port {VSOCK_PORT} is not served: {error}"));
    }
    opened.is_ok()
}
