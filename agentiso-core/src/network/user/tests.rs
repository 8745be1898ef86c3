//! The user network with its real program.

use std::{path::PathBuf, process::Command, sync::OnceLock};

use async_trait::async_trait;

use super::*;
use crate::testkit::contract::network::NetworkFixture;
use crate::types::MachineUid;

/// The program. Cargo builds it for integration tests only, so unit tests ask for it, once.
pub(crate) fn shim() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let words = ["build", "--quiet", "--package", "agentiso-core", "--features", "shim", "--bin"];
            let status = Command::new(env!("CARGO")).args(words).arg("agentiso-shim").status();
            if !status.is_ok_and(|status| status.success()) {
                return Err("agentiso-shim could not be built".to_owned());
            }
            // This test is TARGET/debug/deps/NAME.
            let test = std::env::current_exe().map_err(|error| error.to_string())?;
            let folder = test.ancestors().nth(2).ok_or("the test lies in no target folder")?;
            Ok(folder.join("agentiso-shim"))
        })
        .clone()
}

struct Fixture {
    folder: tempfile::TempDir,
    config: UserNetworkConfig,
}

impl Fixture {
    async fn new() -> Result<Self, String> {
        let shim = tokio::task::spawn_blocking(shim).await.map_err(|error| error.to_string())??;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let state_id = uuid::Uuid::new_v4().simple().to_string();
        Ok(Self { folder, config: UserNetworkConfig { state_id, shim } })
    }

    fn network(&self) -> UserNetwork {
        UserNetwork::new(self.config.clone())
    }
}

pub(crate) fn any_spec(folder: &Path) -> AttachSpec {
    let id = WorkspaceId::random();
    // Longer than the path of a unix socket may be.
    let run_dir = folder.join("a".repeat(200)).join(id.to_string());
    std::fs::create_dir_all(&run_dir).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    AttachSpec {
        id,
        uid: is_root.then(|| MachineUid(MachineUid::FIRST + id.as_uuid().as_fields().0 % 100_000)),
        policy: NetworkPolicy::default(),
        forwards: BTreeMap::new(),
        run_dir,
    }
}

#[async_trait]
impl NetworkFixture for Fixture {
    async fn open(&self) -> Box<dyn Network> {
        Box::new(self.network())
    }

    async fn spec(&self) -> AttachSpec {
        any_spec(self.folder.path())
    }

    async fn crash(&self, attachment: &NetworkRecord) {
        let process = Details::of(attachment).unwrap().process;
        assert!(process.signal(Signal::KILL).unwrap());
        assert!(process.wait_exit(KILL_LIMIT).await.unwrap());
    }
}

mod contract {
    use super::*;

    crate::network_contract!(Fixture::new().await);
}

fn status_of(process: &ProcessRef) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[tokio::test]
async fn process_is_confined() {
    let fixture = Fixture::new().await.unwrap();
    let network = fixture.network();
    let spec = any_spec(fixture.folder.path());
    let uid = spec.uid.map_or_else(|| rustix::process::geteuid().as_raw(), |uid| uid.0);
    let attachment = network.attach(spec).await.unwrap();
    let process = Details::of(&attachment.record).unwrap().process;

    let status = status_of(&process);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid)).unwrap();

    let value = |name: &str| status.get(name).cloned().unwrap_or_default();
    let ids = format!("{uid}\t{uid}\t{uid}\t{uid}");
    assert_eq!((value("Uid"), value("NoNewPrivs"), value("Seccomp")), (ids, "1".to_owned(), "2".to_owned()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let expected =
            if rustix::process::geteuid().is_root() || set != "CapBnd" { "0".repeat(16) } else { value(set) };
        assert_eq!(value(set), expected, "{set}");
    }
    for limit in ["Max file size", "Max core file size"] {
        let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
        assert_eq!(line.split_ascii_whitespace().rev().nth(2), Some("0"), "{line}");
    }
    // The standard three, link, control, epoll, routes; and nothing left of what set it up.
    let open = || std::fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap().count();
    crate::testkit::contract::eventually("seven descriptors are open", async || open() == 7).await;
    network.detach(&attachment.record).await.unwrap();
}

#[tokio::test]
async fn process_ends_with_the_machine() {
    let fixture = Fixture::new().await.unwrap();
    let network = fixture.network();
    let Attachment { nic, record, .. } = network.attach(any_spec(fixture.folder.path())).await.unwrap();
    let process = Details::of(&record).unwrap().process;

    drop(nic);

    assert!(process.wait_exit(KILL_LIMIT).await.unwrap());
    assert!(!network.is_alive(&record).await.unwrap());
    network.detach(&record).await.unwrap();
}

#[tokio::test]
async fn given_up_attach_leaves_nothing() {
    let fixture = Fixture::new().await.unwrap();
    // A program that runs and never answers.
    let config = UserNetworkConfig { shim: PathBuf::from("/usr/bin/yes"), ..fixture.config.clone() };
    let network = UserNetwork::new(config);
    let spec = any_spec(fixture.folder.path());
    let run_dir = spec.run_dir.clone();

    let mut attach = network.attach(spec);
    let started = async || !network.processes().await.unwrap().is_empty();
    tokio::select! {
        outcome = &mut attach => panic!("it answered: {outcome:?}"),
        () = crate::testkit::contract::eventually("the process runs", started) => {}
    }
    drop(attach);

    let is_gone = async || {
        let left = std::fs::read_dir(&run_dir).unwrap().count();
        left == 0 && network.processes().await.unwrap().is_empty()
    };
    crate::testkit::contract::eventually("nothing is left", is_gone).await;
}

#[tokio::test]
async fn last_words_of_the_process_are_the_error() {
    let fixture = Fixture::new().await.unwrap();
    // A program that knows no trade of this name, says so, and ends.
    let config = UserNetworkConfig { shim: PathBuf::from("/bin/ls"), ..fixture.config.clone() };
    let network = UserNetwork::new(config);
    let spec = any_spec(fixture.folder.path());
    let run_dir = spec.run_dir.clone();

    let error = network.attach(spec).await.unwrap_err();

    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("cannot access 'net'"), "{error}: {source}");
    assert_eq!(std::fs::read_dir(run_dir).unwrap().count(), 0);
}

#[tokio::test]
async fn missing_program_is_named_with_the_remedy() {
    let config =
        UserNetworkConfig { state_id: "s".to_owned(), shim: PathBuf::from("/nonexistent/agentiso-shim") };
    let folder = tempfile::tempdir().unwrap();
    let error = UserNetwork::new(config).attach(any_spec(folder.path())).await.unwrap_err();
    assert!(matches!(&error, NetworkError::Missing { what, .. } if what.contains("/nonexistent")), "{error}");
}
