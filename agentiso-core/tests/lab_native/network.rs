//! What reaches a machine, and what it reaches. A second namespace plays the internet.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    time::Duration,
};

use agentiso_core::{PolicyChange, Workspace, types::GuestPort};

use crate::fixture::{Native, run, sh, spec};

/// An address of the internet's.
const FAR: &str = "198.51.100.7";

const PATIENCE: Duration = Duration::from_secs(20);

/// The namespace, gone when this is dropped.
struct Internet;

impl Internet {
    fn connect() -> Self {
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
        Self
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        run("ip route del default; ip netns del internet; ip link del up0 2>/dev/null || true");
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
    let Some(native) = Native::new().await else { return };
    let _internet = Internet::connect();
    let mut far = std::process::Command::new("ip")
        .args(["netns", "exec", "internet", "python3", "-c"])
        .arg(
            "import socketserver as s\nclass H(s.BaseRequestHandler):\n  def handle(self): \
             self.request.sendall(b'far\\n')\ns.TCPServer(('0.0.0.0', 80), H).serve_forever()",
        )
        .spawn()
        .unwrap();
    let host = native.open().await;
    let workspace = host.create(spec()).await.unwrap();
    // A page, and an echo whose connections stay open.
    let served = sh(
        &workspace,
        "mkdir -p /srv/www; echo a page > /srv/www/index.html; cd /srv/www; \
         setsid python3 -m http.server 8000 >/dev/null 2>&1 & \
         setsid python3 -c 'import socketserver as s
class H(s.StreamRequestHandler):
  def handle(self):
    for line in self.rfile: self.wfile.write(line)
s.ThreadingTCPServer((\"0.0.0.0\", 7000), H).serve_forever()' >/dev/null 2>&1 & \
         for i in $(seq 100); do \
           (exec 3<>/dev/tcp/127.0.0.1/8000) 2>/dev/null && (exec 3<>/dev/tcp/127.0.0.1/7000) 2>/dev/null && break; \
           sleep 0.2; done; echo served",
    );
    assert_eq!(served.await, "served");
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
    far.kill().unwrap();
    far.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workspaces_do_not_reach_each_other_or_the_host_before_they_may() {
    let Some(native) = Native::new().await else { return };
    let host = native.open().await;
    let (one, other) = (host.create(spec()).await.unwrap(), host.create(spec()).await.unwrap());
    let address = other.info().await.unwrap().summary.ip.unwrap();
    let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7777)).unwrap();
    sh(&other, "setsid python3 -m http.server 8000 >/dev/null 2>&1 & sleep 3").await;
    let gateway = sh(&one, "ip route show default | cut -d' ' -f3").await;
    let connects = async |to: &str, port: u16| {
        let line = format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{to}/{port}'");
        one.exec(&line).await.unwrap().success()
    };

    assert!(!connects(&address, 8000).await, "another machine");
    assert!(!connects(&gateway, 7777).await, "the host");
    for workspace in [&one, &other] {
        let change = PolicyChange { allow_inter_vm: Some(true), ..PolicyChange::default() };
        workspace.set_policy(change).await.unwrap();
    }
    assert!(connects(&address, 8000).await, "both allow it");
    assert!(!connects(&gateway, 7777).await, "the host");
    for workspace in [one, other] {
        workspace.destroy().await.unwrap();
    }
    host.close().await;
}
