//! A secret that a machine is given is in none of the files that this host writes, in no command line and in no text that
//! is shown, but for images of memory, which only their owner can read and which go with their workspace. `cargo xtask
//! test` prepares the state folder; without one the test says so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use agentiso_core::channel::client::{CollectOptions, ExecSpec};
use agentiso_core::hypervisor::MachineLog;
use agentiso_core::{Config, ForkSpec, Host, WorkspaceSpec};

/// Every regular file below a folder that was written to since then.
fn files(folder: &Path, since: SystemTime) -> Vec<PathBuf> {
    let mut left = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => left.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    let written = entry.metadata().and_then(|metadata| metadata.modified());
                    found.extend(written.is_ok_and(|written| written >= since).then(|| entry.path()));
                }
                _ => {}
            }
        }
    }
    found
}

/// Whether a file holds the text, read in pieces that overlap.
fn holds(path: &Path, text: &[u8]) -> bool {
    use std::io::Read;
    let Ok(mut file) = fs::File::open(path) else { return false };
    let mut buffer = Vec::new();
    let mut piece = vec![0; 1024 * 1024];
    while let Ok(read @ 1..) = file.read(&mut piece) {
        buffer.extend_from_slice(&piece[..read]);
        // Holes of large files are skipped quickly.
        if piece[..read].iter().any(|byte| *byte != 0) && find(&buffer, text) {
            return true;
        }
        let keep = buffer.len().saturating_sub(text.len());
        buffer.drain(..keep);
    }
    false
}

fn find(haystack: &[u8], needle: &[u8]) -> bool {
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == needle[0]) {
        if haystack[from + at..].starts_with(needle) {
            return true;
        }
        from += at + 1;
    }
    false
}

/// Command lines and environments of all processes but this one.
fn processes_with(text: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|byte| byte.is_ascii_digit()) && name != own {
            for file in ["cmdline", "environ"] {
                let content = fs::read(entry.path().join(file)).unwrap_or_default();
                if find(&content, text.as_bytes()) {
                    found.push(format!("{name}/{file}"));
                }
            }
        }
    }
    found
}

/// Takes everything that is logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut Fields(self));
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut Fields(self));
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Fields(self));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

struct Fields<'a>(&'a Log);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        let _ = writeln!(self.0.0.lock().unwrap(), "{field} = {value:?}");
    }
}

#[tokio::test]
async fn secret_of_a_machine_is_written_nowhere_but_in_its_memory() {
    let home = std::env::var_os("AGENTISO_HOME").filter(|_| std::env::var_os("AGENTISO_TEST_SEED").is_some());
    let Some(home) = home.map(PathBuf::from) else {
        return println!("skipped: there is no state folder with an image; `cargo xtask test` makes one");
    };
    let begun = SystemTime::now();
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let secret = format!("hunter2-{}", agentiso_core::types::WorkspaceId::random());
    let host = Host::open(Config::at(&home)).await.unwrap();
    let workspace =
        host.create(WorkspaceSpec { throwaway: true, ..WorkspaceSpec::new("debian") }).await.unwrap();
    let guest = workspace.guest().await.unwrap();

    guest.env_set([("TOKEN".to_owned(), Some(secret.clone()))].into()).await.unwrap();
    let spec = ExecSpec::shell("test -n \"$TOKEN\"").env("OTHER", secret.clone());
    assert!(guest.exec_collect(spec, CollectOptions::default()).await.unwrap().success());
    let mut shown = String::new();
    // What is refused is said, but not with its value.
    let refused = guest.env_set([("LD_PRELOAD".to_owned(), Some(secret.clone()))].into()).await;
    shown += &format!("{:?} {}", refused, refused.as_ref().unwrap_err());
    let refused = guest.exec(ExecSpec::program(["/nothing"]).env("OTHER", secret.clone())).await.map(drop);
    shown += &format!("{refused:?} {:?}", ExecSpec::shell("true").env("OTHER", secret.clone()));
    shown += &format!("{:?}", workspace.snapshot("s").await.unwrap());
    let forked = workspace.fork(ForkSpec::default()).await.unwrap();
    shown += &serde_json::to_string(&forked).unwrap();
    shown += &serde_json::to_string(&workspace.info().await.unwrap()).unwrap();
    shown += &serde_json::to_string(&host.list().await.unwrap()).unwrap();
    for kind in [MachineLog::Console, MachineLog::Stderr] {
        shown += &String::from_utf8_lossy(&workspace.logs(kind, 1 << 20).await.unwrap());
    }

    assert!(!shown.contains(&secret), "it is shown: {shown}");
    assert!(!log.0.lock().unwrap().contains(&secret), "it is logged");
    assert_eq!(processes_with(&secret), Vec::<String>::new());
    let memory = home.join("memory");
    let with_secret: Vec<PathBuf> =
        files(&home, begun).into_iter().filter(|path| holds(path, secret.as_bytes())).collect();
    for path in &with_secret {
        assert!(path.starts_with(&memory) || path.starts_with(home.join("run")), "{}", path.display());
        let metadata = fs::metadata(path).unwrap();
        assert!(
            matches!(metadata.mode() & 0o777, 0o600 | 0o400),
            "{}: {:o}",
            path.display(),
            metadata.mode()
        );
    }
    assert!(!with_secret.is_empty(), "the search finds nothing at all: not even the snapshot's memory");

    for worker in &forked.workers {
        host.workspace(&worker.name).await.unwrap().destroy().await.unwrap();
    }
    workspace.destroy().await.unwrap();
    drop(guest);
    let left: Vec<PathBuf> =
        files(&home, begun).into_iter().filter(|path| holds(path, secret.as_bytes())).collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "it outlives its workspace");
    host.close().await;
}
