//! Requests that go out with their hello: carried out once, or never.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use agentiso_guest::PROTOCOL_GENERATION;
use agentiso_guest::frame::{encode, encode_plain};
use agentiso_guest::hello::{Hello, Nonce};
use agentiso_guest::message::{ErrorCode, Request};

use crate::client::{Agent, Connection, LIMIT, exec, fresh_nonce, hello_bytes};

/// A hello and the request behind it.
fn together(nonce: Nonce, request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_plain(
        &mut bytes,
        &Hello { hello: nonce, generation: PROTOCOL_GENERATION, request: true, proof: None },
    )
    .unwrap();
    encode(&mut bytes, request, &[], nonce).unwrap();
    bytes
}

/// A request that leaves a line each time it is carried out.
fn line(agent: &Agent) -> Request {
    exec(&["/bin/sh", "-c", &format!("echo x >> {}", agent.text_path("lines"))])
}

fn lines(agent: &Agent) -> usize {
    std::fs::read(agent.path("lines")).map_or(0, |text| text.len() / 2)
}

fn send(agent: &Agent, bytes: &[u8]) -> UnixStream {
    let mut socket = UnixStream::connect(agent.socket()).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.write_all(bytes).unwrap();
    socket
}

fn read_all(mut socket: UnixStream) -> String {
    let mut all = Vec::new();
    // A reset is an end too.
    let _ = socket.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn request_with_its_hello_is_carried_out_and_the_welcome_says_so() {
    let agent = Agent::start();

    let answer = read_all(send(&agent, &together(fresh_nonce(), &line(&agent))));

    assert!(answer.contains("\"request\":true") && answer.contains("\"code\":0"), "{answer}");
    assert_eq!(lines(&agent), 1);
}

#[test]
fn repetition_of_the_hello_does_not_carry_it_out_again() {
    let agent = Agent::start();
    let nonce = fresh_nonce();
    let mut bytes = together(nonce, &line(&agent));
    bytes.extend(hello_bytes(nonce, PROTOCOL_GENERATION).repeat(3));

    let answer = read_all(send(&agent, &bytes));

    assert_eq!(answer.matches("welcome").count(), 1, "{answer}");
    assert_eq!(lines(&agent), 1);
}

#[test]
fn welcome_to_a_hello_alone_promises_no_request() {
    let agent = Agent::start();
    let (mut connection, welcome) = Connection::greet(UnixStream::connect(agent.socket()).unwrap());

    connection.request(&line(&agent));
    connection.answer();

    assert!(!welcome.request);
    assert_eq!(lines(&agent), 1);
}

#[test]
fn void_request_is_never_carried_out() {
    let agent = Agent::start();
    let nonce = fresh_nonce();
    assert!(agent.ask(&Request::Void { nonce }).is_done());

    let answer = read_all(send(&agent, &together(nonce, &line(&agent))));

    assert_eq!(answer, "");
    assert_eq!(lines(&agent), 0);
}

#[test]
fn request_that_was_begun_cannot_be_made_void() {
    let agent = Agent::start();
    let nonce = fresh_nonce();
    read_all(send(&agent, &together(nonce, &line(&agent))));

    let answer = agent.ask(&Request::Void { nonce });

    assert_eq!(answer.error().0, ErrorCode::Conflict);
    assert_eq!(lines(&agent), 1);
}

#[test]
fn channel_with_a_void_request_serves_the_next_hello() {
    let agent = Agent::start();
    let nonce = fresh_nonce();
    assert!(agent.ask(&Request::Void { nonce }).is_done());
    let socket = send(&agent, &together(nonce, &line(&agent)));

    let (mut connection, _) = Connection::greet(socket);
    connection.request(&Request::Ping);

    assert!(connection.answer().is_done());
    assert_eq!(lines(&agent), 0);
}
