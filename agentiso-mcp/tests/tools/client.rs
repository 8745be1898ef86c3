//! A client with an open session, and the server it talks to.

use std::{sync::Arc, time::Duration};

use agentiso_core::{
    Backends, Config, Host,
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

/// A client with an open session.
pub(crate) struct Client {
    pub(crate) input: WriteHalf<DuplexStream>,
    output: tokio::io::Lines<BufReader<ReadHalf<DuplexStream>>>,
    next_id: u64,
    pub(crate) server: JoinHandle<Result<(), agentiso_mcp::ServeError>>,
    pub(crate) fakes: FakeHost,
    /// The state folder is `state` in it, the transfer folder `transfer`.
    pub(crate) folder: tempfile::TempDir,
}

impl Client {
    pub(crate) async fn new() -> Self {
        let mut client = Self::connected().await;
        let hello = json!({
            "protocolVersion": "2025-06-18", "capabilities": {},
            "clientInfo": { "name": "test", "version": "0" },
        });
        client.request("initialize", &hello).await;
        client.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        client
    }

    /// Connected, and nothing said yet.
    pub(crate) async fn connected() -> Self {
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
        let service = Service::new(host, &options).unwrap();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (far_input, far_output) = tokio::io::split(far);
        let server = tokio::spawn(agentiso_mcp::serve(service, far_input, far_output));
        let (output, input) = tokio::io::split(near);
        let output = BufReader::new(output).lines();
        Self { input, output, next_id: 0, server, fakes, folder }
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
        self.fakes.guest(id.parse().unwrap()).unwrap()
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
