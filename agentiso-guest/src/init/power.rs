//! The power button, as the kernel's input layer shows it (modules `button` and `evdev`).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::sys::ioctl::{KEY_POWER, has_key};

const INPUT_DEVICES: &str = "/dev/input";
/// Bytes of one input event on a 64-bit kernel: two of time, then type, code, value.
const EVENT_BYTES: usize = 24;
const EVENT_KEY: u16 = 1;
const PRESSED: i32 = 1;

/// An open power button.
#[derive(Debug)]
pub(crate) struct PowerButton(OwnedFd);

impl PowerButton {
    /// The machine's power button, if its kernel has it.
    pub(crate) fn find() -> Option<Self> {
        std::fs::read_dir(INPUT_DEVICES).ok()?.flatten().find_map(|entry| {
            let is_event = entry.file_name().to_string_lossy().starts_with("event");
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let device = is_event.then(|| open(entry.path(), flags, Mode::empty()).ok()).flatten()?;
            has_key(&device, KEY_POWER).then(|| Self(File::from(device).into()))
        })
    }

    /// Takes the events that have arrived; returns whether the button was pressed.
    ///
    /// # Errors
    /// The device is gone.
    pub(crate) fn was_pressed(&mut self) -> Result<bool, ()> {
        let mut event = [0_u8; EVENT_BYTES];
        loop {
            match rustix::io::read(&self.0, &mut event[..]) {
                Ok(EVENT_BYTES) => {
                    let kind = u16::from_ne_bytes([event[16], event[17]]);
                    let code = u16::from_ne_bytes([event[18], event[19]]);
                    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
                    if kind == EVENT_KEY && usize::from(code) == KEY_POWER && value == PRESSED {
                        return Ok(true);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Ok(_) | Err(_) => return Err(()),
            }
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
