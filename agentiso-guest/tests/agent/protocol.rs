//! Connections: hello, limits, garbage, stalls, replacement.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agentiso_guest::PROTOCOL_GENERATION;
use agentiso_guest::frame::encode;
use agentiso_guest::hello::{NONCE_BYTES, Nonce, Verdict};
use agentiso_guest::limits::{MAX_CONNECTIONS, MAX_MESSAGE_SIZE, STALLED_MESSAGE_MS};
use agentiso_guest::message::{ErrorCode, Exit, Input, Reply, Request};

use crate::client::{Agent, Connection, LIMIT, exec, fresh_nonce, hello_bytes, wait_for};

/// What user processes are frozen for.
const CAPTURE: Nonce = Nonce::from_bytes([1; NONCE_BYTES]);
/// Memory that the agent may have at any time, in KiB.
const MEMORY_LIMIT_KIB: u64 = 32 * 1024;

/// Sends bytes on a new socket and returns everything until the agent closes it.
fn exchange(agent: &Agent, bytes: &[u8]) -> String {
    let mut socket = UnixStream::connect(agent.socket()).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.write_all(bytes).unwrap();
    let mut all = Vec::new();
    // A reset is an end too.
    let _ = socket.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

fn file_write(agent: &Agent) -> Request {
    Request::FileWrite { path: agent.text_path("file"), mode: None, parents: false }
}

#[test]
fn hello_and_request_may_come_in_one_go() {
    let agent = Agent::start();
    let nonce = fresh_nonce();
    let mut bytes = hello_bytes(nonce, PROTOCOL_GENERATION);
    encode(&mut bytes, &Request::Ping, &[], nonce).unwrap();

    let answer = exchange(&agent, &bytes);

    assert!(answer.contains("{\"welcome\":\"") && answer.contains("{\"re\":\"done\"}"), "{answer}");
}

#[test]
fn stale_bytes_before_the_hello_are_discarded() {
    let agent = Agent::start();
    let mut socket = UnixStream::connect(agent.socket()).unwrap();
    socket.write_all(&[b'x'; 10_000]).unwrap();
    socket.write_all(b"\0\0\0\x40{\"hello\":\"not a nonce").unwrap();

    let (mut connection, welcome) = Connection::greet(socket);
    connection.request(&Request::Ping);

    assert_eq!(welcome.verdict, Verdict::Accepted);
    assert!(connection.answer().is_done());
}

#[test]
fn request_before_the_hello_is_not_carried_out() {
    let agent = Agent::start();
    let mut bytes = Vec::new();
    encode(&mut bytes, &exec(&["touch", &agent.text_path("marker")]), &[], fresh_nonce()).unwrap();
    let mut socket = UnixStream::connect(agent.socket()).unwrap();
    socket.write_all(&bytes).unwrap();

    let (mut connection, _) = Connection::greet(socket);
    connection.request(&Request::Ping);

    assert!(connection.answer().is_done());
    assert!(!agent.path("marker").exists());
}

#[test]
fn another_generation_is_refused() {
    let agent = Agent::start();

    let answer = exchange(&agent, &hello_bytes(fresh_nonce(), PROTOCOL_GENERATION + 1));

    assert!(answer.contains("\"verdict\":\"wrong_generation\""), "{answer}");
}

#[test]
fn hello_sent_again_is_answered_once() {
    let agent = Agent::start();
    let nonce = fresh_nonce();
    let mut bytes = hello_bytes(nonce, PROTOCOL_GENERATION).repeat(3);
    encode(&mut bytes, &Request::Ping, &[], nonce).unwrap();
    bytes.extend(hello_bytes(nonce, PROTOCOL_GENERATION));

    let answer = exchange(&agent, &bytes);

    assert_eq!(answer.matches("welcome").count(), 1, "{answer}");
    assert_eq!(answer.matches("done").count(), 1, "{answer}");
}

#[test]
fn connection_beyond_the_limit_is_told_so_and_the_others_live() {
    let agent = Agent::start();
    let mut served: Vec<Connection> = (0..MAX_CONNECTIONS).map(|_| agent.connect()).collect();
    let one_more = || Connection::greet(UnixStream::connect(agent.socket()).unwrap()).1.verdict;

    assert_eq!(one_more(), Verdict::Busy);

    for connection in &mut served {
        connection.request(&Request::Ping);
        assert!(connection.answer().is_done());
    }
    wait_for("room again", || one_more() == Verdict::Accepted);
}

#[test]
fn thousands_of_broken_connections_cost_no_memory_and_no_descriptors() {
    let agent = Agent::start();
    for number in 0..3000 {
        let mut socket = UnixStream::connect(agent.socket()).unwrap();
        let hello = hello_bytes(fresh_nonce(), PROTOCOL_GENERATION);
        // The agent may be faster to close.
        let _ = socket.write_all(&hello[..number % hello.len()]);
    }

    assert!(agent.ask(&Request::Ping).is_done());
    wait_for("closed connections", || agent.open_files() < 40);
    assert!(agent.resident_kib() < MEMORY_LIMIT_KIB, "{} KiB", agent.resident_kib());
}

#[test]
fn lengths_out_of_bounds_end_the_connection_at_once() {
    let agent = Agent::start();
    for length in [0, MAX_MESSAGE_SIZE + 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let mut connection = agent.connect();
        let begin = Instant::now();

        connection.socket.write_all(&length.to_be_bytes()).unwrap();

        assert_eq!(connection.answer().error().0, ErrorCode::Invalid, "{length}");
        assert!(connection.next::<Reply>().is_none(), "{length}");
        assert!(begin.elapsed() < Duration::from_millis(STALLED_MESSAGE_MS), "{length}");
    }
    assert!(agent.resident_kib() < MEMORY_LIMIT_KIB);
}

#[test]
fn unknown_request_is_answered_with_what_is_wrong() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    let json = br#"{"op":"fly"}"#;
    let length = u32::try_from(json.len()).unwrap().to_be_bytes();

    connection.socket.write_all(&[&length[..], json].concat()).unwrap();

    let answer = connection.answer();
    assert_eq!(answer.error().0, ErrorCode::Invalid);
    assert!(answer.error().1.contains("fly"), "{}", answer.error().1);
}

