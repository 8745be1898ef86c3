//! Who reaches whom.

use std::net::{Ipv4Addr, SocketAddr};

use agentiso_core::network::{MAX_GROUP_MEMBERS, MAX_GROUPS, Network, NetworkError, NetworkPolicy};

use crate::{
    fixture::{State, counted, everything, groups, in_namespace, start},
    frames::{arp, frame_to, ipv4_to, mac},
    guest::{Guest, ping, sh, udp},
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
fn no_frame_passes_between_machines_without_a_group() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let team = groups(&["team"]);
        let one = start(&network, &state, &team).await;
        let mate = start(&network, &state, &team).await;
        let stranger = start(&network, &state, &groups(&["other"])).await;
        let loner = start(&network, &state, &NetworkPolicy::default()).await;
        // Their own kernels are not to say anything.
        for machine in [&one, &mate, &stranger, &loner] {
            machine.namespace.sh("ip link set eth0 promisc on; ip link set eth0 arp off");
        }

        for (other, shares_a_group) in [(&mate, true), (&stranger, false), (&loner, false)] {
            for (purpose, frame, passes_in_a_group) in frames_of_every_kind(&one, other) {
                let ears = other.ears();
                one.forge(&frame);
                assert_eq!(ears.hear(&frame), shares_a_group && passes_in_a_group, "{purpose}");
            }
        }
    });
}

/// Frames from one machine to another, and whether those of a group may exchange them.
fn frames_of_every_kind(one: &Guest, other: &Guest) -> Vec<(&'static str, Vec<u8>, bool)> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    let (from, to) = (mac(one), mac(other));
    let (own, theirs) = (one.address.octets(), other.address.octets());
    let ip = |protocol| ipv4_to(theirs, own, protocol);
    let mut request = arp(from, own);
    request[24..28].copy_from_slice(&theirs);
    let mut answer = request.clone();
    answer[7] = 2;
    answer[18..24].copy_from_slice(&to);
    // A neighbour solicitation from a link-local address.
    let mut solicitation = vec![0x60, 0, 0, 0, 0, 24, 58, 255, 0xfe, 0x80];
    solicitation.resize(64, 1);
    solicitation[40] = 135;
    vec![
        ("ARP request", frame_to(BROADCAST, from, 0x0806, &request), true),
        ("ARP answer", frame_to(to, from, 0x0806, &answer), true),
        ("ICMP", frame_to(to, from, 0x0800, &ip(1)), true),
        ("TCP", frame_to(to, from, 0x0800, &ip(6)), true),
        ("UDP", frame_to(to, from, 0x0800, &ip(17)), true),
        ("SCTP", frame_to(to, from, 0x0800, &ip(132)), true),
        ("IPv4 broadcast", frame_to(BROADCAST, from, 0x0800, &ipv4_to([255; 4], own, 17)), true),
        (
            "IPv4 multicast",
            frame_to([1, 0, 0x5e, 0, 0, 251], from, 0x0800, &ipv4_to([224, 0, 0, 251], own, 17)),
            true,
        ),
        ("IPv6 neighbour", frame_to([0x33, 0x33, 0, 0, 0, 1], from, 0x86dd, &solicitation), false),
        ("IPv6", frame_to(to, from, 0x86dd, &solicitation), false),
        ("VLAN", frame_to(to, from, 0x8100, &[0; 46]), false),
        ("raw Ethernet", frame_to(to, from, 0x88b5, b"hello"), false),
        ("raw Ethernet broadcast", frame_to(BROADCAST, from, 0x88b5, b"hello"), false),
        ("bridge protocol", frame_to([1, 0x80, 0xc2, 0, 0, 0], from, 38, &[0x42, 0x42, 3]), false),
    ]
}

#[test]
fn group_has_room_for_so_many_and_a_machine_for_so_many_groups() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let team = groups(&["team"]);
        let mut members = Vec::new();
        for _ in 0..MAX_GROUP_MEMBERS {
            members.push(network.attach(state.spec(&team)).await.unwrap());
        }
        let other = network.attach(state.spec(&groups(&["other"]))).await.unwrap();
        let before = everything();

        for refused in [
            network.attach(state.spec(&team)).await.map(drop),
            network.update_policy(&other.record, &team).await,
        ] {
            let error = refused.unwrap_err();
            assert!(matches!(&error, NetworkError::GroupFull { .. }), "{error:?}");
            assert!(error.to_string().contains("group team"), "{error}");
        }
        let names: Vec<String> = (0..=MAX_GROUPS).map(|n| format!("g{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let error = network.update_policy(&other.record, &groups(&names)).await.unwrap_err();
        assert!(
            matches!(error, NetworkError::TooManyGroups { count } if count == MAX_GROUPS + 1),
            "{error:?}"
        );
        assert_eq!(everything(), before, "nothing was changed");

        network.update_policy(&other.record, &groups(&names[..MAX_GROUPS])).await.unwrap();
        network.update_policy(&members[0].record, &team).await.unwrap();
        network.detach(&members[0].record).await.unwrap();
        network.update_policy(&other.record, &team).await.unwrap();
        let pairs = sh("nft list ruleset").matches("\" . \"at").count();
        assert_eq!(pairs, MAX_GROUP_MEMBERS * (MAX_GROUP_MEMBERS - 1), "of all that are left");
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
