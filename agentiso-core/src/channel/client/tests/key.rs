//! Machines that anybody can connect to, and that anybody could pretend to be.

use agentiso_guest::{
    hello::Verdict,
    key::{KEY_BYTES, MachineKey, Side},
    message::Reply,
};

use super::fake::client_with_key;
use crate::channel::client::GuestError;

fn key() -> MachineKey {
    MachineKey::from_bytes([3; KEY_BYTES])
}

#[tokio::test]
async fn each_side_proves_that_it_knows_the_key_on_every_connection() {
    let client = client_with_key(key(), |_, mut agent| async move {
        loop {
            let nonce = agent.hello().await;
            assert!(key().is_proven(Side::Host, nonce, &agent.proof().unwrap()));
            agent.welcome_proving(nonce, Verdict::Accepted, Some(key().proof(Side::Agent, nonce))).await;
            agent.request().await;
            agent.reply(Reply::Done).await;
        }
    });

    // The second one goes over the connection that the first one has left open.
    client.ping().await.unwrap();
    client.ping().await.unwrap();
}

#[tokio::test]
async fn whoever_does_not_know_the_key_is_not_taken_for_the_machine() {
    for verdict in [Verdict::Accepted, Verdict::Busy, Verdict::WrongGeneration] {
        for wrong in [None, Some(Side::Host)] {
            let client = client_with_key(key(), move |_, mut agent| async move {
                let nonce = agent.hello().await;
                // What the host has sent is no proof of the agent's.
                let proof = wrong.map(|side| key().proof(side, nonce));
                agent.welcome_proving(nonce, verdict, proof).await;
                agent.reply(Reply::Done).await;
                agent.stay_silent().await;
            });

            let error = client.thaw(uuid::Uuid::from_u128(1)).await.unwrap_err();

            assert!(matches!(error, GuestError::Stranger { .. }), "{error:?}");
            assert!(error.to_string().contains("stop and start"), "{error}");
        }
    }
}

#[tokio::test]
async fn key_that_the_machine_does_not_take_is_an_error_that_says_what_to_do() {
    let client = client_with_key(key(), |_, mut agent| async move {
        let nonce = agent.hello().await;
        agent.welcome_proving(nonce, Verdict::WrongKey, None).await;
    });

    let error = client.ping().await.unwrap_err();

    assert!(matches!(error, GuestError::WrongKey { .. }), "{error:?}");
    assert!(error.to_string().contains("stop and start the workspace"), "{error}");
}
