//! Processes that are killed in the middle.

use std::time::{Duration, Instant};

use crate::{
    fixture::{held, open_host},
    lab::{OtherProcess, home, throwaway},
};

/// How long to wait for the moment at which to kill.
const PATIENCE: Duration = Duration::from_secs(200);

/// Not a test of its own: the process that is killed.
#[tokio::test]
#[ignore = "helper process of killed_creation_leaves_no_context_id"]
async fn helper_process_that_creates_a_workspace() {
    let host = open_host().await;
    let workspace = throwaway(&host).await;
    println!("created {}", workspace.name());
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_creation_leaves_no_context_id() {
    if let Err(reason) = home() {
        println!("skipped: {reason}");
        return;
    }
    // What a test that failed has left goes here too.
    open_host().await.close().await;
    assert_eq!(held(), []);
    // At once when it has a context id, some steps later, and with a machine that runs.
    for delay in [Duration::ZERO, Duration::from_millis(150), Duration::from_secs(4)] {
        let mut other = OtherProcess::start("crash::helper_process_that_creates_a_workspace", &[]);
        let deadline = Instant::now() + PATIENCE;
        while held().is_empty() {
            assert!(Instant::now() < deadline, "it has taken no context id");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(delay).await;
        other.kill();

        let host = open_host().await;

        assert_eq!(held(), [], "killed after {delay:?}");
        assert_eq!(host.list().await.unwrap(), []);
        host.close().await;
    }
}
