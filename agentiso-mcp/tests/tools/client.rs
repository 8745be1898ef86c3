//! A client with an open session, and the server it talks to.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use agentiso_core::{
    Backends, Config, Host,
    session::{Clock, SessionQuota},
    testkit::{FakeGuest, FakeHost, add_image},
};
use agentiso_mcp::{Options, Service};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, ReadHalf, WriteHalf},
    task::JoinHandle,
    time::timeout,
};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A clock that goes on by this with each look at it, so that no test meets the rate limits.
const STEP: Duration = Duration::from_secs(15);

/// See [`STEP`].
#[derive(Debug, Default)]
struct FastClock(AtomicU32);

impl Clock for FastClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
            + Duration::from_secs(1_000_000_000)
            + STEP * self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// A server on fakes.
pub(crate) struct Lab {
    pub(crate) host: Host,
    pub(crate) fakes: FakeHost,
    pub(crate) service: Service,
    /// The state folder is `state` in it, the transfer folder `transfer`.
    pub(crate) folder: tempfile::TempDir,
}

impl Lab {
    pub(crate) async fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let fakes = FakeHost::new();
        let backends = Backends {
            hypervisor: Arc::new(fakes.hypervisor()),
            storage: Arc::new(fakes.storage()),
            network: Arc::new(fakes.network()),
            channel: Arc::new(fakes.channel()),
        };
        let host = Host::open_with(Config::at(folder.path().join("state")), backends).await.unwrap();
        add_image(&host, "debian", 1 << 30).await.unwrap();
        let (state, transfer) = (folder.path().join("state"), folder.path().join("transfer"));
        std::fs::create_dir(&transfer).unwrap();
        let options = Options { transfer_dir: Some(transfer), state_dir: Some(state) };
        let sessions = host.sessions(SessionQuota::default());
        let sessions = sessions.with_clock(Arc::new(FastClock::default()));
        let service = Service::new(sessions, &options).unwrap();
        Arc::new(Self { host, fakes, service, folder })
    }

    /// A file of the transfer folder.
    pub(crate) fn transfer(&self, name: &str) -> PathBuf {
        self.folder.path().join("transfer").join(name)
    }

    /// The audit log.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text =
            std::fs::read_to_string(self.folder.path().join("state/mcp-audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A client with an open session.
pub(crate) struct Client {
    pub(crate) input: WriteHalf<DuplexStream>,
    pub(crate) output: tokio::io::Lines<BufReader<ReadHalf<DuplexStream>>>,
    next_id: u64,
    pub(crate) server: JoinHandle<Result<(), agentiso_mcp::ServeError>>,
    pub(crate) lab: Arc<Lab>,
}

impl Client {
    /// The only client of a server of its own.
    pub(crate) async fn new() -> Self {
        Self::open(&Lab::new().await, "test").await
    }

    /// A client of this session.
    pub(crate) async fn open(lab: &Arc<Lab>, session: &'static str) -> Self {
        let mut client = Self::connected(lab, session);
        let hello = json!({
            "protocolVersion": "2025-06-18", "capabilities": {},
            "clientInfo": { "name": "test", "version": "0" },
        });
        client.request("initialize", &hello).await;
        client.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        client
    }

    /// Connected, and nothing said yet.
    pub(crate) fn connected(lab: &Arc<Lab>, session: &'static str) -> Self {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (far_input, far_output) = tokio::io::split(far);
        let server = tokio::spawn(agentiso_mcp::serve(lab.service.clone(), session, far_input, far_output));
        let (output, input) = tokio::io::split(near);
        let output = BufReader::new(output).lines();
        Self { input, output, next_id: 0, server, lab: Arc::clone(lab) }
    }

    pub(crate) async fn send(&mut self, message: &Value) {
        self.input.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    pub(crate) async fn receive(&mut self) -> Value {
        let line = timeout(SOON, self.output.next_line()).await.unwrap().unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Sends a request and returns its id.
    pub(crate) async fn begin(&mut self, method: &str, params: &Value) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        id
    }

    pub(crate) async fn request(&mut self, method: &str, params: &Value) -> Value {
        let id = self.begin(method, params).await;
        let answer = self.receive().await;
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    /// Calls a tool; whether it failed, and the one JSON text it answered.
    pub(crate) async fn call(&mut self, tool: &str, arguments: Value) -> (bool, Value) {
        let answer = self.request("tools/call", &json!({ "name": tool, "arguments": arguments })).await;
        let content = answer["result"]["content"].as_array().unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(content.len(), 1, "{answer}");
        let text = content[0]["text"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(text, value.to_string(), "compact JSON");
        (answer["result"]["isError"].as_bool().unwrap(), value)
    }

    pub(crate) async fn ok(&mut self, tool: &str, arguments: Value) -> Value {
        let (is_error, value) = self.call(tool, arguments).await;
        assert!(!is_error, "{value}");
        value
    }

    /// Calls a tool that must fail with this code.
    pub(crate) async fn fails(&mut self, tool: &str, arguments: Value, code: &str) -> String {
        let (is_error, value) = self.call(tool, arguments).await;
        assert!(is_error, "{value}");
        assert_eq!(value["code"], code, "{value}");
        assert_eq!(keys(&value), ["code", "message", "next_step"]);
        assert!(!value["next_step"].as_str().unwrap().is_empty());
        value["message"].as_str().unwrap().to_owned()
    }

    /// The guest of a workspace.
    pub(crate) fn guest(&self, id: &str) -> FakeGuest {
        self.lab.fakes.guest(id.parse().unwrap()).unwrap()
    }

    /// Makes a workspace and returns its id.
    pub(crate) async fn create(&mut self, name: &str) -> String {
        let made = self.ok("workspace_create", json!({ "name": name })).await;
        made["workspace_id"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}
