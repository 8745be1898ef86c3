//! Commands and shells on a terminal.

mod common;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use common::{
    Cli,
    vm::{self, Machine},
};
use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

/// The program on a terminal of its own, as if in a window.
struct Window {
    master: OwnedFd,
    child: Child,
    shown: Arc<Mutex<String>>,
}

impl Window {
    fn open(cli: &Cli, arguments: &[&str]) -> Self {
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
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_agentiso")])
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
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The last one to close the terminal ends this with EIO.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self { master, child, shown }
    }

    fn type_in(&self, keys: &str) {
        File::from(self.master.try_clone().unwrap()).write_all(keys.as_bytes()).unwrap();
    }

    #[track_caller]
    fn wait_to_show(&self, text: &str) {
        vm::wait_for(&format!("{text:?} on the terminal"), || {
            self.shown.lock().unwrap().contains(text).then_some(())
        });
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(self.master.as_fd()).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    #[track_caller]
    fn end(mut self) -> (i32, String) {
        let status = vm::wait_for("the end of the program", || self.child.try_wait().unwrap());
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

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}

#[test]
fn terminal_has_our_size_follows_it_and_takes_keys() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "tty", &[]);
    let script = "tty; echo $TERM; stty size; trap 'echo now; stty size' WINCH; \
                  trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.2; done";
    let window = Window::open(&cli, &["exec", "-it", &machine.name, "--", "sh", "-c", script]);
    window.wait_to_show("ready\r\n");
    let was_raw = window.is_raw();

    tcsetwinsize(&window.master, size(120, 40)).unwrap();
    window.wait_to_show("now\r\n40 120\r\n");
    window.type_in("\x03");
    let is_raw_at_end = {
        window.wait_to_show("caught");
        vm::wait_for("the terminal to be as before", || (!window.is_raw()).then_some(false))
    };
    let (status, shown) = window.end();

    assert_eq!(status, 9, "{shown}");
    assert!(shown.contains("/dev/pts/") && shown.contains("xterm-256color\r\n30 100\r\n"), "{shown}");
    assert_eq!((was_raw, is_raw_at_end), (true, false));
}

#[test]
fn shell_is_a_login_shell_on_a_terminal() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "tty", &[]);
    let window = Window::open(&cli, &["shell", &machine.name]);
    window.wait_to_show("# ");

    window.type_in("echo $((6*7)) $0; id -un\n");
    window.wait_to_show("42 ");
    window.type_in("exit 5\n");
    let (status, shown) = window.end();

    assert_eq!(status, 5, "{shown}");
    assert!(shown.contains("\nroot\r\n"), "{shown}");
}

#[test]
fn shell_without_a_terminal_reads_a_script() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "tty", &[]);
    let mut child = cli.command(&["shell", &machine.name]).stdin(Stdio::piped()).spawn().unwrap();

    child.stdin.take().unwrap().write_all(b"echo from a script\nexit 6\n").unwrap();
    let output = child.wait_with_output().unwrap();

    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from a script\n");
}

#[test]
fn interrupt_on_a_terminal_without_tty_goes_to_the_command() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "tty", &[]);
    let script = "trap 'echo caught; exit 8' INT; echo ready; while :; do sleep 0.1; done";
    let window = Window::open(&cli, &["exec", &machine.name, "--", "sh", "-c", script]);
    window.wait_to_show("ready");

    window.type_in("\x03");
    let (status, shown) = window.end();

    assert_eq!(status, 8, "{shown}");
    assert!(shown.contains("caught"), "{shown}");
}
