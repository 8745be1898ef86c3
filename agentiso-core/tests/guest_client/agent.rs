use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use agentiso_core::{
    channel::{
        ChannelCapabilities, ChannelError, ChannelRecord, ChannelSpec, GuestChannel, GuestStream, Lane,
        PreparedChannel, client::GuestClient,
    },
    types::WorkspaceId,
};
use async_trait::async_trait;
use tempfile::TempDir;
use tokio::net::UnixStream;

/// How long anything that must happen may take on a busy host.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// An agent that runs as a service, and is ended with everything it started when this is dropped.
pub(crate) struct Agent {
    pub(crate) client: GuestClient,
    pub(crate) folder: TempDir,
    process: Child,
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::start_program(program())
    }

    /// The same with another build of it.
    pub(crate) fn start_program(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let process = Command::new(program)
            .args(["--service".as_ref(), "--unix".as_ref(), socket.as_os_str()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let record = ChannelRecord { id: WorkspaceId::random(), details: serde_json::Value::Null };
        let client = GuestClient::new(Arc::new(UnixChannel { socket: socket.clone() }), record);
        let agent = Self { client, folder, process };
        wait_for("the agent listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        agent
    }

    /// A path in a folder of the test's own.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // SIGTERM lets it end what it started.
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Looks until it is so.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The agent as it is released: the one that AGENTISO_TEST_AGENT names, or one that is built once for each run of the tests.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(program) = std::env::var_os("AGENTISO_TEST_AGENT") {
            return PathBuf::from(program);
        }
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "agentiso-guest", "--features", "agent"])
            .args(["--bin", "agentiso-guest"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(built.status.success(), "the agent: {}", String::from_utf8_lossy(&built.stderr));
        // This program is target/debug/deps/guest_client-HASH.
        let here = std::env::current_exe().unwrap();
        let target = here.ancestors().nth(3).unwrap();
        target.join("debug/agentiso-guest")
    })
}

struct UnixChannel {
    socket: PathBuf,
}

#[async_trait]
impl GuestChannel for UnixChannel {
    fn capabilities(&self) -> ChannelCapabilities {
        ChannelCapabilities { name: "unix socket".to_owned(), concurrent: 64, open: Vec::new() }
    }

    async fn prepare(&self, _: ChannelSpec) -> Result<PreparedChannel, ChannelError> {
        panic!("tests do not prepare this channel")
    }

    async fn leftovers(&self) -> Result<Vec<ChannelRecord>, ChannelError> {
        Ok(Vec::new())
    }

    async fn connect(
        &self,
        channel: &ChannelRecord,
        _: Lane,
        _: Duration,
    ) -> Result<GuestStream, ChannelError> {
        match UnixStream::connect(&self.socket).await {
            Ok(stream) => Ok(GuestStream::private(stream)),
            Err(_) => Err(ChannelError::Gone { id: channel.id }),
        }
    }

    async fn release(&self, _: &ChannelRecord) -> Result<(), ChannelError> {
        Ok(())
    }
}
