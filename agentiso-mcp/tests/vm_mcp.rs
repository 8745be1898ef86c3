//! The server with real machines, as the official clients and a crash see it.
//!
//! `cargo xtask test` installs the clients and says where they are: a Python with the package `mcp` (AGENTISO_MCP_PYTHON, or
//! python3), and a node_modules folder with @modelcontextprotocol/sdk (AGENTISO_MCP_NODE_MODULES).
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use agentiso_mcp::Tokens;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_agentiso-mcp");

/// The state folder prepared for tests with machines; none, with the reason printed, without one.
fn home() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let is_prepared = variable("AGENTISO_TEST_SEED").is_some()
        || variable("AGENTISO_VM_TESTS").is_some_and(|value| value == "1");
    let home = variable("AGENTISO_HOME").filter(|_| is_prepared).map(PathBuf::from);
    if home.is_none() {
        println!("skipped: there is no state folder with an image; `cargo xtask test` makes one");
    }
    home
}

/// A Python with the official client.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("AGENTISO_MCP_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    let has_it = Command::new(&python).args(["-c", "import mcp"]).stderr(Stdio::null()).status();
    if has_it.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    println!("skipped: there is no Python with the package mcp; AGENTISO_MCP_PYTHON names one");
    None
}

/// A folder with the official TypeScript client.
fn node_modules() -> Option<PathBuf> {
    let folder = std::env::var_os("AGENTISO_MCP_NODE_MODULES").map(PathBuf::from);
    let folder = folder.filter(|folder| folder.join("@modelcontextprotocol/sdk").is_dir());
    let has_node = Command::new("node").arg("--version").stdout(Stdio::null()).status();
    if folder.is_none() || !has_node.is_ok_and(|status| status.success()) {
        println!(
            "skipped: AGENTISO_MCP_NODE_MODULES names no folder with @modelcontextprotocol/sdk, or node is missing"
        );
        return None;
    }
    folder
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// A token that is removed with the value.
struct Token {
    tokens: Tokens,
    name: String,
    text: String,
}

impl Token {
    fn new(home: &Path, name: &str) -> Self {
        let tokens = Tokens::at(home);
        let name = format!("{name}-{}", std::process::id());
        let text = tokens.add(&name).unwrap();
        Self { tokens, name, text }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let _ = self.tokens.remove(&self.name);
    }
}

/// A server over HTTP, killed with the value.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(home: &Path) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["--http", "127.0.0.1:0"])
            .env("AGENTISO_HOME", home)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let url = loop {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "the server did not start");
            if let Some(url) = line.trim().strip_prefix("agentiso: MCP at ") {
                break url.to_owned();
            }
        };
        // What it says later is for whoever reads the test's output.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
        Self { child, url }
    }

    fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap().strip_suffix("/mcp").unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a request; head and body of the answer.
    fn post(&self, headers: &str, message: &Value) -> std::io::Result<String> {
        let body = message.to_string();
        let mut stream = TcpStream::connect(self.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(200)))?;
        write!(
            stream,
            "POST /mcp HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Accept: application/json, text/event-stream\r\nConnection: close\r\n{headers}\r\n{body}",
            self.address(),
            body.len(),
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Begins an MCP session; the headers that go on with it.
    fn open(&self, token: &Token) -> String {
        let bearer = format!("Authorization: Bearer {}\r\n", token.text);
        let client = json!({ "name": "test", "version": "0" });
        let params = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client });
        let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params });
        let answer = self.post(&bearer, &hello).unwrap();
        let session = answer.lines().find_map(|line| line.strip_prefix("mcp-session-id: ")).unwrap();
        let headers = format!("{bearer}Mcp-Session-Id: {session}\r\n");
        let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        self.post(&headers, &initialized).unwrap();
        headers
    }

    fn try_call(&self, headers: &str, tool: &str, arguments: &Value) -> Option<Value> {
        static IDS: AtomicU64 = AtomicU64::new(100);
        self.try_call_as(IDS.fetch_add(1, Ordering::Relaxed), headers, tool, arguments)
    }

    /// Calls a tool as the request of this id.
    fn try_call_as(&self, id: u64, headers: &str, tool: &str, arguments: &Value) -> Option<Value> {
        let params = json!({ "name": tool, "arguments": arguments });
        let message = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params });
        let answer = self.post(headers, &message).ok()?;
        let mut events = answer.lines().filter_map(|line| line.strip_prefix("data: "));
        let message: Value = events.find_map(|data| serde_json::from_str(data).ok())?;
        serde_json::from_str(message["result"]["content"][0]["text"].as_str()?).ok()
    }

    fn call(&self, headers: &str, tool: &str, arguments: &Value) -> Value {
        let answer = self.try_call(headers, tool, arguments).unwrap();
        assert!(answer.get("code").is_none(), "{tool}: {answer}");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn passes(command: &mut Command) {
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.trim_end().ends_with("ok"), "{stdout}\n{stderr}");
}

