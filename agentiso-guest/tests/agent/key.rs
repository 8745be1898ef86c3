//! A socket that serves only hosts that know a key, as vsock does.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use agentiso_guest::PROTOCOL_GENERATION;
use agentiso_guest::frame::{encode, encode_plain};
use agentiso_guest::hello::{Hello, Nonce, Verdict, Welcome, WelcomeScanner};
use agentiso_guest::key::{KEY_BYTES, MachineKey, Proof, Side};
use agentiso_guest::message::Request;

use crate::client::{Agent, LIMIT, fresh_nonce};

const RIGHT: MachineKey = MachineKey::from_bytes([0x5a; KEY_BYTES]);
const WRONG: MachineKey = MachineKey::from_bytes([0x5b; KEY_BYTES]);

/// Says hello and, in the same breath, asks for a file to be made; returns all that is answered before the agent hangs
/// up, and whether the file was made.
fn exchange(agent: &Agent, nonce: Nonce, proof: Option<Proof>) -> (Vec<u8>, bool) {
    let made = agent.text_path("made");
    let mut socket = UnixStream::connect(agent.socket()).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = Vec::new();
    let hello = Hello { hello: nonce, generation: PROTOCOL_GENERATION, request: true, proof };
    encode_plain(&mut bytes, &hello).unwrap();
    let request = crate::client::exec(&["/bin/sh", "-c", &format!("echo made > {made}")]);
    encode(&mut bytes, &request, &[], nonce).unwrap();
    socket.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    // An agent that hangs up with unread input resets the connection.
    let _ = socket.read_to_end(&mut answer);
    (answer, std::path::Path::new(&made).exists())
}

fn welcome_in(answer: &[u8], nonce: Nonce) -> Option<Welcome> {
    WelcomeScanner::new(nonce).feed(answer).unwrap().map(|(welcome, _)| welcome)
}

#[test]
fn host_that_knows_the_key_is_served_and_gets_the_agents_proof() {
    let agent = Agent::start_with_key(RIGHT.as_bytes());
    let nonce = fresh_nonce();

    let (answer, is_made) = exchange(&agent, nonce, Some(RIGHT.proof(Side::Host, nonce)));

    let welcome = welcome_in(&answer, nonce).unwrap();
    assert_eq!(welcome.verdict, Verdict::Accepted);
    assert!(RIGHT.is_proven(Side::Agent, nonce, &welcome.proof.unwrap()));
    assert!(is_made);
}

#[test]
fn whoever_proves_nothing_gets_nothing() {
    let agent = Agent::start_with_key(RIGHT.as_bytes());

    let (answer, is_made) = exchange(&agent, fresh_nonce(), None);

    assert_eq!(answer, b"");
    assert!(!is_made);
}

#[test]
fn wrong_key_is_refused_and_nothing_is_carried_out() {
    let agent = Agent::start_with_key(RIGHT.as_bytes());
    let (nonce, other) = (fresh_nonce(), fresh_nonce());
    let proofs = [
        WRONG.proof(Side::Host, nonce),
        // The agent's own, and that of another connection.
        RIGHT.proof(Side::Agent, nonce),
        RIGHT.proof(Side::Host, other),
    ];
    for proof in proofs {
        let (answer, is_made) = exchange(&agent, nonce, Some(proof));

        let welcome = welcome_in(&answer, nonce).unwrap();
        assert_eq!(welcome.verdict, Verdict::WrongKey);
        assert_eq!((welcome.proof, welcome.agent.as_str(), welcome.request), (None, "", false));
        assert!(!is_made);
    }
}

#[test]
fn key_that_changes_is_the_one_that_counts() {
    let agent = Agent::start_with_key(WRONG.as_bytes());
    std::fs::write(agent.path("key"), RIGHT.as_bytes()).unwrap();
    let nonce = fresh_nonce();

    let (refused, _) = exchange(&agent, nonce, Some(WRONG.proof(Side::Host, nonce)));
    let (served, is_made) = exchange(&agent, nonce, Some(RIGHT.proof(Side::Host, nonce)));

    assert_eq!(welcome_in(&refused, nonce).unwrap().verdict, Verdict::WrongKey);
    assert_eq!(welcome_in(&served, nonce).unwrap().verdict, Verdict::Accepted);
    assert!(is_made);
}

#[test]
fn next_connection_on_the_same_socket_proves_anew() {
    let agent = Agent::start_with_key(RIGHT.as_bytes());
    let (first, second) = (fresh_nonce(), fresh_nonce());
    let mut socket = UnixStream::connect(agent.socket()).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = Vec::new();
    let hello = |nonce, proof| Hello { hello: nonce, generation: PROTOCOL_GENERATION, request: false, proof };
    encode_plain(&mut bytes, &hello(first, Some(RIGHT.proof(Side::Host, first)))).unwrap();
    encode(&mut bytes, &Request::Ping, &[], first).unwrap();
    encode_plain(&mut bytes, &hello(second, None)).unwrap();
    encode(&mut bytes, &Request::Ping, &[], second).unwrap();
    socket.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);

    assert_eq!(welcome_in(&answer, first).unwrap().verdict, Verdict::Accepted);
    assert!(welcome_in(&answer, second).is_none());
}

#[test]
fn without_a_key_of_its_own_the_agent_serves_nobody() {
    let agent = Agent::start_with_key(b"too short");
    let nonce = fresh_nonce();

    let (answer, is_made) = exchange(&agent, nonce, Some(RIGHT.proof(Side::Host, nonce)));

    assert_eq!(welcome_in(&answer, nonce).unwrap().verdict, Verdict::WrongKey);
    assert!(!is_made);
}
