//! The server over HTTP, as bytes on a connection.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use agentiso_core::{
    Backends, Config, Host,
    session::SessionQuota,
    testkit::{FakeHost, add_image},
};
use agentiso_mcp::{
    Options, Service, Tokens,
    http::{HttpOptions, Stopper, serve_http, serve_metrics, stopper},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

const SOON: Duration = Duration::from_secs(20);

/// A server at a port of the loopback.
struct Server {
    address: SocketAddr,
    metrics: SocketAddr,
    tokens: Tokens,
    stopper: Stopper,
    serving: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The JSON-RPC message with an id in a stream of events.
    fn message(&self) -> Value {
        let events = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        let messages = events.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        messages.into_iter().find(|message| message["id"].is_number()).unwrap_or_else(|| panic!("{self:?}"))
    }
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fakes = FakeHost::new();
        let backends = Backends {
            hypervisor: Arc::new(fakes.hypervisor()),
            storage: Arc::new(fakes.storage()),
            network: Arc::new(fakes.network()),
            channel: Arc::new(fakes.channel()),
        };
        let state = folder.path().join("state");
        let host = Host::open_with(Config::at(&state), backends).await.unwrap();
        add_image(&host, "debian", 1 << 30).await.unwrap();
        let service = Service::new(
            host.sessions(SessionQuota::default()),
            &Options { state_dir: Some(state.clone()), ..Options::default() },
        )
        .unwrap();
        let tokens = Tokens::at(&state);
        let (listener, other) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let (address, metrics) = (listener.local_addr().unwrap(), other.local_addr().unwrap());
        let (stopper, stop) = stopper();
        tokio::spawn(serve_metrics(service.clone(), other, stop.clone()));
        let options = HttpOptions {
            allowed_origins: vec!["https://good.example:443".to_owned()],
            ..HttpOptions::default()
        };
        let serving = tokio::spawn(serve_http(service, listener, tokens.clone(), options, stop));
        Self { address, metrics, tokens, stopper, serving, _folder: folder }
    }

    async fn raw(&self, request: &[u8]) -> Answer {
        exchange(self.address, request).await
    }

    /// Sends JSON with these headers more.
    async fn post(&self, headers: &str, message: &Value) -> Answer {
        let body = message.to_string();
        let head = format!(
            "POST /mcp HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
            self.address,
            body.len(),
        );
        self.raw(format!("{head}{body}").as_bytes()).await
    }

    /// Begins an MCP session with this token; the headers that go on with it.
    async fn open(&self, token: &str) -> String {
        let bearer = format!("Authorization: Bearer {token}\r\n");
        let answer = self.post(&bearer, &hello()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let session = answer.header("mcp-session-id").unwrap();
        let headers = format!("{bearer}Mcp-Session-Id: {session}\r\nMCP-Protocol-Version: 2025-06-18\r\n");
        let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert_eq!(self.post(&headers, &initialized).await.status, 202);
        headers
    }

    /// A client that listens for events.
    async fn listen(&self, token: &str) -> TcpStream {
        let headers = self.open(token).await;
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "GET /mcp HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\nConnection: close\r\n{headers}\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0; 15];
        timeout(SOON, stream.read_exact(&mut first)).await.expect("no answer").unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        stream
    }

    async fn call(&self, headers: &str, tool: &str, arguments: Value) -> Value {
        let params = json!({ "name": tool, "arguments": arguments });
        let message = json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params });
        let answer = self.post(headers, &message).await.message();
        serde_json::from_str(answer["result"]["content"][0]["text"].as_str().unwrap()).unwrap()
    }
}

fn hello() -> Value {
    json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "test", "version": "0" },
        },
    })
}

async fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A server that refuses closes with what it has not read.
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the server did not answer");
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

