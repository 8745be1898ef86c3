//! A machine that does its worst.

use std::{io::Write, net::Ipv4Addr, time::Duration};

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber},
};

use super::{
    super::{tcp, udp},
    guest::{Datagram, ip_frame},
    internet,
    lab::{NOBODY, SERVER, in_lab},
    noise, raw, start,
};
use crate::network::user::addresses;

fn syn_frame(from: u16, to: (Ipv4Addr, u16)) -> Vec<u8> {
    segment_frame(from, to, TcpControl::Syn, None)
}

fn segment_frame(
    from: u16,
    to: (Ipv4Addr, u16),
    control: TcpControl,
    ack_number: Option<TcpSeqNumber>,
) -> Vec<u8> {
    let segment = TcpRepr {
        src_port: from,
        dst_port: to.1,
        control,
        seq_number: TcpSeqNumber(i32::MAX),
        ack_number,
        window_len: 64000,
        window_scale: Some(3),
        max_seg_size: Some(1460),
        sack_permitted: true,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut bytes = vec![0; segment.buffer_len()];
    segment.emit(
        &mut TcpPacket::new_unchecked(&mut bytes[..]),
        &addresses::GUEST.into(),
        &to.0.into(),
        &ChecksumCapabilities::default(),
    );
    ip_frame(to.0, IpProtocol::Tcp, &bytes)
}

#[test]
fn flood_of_connections_stays_bounded_and_shuts_nobody_out() {
    in_lab("flood_of_connections_stays_bounded_and_shuts_nobody_out", |_world| {
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        let port = shim.forwarded(22);
        for source in 1..=2000 {
            guest.raw_frame(&syn_frame(source, (NOBODY, 80)));
        }
        guest.ping(addresses::GATEWAY);
        let counters = shim.counters();
        assert_eq!(counters.tcp_flows, tcp::MAX_OUTWARD as u64);
        assert_eq!(counters.dropped, 2000 - tcp::MAX_OUTWARD as u64);
        let server = guest.listen(22);
        let _client = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        guest.established(server);
    });
}

#[test]
fn flood_of_datagrams_stays_bounded_and_the_newest_go_through() {
    in_lab("flood_of_datagrams_stays_bounded_and_the_newest_go_through", |world| {
        world.udp(99);
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        for source in 1..=2000 {
            guest.send_udp(source, (NOBODY, 99), b"x");
        }
        guest.send_udp(3000, (SERVER, 99), b"x");
        let content = b"X".to_vec();
        assert_eq!(guest.next_datagram(), Datagram::Udp { from: (SERVER, 99), to: 3000, content });
        assert_eq!(shim.counters().udp_flows, udp::MAX_FLOWS as u64);
    });
}

#[test]
fn segments_of_no_connection_are_reset_and_leave_nothing() {
    let (shim, mut guest) = start();
    for source in 1..1000 {
        let ack = Some(TcpSeqNumber(i32::MIN));
        guest.raw_frame(&segment_frame(source, (SERVER, 80), TcpControl::None, ack));
        guest.raw_frame(&segment_frame(source, (SERVER, 80), TcpControl::Rst, None));
        guest.raw_frame(&segment_frame(source, (SERVER, 80), TcpControl::Fin, None));
    }
    guest.ping(addresses::GATEWAY);
    assert_eq!(shim.counters().tcp_flows, 0);
}

#[test]
fn machine_that_reads_nothing_costs_bounded_memory() {
    let (shim, mut qemu) = raw();
    qemu.set_nonblocking(true).unwrap();
    // Each ping has an answer; none is read. The shim stops reading long before 256 MB.
    let ping = {
        let mut bytes = vec![8, 0, 0, 0, 0, 1, 0, 1];
        bytes.resize(1400, 0);
        let sum = !u16::from_be_bytes([8, 0]).wrapping_add(2);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        ip_frame(addresses::GATEWAY, IpProtocol::Icmp, &bytes)
    };
    let framed = [&u32::try_from(ping.len()).unwrap().to_be_bytes(), &ping[..]].concat();
    let (mut taken, mut refusals) = (0, 0);
    while refusals < 50 && taken < 256 * 1024 * 1024 {
        match qemu.write(&framed) {
            Ok(count) => taken += count,
            Err(_) => {
                refusals += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    assert!(taken < 8 * 1024 * 1024, "took {taken} bytes");
    // It still answers its manager.
    assert!(shim.counters().frames > 100);
}

/// Frames made from noise, and from good frames with noise in them, each checksum right or wrong as it falls.
fn broken_frames(count: u64) -> impl Iterator<Item = Vec<u8>> {
    let payload = noise(9, 64);
    let seeds: Vec<Vec<u8>> = vec![
        syn_frame(4000, (Ipv4Addr::new(192, 0, 2, 1), 80)),
        segment_frame(4001, (SERVER, 80), TcpControl::None, Some(TcpSeqNumber(0))),
        ip_frame(addresses::GATEWAY, IpProtocol::Icmp, &payload),
        ip_frame(addresses::GATEWAY, IpProtocol::Udp, &payload),
        ip_frame(
            Ipv4Addr::BROADCAST,
            IpProtocol::Udp,
            &[&[0, 68, 0, 67, 0, 64, 0, 0][..], &payload].concat(),
        ),
        ip_frame(SERVER, IpProtocol::Tcp, &payload),
    ];
    (0..count).map(move |round| {
        let bits = noise(round + 1, 32);
        let number = |at: usize| usize::from(u16::from_le_bytes([bits[at], bits[at + 1]]));
        let mut frame = if bits[0] < 64 {
            noise(round, number(2) % 2000)
        } else {
            seeds[number(4) % seeds.len()].clone()
        };
        for at in (6..6 + usize::from(bits[1] % 5) * 4).step_by(4) {
            if !frame.is_empty() {
                let place = number(at) % frame.len();
                frame[place] = bits[at + 2];
            }
        }
        if bits[30] < 40 {
            frame.truncate(number(28) % (frame.len() + 1));
        }
        mend(&mut frame, bits[31]);
        frame
    })
}

/// Often makes the checksums right again, so that what is broken gets past them.
fn mend(frame: &mut [u8], chance: u8) {
    use smoltcp::wire::{Icmpv4Packet, Ipv4Packet, UdpPacket};
    if chance < 64 || frame.len() < 34 {
        return;
    }
    frame[12..14].copy_from_slice(&[8, 0]);
    let Ok(mut packet) = Ipv4Packet::new_checked(&mut frame[14..]) else { return };
    let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
    let protocol = packet.next_header();
    let content = packet.payload_mut();
    match protocol {
        IpProtocol::Tcp if TcpPacket::new_checked(&*content).is_ok() => {
            TcpPacket::new_unchecked(content).fill_checksum(&from, &to);
        }
        IpProtocol::Udp if UdpPacket::new_checked(&*content).is_ok() => {
            UdpPacket::new_unchecked(content).fill_checksum(&from, &to);
        }
        IpProtocol::Icmp if Icmpv4Packet::new_checked(&*content).is_ok() => {
            Icmpv4Packet::new_unchecked(content).fill_checksum();
        }
        _ => {}
    }
    packet.fill_checksum();
}

#[test]
fn broken_frames_change_nothing_and_end_nothing() {
    let (shim, mut guest) = start();
    for frame in broken_frames(100_000) {
        guest.raw_frame(&frame);
    }
    // It answers as ever.
    guest.until(|guest| {
        guest.raw_frame(&[0; 14]);
        (shim.counters().frames > 100_000).then_some(())
    });
    let counters = shim.counters();
    assert_eq!((counters.tcp_flows, counters.udp_flows), (0, 0));
    assert!(!guest.link_ended());
}

/// Segments of live connections with everything about them wrong but the checksums.
#[test]
fn broken_segments_of_live_connections_end_no_process() {
    in_lab("broken_segments_of_live_connections_end_no_process", |world| {
        world.echo(80);
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        let good: Vec<Vec<u8>> = (0..16).map(|port| syn_frame(6000 + port, (SERVER, 80))).collect();
        for round in 0..50_000_u64 {
            let bits = noise(round + 77, 64);
            let mut frame = good[usize::from(bits[0] % 16)].clone();
            // Sequence, acknowledgement, header length, flags, window, urgent pointer, options: all but the ports.
            for (place, bit) in (38..frame.len()).zip(&bits[2..]) {
                if bit % 3 == 0 {
                    frame[place] = bits[1].wrapping_mul(*bit);
                }
            }
            frame.extend_from_slice(&bits[..usize::from(bits[63] % 64)]);
            let len = u16::try_from(frame.len() - 14).unwrap();
            frame[16..18].copy_from_slice(&len.to_be_bytes());
            mend(&mut frame, u8::MAX);
            guest.raw_frame(&frame);
            if round % 100 == 0 {
                guest.raw_frame(&good[usize::from(bits[1] % 16)]);
            }
        }
        guest.ping(addresses::GATEWAY);
        assert!(shim.counters().frames > 50_000);
        // And a connection still works.
        let socket = guest.connect(SERVER, 80).unwrap();
        guest.send(socket, b"fine");
        assert_eq!(guest.receive(socket, 4), b"fine");
    });
}
