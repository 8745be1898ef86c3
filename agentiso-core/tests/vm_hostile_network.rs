//! A machine whose user sends frames of his own making to the network process of his machine: nothing of the kernel's, no
//! TCP that keeps to the rules. `cargo xtask test` prepares the state folder; without one the tests say so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod homes;
#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/process.rs"]
mod process;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use agentiso_core::channel::client::{CollectOptions, ExecSpec, GuestClient, WriteOptions};
use agentiso_core::types::{GuestPort, WorkspaceId};
use agentiso_core::{Config, Host, PolicyChange, Workspace, WorkspaceSpec};

use self::process::{descriptors, status};

/// What sends the frames.
const PEER: &[u8] = include_bytes!("support/hostile_peer.py");

/// Connections on which it does its worst; it knows seven kinds.
const CONNECTIONS: usize = 14;

/// The connection of these seven on which it says more than its "fine".
const TALKATIVE: usize = 1;

/// What fits into the buffer of a connection.
const BUFFER_BYTES: usize = 256 * 1024;

/// The server of the network outside, and this side of the cable to it.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const INSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// What the network process may grow by, whatever its machine sends. A connection's buffers are 512 KiB.
const GROWTH_KIB: u64 = 16 * 1024;

/// How long an answer may take: from within an emulated machine, on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

/// A machine and the process that is its network.
struct Victim {
    workspace: Workspace,
    guest: GuestClient,
    network: u32,
    memory_kib: u64,
    descriptors: usize,
}

impl Victim {
    async fn create(host: &Host) -> Self {
        let spec = WorkspaceSpec { throwaway: true, ..WorkspaceSpec::new("debian") };
        let workspace = host.create(spec).await.unwrap();
        let guest = workspace.guest().await.unwrap();
        guest.write_file("/root/peer.py", WriteOptions::default(), &mut &PEER[..]).await.unwrap();
        let network = network_of(workspace.id());
        let memory_kib = status(network, "VmRSS:").unwrap();
        let descriptors = descriptors(network).unwrap();
        Self { workspace, guest, network, memory_kib, descriptors }
    }

    async fn run(&self, line: &str) -> String {
        let spec = ExecSpec::shell(line).timeout(PATIENCE);
        let output = self.guest.exec_collect(spec, CollectOptions::default()).await.unwrap();
        format!("{}{}", output.stdout_text(), output.stderr_text())
    }

    /// Makes sure that its network is the process that it was, and has grown no more than it may.
    async fn end(self) {
        assert_eq!(network_of(self.workspace.id()), self.network, "it is another process");
        let (memory, now) = (status(self.network, "VmHWM:").unwrap(), descriptors(self.network).unwrap());
        assert!(memory <= self.memory_kib + GROWTH_KIB, "from {} to {memory} KiB", self.memory_kib);
        assert!(now <= self.descriptors + CONNECTIONS, "descriptors went from {} to {now}", self.descriptors);
        self.workspace.destroy().await.unwrap();
    }
}

