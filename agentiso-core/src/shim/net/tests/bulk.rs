//! A lot of data, unchanged.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::mpsc,
    time::Instant,
};

use super::{
    DEADLINE, internet,
    lab::{SERVER, in_lab},
    noise, start,
};

const BYTES: usize = 50 * 1024 * 1024;

fn said(what: &str, begin: Instant) {
    let seconds = begin.elapsed().as_secs_f64();
    let rate = f64::from(u32::try_from(BYTES).unwrap()) / seconds / 1e6;
    eprintln!(
        "{what}: {rate:.0} MB/s ({})",
        if cfg!(debug_assertions) { "not optimised" } else { "optimised" }
    );
}

#[test]
fn fifty_megabytes_come_and_go_unchanged() {
    in_lab("fifty_megabytes_come_and_go_unchanged", |world| {
        let (received, at_server) = mpsc::channel();
        world.serve(80, move |mut stream| {
            let mut bytes = Vec::with_capacity(BYTES);
            stream.read_to_end(&mut bytes).unwrap();
            received.send(bytes).unwrap();
        });
        world.serve(81, |mut stream| stream.write_all(&noise(2, BYTES)).unwrap());
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);

        let sent = noise(1, BYTES);
        let upload = guest.connect(SERVER, 80).unwrap();
        let begin = Instant::now();
        guest.send(upload, &sent);
        guest.tcp(upload).close();
        let bytes = guest.until(|_| at_server.try_recv().ok());
        said("machine to internet", begin);
        assert!(bytes == sent);

        let download = guest.connect(SERVER, 81).unwrap();
        let begin = Instant::now();
        let bytes = guest.receive(download, BYTES);
        said("internet to machine", begin);
        assert!(bytes == noise(2, BYTES));
        assert!(guest.ended_well(download));
    });
}

#[test]
fn both_directions_of_a_forward_at_once_stay_unchanged() {
    let (shim, mut guest) = start();
    let server = guest.listen(80);
    let stream = TcpStream::connect(("127.0.0.1", shim.forwarded(80))).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
    let bytes = noise(3, BYTES / 5);
    let (to_guest, from_guest) = (bytes.clone(), bytes.clone());
    let sends = std::thread::spawn(move || writer.write_all(&to_guest).unwrap());
    let receives = std::thread::spawn(move || {
        let mut bytes = vec![0; BYTES / 5];
        reader.read_exact(&mut bytes).unwrap();
        bytes
    });
    guest.established(server);
    let mut got = Vec::new();
    let mut rest = &from_guest[..];
    guest.until(|guest| {
        let socket = guest.tcp(server);
        rest = &rest[socket.send_slice(rest).unwrap()..];
        let mut chunk = vec![0; 65536];
        let count = socket.recv_slice(&mut chunk).unwrap();
        got.extend_from_slice(&chunk[..count]);
        (rest.is_empty() && got.len() == bytes.len()).then_some(())
    });
    sends.join().unwrap();
    guest.until(|_| receives.is_finished().then_some(()));
    assert!(receives.join().unwrap() == bytes);
    assert!(got == bytes);
}

#[test]
fn echo_of_more_than_the_buffers_comes_back() {
    in_lab("echo_of_more_than_the_buffers_comes_back", |world| {
        world.echo(80);
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        let socket = guest.connect(SERVER, 80).unwrap();
        let bytes = noise(5, 300_000);
        guest.send(socket, &bytes);
        assert!(guest.receive(socket, bytes.len()) == bytes);
    });
}
