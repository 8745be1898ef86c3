//! What reaches a machine, and what it reaches. A second namespace plays the internet.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    process::{Child, Command},
    time::Duration,
};

use agentiso_core::{PolicyChange, Workspace, types::GuestPort};

use crate::fixture::{Native, Undo, run, sh, spec};

/// An address of the internet's.
const FAR: &str = "198.51.100.7";

const PATIENCE: Duration = Duration::from_secs(20);

/// What the internet answers.
const FAR_SERVER: &str = "import socketserver
class Far(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b'far\\n')
socketserver.TCPServer(('0.0.0.0', 80), Far).serve_forever()
";

/// Sends back what it is sent, line by line.
const ECHO: &str = "import socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer(('0.0.0.0', 7000), Echo).serve_forever()
";

/// A shell's wait for something in the machine that listens on this port.
fn listening(port: u16) -> String {
    format!(
        "timeout 60 bash -c 'until (exec 3<>/dev/tcp/127.0.0.1/{port}) 2> /dev/null; do sleep 0.2; done' || exit 1"
    )
}

/// The namespace and a server in it, gone when this is dropped.
struct Internet {
    server: Child,
    _undo: Undo,
}

impl Internet {
    fn connect() -> Self {
        let undo = Undo("ip route del default || true; ip link del up0 || true; ip netns del internet");
        run(&format!(
            "ip netns add internet
             ip link add up0 type veth peer name far0 netns internet
             ip addr add 203.0.113.2/24 dev up0
             ip link set up0 up
             ip -n internet link set lo up
             ip -n internet addr add {FAR}/32 dev lo
             ip -n internet addr add 203.0.113.1/24 dev far0
             ip -n internet link set far0 up
             ip route add default via 203.0.113.1"
        ));
        // It becomes the server, so that it is what is killed.
        let mut server = Command::new("ip");
        server.args(["netns", "exec", "internet", "python3", "-c", FAR_SERVER]);
        Self { server: server.spawn().unwrap(), _undo: undo }
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

async fn reaches_out(workspace: &Workspace) -> bool {
    let line = format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{FAR}/80; head -c 4 <&3'");
    workspace.exec(&line).await.unwrap().stdout_text() == "far\n"
}

/// Whether what is sent comes back over a connection that stays open.
fn echoes(mut stream: &TcpStream) -> bool {
    let mut back = [0; 6];
    stream.write_all(b"hello\n").is_ok() && stream.read_exact(&mut back).is_ok() && &back == b"hello\n"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn internet_is_toggled_without_losing_a_forward_or_an_open_connection() {
    let Some(native) = Native::shared().await else { return };
    let _internet = Internet::connect();
    let host = native.open().await;
    let workspace = host.create(spec()).await.unwrap();
    // A page, and an echo whose connections stay open.
    let serving = format!(
        "mkdir -p /srv/www; echo a page > /srv/www/index.html; cd /srv/www
         setsid python3 -m http.server 8000 > /dev/null 2>&1 < /dev/null &
         cat > /root/echo.py <<'E'\n{ECHO}E\n\
         setsid python3 /root/echo.py > /dev/null 2>&1 < /dev/null &\n\
         {}; {}",
        listening(8000),
        listening(7000)
    );
    sh(&workspace, &serving).await;
    let page = workspace.add_forward(GuestPort::new(8000).unwrap(), None).await.unwrap();
    let echo = workspace.add_forward(GuestPort::new(7000).unwrap(), None).await.unwrap();
    let fetch = || run(&format!("curl -sS --max-time 20 http://localhost:{}/", page.host_port));

    assert_eq!(fetch(), "a page\n");
    let open = TcpStream::connect((Ipv4Addr::LOCALHOST, echo.host_port.get())).unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(echoes(&open));
    for allow in [true, false, true] {
        let change = PolicyChange { allow_internet: Some(allow), ..PolicyChange::default() };
        workspace.set_policy(change).await.unwrap();

        assert_eq!(reaches_out(&workspace).await, allow);
        assert!(echoes(&open), "the connection that was open, with internet {allow}");
        assert_eq!(fetch(), "a page\n", "with internet {allow}");
    }
    open.shutdown(Shutdown::Both).unwrap();
    workspace.destroy().await.unwrap();
    host.close().await;
}

/// Answers over TCP and UDP; a machine's kernel answers pings.
const SERVER: &str = "import socket, threading
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind((str(), 7000))
tcp = socket.create_server((str(), 8000))
def answer():
    while True:
        udp.sendto(b'?', udp.recvfrom(9)[1])
threading.Thread(target=answer).start()
while True:
    tcp.accept()[0].close()
";

/// Says by which protocols another machine answers.
const PROBE: &str = "import socket, struct, sys, threading
to = sys.argv[1]
reached = set()
def tcp():
    socket.create_connection((to, 8000), 4).close()
    reached.add('tcp')
def udp():
    probe = socket.socket(type=socket.SOCK_DGRAM)
    probe.settimeout(4)
    probe.sendto(b'?', (to, 7000))
    probe.recv(9)
    reached.add('udp')
def icmp():
    probe = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    probe.settimeout(4)
    # An echo request with its checksum.
    probe.sendto(struct.pack('!BBHHH', 8, 0, 0xffff - 0x0808, 7, 1), (to, 0))
    while True:
        packet, sender = probe.recvfrom(99)
        if sender[0] == to and packet[20] == 0:
            return reached.add('icmp')
threading.excepthook = lambda failure: None
threads = [threading.Thread(target=kind) for kind in (tcp, udp, icmp)]
for thread in threads: thread.start()
for thread in threads: thread.join(20)
print(*sorted(reached))
";

/// By which protocols two machines reach each other, each way.
async fn reach(workspaces: [&Workspace; 2]) -> [String; 2] {
    let [one, other] = workspaces;
    let mut found = [String::new(), String::new()];
    for (found, (from, to)) in found.iter_mut().zip([(one, other), (other, one)]) {
        let address = to.info().await.unwrap().summary.ip.unwrap();
        *found = sh(from, &format!("python3 /root/probe.py {address}")).await;
    }
    found
}

fn in_groups(names: &[&str]) -> PolicyChange {
    let groups = names.iter().map(|name| name.parse().unwrap()).collect();
    PolicyChange { groups: Some(groups), ..PolicyChange::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workspaces_reach_each_other_by_no_protocol_but_in_one_group_and_the_host_never() {
    let Some(native) = Native::shared().await else { return };
    let host = native.open().await;
    let (one, other) = (host.create(spec()).await.unwrap(), host.create(spec()).await.unwrap());
    for workspace in [&one, &other] {
        let started = format!(
            "cat > /root/probe.py <<'E'\n{PROBE}E\ncat > /root/server.py <<'E'\n{SERVER}E\n\
             setsid python3 /root/server.py > /dev/null 2>&1 < /dev/null &\n\
             {}; python3 /root/probe.py 127.0.0.1",
            listening(8000)
        );
        // Which also shows that the probe finds what is there.
        assert_eq!(sh(workspace, &started).await, "icmp tcp udp");
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7777)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let gateway = sh(&one, "ip route show default | cut -d' ' -f3").await;
    let to_host =
        format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{gateway}/7777' && echo reached || echo refused");
    let nothing = [String::new(), String::new()];
    let everything = ["icmp tcp udp"; 2];

    assert_eq!(reach([&one, &other]).await, nothing, "at first");
    one.set_policy(in_groups(&["team"])).await.unwrap();
    other.set_policy(in_groups(&["others"])).await.unwrap();
    assert_eq!(reach([&one, &other]).await, nothing, "in groups that have nobody in common");
    other.set_policy(in_groups(&["others", "team"])).await.unwrap();
    assert_eq!(reach([&one, &other]).await, everything, "in one group");
    assert_eq!(sh(&one, &to_host).await, "refused", "the host is in no group");
    one.set_policy(in_groups(&[])).await.unwrap();
    assert_eq!(reach([&one, &other]).await, nothing, "one has left");

    assert!(listener.accept().is_err(), "nothing has reached the host");
    for workspace in [one, other] {
        workspace.destroy().await.unwrap();
    }
    host.close().await;
}
