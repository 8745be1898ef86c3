//! Messages to bytes and back: any content, any split, any truncation, any length.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must stop")]

use agentiso_guest::frame::{
    Decoder, Frame, FrameError, LENGTH_BYTES, Message as _, OrHello, Skipped, encode, encode_plain,
};
use agentiso_guest::hello::{Hello, NONCE_BYTES, Nonce};
use agentiso_guest::limits::{MAX_MESSAGE_SIZE, MAX_PAYLOAD_SIZE};
use agentiso_guest::message::{Command, Configuration, ErrorCode, Exit, Input, Reply, Request};
use proptest::collection::vec;
use proptest::prelude::*;

const NONCE: Nonce = Nonce::from_bytes([7; NONCE_BYTES]);

fn with_length(length: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn decode_all(decoder: &mut Decoder) -> Vec<Frame<Reply>> {
    std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
}

fn reply() -> impl Strategy<Value = (Reply, Vec<u8>)> {
    let data = || vec(any::<u8>(), 0..5000);
    let length = |data: &Vec<u8>| u32::try_from(data.len()).unwrap();
    prop_oneof![
        data().prop_map(move |data| (Reply::Stdout { payload: length(&data) }, data)),
        data().prop_map(move |data| (Reply::Stderr { payload: length(&data) }, data)),
        data().prop_map(move |data| (Reply::Data { payload: length(&data) }, data)),
        any::<u8>().prop_map(|code| (Reply::Exited { exit: Exit::Code(code) }, Vec::new())),
        ".*".prop_map(|message| (Reply::Error { code: ErrorCode::Failed, message }, Vec::new())),
        Just((Reply::Done, Vec::new())),
    ]
}

proptest! {
    #[test]
    fn any_replies_in_any_pieces_come_back_unchanged(
        replies in vec(reply(), 1..8),
        cuts in vec(1_usize..3000, 1..40),
    ) {
        let mut bytes = Vec::new();
        for (reply, payload) in &replies {
            encode(&mut bytes, reply, payload, NONCE).unwrap();
        }
        let mut decoder = Decoder::new(NONCE);
        let mut received = Vec::new();

        let mut rest = bytes.as_slice();
        for cut in cuts.iter().cycle() {
            let (piece, behind) = rest.split_at((*cut).min(rest.len()));
            decoder.feed(piece);
            received.extend(decode_all(&mut decoder).into_iter().map(|frame| (frame.message, frame.payload)));
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }

        prop_assert_eq!(received, replies);
        prop_assert!(!decoder.is_mid_message());
    }

    #[test]
    fn truncated_message_gives_nothing_and_no_error((reply, payload) in reply(), cut in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        encode(&mut bytes, &reply, &payload, NONCE).unwrap();
        let cut = cut.index(bytes.len());
        let mut decoder = Decoder::new(NONCE);

        decoder.feed(&bytes[..cut]);

        prop_assert_eq!(decoder.next_frame::<Reply>().unwrap(), None);
        prop_assert_eq!(decoder.is_mid_message(), cut > 0);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_an_error_is_final(pieces in vec(vec(any::<u8>(), 0..200), 0..20)) {
        let mut decoder = Decoder::new(NONCE);
        let mut failed = false;
        for piece in pieces {
            decoder.feed(&piece);
            match decoder.next_frame::<Request>() {
                Ok(_) => prop_assert!(!failed),
                Err(_) => failed = true,
            }
        }
    }

    #[test]
    fn any_command_comes_back_unchanged(argv in vec(".*", 1..5), env in prop::collection::btree_map(".*", ".*", 0..5)) {
        let request = Request::Exec {
            command: Command { argv, env, workdir: None },
            stdin: true,
            tty: None,
            timeout_ms: Some(u64::MAX),
        };
        let mut bytes = Vec::new();
        encode(&mut bytes, &request, &[], NONCE).unwrap();
        let mut decoder = Decoder::new(NONCE);
        decoder.feed(&bytes);

        let frame = decoder.next_frame::<Request>().unwrap().unwrap();

        prop_assert_eq!(frame.message, request);
    }
}

#[test]
fn length_of_zero_is_an_error() {
    let mut decoder = Decoder::new(NONCE);

    decoder.feed(&with_length(0, b"{}"));

    assert!(matches!(decoder.next_frame::<Reply>(), Err(FrameError::Empty)));
}

#[test]
fn length_above_the_limit_is_an_error_before_anything_is_kept() {
    for length in [MAX_MESSAGE_SIZE + 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let mut decoder = Decoder::new(NONCE);

        decoder.feed(&length.to_be_bytes());

        let error = decoder.next_frame::<Reply>().unwrap_err();
        assert!(matches!(error, FrameError::MessageTooLong { length: found } if found == length), "{error}");
        assert_eq!(decoder.buffered(), 0);
    }
}

#[test]
fn length_of_one_is_malformed_json() {
    let mut decoder = Decoder::new(NONCE);

    decoder.feed(&with_length(1, b"{"));

    assert!(matches!(decoder.next_frame::<Reply>(), Err(FrameError::Malformed(_))));
}

#[test]
fn message_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let text = |length: usize| Reply::Error { code: ErrorCode::Failed, message: "x".repeat(length) };
    let mut empty = Vec::new();
    encode(&mut empty, &text(0), &[], NONCE).unwrap();
    let room = MAX_MESSAGE_SIZE as usize - (empty.len() - LENGTH_BYTES);
    let mut bytes = Vec::new();

    encode(&mut bytes, &text(room), &[], NONCE).unwrap();
    let refused = encode(&mut Vec::new(), &text(room + 1), &[], NONCE);

    assert!(matches!(refused, Err(FrameError::MessageTooLong { .. })));
    let mut decoder = Decoder::new(NONCE);
    decoder.feed(&bytes);
    assert_eq!(decoder.next_frame::<Reply>().unwrap().unwrap().message, text(room));
}

#[test]
fn announced_length_allocates_nothing() {
    let mut decoder = Decoder::new(NONCE);

    decoder.feed(&with_length(MAX_MESSAGE_SIZE, b"{"));

    assert_eq!(decoder.next_frame::<Reply>().unwrap(), None);
    assert_eq!(decoder.buffered(), LENGTH_BYTES + 1);
}

#[test]
fn payload_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let data = vec![1; MAX_PAYLOAD_SIZE as usize];
    let mut bytes = Vec::new();

    encode(&mut bytes, &Reply::Data { payload: MAX_PAYLOAD_SIZE }, &data, NONCE).unwrap();
    let refused = encode(&mut Vec::new(), &Reply::Data { payload: MAX_PAYLOAD_SIZE + 1 }, &[], NONCE);

    assert!(matches!(refused, Err(FrameError::PayloadTooLong { .. })));
    let mut decoder = Decoder::new(NONCE);
    decoder.feed(&bytes);
    assert_eq!(decoder.next_frame::<Reply>().unwrap().unwrap().payload, data);
}