#[test]
fn message_that_stays_incomplete_resets_the_connection() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    let begin = Instant::now();

    connection.socket.write_all(&[0, 0, 1, 0, b'{']).unwrap();

    assert_eq!(connection.answer().error().0, ErrorCode::TimedOut);
    assert!(connection.next::<Reply>().is_none());
    assert!(begin.elapsed() >= Duration::from_millis(STALLED_MESSAGE_MS));
}

#[test]
fn message_interrupted_by_a_hello_resets_the_connection_soon() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    let begin = Instant::now();
    connection.request(&file_write(&agent));
    let mut data = Vec::new();
    encode(&mut data, &Input::Data { payload: 100_000 }, &[0; 100_000], connection.nonce).unwrap();

    connection.socket.write_all(&data[..5000]).unwrap();
    connection.socket.write_all(&hello_bytes(fresh_nonce(), PROTOCOL_GENERATION)).unwrap();

    assert_eq!(connection.answer().error().0, ErrorCode::TimedOut);
    assert!(begin.elapsed() < Duration::from_millis(STALLED_MESSAGE_MS));
    assert!(!agent.path("file").exists());
}

#[test]
fn new_hello_at_a_message_boundary_replaces_the_operation() {
    let agent = Agent::start();
    let pid = agent.text_path("pid");
    let mut old = agent.connect();
    old.request(&exec(&["/bin/sh", "-c", &format!("echo $$ > {pid}; exec sleep 1000")]));
    wait_for("the command", || std::fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')));

    let (mut new, welcome) = Connection::greet(old.socket.try_clone().unwrap());
    new.request(&Request::Ping);

    assert_eq!(welcome.verdict, Verdict::Accepted);
    assert!(new.answer().is_done());
    let standard_input = format!("/proc/{}/fd/0", std::fs::read_to_string(&pid).unwrap().trim());
    wait_for("the end of the old command", || std::fs::read_link(&standard_input).is_err());
}

#[test]
fn connection_takes_another_hello_after_its_terminal_reply_and_nothing_else() {
    let agent = Agent::start();
    let mut first = agent.connect();
    first.request(&Request::Ping);
    assert!(first.answer().is_done());
    first.request(&exec(&["touch", &agent.text_path("marker")]));
    first.stdin(b"input that was under way");

    let (mut second, _) = Connection::greet(first.socket.try_clone().unwrap());
    second.request(&exec(&["echo", "again"]));

    assert_eq!(second.answer().stdout, b"again\n");
    assert!(!agent.path("marker").exists());
}

#[test]
fn payload_with_another_seal_is_never_taken() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    connection.request(&file_write(&agent));
    let mut bytes = Vec::new();
    encode(&mut bytes, &Input::Data { payload: 3 }, b"abc", Nonce::from_bytes([0; NONCE_BYTES])).unwrap();
    encode(&mut bytes, &Input::End, &[], connection.nonce).unwrap();

    connection.socket.write_all(&bytes).unwrap();

    assert_eq!(connection.answer().error().0, ErrorCode::Invalid);
    assert!(!agent.path("file").exists());
}

