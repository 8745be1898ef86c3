//! MCP over streamable HTTP, for clients with a token.
//!
//! A request passes, in this order: the connection's limits (`listen.rs`), the path, its announced size, the token, and
//! the allow-lists of Host and Origin. Only then its body is read. Each token has MCP sessions of its own: what another
//! token's client was told to call its session is not found.

mod admitted;
mod listen;
mod metrics;
mod sessions;

use std::{collections::HashMap, convert::Infallible, net::SocketAddr, sync::Arc};

use agentiso_core::types::SessionId;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header,
};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
};

pub use metrics::serve_metrics;

use self::{admitted::Admitted, listen::serve_connections, sessions::McpSessions};
use crate::{Service, server::Server, tokens::Tokens};

/// Longest request, in bytes.
const MAX_REQUEST_BYTES: u64 = 16 * 1024 * 1024;

/// Where clients talk MCP.
const PATHS: [&str; 3] = ["/mcp", "/mcp/", "/"];

/// The header that names an MCP session.
const MCP_SESSION_ID: &str = "mcp-session-id";

/// An answer.
type Answer = Response<BoxBody<Bytes, Infallible>>;

/// How clients may address the server.
#[derive(Clone, Debug, Default)]
pub struct HttpOptions {
    /// Further hosts (`name` or `name:port`) that requests may be addressed to, besides those of the loopback.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages whose requests are served; none unless given.
    pub allowed_origins: Vec<String>,
}

/// Tells servers to stop.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// Makes servers stop when it is dropped, or told so.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Lets all servers stop.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// A way to stop servers.
pub fn stopper() -> (Stopper, Stop) {
    let (stopper, stop) = watch::channel(false);
    (Stopper(stopper), Stop(stop))
}

impl Stop {
    /// Waits until the server is to stop.
    pub(crate) async fn stopped(&mut self) {
        // A stopper that is gone has stopped.
        let _ = self.0.wait_for(|stopped| *stopped).await;
    }
}

/// Serves MCP to everybody who has a token, until it is told to stop.
pub async fn serve_http(
    service: Service,
    listener: TcpListener,
    tokens: Tokens,
    options: HttpOptions,
    stop: Stop,
) {
    let local = listener.local_addr().ok();
    let server = Arc::new(HttpServer { service, tokens, options, local, clients: Mutex::default() });
    serve_connections(listener, stop, move |request| {
        let server = Arc::clone(&server);
        async move { server.answer(request).await }
    })
    .await;
}

/// What serves the clients of one token.
#[derive(Clone)]
struct Client {
    mcp: StreamableHttpService<Server, LocalSessionManager>,
    sessions: Arc<McpSessions>,
}

struct HttpServer {
    service: Service,
    tokens: Tokens,
    options: HttpOptions,
    local: Option<SocketAddr>,
    clients: Mutex<HashMap<SessionId, Client>>,
}

impl HttpServer {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if !PATHS.contains(&request.uri().path()) {
            return refuse(StatusCode::NOT_FOUND, "MCP is served at /mcp");
        }
        if request.body().size_hint().lower() > MAX_REQUEST_BYTES {
            return refuse(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request is longer than 16 MiB: use the file_transfer tool for large files",
            );
        }
        let (session, token) = match self.session(&request) {
            Ok(admitted) => admitted,
            Err(answer) => return *answer,
        };
        match self.client(session.clone()).await {
            Ok(client) => {
                let named = request.headers().get(MCP_SESSION_ID);
                // What is no text names no session, and is refused for that.
                let named = named.map(|id| id.to_str().unwrap_or_default());
                if named.is_some() || request.method() == Method::POST {
                    client.sessions.request(named).await;
                }
                let answer = client.mcp.handle(request).await;
                if answer.body().size_hint().exact().is_some() {
                    return answer;
                }
                answer.map(|body| Admitted::new(body, self.tokens.clone(), session, token).boxed())
            }
            Err(answer) => *answer,
        }
    }

    /// The session whose token the request carries, and that token.
    fn session(&self, request: &Request<Incoming>) -> Result<(SessionId, String), Box<Answer>> {
        let unauthorized = |text| {
            let mut answer = refuse(StatusCode::UNAUTHORIZED, text);
            let challenge = header::HeaderValue::from_static("Bearer realm=\"agentiso\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            Box::new(answer)
        };
        let mut given = request.headers().get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else {
            return Err(unauthorized("send the header \"Authorization: Bearer TOKEN\""));
        };
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        let Some((_, token)) = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return Err(unauthorized("send the header \"Authorization: Bearer TOKEN\""));
        };
        let token = token.trim();
        match self.tokens.session(token) {
            Ok(Some(session)) => Ok((session, token.to_owned())),
            Ok(None) => Err(unauthorized("this token is not known")),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "could not look a token up");
                Err(Box::new(refuse(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the server cannot read its tokens: its log says why",
                )))
            }
        }
    }

    /// What serves this session.
    async fn client(&self, session: SessionId) -> Result<Client, Box<Answer>> {
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(&session) {
            return Ok(client.clone());
        }
        let caller = self.service.caller(session.as_str()).await.map_err(|error| {
            tracing::error!(%session, error = error.report(), "could not begin a session");
            Box::new(refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the server cannot begin the session: its log says why",
            ))
        })?;
        let server = Server::new(self.service.clone(), caller);
        let factory = move || Ok(server.clone());
        let sessions = Arc::new(McpSessions::new());
        let mcp = StreamableHttpService::new(factory, sessions.manager(), self.config());
        let client = Client { mcp, sessions };
        clients.insert(session, client.clone());
        Ok(client)
    }

    fn config(&self) -> StreamableHttpServerConfig {
        let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        // Whoever let the server listen at an address of the network lets it be addressed by that.
        hosts.extend(
            self.local.filter(|local| !local.ip().is_unspecified()).map(|local| local.ip().to_string()),
        );
        hosts.extend(self.options.allowed_hosts.iter().cloned());
        StreamableHttpServerConfig::default()
            .with_allowed_hosts(hosts)
            .with_allowed_origins(self.options.allowed_origins.clone())
            .enforce_origin_validation()
            .with_max_request_body_bytes(usize::try_from(MAX_REQUEST_BYTES).unwrap_or(usize::MAX))
    }
}

/// A short answer in text, after which the connection is closed: what is left of the request is not read.
fn refuse(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    answer
}
