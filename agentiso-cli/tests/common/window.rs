//! The program on a terminal.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use super::{Cli, vm};

/// The program on a terminal of its own, as if in a window.
pub(crate) struct Window {
    master: OwnedFd,
    child: Child,
    shown: Arc<Mutex<String>>,
    reading: Option<JoinHandle<()>>,
}

impl Window {
    pub(crate) fn open(cli: &Cli, arguments: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
        tcsetwinsize(&slave, size(100, 30)).unwrap();
        // A session of its own whose terminal this is: only so does it hear of another size.
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--wait"])
            .arg(cli.program())
            .args(arguments)
            .env("AGENTISO_HOME", cli.home())
            .env("TERM", "xterm-256color")
            .stdin(Stdio::from(slave.try_clone().unwrap()))
            .stdout(Stdio::from(slave.try_clone().unwrap()))
            .stderr(Stdio::from(slave));
        let child = command.spawn().unwrap();
        drop(command);
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut reader, sink) = (File::from(master.try_clone().unwrap()), Arc::clone(&shown));
        let reading = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The last one to close the terminal ends this with EIO.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self { master, child, shown, reading: Some(reading) }
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.master, size(columns, rows)).unwrap();
    }

    pub(crate) fn type_in(&self, keys: &str) {
        File::from(self.master.try_clone().unwrap()).write_all(keys.as_bytes()).unwrap();
    }

    #[track_caller]
    pub(crate) fn wait_to_show(&self, text: &str) {
        vm::wait_for(&format!("{text:?} on the terminal"), || {
            self.shown.lock().unwrap().contains(text).then_some(())
        });
    }

    pub(crate) fn is_raw(&self) -> bool {
        !tcgetattr(self.master.as_fd()).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    #[track_caller]
    pub(crate) fn end(mut self) -> (i32, String) {
        let status = vm::wait_for("the end of the program", || self.child.try_wait().unwrap());
        // It ends when the program has closed the terminal.
        self.reading.take().unwrap().join().unwrap();
        let shown = self.shown.lock().unwrap().clone();
        (status.code().unwrap_or(-1), shown)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A size in characters.
fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}