#[test]
fn few_connections_may_hold_very_long_messages() {
    let agent = Agent::start();
    let mut connections: Vec<Connection> = (0..4).map(|_| agent.connect()).collect();
    let mut message = MAX_MESSAGE_SIZE.to_be_bytes().to_vec();
    message.resize(4 * 1024 * 1024, b' ');

    let answers = connections.iter_mut().map(|connection| {
        // A connection that is refused is closed while it is written to.
        let _ = connection.socket.write_all(&message);
        connection.socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut answer = [0; 512];
        let count = connection.socket.read(&mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..count]).into_owned()
    });
    let refused = answers.filter(|answer| answer.contains("exhausted")).count();

    assert_eq!(refused, 2);
}

#[test]
fn shutdown_is_refused_to_clients_of_a_socket() {
    let agent = Agent::start();

    assert_eq!(agent.ask(&Request::Shutdown { grace_ms: 0 }).error().0, ErrorCode::NotPermitted);
    assert_eq!(agent.shell("true").exit(), Exit::Code(0));
}

#[test]
fn agent_ends_on_sigterm_and_removes_its_socket() {
    let mut agent = Agent::start();

    assert!(agent.end());

    assert!(!agent.socket().exists());
}

#[test]
fn information_is_that_of_the_system() {
    let agent = Agent::start();

    let Some(Reply::Info { info }) = agent.ask(&Request::Info).terminal else { panic!("no information") };

    assert_eq!(info.kernel, agent.shell("uname -r").text().trim());
    assert!(info.memory_kib > info.memory_available_kib && info.memory_available_kib > 0);
    assert!(info.root_bytes > info.root_free_bytes);
}

#[test]
fn freeze_stops_user_processes_and_thaw_lets_them_run() {
    let agent = Agent::start();
    let beat = agent.text_path("beat");
    let beats = || std::fs::metadata(&beat).map_or(0, |metadata| metadata.len());
    let mut running = agent.connect();
    running.request(&exec(&["/bin/sh", "-c", &format!("while :; do printf x >> {beat}; sleep 0.01; done")]));
    wait_for("the first beat", || beats() > 0);
    let answer = agent.ask(&Request::Freeze { capture: CAPTURE, timeout_ms: 5000 });
    if matches!(answer.terminal, Some(Reply::Error { code: ErrorCode::NotPermitted, .. })) {
        eprintln!("skipped: no cgroup v2 that may be written to");
        return;
    }

    assert!(answer.is_done());
    let frozen_at = beats();
    assert_eq!(agent.shell("true").error().0, ErrorCode::Conflict);
    // Nothing can be waited for: that nothing happens is what is looked at.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(beats(), frozen_at);

    assert!(agent.ask(&Request::Thaw { capture: CAPTURE }).is_done());
    wait_for("the next beat", || beats() > frozen_at);
}

/// The inodes of a process's sockets.
fn sockets_of(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links
        .filter_map(|link| {
            let link = link.to_string_lossy().into_owned();
            link.strip_prefix("socket:[").map(|inode| inode.trim_end_matches(']').to_owned())
        })
        .collect()
}

#[test]
fn agent_listens_on_its_one_socket_and_on_no_other() {
    let agent = Agent::start();
    assert!(agent.ask(&Request::Ping).is_done());
    let sockets = sockets_of(agent.pid());
    let table =
        |name: &str| std::fs::read_to_string(format!("/proc/{}/net/{name}", agent.pid())).unwrap_or_default();

    for name in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet", "netlink"] {
        for line in table(name).lines().skip(1) {
            let is_ours = line.split_whitespace().any(|word| sockets.iter().any(|inode| inode == word));
            assert!(!is_ours, "the agent has a {name} socket: {line}");
        }
    }
    /// Flag of a unix socket that is listened on (__SO_ACCEPTCON).
    const LISTENING: &str = "00010000";
    let unix = table("unix");
    let listening: Vec<&str> = unix
        .lines()
        .filter(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(3) == Some(&LISTENING)
                && sockets.iter().any(|inode| words.get(6) == Some(&inode.as_str()))
        })
        .collect();
    assert_eq!(listening.len(), 1, "{listening:?}");
    assert!(listening[0].ends_with(agent.socket().to_str().unwrap()), "{listening:?}");
}
