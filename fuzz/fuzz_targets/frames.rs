//! Any bytes, cut anywhere, into the decoder.
//!
//! Input: one byte that chooses the kind of message, one that seeds where the stream is cut, then the stream.
#![no_main]

use std::fmt::Debug;

use agentiso_guest::{
    frame::{Decoder, Frame, FrameError, Message, encode},
    hello::Nonce,
    message::{Input, Reply, Request},
};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;

/// The connection's nonce; the seeds hold payloads that are sealed with it.
const NONCE: Nonce = Nonce::from_bytes(*b"0123456789abcdef");

/// A limit that some inputs exceed.
const LOW_LIMIT: u32 = 64;

fuzz_target!(|data: &[u8]| {
    let [kind, cut, stream @ ..] = data else { return };
    match kind % 4 {
        0 => check::<Request>(*cut, stream),
        1 => check::<Input>(*cut, stream),
        2 => check::<Reply>(*cut, stream),
        _ => check_limit(stream),
    }
});

fn check<M: Message + Serialize + PartialEq + Debug>(cut: u8, stream: &[u8]) {
    let (whole, failed) = decode::<M>(stream.chunks(stream.len().max(1)));
    let (pieces, failed_in_pieces) = decode::<M>(stream.chunks(usize::from(cut) + 1));
    assert_eq!(whole, pieces, "the frames depend on how the bytes are cut");
    assert_eq!(failed, failed_in_pieces);

    let mut again = Vec::new();
    for frame in &whole {
        encode(&mut again, &frame.message, &frame.payload, NONCE).expect("what was accepted can be sent");
    }
    let (decoded, failed) = decode::<M>(std::iter::once(again.as_slice()));
    assert_eq!((decoded, failed), (whole, false), "a frame changes when it is sent on");
}

/// All frames of a stream, and whether it ended in an error.
fn decode<'a, M: Message + Debug>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame<M>>, bool) {
    let mut decoder = Decoder::new(NONCE);
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.feed(piece);
        loop {
            match decoder.next_frame::<M>() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => {
                    decoder.feed(b"\0\0\0\x0e{\"re\":\"done\"}");
                    let next = decoder.next_frame::<M>();
                    assert!(matches!(next, Err(FrameError::Desynchronised)), "frames after an error: {next:?}");
                    return (frames, true);
                }
            }
        }
    }
    (frames, false)
}

/// A message over the limit is refused by its length alone.
fn check_limit(stream: &[u8]) {
    let mut decoder = Decoder::new(NONCE).with_message_limit(LOW_LIMIT);
    decoder.feed(stream);
    let first = decoder.next_frame::<Reply>();
    if let Some(length) = stream.first_chunk::<4>() {
        let length = u32::from_be_bytes(*length);
        assert!(length != 0 && length <= LOW_LIMIT || first.is_err(), "{length} bytes: {first:?}");
    }
}