#[test]
fn announced_payload_above_the_limit_is_an_error() {
    for payload in [MAX_PAYLOAD_SIZE + 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let body = format!("{{\"re\":\"data\",\"payload\":{payload}}}");
        let mut decoder = Decoder::new(NONCE);

        decoder.feed(&with_length(u32::try_from(body.len()).unwrap(), body.as_bytes()));

        assert!(matches!(decoder.next_frame::<Reply>(), Err(FrameError::PayloadTooLong { .. })));
    }
}

#[test]
fn payload_of_another_length_than_announced_is_not_encoded() {
    let mut bytes = vec![9];

    let refused = encode(&mut bytes, &Reply::Data { payload: 2 }, &[1], NONCE);

    assert!(matches!(refused, Err(FrameError::PayloadMismatch { announced: 2, given: 1 })));
    assert_eq!(bytes, [9]);
}

#[test]
fn payload_sealed_with_another_nonce_is_an_error() {
    let mut bytes = Vec::new();
    encode(&mut bytes, &Input::Data { payload: 3 }, b"abc", Nonce::from_bytes([8; NONCE_BYTES])).unwrap();
    let mut decoder = Decoder::new(NONCE);

    decoder.feed(&bytes);

    assert!(matches!(decoder.next_frame::<Input>(), Err(FrameError::WrongSeal)));
    assert!(matches!(decoder.next_frame::<Input>(), Err(FrameError::Desynchronised)));
}

#[test]
fn hello_in_place_of_input_is_seen() {
    let hello =
        Hello { hello: Nonce::from_bytes([8; NONCE_BYTES]), generation: 1, request: false, proof: None };
    let mut bytes = Vec::new();
    encode_plain(&mut bytes, &hello).unwrap();
    encode(&mut bytes, &Input::End, &[], NONCE).unwrap();
    let mut decoder = Decoder::new(NONCE);
    decoder.feed(&bytes);

    let first = decoder.next_frame::<OrHello<Input>>().unwrap().unwrap();
    let second = decoder.next_frame::<OrHello<Input>>().unwrap().unwrap();

    assert_eq!(first.message, OrHello::Hello(hello));
    assert_eq!(second.message, OrHello::Message(Input::End));
}

