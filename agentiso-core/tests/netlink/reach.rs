//! Who reaches whom.

use std::net::{Ipv4Addr, SocketAddr};

use agentiso_core::network::{Network, NetworkPolicy};

use crate::{
    fixture::{State, counted, groups, in_namespace, start},
    guest::{Guest, ping, udp},
};

/// The host's address towards machines.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Whether one reaches the other by TCP, UDP and ICMP; all or none of them. Only one may try a port at a time.
fn reaches_at(port: u16, one: &Guest, other: &Guest) -> bool {
    // What it learned when it was kept apart, it would believe for some seconds.
    one.namespace.sh("ip neigh flush all");
    let listener = other.listen(port);
    let socket = other.udp(port);
    let tcp = one.connect((other.address, port)).is_ok();
    one.udp(0).send_to(b"hello", (other.address, port)).unwrap();
    let udp = socket.recv_from(&mut [0; 16]).is_ok();
    let icmp = one.pings(other.address);
    drop(listener);
    assert!(tcp == udp && udp == icmp, "tcp {tcp}, udp {udp}, icmp {icmp}");
    tcp
}

fn reaches(one: &Guest, other: &Guest) -> bool {
    reaches_at(7000, one, other)
}

#[test]
fn machines_reach_those_of_their_groups_alone() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let talker = NetworkPolicy { allow_inter_vm: true, ..NetworkPolicy::default() };
        let policies = [
            NetworkPolicy::default(),
            talker.clone(),
            talker,
            groups(&["red"]),
            groups(&["red", "blue"]),
            groups(&["blue"]),
        ];
        let mut machines = Vec::new();
        for policy in &policies {
            machines.push(start(&network, &state, policy).await);
        }

        let friends = [(1, 2), (3, 4), (4, 5)];
        std::thread::scope(|scope| {
            for ((one, machine), port) in machines.iter().enumerate().zip(7000..) {
                let machines = &machines;
                scope.spawn(move || {
                    for (other, target) in machines.iter().enumerate().filter(|(other, _)| *other != one) {
                        let expected = friends.contains(&(one, other)) || friends.contains(&(other, one));
                        assert_eq!(reaches_at(port, machine, target), expected, "{one} to {other}");
                    }
                });
            }
        });
    });
}

#[test]
fn group_joined_later_lets_through_and_left_keeps_apart() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let one = start(&network, &state, &NetworkPolicy::default()).await;
        let other = start(&network, &state, &NetworkPolicy::default()).await;
        assert!(!reaches(&one, &other));

        for machine in [&one, &other] {
            network.update_policy(&machine.record, &groups(&["team"])).await.unwrap();
        }
        assert!(reaches(&one, &other) && reaches(&other, &one));

        network.update_policy(&one.record, &NetworkPolicy::default()).await.unwrap();
        assert!(!reaches(&one, &other) && !reaches(&other, &one));
    });
}

#[test]
fn host_is_not_reached_but_reaches_machines() {
    in_namespace(async || {
        crate::guest::sh(
            "ip link add other type bridge; ip addr add 192.0.2.1/24 dev other; ip link set other up",
        );
        let state = State::new();
        let network = state.open().await;
        let all = NetworkPolicy { allow_internet: true, allow_inter_vm: true, ..NetworkPolicy::default() };
        let guest = start(&network, &state, &all).await;
        let _listener = std::net::TcpListener::bind("0.0.0.0:7100").unwrap();
        let socket = udp(7100);
        guest.namespace.sh(
            "sysctl -qw net.ipv4.conf.eth0.route_localnet=1; ip route add 127.0.0.2 via 10.99.0.1 || true",
        );

        for address in ["10.99.0.1", "192.0.2.1", "169.254.169.254"] {
            let to: SocketAddr = format!("{address}:7100").parse().unwrap();
            assert!(guest.connect(to).is_err(), "{address}");
            let _ = guest.udp(0).send_to(b"hello", to);
            assert!(socket.recv_from(&mut [0; 16]).is_err(), "{address}");
        }
        assert!(!guest.pings(GATEWAY));
        assert!(counted("to the host") > 0);

        let listener = guest.listen(80);
        assert!(crate::guest::connect((guest.address, 80)).is_ok());
        assert!(ping(guest.address));
        drop(listener);
    });
}

#[test]
fn two_state_folders_do_not_meet() {
    in_namespace(async || {
        let (first, second) = (State::new(), State::with_range("10.98.0.0/16"));
        let (network, other) = (first.open().await, second.open().await);
        let all = NetworkPolicy { allow_internet: true, allow_inter_vm: true, ..NetworkPolicy::default() };
        let one = start(&network, &first, &all).await;
        let two = start(&other, &second, &all).await;

        assert!(!reaches(&one, &two) && !reaches(&two, &one));

        network.detach(&one.record).await.unwrap();
        let listener = two.listen(80);
        assert!(crate::guest::connect((two.address, 80)).is_ok(), "the other's is still there");
        drop(listener);
    });
}
