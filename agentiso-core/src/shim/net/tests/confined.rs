//! The real program, started and confined as for a machine: what it gave up, it does not need.

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    thread,
};

use super::{
    guest::{Datagram, Guest},
    internet,
    lab::{NOBODY, SERVER, in_lab, shout},
    noise,
};
use crate::network::{
    AttachSpec, Network, NetworkError, NetworkPolicy, NicBackend,
    user::{UserNetwork, UserNetworkConfig, addresses, tests},
};
use crate::types::GuestPort;

#[test]
fn confined_process_does_all_of_its_work() {
    in_lab("confined_process_does_all_of_its_work", |world| {
        let shim = tests::shim().unwrap();
        world.echo(80);
        world.udp(99);
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let network = UserNetwork::new(UserNetworkConfig { state_id: "lab".to_owned(), shim });
        let spec = AttachSpec { policy: internet(), ..tests::any_spec(folder.path()) };
        let attachment = runtime.block_on(network.attach(spec)).unwrap();
        let NicBackend::Stream(stream) = attachment.nic.backend else { panic!("another backend") };
        let (mut guest, record) = (Guest::new(stream.into()), attachment.record);

        assert!(matches!(guest.ping(addresses::GATEWAY), Datagram::EchoReply { .. }));
        let socket = guest.connect(SERVER, 80).unwrap();
        let bytes = noise(5, 300_000);
        guest.send(socket, &bytes);
        assert!(guest.receive(socket, bytes.len()) == bytes);
        guest.send_udp(5000, (SERVER, 99), b"udp");
        let content = b"UDP".to_vec();
        assert_eq!(guest.next_datagram(), Datagram::Udp { from: (SERVER, 99), to: 5000, content });
        assert!(guest.connect(SERVER, 81).is_none());

        let guest_port = GuestPort::new(22).unwrap();
        let host = runtime.block_on(network.add_forward(&record, guest_port, None)).unwrap();
        let server = guest.listen(22);
        let mut client = TcpStream::connect(("127.0.0.1", host.get())).unwrap();
        guest.established(server);
        client.write_all(b"in").unwrap();
        assert_eq!(guest.receive(server, 2), b"in");
        guest.send(server, b"out");
        client.read_exact(&mut [0; 3]).unwrap();

        // Full tables, and refusals of the host, within its limits.
        for port in 1..=1500 {
            guest.send_udp(port, (NOBODY, 99), b"x");
        }
        let many: Vec<_> = (0..300).map(|_| guest.begin_connect(SERVER, 80)).collect();
        guest.until(|guest| many.iter().all(|socket| guest.tcp(*socket).may_send()).then_some(()));
        runtime.block_on(network.update_policy(&record, &NetworkPolicy::default())).unwrap();
        assert!(!guest.ended_well(socket));
        assert!(runtime.block_on(network.is_alive(&record)).unwrap());

        runtime.block_on(network.detach(&record)).unwrap();
        assert!(!runtime.block_on(network.is_alive(&record)).unwrap());
        let gone = runtime.block_on(network.forwards(&record));
        assert!(matches!(gone, Err(NetworkError::Gone { .. })));
    });
}

#[test]
fn confined_process_asks_the_hosts_resolver() {
    in_lab("confined_process_asks_the_hosts_resolver", |_world| {
        let shim = tests::shim().unwrap();
        let resolvers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let Some(resolver) = resolvers.lines().find_map(|line| line.strip_prefix("nameserver ")) else {
            eprintln!("skipped: this host names no name server");
            return;
        };
        let added = std::process::Command::new("ip").args(["address", "add", resolver, "dev", "lo"]).status();
        assert!(added.unwrap().success());
        let server = UdpSocket::bind((resolver, 53)).unwrap();
        thread::spawn(move || shout(&server));
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let network = UserNetwork::new(UserNetworkConfig { state_id: "lab".to_owned(), shim });
        let spec = AttachSpec { policy: internet(), ..tests::any_spec(folder.path()) };
        let attachment = runtime.block_on(network.attach(spec)).unwrap();
        let NicBackend::Stream(stream) = attachment.nic.backend else { panic!("another backend") };
        let mut guest = Guest::new(stream.into());
        guest.send_udp(5000, (addresses::RESOLVER, 53), b"who?");
        let content = b"WHO?".to_vec();
        assert_eq!(
            guest.next_datagram(),
            Datagram::Udp { from: (addresses::RESOLVER, 53), to: 5000, content }
        );
    });
}
