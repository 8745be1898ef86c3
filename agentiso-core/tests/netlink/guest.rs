//! A machine played by a network namespace: its card is a TAP device in there, and frames are pumped between that and
//! the TAP device that the network made.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Command,
    thread::JoinHandle,
    time::Duration,
};

use agentiso_core::network::{Attachment, NetworkRecord, Nic, NicBackend};
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
    thread::{LinkNameSpaceType, UnshareFlags},
};

/// How long something that must come to pass may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// How long is waited for what must not come to pass.
pub(crate) const BRIEFLY: Duration = Duration::from_millis(300);

/// Bytes of the header that TAP devices put before each frame.
const VIRTIO_HEADER: usize = 10;

/// Runs a program to its end, here.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Puts this thread into a new network namespace with nothing but a loopback.
pub(crate) fn leave_host() {
    // SAFETY: this flag concerns this thread's network alone; no memory or descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    sh("ip link set lo up");
}

/// This thread's network namespace.
pub(crate) fn namespace() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").unwrap().into()
}

/// A network namespace in which something is done by a thread.
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    pub(crate) fn new() -> Self {
        Self(
            std::thread::spawn(|| {
                leave_host();
                namespace()
            })
            .join()
            .unwrap(),
        )
    }

    /// A path by which programs find it, as long as this lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Does something in it.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                    .unwrap();
                work()
            });
            match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub(crate) fn sh(&self, command: &str) -> String {
        self.run(|| sh(command))
    }
}

/// The machine.
pub(crate) struct Guest {
    pub(crate) record: NetworkRecord,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: String,
    pub(crate) namespace: Namespace,
    /// The card's frames, for forged ones.
    raw: File,
    stop: Option<OwnedFd>,
    pump: Option<JoinHandle<()>>,
}

impl Guest {
    /// A machine that does as it is told about addresses.
    pub(crate) fn start(attachment: Attachment) -> Self {
        let Attachment { nic: Nic { mac, backend: NicBackend::Tap(card) }, record, guest } = attachment
        else {
            panic!("a TAP device was expected");
        };
        let namespace = Namespace::new();
        let inside = namespace.run(|| open_tap("eth0"));
        namespace.sh(&format!(
            "ip link set eth0 address {mac}
             ip addr add {}/{} dev eth0
             ip link set eth0 up
             ip route add default via {}",
            guest.address,
            guest.prefix,
            guest.gateway.unwrap()
        ));
        let raw = File::from(card.try_clone().unwrap());
        let (stopped, stop) = rustix::pipe::pipe().unwrap();
        let pump = std::thread::spawn(move || pump(File::from(card), inside, &stopped));
        Self {
            record,
            address: guest.address.parse().unwrap(),
            mac: mac.to_string(),
            namespace,
            raw,
            stop: Some(stop),
            pump: Some(pump),
        }
    }

    /// Sends a frame past its own kernel.
    pub(crate) fn forge(&self, frame: &[u8]) {
        let mut with_header = vec![0; VIRTIO_HEADER];
        with_header.extend_from_slice(frame);
        (&self.raw).write_all(&with_header).unwrap();
    }

    /// Hears every frame that comes to its card from now on.
    pub(crate) fn ears(&self) -> Ears {
        // ETH_P_ALL
        let all = std::num::NonZeroU32::new(u32::from(3u16.to_be())).map(Protocol::from_raw);
        let socket = self
            .namespace
            .run(|| socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, all).unwrap());
        set_socket_timeout(&socket, Timeout::Recv, Some(BRIEFLY)).unwrap();
        Ears(socket)
    }

    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        self.namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
    }

    pub(crate) fn connect(&self, to: impl Into<SocketAddr> + Send) -> std::io::Result<TcpStream> {
        self.namespace.run(|| connect(to))
    }

    pub(crate) fn udp(&self, port: u16) -> UdpSocket {
        self.namespace.run(|| udp(port))
    }

    /// Whether it gets an answer to a ping.
    pub(crate) fn pings(&self, address: Ipv4Addr) -> bool {
        self.namespace.run(|| ping(address))
    }
}

/// What hears the frames that come to a card.
pub(crate) struct Ears(OwnedFd);

impl Ears {
    /// Whether this frame came, or comes shortly; where br_netfilter is on, an IPv4 packet comes without its padding.
    pub(crate) fn hear(&self, frame: &[u8]) -> bool {
        const SHORTEST: usize = 42;
        let mut heard = [0; 2048];
        while let Ok((length, _)) = recv(&self.0, &mut heard, RecvFlags::empty()) {
            if length >= SHORTEST && frame.starts_with(&heard[..length]) {
                return true;
            }
        }
        false
    }
}

/// Whether a ping is answered.
pub(crate) fn ping(address: Ipv4Addr) -> bool {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(rustix::net::ipproto::ICMP),
    )
    .unwrap();
    set_socket_timeout(&socket, Timeout::Recv, Some(BRIEFLY * 3)).unwrap();
    // Echo request, checksum, number 1, sequence 1.
    let request = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
    if sendto(&socket, &request, SendFlags::empty(), &SocketAddrV4::new(address, 0)).is_err() {
        return false;
    }
    let mut answer = [0; 128];
    while let Ok((length, _)) = recv(&socket, &mut answer, RecvFlags::empty()) {
        // Behind the IPv4 header of 20 bytes, an echo reply.
        if length >= 28 && answer[20] == 0 && answer[12..16] == address.octets() {
            return true;
        }
    }
    false
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
    }
}

pub(crate) fn connect(to: impl Into<SocketAddr>) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to.into(), Duration::from_millis(1500))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) fn udp(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    socket.set_read_timeout(Some(BRIEFLY)).unwrap();
    socket
}

/// Whether what one side says over a connection reaches the other side, both ways.
pub(crate) fn talk(one: &mut TcpStream, other: &mut TcpStream) -> bool {
    says(one, other) && says(other, one)
}

fn says(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    let mut heard = [0; 4];
    from.write_all(b"ping").is_ok() && to.read_exact(&mut heard).is_ok() && heard == *b"ping"
}

/// Whether who says something over this connection is told that it has ended.
pub(crate) fn is_reset(connection: &mut TcpStream) -> bool {
    let result = connection.write_all(b"ping").and_then(|()| connection.read(&mut [0; 4]));
    result.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// Accepts a connection that was made.
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddrV4) {
    let (stream, peer) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let SocketAddr::V4(peer) = peer else { panic!("{peer}") };
    (stream, peer)
}

fn pump(mut card: File, mut inside: File, stopped: &OwnedFd) {
    let mut frame = vec![0; 1 << 17];
    loop {
        let mut ready = [
            PollFd::new(&card, PollFlags::IN),
            PollFd::new(&inside, PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
        ];
        if poll(&mut ready, None).is_err() {
            return;
        }
        let [from_card, from_inside, stop] = ready.map(|fd| fd.revents());
        if !stop.is_empty() || from_card.contains(PollFlags::ERR) {
            return;
        }
        let result = if !from_card.is_empty() {
            card.read(&mut frame).and_then(|length| inside.write(&frame[..length]))
        } else if !from_inside.is_empty() {
            inside.read(&mut frame).and_then(|length| card.write(&frame[..length]))
        } else {
            Ok(0)
        };
        // The card's device is gone: the machine has none then.
        if result.is_err() {
            return;
        }
    }
}

/// A TAP device with a virtio header before each frame, as QEMU has it.
pub(crate) fn open_tap(name: &str) -> File {
    let tun = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all of ifreq is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
    // SAFETY: the descriptor is open, and the request is of the type that this ioctl reads and writes.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    tun
}
