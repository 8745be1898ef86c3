//! A host and an internet, each a network namespace of its own that a thread of this process lives in.
//!
//! ```text
//! host  203.0.113.2 ---- 203.0.113.1  internet
//!       192.0.2.9 (another address)   198.51.100.7 (servers), 198.51.100.99 (nobody), 169.254.169.254 (a trap)
//! ```

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    process::Command,
    sync::mpsc,
    thread,
};

use crate::shim::sys;

/// Where the internet's servers are.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// An address of the internet that nobody has, and packets to which vanish.
pub(super) const NOBODY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 99);
/// The host's address towards the internet.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// Another address of the host's.
pub(super) const HOST_OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// The broadcast address of the host's network.
pub(super) const HOST_BROADCAST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 255);
/// Where clouds have their instance data. In this lab there is a server, and a route to it.
pub(super) const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

type Job = Box<dyn FnOnce() + Send>;

/// The internet of a lab.
pub(super) struct Internet {
    jobs: mpsc::Sender<Job>,
}

impl Internet {
    /// Does something there, in a thread that is left to itself.
    pub(super) fn run(&self, act: impl FnOnce() + Send + 'static) {
        self.jobs.send(Box::new(act)).unwrap();
    }

    /// Serves each connection to a TCP port in a thread of its own.
    pub(super) fn serve(&self, port: u16, serve: impl Fn(std::net::TcpStream) + Clone + Send + 'static) {
        let (bound, is_bound) = mpsc::channel();
        self.run(move || {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
            bound.send(()).unwrap();
            for stream in listener.incoming() {
                let serve = serve.clone();
                thread::spawn(move || serve(stream.unwrap()));
            }
        });
        is_bound.recv().unwrap();
    }

    /// Sends back what comes to a TCP port, and ends when its peer has ended.
    pub(super) fn echo(&self, port: u16) {
        self.serve(port, echo);
    }

    /// Answers each datagram to a UDP port with its beginning in capitals.
    pub(super) fn udp(&self, port: u16) {
        let (bound, is_bound) = mpsc::channel();
        self.run(move || {
            let socket = UdpSocket::bind((SERVER, port)).unwrap();
            bound.send(()).unwrap();
            shout(&socket);
        });
        is_bound.recv().unwrap();
    }
}

/// Sends back what comes.
pub(super) fn echo(mut stream: std::net::TcpStream) {
    let mut chunk = [0; 16384];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        if stream.write_all(&chunk[..count]).is_err() {
            return;
        }
    }
}

/// Answers each datagram in capitals.
pub(super) fn shout(socket: &UdpSocket) {
    let mut chunk = vec![0; 65536];
    while let Ok((count, peer)) = socket.recv_from(&mut chunk) {
        socket.send_to(&chunk[..count].to_ascii_uppercase(), peer).unwrap();
    }
}

/// Runs a test on the host of a lab. Skipped, and said so, where namespaces cannot be made.
pub(super) fn in_lab(name: &str, test: impl FnOnce(&Internet) + Send + 'static) {
    let outcome = thread::spawn(move || {
        if sys::unshare_network().is_err() {
            return false;
        }
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let internet = thread::spawn(move || {
            sys::unshare_network().unwrap();
            ip("link set lo up");
            ready.send(rustix::thread::gettid().as_raw_pid()).unwrap();
            while let Ok(job) = queue.recv() {
                thread::spawn(job);
            }
        });
        let internet_thread = is_ready.recv().unwrap();
        ip("link set lo up");
        ip("address add 192.0.2.9/32 dev lo");
        ip(&format!("link add uplink type veth peer name downlink netns {internet_thread}"));
        ip("address add 203.0.113.2/24 broadcast 203.0.113.255 dev uplink");
        ip("link set uplink up");
        let (linked, is_linked) = mpsc::channel();
        let set_up: Job = Box::new(move || {
            for command in [
                "address add 203.0.113.1/24 dev downlink",
                "address add 198.51.100.7/32 dev lo",
                "address add 169.254.169.254/32 dev lo",
                "link set downlink up",
            ] {
                ip(command);
            }
            linked.send(()).unwrap();
        });
        jobs.send(set_up).unwrap();
        is_linked.recv().unwrap();
        ip("route add default via 203.0.113.1");
        let lab = Internet { jobs };
        test(&lab);
        drop(lab);
        internet.join().unwrap();
        true
    })
    .join();
    match outcome {
        Ok(true) => {}
        Ok(false) => eprintln!("skipped: {name} makes network namespaces, which takes root"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("iproute2 is needed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}
