//! A workspace that changes hands, on a real machine. `cargo xtask test` prepares the state folder; without one the test
//! says so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::path::PathBuf;

use agentiso_core::session::{AuthError, Class, SessionQuota};
use agentiso_core::types::{MemoryMib, Owner, Resources};
use agentiso_core::{Config, EngineError, ForkSpec, Host, Workspace, WorkspaceSpec};

async fn host() -> Option<Host> {
    let home = std::env::var_os("AGENTISO_HOME").filter(|_| std::env::var_os("AGENTISO_TEST_SEED").is_some());
    let Some(home) = home else {
        println!("skipped: there is no state folder with an image; `cargo xtask test` makes one");
        return None;
    };
    Some(Host::open(Config::at(PathBuf::from(home))).await.unwrap())
}

/// One that goes with this process, whatever becomes of the test.
fn throwaway() -> WorkspaceSpec {
    let resources = Resources { memory_mb: MemoryMib::new(256).unwrap(), ..Resources::default() };
    WorkspaceSpec { throwaway: true, ..WorkspaceSpec::new("debian").resources(resources) }
}

async fn environment(workspace: &Workspace) -> String {
    workspace.exec("env").await.unwrap().stdout_text().into_owned()
}

#[tokio::test]
async fn shared_machine_is_adopted_without_the_environment_that_was_set_in_it() {
    let Some(host) = host().await else { return };
    let name = format!("vm-sessions-{}", std::process::id());
    let quota = SessionQuota { max_workspaces: 1, ..SessionQuota::default() };
    let session = host.sessions(quota).open(&name).await.unwrap();
    let other = host.sessions(quota).open(format!("{name}-other")).await.unwrap();
    let _call = session.enter(Class::Create).await.unwrap();
    let workspace = host.create(throwaway()).await.unwrap();
    let id = workspace.id().to_string();
    let vars = [("TOKEN".to_owned(), Some("secret".to_owned()))].into();
    workspace.guest().await.unwrap().env_set(vars).await.unwrap();
    workspace.exec("sleep 1000 & echo kept > /root/file").await.unwrap();
    workspace.snapshot("before").await.unwrap();
    assert!(environment(&workspace).await.contains("TOKEN=secret"));

    assert!(matches!(session.workspace(&id).await, Err(EngineError::NoSuchWorkspace { .. })));
    host.share(&id).await.unwrap();
    let adopted = session.adopt(&id, false).await.unwrap();

    assert_eq!(adopted.info().await.unwrap().summary.owner, Owner::Session(session.id().clone()));
    assert!(matches!(other.workspace(&id).await, Err(EngineError::NoSuchWorkspace { .. })));
    assert!(!environment(&adopted).await.contains("TOKEN"));
    adopted.restore("before").await.unwrap();
    assert!(!environment(&adopted).await.contains("TOKEN"), "nor does its snapshot's memory bring it back");
    assert_eq!(adopted.exec("cat /root/file; pgrep -c sleep").await.unwrap().stdout_text(), "kept\n1\n");
    let too_many = session.fork(&id, ForkSpec::default()).await;
    assert!(matches!(too_many, Err(EngineError::Session(AuthError::QuotaExceeded { .. }))), "{too_many:?}");
    let too_many = session.create(throwaway()).await;
    assert!(matches!(too_many, Err(EngineError::Session(AuthError::QuotaExceeded { .. }))), "{too_many:?}");
    adopted.destroy().await.unwrap();
    assert_eq!(session.usage().await.unwrap().workspace_count, 0);
}