/// The process that is the network of a machine.
fn network_of(id: WorkspaceId) -> u32 {
    let is_it = |process: &Path| {
        let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let words: Vec<_> = String::from_utf8_lossy(&words).split('\0').map(str::to_owned).collect();
        matches!(&words[..], [program, part, label, ..]
            if program.ends_with("agentiso-shim") && part == "net" && label.ends_with(&id.to_string()))
    };
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = processes.filter(|process| is_it(process)).collect();
    let [process] = &found[..] else { panic!("the network of {id}: {found:?}") };
    process.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// Everything that comes on a connection until it is closed.
fn all_of(mut connection: TcpStream) -> String {
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut all = Vec::new();
    let end = connection.read_to_end(&mut all);
    let all = String::from_utf8_lossy(&all).into_owned();
    end.map_or_else(|error| format!("{all}, then: {error}"), |_| all.clone())
}

/// Says something on a connection to a port of this host, and returns everything that came until it was closed.
async fn said_by(port: u16, words: &'static [u8]) -> String {
    let conversation = move || {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        connection.write_all(words).unwrap();
        all_of(connection)
    };
    tokio::task::spawn_blocking(conversation).await.unwrap()
}

/// What the peer says in order on a connection is what has come: no byte of those that it should not have sent.
fn is_fine(number: usize, said: &str) {
    let more = if number % 7 == TALKATIVE { BUFFER_BYTES - "fine".len() } else { 0 };
    let beginning = said.get(..100).unwrap_or(said);
    assert!(said == format!("fine{}", "x".repeat(more)), "{number}: {} bytes: {beginning}", said.len());
}

/// Nonsense, and attacks on connections that the host has opened by a forward. Each brings what was sent in order and nothing
/// else, and the network goes on.
#[tokio::test]
async fn connections_of_the_host_survive_what_the_machine_sends() {
    let Some(home) = homes::prepared() else { return };
    let host = Host::open(Config::at(home)).await.unwrap();
    let victim = Victim::create(&host).await;
    let guest_port = GuestPort::new(9000).unwrap();
    let port = victim.workspace.add_forward(guest_port, None).await.unwrap().host_port.get();

    for seed in [1, 2] {
        assert_eq!(victim.run(&format!("python3 /root/peer.py noise {seed} 3000")).await, "");
    }
    let serve = format!(
        "cd /run; python3 /root/peer.py serve 9000 {CONNECTIONS} > told 2>&1 < /dev/null & \
         until grep -q . /run/told; do sleep 0.1; done; cat /run/told"
    );
    assert_eq!(victim.run(&serve).await, "ready\n");
    for number in 0..CONNECTIONS {
        is_fine(number, &said_by(port, b"").await);
    }

    // The kernel's network is back, and its frames go the same way.
    let honest = "until ip route | grep -q default; do sleep 0.1; done; cat /run/told; cd /proc/sys/kernel && \
                  (python3 -m http.server 9000 > /dev/null 2>&1 < /dev/null &) && \
                  until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 9000))' 2> /dev/null; \
                  do sleep 0.1; done";
    assert_eq!(victim.run(honest).await, "ready\n");
    let page = said_by(port, b"GET /ostype HTTP/1.0\r\n\r\n").await;
    assert!(page.starts_with("HTTP/1.0 200 OK") && page.ends_with("Linux\n"), "{page}");
    victim.end().await;
    host.close().await;
}

/// A state folder of the test's own, for a host whose machines are not reached from outside its network namespace.
struct Home(tempfile::TempDir);

impl Home {
    fn config(&self) -> Config {
        let mut config = Config::at(self.0.path());
        config.templates = false;
        config
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        homes::destroy_all(self.config());
    }
}

/// A server in a network namespace of its own, with a cable to this one. Tells what came on each connection.
fn outside() -> Receiver<String> {
    let (says_where, hears_where) = channel();
    let (says_plugged, hears_plugged) = channel();
    let (says_ready, hears_ready) = channel();
    let (tells, told) = channel();
    std::thread::spawn(move || {
        namespace::enter();
        says_where.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
        hears_plugged.recv().unwrap();
        namespace::sh(&format!("ip address add {OUTSIDE}/24 dev out; ip link set out up"));
        let server = TcpListener::bind((OUTSIDE, 80)).unwrap();
        says_ready.send(()).unwrap();
        for connection in server.incoming().take(CONNECTIONS) {
            tells.send(all_of(connection.unwrap())).unwrap();
        }
    });
    let thread = hears_where.recv().unwrap();
    namespace::sh(&format!(
        "ip link add in type veth peer name out; ip link set out netns {thread}
         ip address add {INSIDE}/24 dev in; ip link set in up"
    ));
    says_plugged.send(()).unwrap();
    hears_ready.recv().unwrap();
    told
}

/// The same attacks on connections of the machine's own to a server outside. There the network process is the one that is
/// called, which is where smoltcp takes more than its buffer holds and panics, unless such segments are kept from it.
#[test]
fn connections_to_the_outside_survive_what_the_machine_sends() {
    let Some(home) = homes::prepared() else { return };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: network namespaces need root");
    }
    namespace::run(async || {
        let own = Home(homes::folder_beside(&home, "hostile-network-"));
        homes::bring(&home, own.0.path(), &["-al"]);
        let told = outside();
        let host = Host::open(own.config()).await.unwrap();
        let victim = Victim::create(&host).await;
        let internet = PolicyChange { allow_internet: Some(true), ..PolicyChange::default() };
        victim.workspace.set_policy(internet).await.unwrap();

        let said = victim.run(&format!("python3 /root/peer.py dial 80 {CONNECTIONS}")).await;

        for number in 0..CONNECTIONS {
            let came =
                told.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{number}: {error}; {said}"));
            is_fine(number, &came);
        }
        assert_eq!(said, "");
        victim.end().await;
        host.close().await;
    });
}