#[test]
fn unknown_message_is_passed_over_with_its_payload_but_a_hello_is_not() {
    let hello =
        Hello { hello: Nonce::from_bytes([8; NONCE_BYTES]), generation: 1, request: false, proof: None };
    let mut bytes = Vec::new();
    encode(&mut bytes, &Input::Stdin { payload: 3 }, b"abc", NONCE).unwrap();
    encode(&mut bytes, &Request::Ping, &[], NONCE).unwrap();
    encode_plain(&mut bytes, &hello).unwrap();
    let mut decoder = Decoder::new(NONCE);
    decoder.feed(&bytes);

    let mut next = || decoder.next_frame::<OrHello<Skipped>>().unwrap().unwrap().message;

    assert!(matches!(next(), OrHello::Message(_)));
    assert!(matches!(next(), OrHello::Message(_)));
    assert_eq!(next(), OrHello::Hello(hello));
}

#[test]
fn message_interrupted_by_a_hello_is_noticed() {
    let mut hello = Vec::new();
    encode_plain(&mut hello, &Hello { hello: NONCE, generation: 1, request: false, proof: None }).unwrap();
    let mut bytes = Vec::new();
    encode(&mut bytes, &Input::Data { payload: 5000 }, &[0; 5000], NONCE).unwrap();
    let mut decoder = Decoder::new(NONCE);
    decoder.feed(&bytes[..2000]);
    assert_eq!(decoder.next_frame::<Input>().unwrap(), None);
    assert!(!decoder.is_interrupted_by_hello());

    decoder.feed(&hello);
    assert!(decoder.is_interrupted_by_hello());

    decoder.feed(b"x");
    assert!(!decoder.is_interrupted_by_hello());
}

/// What is passed over must end where it ends for whoever reads it.
#[test]
fn message_of_a_word_alone_has_nothing_else_in_it() {
    for word in ["ping", "job_list", "env_clear", "sync", "info"] {
        assert!(Request::from_json(format!(r#"{{"op":"{word}"}}"#).as_bytes()).is_ok(), "{word}");
        for more in [r#""payload":5"#, r#""hello":[]"#, r#""else":1"#] {
            let body = format!(r#"{{"op":"{word}",{more}}}"#);
            assert!(Request::from_json(body.as_bytes()).is_err(), "{body}");
        }
    }
    for word in ["stdin_end", "end"] {
        assert!(Input::from_json(format!(r#"{{"in":"{word}"}}"#).as_bytes()).is_ok(), "{word}");
        assert!(Input::from_json(format!(r#"{{"in":"{word}","payload":5}}"#).as_bytes()).is_err(), "{word}");
    }
    assert!(Reply::from_json(br#"{"re":"done"}"#).is_ok());
    assert!(Reply::from_json(br#"{"re":"done","payload":5}"#).is_err());
}

#[test]
fn configure_is_one_flat_object_and_unknown_fields_are_refused() {
    let request = Request::Configure(Box::new(Configuration { grow_root: true, ..Configuration::default() }));

    let json = serde_json::to_string(&request).unwrap();

    assert_eq!(json, r#"{"op":"configure","grow_root":true}"#);
    assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), request);
    assert!(serde_json::from_str::<Request>(r#"{"op":"configure","grow":true}"#).is_err());
    assert!(serde_json::from_str::<Request>(r#"{"op":"thaw_all"}"#).is_err());
}

#[test]
fn debug_output_shows_no_values() {
    let secret = "hunter2";
    let command = Command {
        argv: vec!["true".to_owned()],
        env: [("TOKEN".to_owned(), secret.to_owned())].into(),
        workdir: None,
    };
    let set = Request::EnvSet { vars: [("TOKEN".to_owned(), Some(secret.to_owned()))].into() };
    let entropy = Configuration { entropy: Some("abcdef01".to_owned()), ..Configuration::default() };
    let frame = Frame { message: Input::Stdin { payload: 7 }, payload: secret.as_bytes().to_vec() };

    let shown =
        format!("{command:?} {set:?} {entropy:?} {frame:?} {:?}", Nonce::from_bytes([0xab; NONCE_BYTES]));

    assert!(shown.contains("TOKEN") && shown.contains("7 bytes"), "{shown}");
    for hidden in [secret, "abcdef01", "abab", "104, 117"] {
        assert!(!shown.contains(hidden), "{hidden} in {shown}");
    }
}

#[test]
fn every_request_has_the_name_that_its_json_has() {
    let requests = [
        Request::Ping,
        Request::JobList,
        Request::JobPoll { job: 1 },
        Request::JobSignal { job: 1, signal: 9 },
        Request::FileStat { path: "/".to_owned() },
        Request::EnvClear,
        Request::Configure(Box::default()),
        Request::Shutdown { grace_ms: 1 },
        Request::Info,
    ];
    for request in requests {
        let json = serde_json::to_value(&request).unwrap();
        assert_eq!(json["op"], request.name());
    }
}
