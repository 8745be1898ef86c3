//! Any bytes before, around and after a welcome, cut anywhere.
//!
//! Input: a byte of flags, one that seeds where the stream is cut, one that says how much of the rest comes before the
//! welcome, then that rest.
#![no_main]

use agentiso_guest::{
    PROTOCOL_GENERATION,
    frame::encode_plain,
    hello::{Hello, HelloError, Nonce, Verdict, Welcome, WelcomeScanner},
};
use libfuzzer_sys::fuzz_target;

const NONCE: Nonce = Nonce::from_bytes(*b"0123456789abcdef");

fuzz_target!(|data: &[u8]| {
    let [flags, cut, before, rest @ ..] = data else { return };
    let cut = usize::from(*cut) + 1;
    let (garbage, tail) = rest.split_at(rest.len() * usize::from(*before) / 255);
    if flags & 1 == 0 {
        arbitrary_bytes(cut, rest);
    } else {
        welcome_in_garbage(cut, garbage, tail);
    }
    parse_alone(rest);
});

/// Without the nonce no welcome is ever found.
fn arbitrary_bytes(cut: usize, stream: &[u8]) {
    let mut scanner = WelcomeScanner::new(NONCE);
    let knows_nonce = contains(stream, NONCE.to_hex().as_bytes());
    for piece in stream.chunks(cut) {
        match scanner.feed(piece) {
            Ok(None) => {}
            Ok(Some((welcome, _))) => {
                assert_eq!(welcome.welcome, NONCE);
                assert!(knows_nonce, "a welcome out of nothing");
                return;
            }
            Err(HelloError::NoLength | HelloError::TooLong { .. } | HelloError::Malformed(_)) => {
                assert!(knows_nonce, "an error about a welcome that was never there");
                return;
            }
        }
    }
}

/// A sound welcome is found behind any garbage that does not know the nonce, and what follows is given back whole.
fn welcome_in_garbage(cut: usize, garbage: &[u8], tail: &[u8]) {
    if contains(garbage, NONCE.to_hex().as_bytes()) {
        return;
    }
    let welcome = Welcome {
        welcome: NONCE,
        generation: PROTOCOL_GENERATION,
        agent: "fuzz".to_owned(),
        verdict: Verdict::Accepted,
        request: false,
        proof: None,
    };
    let mut stream = garbage.to_vec();
    encode_plain(&mut stream, &welcome).expect("a welcome can be sent");
    stream.extend_from_slice(tail);

    let mut scanner = WelcomeScanner::new(NONCE);
    let mut found = None;
    for piece in stream.chunks(cut) {
        match &mut found {
            None => found = scanner.feed(piece).expect("nothing is wrong with the welcome"),
            Some((_, rest)) => rest.extend_from_slice(piece),
        }
    }
    let (found, rest) = found.expect("the welcome is there");
    assert_eq!(found, welcome);
    assert_eq!(rest, tail);
}

/// Any text as a hello, a welcome and a nonce: accepted only if it comes back the same.
fn parse_alone(bytes: &[u8]) {
    if let Ok(hello) = serde_json::from_slice::<Hello>(bytes) {
        let text = serde_json::to_vec(&hello).expect("a hello can be sent");
        assert_eq!(serde_json::from_slice::<Hello>(&text).expect("the same hello"), hello);
    }
    if let Ok(welcome) = serde_json::from_slice::<Welcome>(bytes) {
        let text = serde_json::to_vec(&welcome).expect("a welcome can be sent");
        assert_eq!(serde_json::from_slice::<Welcome>(&text).expect("the same welcome"), welcome);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(nonce) = Nonce::from_hex(text)
    {
        assert_eq!(nonce.to_hex(), text);
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
