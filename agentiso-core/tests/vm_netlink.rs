//! Real machines on the network of root: in a network namespace of the test's own, so that nothing of the host's is
//! touched. `cargo xtask test` prepares the state folder; without one, or without root, the tests say so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[path = "support/namespace.rs"]
mod namespace;

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agentiso_core::{
    Backends, Config, ForkSpec, Host, Layout, PolicyChange, Workspace, WorkspaceSpec,
    channel::{
        client::{CollectOptions, ExecSpec},
        serial::SerialChannel,
    },
    hypervisor::qemu::{ChannelKind, DeviceKinds, NicKind, Qemu, QemuConfig},
    network::netlink::{NetlinkConfig, NetlinkNetwork},
    storage::qcow2::{Qcow2Config, Qcow2Storage},
    testkit,
    types::{GuestPort, WorkspaceId},
};
use namespace::sh;

/// How long an answer from within a machine may take: it runs under emulation, on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server of the guest that answers each connection with its host name.
const SERVER: &str = "import socket, socketserver
class Name(socketserver.BaseRequestHandler):
    def handle(self):
        while True:
            if not self.request.recv(64):
                return
            self.request.sendall((socket.gethostname() + '\\n').encode())
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(('', 80), Name).serve_forever()
";

/// The prepared state folder, or why these tests cannot run.
fn home() -> Result<PathBuf, &'static str> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root");
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err("no /dev/net/tun");
    }
    std::env::var_os("AGENTISO_HOME")
        .filter(|_| std::env::var_os("AGENTISO_TEST_SEED").is_some())
        .map(PathBuf::from)
        .ok_or("there is no state folder with an image; `cargo xtask test` makes one")
}

/// A state folder of the test's own with what the prepared one has. Names of its network and of its processes follow from its
/// id: another test with the same one, at the same time, would take them for what somebody left.
struct Folder {
    home: tempfile::TempDir,
    state_id: String,
}

impl Folder {
    fn new(home: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("agentiso-netlink-").tempdir_in(home).unwrap();
        let path = folder.path().display();
        // The agent's and the kernel's files as links; disks of bases are the same files, never written to.
        sh(&format!(
            "chmod 700 {path}; mkdir -p {path}/disks; cp -a {home}/lib {home}/images {path}/;
             cp -al {home}/disks/bases {path}/disks/",
            home = home.display()
        ));
        Self { home: folder, state_id: WorkspaceId::random().as_uuid().simple().to_string() }
    }

    async fn open(&self) -> Host {
        let home = self.home.path();
        let config = Config::at(home);
        let layout = Layout::new(home);
        let state_id = self.state_id.clone();
        let qemu = QemuConfig {
            state_dir: home.to_owned(),
            state_id: state_id.clone(),
            program: None,
            shim: layout.shim(),
            accelerator: None,
        };
        let devices = DeviceKinds { channel: ChannelKind::Serial, nic: NicKind::Tap };
        let leases = testkit::leases(&layout.database()).unwrap();
        let network = NetlinkConfig::new(state_id, home.to_owned(), leases);
        let backends = Backends {
            hypervisor: Arc::new(Qemu::open(qemu).await.unwrap().with_devices(devices)),
            storage: Arc::new(Qcow2Storage::open(Qcow2Config::new(layout.disks())).await.unwrap()),
            network: Arc::new(NetlinkNetwork::open(network).await.unwrap()),
            channel: Arc::new(SerialChannel::new()),
        };
        Host::open_with(config, backends).await.unwrap()
    }
}

/// Runs a test in a network namespace of its own.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce(Folder) -> F + Send) {
    let home = match home() {
        Ok(home) => home,
        Err(reason) => return println!("skipped: {reason}"),
    };
    namespace::run(|| test(Folder::new(&home)));
}

async fn run(workspace: &Workspace, line: &str) -> (bool, String) {
    let guest = workspace.guest().await.unwrap();
    let output = guest.exec_collect(ExecSpec::shell(line), CollectOptions::default()).await.unwrap();
    (output.success(), format!("{}{}", output.stdout_text(), output.stderr_text()))
}

async fn serve(workspace: &Workspace) {
    let (started, text) = run(
        workspace,
        &format!("cat > /tmp/server.py <<'E'\n{SERVER}E\nsetsid python3 /tmp/server.py > /tmp/server.log 2>&1 < /dev/null &
         for i in $(seq 300); do python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 80))' 2> /dev/null && exit; sleep 0.1; done; exit 1"),
    )
    .await;
    assert!(started, "{text}");
}

/// A connection to a forwarded port, on which the server says the machine's name.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn ask(&mut self) -> String {
        self.0.get_mut().write_all(b"?").unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

fn spec(name: &str) -> WorkspaceSpec {
    let mut spec = WorkspaceSpec::new("debian");
    spec.name = Some(name.parse().unwrap());
    spec.throwaway = true;
    spec
}

#[test]
fn machine_is_reached_by_its_forward_and_so_is_its_fork_by_its_own() {
    in_namespace(async |folder| {
        let host = folder.open().await;
        let workspace = host.create(spec("first")).await.unwrap();
        serve(&workspace).await;
        let guest_port = GuestPort::new(80).unwrap();
        let port = workspace.add_forward(guest_port, None).await.unwrap().host_port.get();
        let mut client = Client::connect(port);
        assert_eq!(client.ask(), "first");
        assert!(
            !run(&workspace, "python3 -c 'import socket; socket.create_connection((\"10.99.0.1\", 22), 3)'")
                .await
                .0
        );

        let forks = workspace.fork(ForkSpec::default()).await.unwrap();
        assert_eq!(forks.failures, []);
        let name = &forks.workers[0].name;
        let fork = host.workspace(name).await.unwrap();
        assert_eq!(client.ask(), "first", "the connection has outlived the fork");
        let forked = fork.add_forward(guest_port, None).await.unwrap().host_port.get();
        assert_eq!(
            Client::connect(forked).ask(),
            *name,
            "the server goes on in the fork, under its own address"
        );

        fork.destroy().await.unwrap();
        workspace.destroy().await.unwrap();
        host.close().await;
        assert!(!sh("nft list ruleset; ip -o link").contains("ag"), "nothing is left");
    });
}

#[test]
fn machines_reach_each_other_in_a_group_alone() {
    in_namespace(async |folder| {
        let host = folder.open().await;
        let one = host.create(spec("one")).await.unwrap();
        let other = host.create(spec("other")).await.unwrap();
        serve(&other).await;
        let address = other.info().await.unwrap().summary.ip.unwrap();
        let reach = format!("python3 -c 'import socket; socket.create_connection((\"{address}\", 80), 5)'");
        assert!(!run(&one, &reach).await.0);

        let team = PolicyChange { groups: Some(["team".parse().unwrap()].into()), ..PolicyChange::default() };
        for workspace in [&one, &other] {
            let policy = workspace.set_policy(team.clone()).await.unwrap();
            assert_eq!(policy.groups.len(), 1);
        }
        let (reached, text) = run(&one, &reach).await;
        assert!(reached, "{text}");

        let none = PolicyChange { groups: Some([].into()), ..PolicyChange::default() };
        one.set_policy(none).await.unwrap();
        assert!(!run(&one, &reach).await.0);

        one.destroy().await.unwrap();
        other.destroy().await.unwrap();
        host.close().await;
    });
}
