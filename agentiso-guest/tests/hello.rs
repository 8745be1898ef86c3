//! The first exchange: found behind anything, and only there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must stop")]

use agentiso_guest::frame::encode_plain;
use agentiso_guest::hello::{
    Hello, HelloError, HelloScanner, NONCE_BYTES, Nonce, Verdict, Welcome, WelcomeScanner, ends_with_hello,
};
use agentiso_guest::limits::MAX_HELLO_SIZE;
use proptest::collection::vec;
use proptest::prelude::*;

fn welcome(nonce: Nonce) -> Welcome {
    let (agent, verdict) = ("0.1.0".to_owned(), Verdict::Accepted);
    Welcome { welcome: nonce, generation: 1, agent, verdict, request: false, proof: None }
}

fn encoded<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_plain(&mut bytes, message).unwrap();
    bytes
}

fn nonce() -> impl Strategy<Value = Nonce> {
    any::<[u8; NONCE_BYTES]>().prop_map(Nonce::from_bytes)
}

/// Garbage that is full of what a hello is made of.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        vec(any::<u8>(), 0..100),
        Just(b"\0\0\0\x42{\"hello\":\"".to_vec()),
        Just(b"\0\0\x03\xff{\"hello\":\"0123".to_vec()),
        Just(b"{\"welcome\":\"".to_vec()),
        Just(b"{\"hello\":\"".to_vec()),
        Just(b"{".to_vec()),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn welcome_is_found_behind_any_garbage_in_any_pieces(
        nonce in nonce(),
        garbage in garbage(),
        behind in vec(any::<u8>(), 0..50),
        size in 1_usize..300,
    ) {
        let stream = [garbage, encoded(&welcome(nonce)), behind.clone()].concat();
        let mut scanner = WelcomeScanner::new(nonce);
        let mut pieces = stream.chunks(size);

        let (found, rest) = pieces.find_map(|piece| scanner.feed(piece).unwrap()).unwrap();

        let rest: Vec<u8> = rest.into_iter().chain(pieces.flatten().copied()).collect();
        prop_assert_eq!(found, welcome(nonce));
        prop_assert_eq!(rest, behind);
    }

    #[test]
    fn welcome_to_another_hello_is_passed_over(mine in nonce(), other in nonce()) {
        prop_assume!(mine != other);
        let mut scanner = WelcomeScanner::new(mine);

        let found = scanner.feed(&encoded(&welcome(other))).unwrap();

        prop_assert!(found.is_none());
    }

    #[test]
    fn hello_sent_again_is_found_behind_any_garbage_in_any_pieces(
        nonce in nonce(),
        garbage in garbage(),
        size in 1_usize..300,
    ) {
        // Garbage may look like a hello that is not complete yet; it ends once as much has come as it announces.
        let hello = Hello { hello: nonce, generation: 1, request: false, proof: None };
        let repeated = encoded(&hello).repeat(2 + MAX_HELLO_SIZE as usize / 60);
        let stream = [garbage, repeated].concat();
        let mut scanner = HelloScanner::new();

        let found = stream.chunks(size).find_map(|piece| scanner.feed(piece));

        prop_assert_eq!(found.unwrap().0, hello);
    }

    #[test]
    fn hello_at_the_beginning_is_found_with_what_follows(
        nonce in nonce(),
        behind in vec(any::<u8>(), 0..50),
        size in 1_usize..100,
    ) {
        let hello = Hello { hello: nonce, generation: 1, request: false, proof: None };
        let stream = [encoded(&hello), behind.clone()].concat();
        let mut scanner = HelloScanner::new();
        let mut pieces = stream.chunks(size);

        let (found, rest) = pieces.find_map(|piece| scanner.feed(piece)).unwrap();

        let rest: Vec<u8> = rest.into_iter().chain(pieces.flatten().copied()).collect();
        prop_assert_eq!(found, hello);
        prop_assert_eq!(rest, behind);
    }

    #[test]
    fn scanners_never_panic(pieces in vec(garbage(), 0..10)) {
        let mut hello = HelloScanner::new();
        let mut welcome = WelcomeScanner::new(Nonce::from_bytes([1; NONCE_BYTES]));
        for piece in pieces {
            let _ = hello.feed(&piece);
            let _ = welcome.feed(&piece);
            ends_with_hello(&piece);
        }
    }
}

#[test]
fn hello_behind_what_only_looks_like_one_is_found_at_once() {
    let hello =
        Hello { hello: Nonce::from_bytes([5; NONCE_BYTES]), generation: 1, request: false, proof: None };
    let stream = [b"\0\0\x04\0{\"hello\":\"zz".to_vec(), encoded(&hello)].concat();
    let mut scanner = HelloScanner::new();

    assert_eq!(scanner.feed(&stream).unwrap().0, hello);
}

#[test]
fn endless_garbage_is_not_kept() {
    let mut scanner = HelloScanner::new();
    let mut welcome = WelcomeScanner::new(Nonce::from_bytes([1; NONCE_BYTES]));

    for _ in 0..1000 {
        assert!(scanner.feed(&[b'{'; 4096]).is_none());
        assert!(welcome.feed(&[b'{'; 4096]).unwrap().is_none());
    }

    // A scanner shows no more of itself than its Debug output.
    assert!(format!("{scanner:?}{welcome:?}").len() < 2000);
}

#[test]
fn welcome_that_announces_too_much_is_an_error() {
    let nonce = Nonce::from_bytes([1; NONCE_BYTES]);
    let mut bytes = encoded(&welcome(nonce));
    bytes[..4].copy_from_slice(&(MAX_HELLO_SIZE + 1).to_be_bytes());

    let error = WelcomeScanner::new(nonce).feed(&bytes).unwrap_err();

    assert!(matches!(error, HelloError::TooLong { .. }));
}

#[test]
fn welcome_without_a_length_is_an_error() {
    let nonce = Nonce::from_bytes([1; NONCE_BYTES]);
    let bytes = encoded(&welcome(nonce));

    let error = WelcomeScanner::new(nonce).feed(&bytes[4..]).unwrap_err();

    assert!(matches!(error, HelloError::NoLength));
}

#[test]
fn welcome_with_its_nonce_first_is_what_is_sent() {
    let bytes = encoded(&welcome(Nonce::from_bytes([0xab; NONCE_BYTES])));

    assert!(bytes[4..].starts_with(b"{\"welcome\":\"abababababababababababababababab\""));
}

#[test]
fn nonce_of_another_form_is_refused() {
    for text in ["", "ab", &"AB".repeat(16), &"ab".repeat(17), &"zz".repeat(16), &"é".repeat(16)] {
        assert_eq!(Nonce::from_hex(text), None, "{text}");
    }
    assert_eq!(Nonce::from_hex(&"0f".repeat(16)), Some(Nonce::from_bytes([15; NONCE_BYTES])));
}
