//! Commands and shells on a terminal.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use std::{io::Write, process::Stdio};

use common::{
    vm::{self, Machine},
    window::Window,
};

#[test]
fn terminal_has_our_size_follows_it_and_takes_keys() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "tty", &[]);
    let script = "tty; echo $TERM; stty size; trap 'echo now; stty size' WINCH; \
                  trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.2; done";
    let window = Window::open(&cli, &["exec", "-it", &machine.name, "--", "sh", "-c", script]);
    window.wait_to_show("ready\r\n");
    let was_raw = window.is_raw();

    window.resize(120, 40);
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
    // Keys pressed earlier would be echoed into the middle of what the commands print.
    window.wait_to_show("\nroot\r\n");
    window.type_in("exit 5\n");
    let (status, shown) = window.end();

    assert_eq!(status, 5, "{shown}");
    assert!(shown.contains("42 "), "{shown}");
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