#[tokio::test]
async fn only_known_tokens_are_served() {
    let server = Server::start().await;
    let token = server.tokens.add("one").unwrap();
    for header in [
        String::new(),
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer 0000\r\n".to_owned(),
        format!("Authorization: Basic {token}\r\n"),
        format!("Authorization: Bearer {}\r\n", "0".repeat(64)),
        format!("Authorization: Bearer {token}0\r\n"),
        format!("Authorization: Bearer x\r\nAuthorization: Bearer {token}\r\n"),
    ] {
        let answer = server.post(&header, &hello()).await;
        assert_eq!((answer.status, answer.header("www-authenticate").is_some()), (401, true), "{header}");
        assert!(!answer.body.contains(&token), "{answer:?}");
    }
    assert_eq!(server.post(&format!("Authorization: bearer {token}\r\n"), &hello()).await.status, 200);
    server.tokens.remove("one").unwrap();
    assert_eq!(server.post(&format!("Authorization: Bearer {token}\r\n"), &hello()).await.status, 401);
}

#[tokio::test]
async fn stream_of_events_ends_when_its_token_is_removed() {
    let server = Server::start().await;
    let (token, other) = (server.tokens.add("one").unwrap(), server.tokens.add("two").unwrap());
    let (removed, kept) = (server.listen(&token).await, server.listen(&other).await);

    server.tokens.remove("one").unwrap();

    // With an end: nothing was cut off.
    assert!(rest(removed).await.expect("it goes on").ends_with("0\r\n\r\n"));
    assert_eq!(rest(kept).await, None, "another one's has ended");
}

/// What comes of an answer until it ends; none if it does not within a few looks at the tokens.
async fn rest(mut stream: TcpStream) -> Option<String> {
    let mut text = String::new();
    timeout(Duration::from_secs(7), stream.read_to_string(&mut text)).await.ok().map(|read| {
        read.unwrap();
        text
    })
}

#[tokio::test]
async fn each_token_is_one_session_whatever_its_mcp_session_is() {
    let server = Server::start().await;
    let (one, two) = (server.tokens.add("one").unwrap(), server.tokens.add("two").unwrap());
    let first = server.open(&one).await;
    let again = server.open(&one).await;
    let other = server.open(&two).await;
    assert_ne!(first, again);

    let made = server.call(&first, "workspace_create", json!({ "name": "w" })).await;
    assert_eq!(made["state"], "running", "{made}");
    let seen = server.call(&again, "workspace_list", json!({})).await;
    let unseen = server.call(&other, "workspace_list", json!({})).await;

    assert_eq!(seen["workspaces"][0]["workspace_id"], made["workspace_id"]);
    assert_eq!(unseen, json!({ "workspaces": [] }));
    // A session of another token's client is not there.
    let stolen = first.replace(&one, &two);
    let message = json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/list" });
    assert_eq!(server.post(&stolen, &message).await.status, 404);
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let server = Server::start().await;
    let token = server.tokens.add("one").unwrap();
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let body = hello().to_string();
    let with_host = |host: &str| {
        format!(
            "POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\nContent-Length: {}\r\nConnection: close\r\n{bearer}\r\n{body}",
            body.len(),
        )
    };

    assert_eq!(server.raw(with_host("evil.example").as_bytes()).await.status, 403);
    assert_eq!(server.raw(with_host("localhost:1").as_bytes()).await.status, 200);
    for (origin, status) in [("https://evil.example", 403), ("null", 403), ("https://good.example", 200)] {
        let headers = format!("{bearer}Origin: {origin}\r\n");
        assert_eq!(server.post(&headers, &hello()).await.status, status, "{origin}");
    }
}