/// A session's name that no other test has.
fn session(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

#[test]
fn python_client_does_everything_over_stdio() {
    let (Some(home), Some(python)) = (home(), python()) else { return };
    let mut command = Command::new(python);
    let transfer = tempfile::tempdir().unwrap();
    command.arg(script("client.py")).args(["stdio", PROGRAM]).env("AGENTISO_TRANSFER_DIR", transfer.path());
    passes(command.env("AGENTISO_HOME", home).env("AGENTISO_SESSION", session("py-stdio")));
}

#[test]
fn python_client_does_everything_over_http() {
    let (Some(home), Some(python)) = (home(), python()) else { return };
    let token = Token::new(&home, "py-http");
    let server = Server::start(&home);
    passes(Command::new(python).arg(script("client.py")).args(["http", &server.url, &token.text]));
}

#[test]
fn two_python_clients_do_not_see_each_other() {
    let (Some(home), Some(python)) = (home(), python()) else { return };
    let (one, two) = (Token::new(&home, "py-one"), Token::new(&home, "py-two"));
    let server = Server::start(&home);
    passes(Command::new(python).arg(script("client.py")).args(["apart", &server.url, &one.text, &two.text]));
}

#[test]
fn typescript_client_does_everything_over_stdio() {
    let (Some(home), Some(modules)) = (home(), node_modules()) else { return };
    let mut command = Command::new("node");
    command.arg(script("client.mjs")).args(["stdio", PROGRAM]).env("AGENTISO_MCP_NODE_MODULES", modules);
    passes(command.env("AGENTISO_HOME", home).env("AGENTISO_SESSION", session("ts-stdio")));
}

#[test]
fn typescript_client_does_everything_over_http() {
    let (Some(home), Some(modules)) = (home(), node_modules()) else { return };
    let token = Token::new(&home, "ts-http");
    let server = Server::start(&home);
    let mut command = Command::new("node");
    command.arg(script("client.mjs")).args(["http", &server.url, &token.text]);
    passes(command.env("AGENTISO_MCP_NODE_MODULES", modules));
}

#[test]
fn cancelled_command_is_killed_in_the_guest() {
    let Some(home) = home() else { return };
    let token = Token::new(&home, "cancel");
    let server = Server::start(&home);
    let headers = server.open(&token);
    let made = server.call(&headers, "workspace_create", &json!({ "memory_mb": 256, "disk_gb": 4 }));
    let id = made["workspace_id"].clone();
    let count = || {
        let command = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'sleep 424[2]'";
        let output = server.call(&headers, "exec", &json!({ "workspace_id": id, "command": command }));
        output["stdout"].as_str().unwrap().trim().to_owned()
    };
    let wait_for = |expected: &str| {
        let begin = std::time::Instant::now();
        while count() != expected {
            assert!(begin.elapsed() < Duration::from_secs(100), "there is not {expected} command");
            std::thread::sleep(Duration::from_secs(1));
        }
    };

    let sleeping = json!({ "workspace_id": id, "command": "sleep 4242; true" });
    std::thread::scope(|scope| {
        let call = scope.spawn(|| server.try_call_as(5, &headers, "exec", &sleeping));
        wait_for("1");
        let params = json!({ "requestId": 5 });
        let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params });
        server.post(&headers, &cancel).unwrap();
        wait_for("0");
        assert_eq!(call.join().unwrap(), None);
    });
    server.call(&headers, "workspace_destroy", &json!({ "workspace_id": id }));
}

#[test]
fn server_killed_in_the_middle_of_ten_calls_loses_no_machine() {
    let Some(home) = home() else { return };
    let token = Token::new(&home, "crash");
    let mut server = Server::start(&home);
    let headers = server.open(&token);
    let size = json!({ "memory_mb": 256, "disk_gb": 4 });
    let ids: Vec<Value> =
        (0..2).map(|_| server.call(&headers, "workspace_create", &size)["workspace_id"].clone()).collect();
    server.call(&headers, "set_env", &json!({ "workspace_id": ids[0], "vars": { "KEPT": "yes" } }));

    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..10)
            .map(|number| {
                let (server, headers, ids) = (&server, &headers, &ids);
                scope.spawn(move || {
                    let command = json!({ "workspace_id": ids[number % 2], "command": "sleep 100" });
                    server.try_call(headers, "exec", &command)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(2));
        let pid = rustix::process::Pid::from_raw(i32::try_from(server.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        for call in calls {
            assert_eq!(call.join().unwrap(), None, "a call ended before the server was killed");
        }
    });
    server.kill();
    let server = Server::start(&home);
    let headers = server.open(&token);

    let listed = server.call(&headers, "workspace_list", &json!({ "state_filter": "running" }));
    let found: Vec<&Value> =
        listed["workspaces"].as_array().unwrap().iter().map(|line| &line["workspace_id"]).collect();
    assert_eq!(found, ids.iter().collect::<Vec<_>>());
    for id in &ids {
        let output = server.call(&headers, "exec", &json!({ "workspace_id": id, "command": "echo $KEPT" }));
        assert_eq!(output["stdout"], if *id == ids[0] { "yes\n" } else { "\n" });
        server.call(&headers, "workspace_destroy", &json!({ "workspace_id": id }));
    }
}
