//! Any JSON as each kind of message: what is accepted comes back the same.
//!
//! Input: a byte that chooses the kind, then the text.
#![no_main]

use std::fmt::Debug;

use agentiso_guest::{
    frame::{Message, OrHello, Skipped},
    message::{Input, Reply, Request},
};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;

fuzz_target!(|data: &[u8]| {
    let [kind, body @ ..] = data else { return };
    match kind % 3 {
        0 => check::<Request>(body),
        1 => check::<Input>(body),
        _ => check::<Reply>(body),
    }
});

fn check<M: Message + Serialize + PartialEq + Debug>(body: &[u8]) {
    let message = M::from_json(body);
    // Whoever passes messages over must agree with whoever reads them on where the next one begins.
    let passed_over = Skipped::from_json(body).map(|message| message.payload_len()).ok();
    if let Ok(message) = &message {
        assert_eq!(passed_over, Some(message.payload_len()), "two ideas of where a message ends");
        let text = serde_json::to_vec(message).expect("what was accepted can be sent");
        assert_eq!(&M::from_json(&text).expect("the same message"), message);
        // Nothing of it may reach a log but what is meant to.
        let _ = format!("{message:?}");
    }
    match (OrHello::<M>::from_json(body), message) {
        (Ok(OrHello::Message(one)), Ok(other)) => assert_eq!(one, other),
        (Ok(OrHello::Hello(_)), Err(_)) | (Err(_), Err(_)) => {}
        (one, other) => panic!("a message depends on who reads it: {one:?}, {other:?}"),
    }
}
