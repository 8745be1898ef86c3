//! The client over real serial slots, each served by a script behind a unix socket.

use std::time::Duration;

use agentiso_guest::message::{Reply, Request};
use tokio::time::Instant;

use super::fake::{Agent, SerialMachine};
use crate::channel::{ChannelError, client::*};

/// Answers pings; anything else stays open.
async fn serve(mut agent: Agent) {
    agent.accept().await;
    match agent.request().await {
        Request::Ping | Request::Thaw { .. } | Request::Void { .. } => {
            agent.reply(Reply::Done).await;
        }
        _ => {
            agent.reply(Reply::Started { pid: 1 }).await;
            agent.stay_silent().await;
        }
    }
}

#[tokio::test]
async fn every_slot_serves_one_operation_after_another() {
    let machine = SerialMachine::new(|_, agent| serve(agent)).await;

    for _ in 0..200 {
        machine.client.ping().await.unwrap();
    }
}

#[tokio::test]
async fn thirty_commands_run_at_once_and_control_still_gets_through() {
    let machine = SerialMachine::new(|_, agent| serve(agent)).await;
    let mut running = Vec::new();
    for _ in 0..30 {
        let mut stream = machine.client.exec(ExecSpec::shell("sleep 1000")).await.unwrap();
        assert_eq!(stream.next().await.unwrap(), Some(ExecEvent::Started { pid: 1 }));
        running.push(stream);
    }

    machine.client.thaw(uuid::Uuid::from_u128(1)).await.unwrap();
    let hurried = machine.client.clone().with_connect_limit(Duration::from_millis(50));
    let busy = hurried.ping().await;
    assert!(
        matches!(busy, Err(GuestError::Channel { source: ChannelError::Busy { lanes: 30, .. }, .. })),
        "{busy:?}"
    );
    hurried.on_control_lane().ping().await.unwrap();

    running.pop();
    machine.client.ping().await.unwrap();
}

#[tokio::test]
async fn slot_whose_agent_is_stuck_is_left_for_another() {
    let machine = SerialMachine::new(|slot, agent| async move {
        match slot {
            30 => agent.stay_silent().await,
            _ => serve(agent).await,
        }
    })
    .await;
    let began = Instant::now();

    machine.client.thaw(uuid::Uuid::from_u128(1)).await.unwrap();

    assert!(began.elapsed() >= Duration::from_millis(1400), "{:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn stopped_machine_is_gone_at_once() {
    let mut machine = SerialMachine::new(|_, agent| serve(agent)).await;
    machine.client.ping().await.unwrap();
    machine.stop().await;
    let began = Instant::now();

    let result = machine.client.ping().await;

    assert!(
        matches!(result, Err(GuestError::Channel { source: ChannelError::Gone { .. }, .. })),
        "{result:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(1));
}
