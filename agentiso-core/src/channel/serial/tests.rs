use std::{
    collections::BTreeSet,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use tokio::time::Instant;

use super::*;
use crate::types::WorkspaceId;

/// The slot that [`Lane::Work`] never takes.
const CONTROL_SLOT: u32 = SERIAL_SLOTS - 1;

const SOON: Duration = Duration::from_secs(10);

/// A machine's channel whose sockets accept and answer nothing.
struct Machine {
    _home: TempDir,
    run_dir: PathBuf,
    record: ChannelRecord,
    listeners: Vec<OwnedFd>,
}

impl Machine {
    async fn new() -> Self {
        Self::with_run_dir("run").await
    }

    async fn with_run_dir(name: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let run_dir = home.path().join(name);
        std::fs::create_dir_all(&run_dir).unwrap();
        let spec = ChannelSpec { id: WorkspaceId::random(), run_dir: run_dir.clone() };
        let prepared = SerialChannel.prepare(spec).await.unwrap();
        let ChannelDevice::Serial(listeners) = prepared.device else { panic!("not serial") };
        Self { _home: home, run_dir, record: prepared.record, listeners }
    }

    async fn connect(&self, lane: Lane, limit: Duration) -> Result<GuestStream, ChannelError> {
        SerialChannel.connect(&self.record, lane, limit).await
    }

    /// Every slot that work may use, taken.
    async fn fill(&self) -> Vec<GuestStream> {
        let mut streams = Vec::new();
        for _ in 0..CONTROL_SLOT {
            streams.push(self.connect(Lane::Work, Duration::ZERO).await.unwrap());
        }
        streams
    }

    /// The slots whose lock is held now.
    fn taken(&self) -> BTreeSet<u32> {
        (0..SERIAL_SLOTS)
            .filter(|slot| {
                let lock = std::fs::File::open(self.run_dir.join(format!("s{slot:02}.lock"))).unwrap();
                lock.try_lock().is_err()
            })
            .collect()
    }
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn prepare_makes_31_private_sockets_and_locks() {
    let machine = Machine::new().await;

    assert_eq!(machine.listeners.len(), 31);
    let names = names_in(&machine.run_dir);
    let expected = (0..31).flat_map(|slot| [format!("s{slot:02}"), format!("s{slot:02}.lock")]).collect();
    assert_eq!(names, expected);
    for name in names {
        let mode = std::fs::symlink_metadata(machine.run_dir.join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn prepare_replaces_what_an_earlier_machine_left() {
    let machine = Machine::new().await;
    let spec = ChannelSpec { id: machine.record.id, run_dir: machine.run_dir.clone() };
    drop(machine.listeners);

    let again = SerialChannel.prepare(spec).await.unwrap();

    assert!(SerialChannel.connect(&again.record, Lane::Work, Duration::ZERO).await.is_ok());
}

#[tokio::test]
async fn prepare_in_a_missing_folder_is_an_error_that_names_it() {
    let home = tempfile::tempdir().unwrap();
    let run_dir = home.path().join("missing");

    let error =
        SerialChannel.prepare(ChannelSpec { id: WorkspaceId::random(), run_dir: run_dir.clone() }).await;

    assert!(error.unwrap_err().to_string().contains(run_dir.to_str().unwrap()));
}

#[tokio::test]
async fn prepare_that_fails_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    // A folder by the name of the last socket can neither be removed nor bound over.
    std::fs::create_dir(home.path().join("s30")).unwrap();

    let spec = ChannelSpec { id: WorkspaceId::random(), run_dir: home.path().to_owned() };
    let result = SerialChannel.prepare(spec).await;

    assert!(matches!(result, Err(ChannelError::Io { .. })), "{result:?}");
    assert_eq!(names_in(home.path()), BTreeSet::from(["s30".to_owned()]));
}

#[tokio::test]
async fn state_folder_of_200_characters_is_served() {
    let machine = Machine::with_run_dir(&format!("{}/{}", "x".repeat(120), "y".repeat(120))).await;

    let mut stream = machine.connect(Lane::Control, SOON).await.unwrap();

    let listener = UnixListener::from(machine.listeners.last().unwrap().try_clone().unwrap());
    let (mut served, _) = listener.accept().unwrap();
    stream.write_all(b"over the wire").await.unwrap();
    let mut received = [0; 13];
    std::io::Read::read_exact(&mut served, &mut received).unwrap();
    assert_eq!(&received, b"over the wire");
    std::io::Write::write_all(&mut served, b"and back").unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"and back");
}

#[tokio::test]
async fn work_never_takes_the_control_slot() {
    let machine = Machine::new().await;

    let streams = machine.fill().await;

    assert_eq!(machine.taken(), (0..30).collect());
    assert_eq!(streams.len(), 30);
    let busy = machine.connect(Lane::Work, Duration::ZERO).await;
    assert!(matches!(busy, Err(ChannelError::Busy { lanes: 30, .. })), "{:?}", busy.err());
}

#[tokio::test]
async fn control_takes_slot_30_first_and_then_any_other() {
    let machine = Machine::new().await;

    let first = machine.connect(Lane::Control, Duration::ZERO).await.unwrap();
    assert_eq!(machine.taken(), BTreeSet::from([30]));
    let mut more = Vec::new();
    for _ in 0..30 {
        more.push(machine.connect(Lane::Control, Duration::ZERO).await.unwrap());
    }

    assert_eq!(machine.taken(), (0..31).collect());
    let busy = machine.connect(Lane::Control, Duration::ZERO).await;
    assert!(matches!(busy, Err(ChannelError::Busy { lanes: 31, .. })), "{:?}", busy.err());
    drop(first);
}

#[tokio::test]
async fn searches_begin_at_different_slots() {
    let machine = Machine::new().await;
    let mut seen = BTreeSet::new();

    for _ in 0..6 {
        let stream = machine.connect(Lane::Work, Duration::ZERO).await.unwrap();
        seen.append(&mut machine.taken());
        drop(stream);
    }

    assert!(seen.len() > 1, "always slot {seen:?}");
}

#[tokio::test]
async fn dropping_a_stream_frees_its_slot() {
    let machine = Machine::new().await;
    let stream = machine.connect(Lane::Control, Duration::ZERO).await.unwrap();

    drop(stream);

    assert_eq!(machine.taken(), BTreeSet::new());
}

#[tokio::test]
async fn waiter_gets_a_slot_as_soon_as_one_is_dropped() {
    let machine = Machine::new().await;
    let mut held = machine.fill().await;
    let waiting = machine.connect(Lane::Work, SOON);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    let dropped_at = Instant::now();

    drop(held.pop());

    waiting.await.unwrap();
    assert!(dropped_at.elapsed() < Duration::from_secs(2), "{:?}", dropped_at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_one_of_many_waiters_gets_a_slot() {
    let machine = std::sync::Arc::new(Machine::new().await);
    let held = machine.fill().await;
    let waiters: Vec<_> = (0..60)
        .map(|_| {
            let machine = machine.clone();
            tokio::spawn(async move { machine.connect(Lane::Work, SOON).await.map(drop) })
        })
        .collect();

    drop(held);

    for waiter in waiters {
        waiter.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn waiting_ends_at_its_limit_with_busy() {
    let machine = Machine::new().await;
    let _held = machine.fill().await;
    let limit = Duration::from_millis(120);
    let began = Instant::now();

    let result = machine.connect(Lane::Work, limit).await;

    assert!(matches!(result, Err(ChannelError::Busy { waited, .. }) if waited == limit));
    assert!(began.elapsed() >= limit && began.elapsed() < SOON);
}

#[tokio::test]
async fn idle_waiter_does_not_spin() {
    let machine = Machine::new().await;
    let _held = machine.fill().await;
    let waiting = machine.connect(Lane::Work, Duration::from_millis(600));
    let before = thread_cpu();

    let result = waiting.await;

    assert!(matches!(result, Err(ChannelError::Busy { .. })));
    assert!(thread_cpu() - before < Duration::from_millis(100), "{:?}", thread_cpu() - before);
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap()
}

#[tokio::test]
async fn nobody_listening_is_gone_at_once() {
    let mut machine = Machine::new().await;
    machine.listeners.clear();
    let began = Instant::now();

    let result = machine.connect(Lane::Work, SOON).await;

    assert!(matches!(result, Err(ChannelError::Gone { .. })), "{:?}", result.err());
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn release_removes_everything_and_is_idempotent() {
    let machine = Machine::new().await;

    SerialChannel.release(&machine.record).await.unwrap();
    SerialChannel.release(&machine.record).await.unwrap();

    assert_eq!(names_in(&machine.run_dir), BTreeSet::new());
    std::fs::remove_dir(&machine.run_dir).unwrap();
    SerialChannel.release(&machine.record).await.unwrap();
    let result = machine.connect(Lane::Work, SOON).await;
    assert!(matches!(result, Err(ChannelError::Gone { .. })), "{:?}", result.err());
}

#[tokio::test]
async fn release_wakes_waiters_who_find_the_channel_gone() {
    let machine = Machine::new().await;
    let _held = machine.fill().await;
    let waiting = machine.connect(Lane::Work, SOON);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    let released_at = Instant::now();

    SerialChannel.release(&machine.record).await.unwrap();

    assert!(matches!(waiting.await, Err(ChannelError::Gone { .. })));
    assert!(released_at.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn damaged_record_is_an_error() {
    let record =
        ChannelRecord { id: WorkspaceId::random(), details: serde_json::json!({ "run_dir": 7, "x": 1 }) };

    let result = SerialChannel.connect(&record, Lane::Work, SOON).await;

    assert!(matches!(result, Err(ChannelError::Record { .. })), "{:?}", result.err());
}

/// Another process that holds every slot of work, killed when this is dropped.
struct OtherProcess(Child);

impl Drop for OtherProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Names the run folder to [`helper_process_that_holds_slots`].
const HOLD_SLOTS_OF: &str = "AGENTISO_TEST_HOLD_SLOTS_OF";

/// Not a test of its own: the process that `killed_holders_slot_is_free_at_once` starts.
#[tokio::test]
#[ignore = "helper process of killed_holders_slot_is_free_at_once"]
async fn helper_process_that_holds_slots() {
    let run_dir = std::env::var(HOLD_SLOTS_OF).unwrap();
    let details = serde_json::json!({ "run_dir": run_dir });
    let record = ChannelRecord { id: WorkspaceId::random(), details };
    let mut held = Vec::new();
    for _ in 0..30 {
        held.push(SerialChannel.connect(&record, Lane::Work, Duration::ZERO).await.unwrap());
    }
    std::fs::write(Path::new(&run_dir).join("held"), b"").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn killed_holders_slot_is_free_at_once() {
    let machine = Machine::new().await;
    let mut other = OtherProcess(
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "channel::serial::tests::helper_process_that_holds_slots"])
            .env(HOLD_SLOTS_OF, &machine.run_dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let deadline = Instant::now() + SOON;
    while !machine.run_dir.join("held").exists() {
        assert!(Instant::now() < deadline, "the helper process did not take the slots");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let waiting = machine.connect(Lane::Work, SOON);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    let killed_at = Instant::now();

    other.0.kill().unwrap();

    waiting.await.unwrap();
    assert!(killed_at.elapsed() < Duration::from_secs(2), "{:?}", killed_at.elapsed());
}