#[tokio::test]
async fn request_over_sixteen_mebibytes_is_refused_unread() {
    let server = Server::start().await;
    let token = server.tokens.add("one").unwrap();
    let bearer = format!("Authorization: Bearer {token}\r\n");
    // Nothing of the body is ever sent.
    let announced = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: 16777217\r\n{bearer}\r\n",
        server.address,
    );
    let answer = server.raw(announced.as_bytes()).await;
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));

    // One that does not say how long it is, is read no further than that.
    let mut chunked = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nTransfer-Encoding: chunked\r\n{bearer}\r\n",
        server.address,
    )
    .into_bytes();
    let chunk = vec![b' '; 1 << 20];
    for _ in 0..17 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend_from_slice(&chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let mut answer = vec![0; 12];
    let (_, read) =
        timeout(SOON, async { tokio::join!(writing.write_all(&chunked), reading.read_exact(&mut answer)) })
            .await
            .unwrap();
    read.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn what_is_no_mcp_request_is_refused() {
    let server = Server::start().await;
    let token = server.tokens.add("one").unwrap();
    let headers = server.open(&token).await;
    let host = format!("Host: {}\r\nConnection: close\r\n", server.address);
    for (request, expected) in [
        (format!("GET /etc/passwd HTTP/1.1\r\n{host}\r\n"), 404),
        (format!("PUT /mcp HTTP/1.1\r\n{host}{headers}\r\n"), 405),
        (
            format!(
                "POST /mcp HTTP/1.1\r\n{host}{headers}Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}"
            ),
            406,
        ),
        ("nonsense\r\n\r\n".to_owned(), 400),
    ] {
        let answer = server.raw(request.as_bytes()).await;
        assert_eq!(answer.status, expected, "{request:?}: {answer:?}");
    }
    let unknown = json!({ "jsonrpc": "2.0", "id": 5, "method": "nope/nope" });
    assert_eq!(server.post(&headers, &unknown).await.message()["error"]["code"], -32601);
}

#[tokio::test]
async fn more_mcp_sessions_than_a_token_may_have_end_the_oldest() {
    let server = Server::start().await;
    let token = server.tokens.add("one").unwrap();
    let first = server.open(&token).await;
    let mut last = String::new();
    for _ in 0..64 {
        last = server.open(&token).await;
    }
    let message = json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/list" });
    assert_eq!(server.post(&first, &message).await.status, 404);
    assert_eq!(server.post(&last, &message).await.status, 200);
}

#[tokio::test]
async fn metrics_count_what_was_done() {
    let server = Server::start().await;
    let token = server.tokens.add("one").unwrap();
    let headers = server.open(&token).await;
    server.call(&headers, "workspace_create", json!({ "name": "hidden-name" })).await;
    server.call(&headers, "exec", json!({ "workspace_id": "hidden-name", "command": "exit 3" })).await;
    server.call(&headers, "workspace_fork", json!({ "workspace_id": "hidden-name" })).await;
    server.call(&headers, "exec", json!({ "workspace_id": "none", "command": "true" })).await;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.metrics);

    let answer = exchange(server.metrics, request.as_bytes()).await;

    assert_eq!(answer.status, 200);
    for line in [
        "agentiso_workspaces{state=\"running\"} 2",
        "agentiso_boots_total{by=\"create\"} 1",
        "agentiso_forks_total{outcome=\"ok\"} 1",
        "agentiso_fork_pause_seconds_count 1",
        "agentiso_execs_total{outcome=\"nonzero\"} 1",
        "agentiso_tool_calls_total{tool=\"exec\",outcome=\"ok\"} 1",
        "agentiso_tool_calls_total{tool=\"exec\",outcome=\"invalid_request\"} 1",
    ] {
        assert!(answer.body.contains(line), "{line} is missing in\n{}", answer.body);
    }
    assert!(!answer.body.contains("hidden-name") && !answer.body.contains("\"one\""), "{}", answer.body);
    let other = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.metrics);
    assert_eq!(exchange(server.metrics, other.as_bytes()).await.status, 404);
}

#[tokio::test]
async fn server_stops_when_it_is_told_to() {
    let mut server = Server::start().await;
    let token = server.tokens.add("one").unwrap();
    server.open(&token).await;
    let _idle = TcpStream::connect(server.address).await.unwrap();

    server.stopper.stop();

    timeout(SOON, &mut server.serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}
