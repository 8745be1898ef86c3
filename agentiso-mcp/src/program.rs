//! The server as a program: what `agentiso mcp` and `agentiso-mcp` are.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use agentiso_core::{
    Config, EngineError, ErrorKind, Host, MAX_POOL, Pool, PoolSpec,
    session::SessionQuota,
    types::{Resources, WorkspaceId},
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::{
    DEFAULT_IMAGE, Options, ServeError, Service, SetupError, document, serve_stdio,
    tokens::{TokenError, Tokens},
};

/// Serve MCP clients: over standard input and output, or over HTTP to everybody with a token
///
/// Over standard input and output the client is the session that AGENTISO_SESSION names; without it a new session is
/// begun and its name printed on standard error. Over HTTP each token is a session. Workspaces outlive the server.
#[derive(Args, Clone, Debug)]
pub struct McpArgs {
    #[command(subcommand)]
    command: Option<McpCommand>,

    /// Serve streamable HTTP at this address, as in 127.0.0.1:8770; the path is /mcp
    #[cfg(feature = "http")]
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,

    /// Let --http and --metrics listen at addresses that other hosts reach; there is no encryption but a proxy's
    #[cfg(feature = "http")]
    #[arg(long)]
    allow_remote: bool,

    /// A further host name, or NAME:PORT, that HTTP requests may be addressed to
    #[cfg(feature = "http")]
    #[arg(long, value_name = "HOST", requires = "http")]
    allow_host: Vec<String>,

    /// An origin of web pages that may send HTTP requests, as in `https://example.com`; none otherwise
    #[cfg(feature = "http")]
    #[arg(long, value_name = "ORIGIN", requires = "http")]
    allow_origin: Vec<String>,

    /// Serve metrics for Prometheus at this address, path /metrics
    #[cfg(feature = "http")]
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,

    /// The one folder of this host that file_transfer copies from and to (or AGENTISO_TRANSFER_DIR)
    #[arg(long, value_name = "FOLDER")]
    transfer_dir: Option<PathBuf>,

    /// Machines of the default image and size that are kept ready (or AGENTISO_POOL)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_POOL)))]
    pool: Option<u32>,

    /// Most workspaces of one session
    #[arg(long, value_name = "N", default_value_t = SessionQuota::default().max_workspaces)]
    max_workspaces: u64,

    /// Most memory of all workspaces of one session, in MiB
    #[arg(long, value_name = "MIB", default_value_t = SessionQuota::default().max_memory_mb)]
    max_memory_mb: u64,

    /// Most disk of all workspaces of one session, in GiB
    #[arg(long, value_name = "GIB", default_value_t = SessionQuota::default().max_disk_gb)]
    max_disk_gb: u64,

    /// Print the tools instead of serving them
    #[arg(long, value_name = "FORM", value_enum)]
    print_tools: Option<ToolsForm>,
}

/// What else there is to do.
#[derive(Clone, Debug, Subcommand)]
enum McpCommand {
    /// Make, list and remove the tokens of HTTP clients
    #[command(subcommand)]
    Token(TokenCommand),
}

/// What to do with tokens.
#[derive(Clone, Debug, Subcommand)]
enum TokenCommand {
    /// Make a token for a session and print it
    Add {
        /// The session's name
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// List the names of the tokens
    Ls,
    /// Remove a token; its session's workspaces stay
    Rm {
        /// The session's name
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// How tools are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ToolsForm {
    /// As clients are told of them
    Json,
    /// As docs/tools.md
    Markdown,
}

/// What a command that serves nobody prints.
#[derive(Clone, Debug, PartialEq)]
pub struct Printed {
    /// For people.
    pub text: String,
    /// For programs; none if the text is all there is.
    pub json: Option<Value>,
}

/// Why the program failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The server could not be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The server ended.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Tokens.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// What was asked for makes no sense.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do instead.
        next_step: String,
    },
    /// An address cannot be listened at.
    #[error("could not listen at {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl RunError {
    fn usage(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), next_step: next_step.into() }
    }

    /// The kind of failure, for programs.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Engine(error) => error.kind(),
            Self::Serve(ServeError::Session { source, .. }) => source.kind(),
            Self::Usage { .. } | Self::Token(TokenError::InvalidName(_)) => ErrorKind::InvalidParams,
            Self::Token(TokenError::Exists { .. } | TokenError::Missing { .. }) | Self::Listen { .. } => {
                ErrorKind::InvalidRequest
            }
            Self::Setup(_) | Self::Serve(_) | Self::Token(_) => ErrorKind::InternalError,
        }
    }

    /// What to do next, as one sentence.
    pub fn next_step(&self) -> Option<String> {
        match self {
            Self::Engine(error) => error.next_step(),
            Self::Serve(ServeError::Session { source, .. }) => source.next_step(),
            Self::Token(error) => error.next_step(),
            Self::Usage { next_step, .. } => Some(next_step.clone()),
            Self::Setup(_) => Some("make the folder, or name another one with --transfer-dir".to_owned()),
            Self::Listen { .. } => Some("choose another address or port".to_owned()),
            Self::Serve(_) => None,
        }
    }
}

impl McpArgs {
    /// Does what needs no engine: prints the tools, changes tokens. None if clients are to be served.
    ///
    /// # Errors
    /// [`RunError::Token`].
    pub fn print(&self, config: &Config) -> Result<Option<Printed>, RunError> {
        let alone = |text| Printed { text, json: None };
        if let Some(form) = self.print_tools {
            return Ok(Some(alone(match form {
                ToolsForm::Json => document::tools_json(),
                ToolsForm::Markdown => document::tools_markdown(),
            })));
        }
        let Some(McpCommand::Token(command)) = &self.command else { return Ok(None) };
        let tokens = Tokens::at(&config.state_dir);
        let (text, json) = match command {
            TokenCommand::Add { name } => {
                prepare(config)?;
                let token = tokens.add(name)?;
                (format!("{token}\n"), json!({ "name": name, "token": token }))
            }
            TokenCommand::Ls => {
                let names = tokens.names()?;
                (names.iter().map(|name| format!("{name}\n")).collect(), json!(names))
            }
            TokenCommand::Rm { name } => {
                tokens.remove(name)?;
                (String::new(), json!({ "name": name, "removed": true }))
            }
        };
        Ok(Some(Printed { text, json: Some(json) }))
    }

    /// Serves clients until they leave, or for ever over HTTP. Dropping the future ends the server; what its calls had
    /// begun is undone by the time [`Host::close`] returns.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn serve(self, config: &Config, host: Host) -> Result<(), RunError> {
        let pool = self.pool(&host).await?;
        let served = self.serve_clients(config, host).await;
        if let Some(pool) = pool {
            pool.close().await;
        }
        served
    }

    async fn serve_clients(self, config: &Config, host: Host) -> Result<(), RunError> {
        let quota = SessionQuota {
            max_workspaces: self.max_workspaces,
            max_memory_mb: self.max_memory_mb,
            max_disk_gb: self.max_disk_gb,
        };
        let options = Options {
            transfer_dir: self
                .transfer_dir
                .clone()
                .or_else(|| variable("AGENTISO_TRANSFER_DIR").map(PathBuf::from)),
            state_dir: Some(config.state_dir.clone()),
        };
        let service = Service::new(host.sessions(quota), &options)?;
        #[cfg(feature = "http")]
        {
            self.serve_all(config, service).await
        }
        #[cfg(not(feature = "http"))]
        {
            serve_session(service).await
        }
    }

    #[cfg(feature = "http")]
    async fn serve_all(self, config: &Config, service: Service) -> Result<(), RunError> {
        use crate::http::{HttpOptions, serve_http, serve_metrics, stopper};
        let (_stopper, stop) = stopper();
        let metrics = async {
            match self.metrics {
                Some(address) => {
                    let listener = self.listen(address).await?;
                    tell(&format!("metrics at http://{}/metrics", shown(&listener, address)));
                    serve_metrics(service.clone(), listener, stop.clone()).await;
                    Ok(())
                }
                None => std::future::pending().await,
            }
        };
        let clients = async {
            let Some(address) = self.http else { return serve_session(service.clone()).await };
            let tokens = Tokens::at(&config.state_dir);
            if tokens.names()?.is_empty() {
                return Err(RunError::usage(
                    "there are no tokens: nobody could use the server",
                    "make one with `agentiso mcp token add NAME`",
                ));
            }
            let options = HttpOptions {
                allowed_hosts: self.allow_host.clone(),
                allowed_origins: self.allow_origin.clone(),
            };
            let listener = self.listen(address).await?;
            tell(&format!("MCP at http://{}/mcp", shown(&listener, address)));
            serve_http(service.clone(), listener, tokens, options, stop.clone()).await;
            Ok(())
        };
        tokio::select! {
            served = clients => served,
            served = metrics => served,
        }
    }

    #[cfg(feature = "http")]
    async fn listen(&self, address: SocketAddr) -> Result<tokio::net::TcpListener, RunError> {
        if !address.ip().is_loopback() && !self.allow_remote {
            return Err(RunError::usage(
                format!("other hosts could reach {address}"),
                "use 127.0.0.1, or say --allow-remote if that is wanted; what is sent is not encrypted",
            ));
        }
        let listener = tokio::net::TcpListener::bind(address).await;
        listener.map_err(|source| RunError::Listen { address, source })
    }

    /// The pool that is asked for.
    async fn pool(&self, host: &Host) -> Result<Option<Pool>, RunError> {
        let size = match (self.pool, variable("AGENTISO_POOL")) {
            (Some(size), _) => size,
            (None, None) => 0,
            (None, Some(wanted)) => {
                let size =
                    wanted.to_str().and_then(|text| text.parse().ok()).filter(|size| *size <= MAX_POOL);
                size.ok_or_else(|| {
                    RunError::usage(
                        format!("AGENTISO_POOL is {wanted:?}"),
                        format!("give it a number from 0 to {MAX_POOL}"),
                    )
                })?
            }
        };
        if size == 0 {
            return Ok(None);
        }
        let spec = PoolSpec { image: DEFAULT_IMAGE.to_owned(), resources: Resources::default(), size };
        Ok(Some(host.pool(spec).await?))
    }
}

/// Serves one client over standard input and output.
async fn serve_session(service: Service) -> Result<(), RunError> {
    let name = match variable("AGENTISO_SESSION") {
        Some(name) => name.into_string().map_err(|name| {
            RunError::usage(
                format!("AGENTISO_SESSION is {name:?}, which is no text"),
                "give a session's name",
            )
        })?,
        None => {
            let random = format!("{:032x}", WorkspaceId::random().as_uuid().as_u128());
            let name = format!("stdio-{}", random.get(..16).unwrap_or(&random));
            tell(&format!("session {name}; AGENTISO_SESSION={name} goes on with it"));
            name
        }
    };
    Ok(serve_stdio(service, &name).await?)
}

/// Says something to whoever started the server: standard output is the protocol's.
fn tell(text: &str) {
    use std::io::Write;
    // Whoever closed standard error does not want to know.
    let _ = writeln!(std::io::stderr(), "agentiso: {text}");
}

#[cfg(feature = "http")]
fn shown(listener: &tokio::net::TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// A variable of the environment that is set to something.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Makes the state folder, or checks that it is private.
fn prepare(config: &Config) -> Result<(), EngineError> {
    agentiso_core::Layout::new(Path::new(&config.state_dir)).prepare()
}

/// What to log, of what somebody asks for: never the requests of clients, which hold secrets.
pub fn log_directives(wanted: &str) -> String {
    const NEVER: [&str; 4] = ["rmcp", "hyper", "hyper_util", "h2"];
    let is_wanted = |directive: &&str| {
        let target = directive.trim().split(['=', '[', ':']).next().unwrap_or_default();
        !NEVER.contains(&target)
    };
    let mut directives: Vec<&str> = wanted.split(',').filter(is_wanted).collect();
    directives.extend(["rmcp=error", "hyper=warn", "hyper_util=warn"]);
    directives.join(",")
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: McpArgs,
    }

    fn args(line: &[&str]) -> McpArgs {
        Line::try_parse_from([&["mcp"], line].concat()).unwrap().args
    }

    fn config(folder: &tempfile::TempDir) -> Config {
        Config::at(folder.path().join("state"))
    }

    #[test]
    fn command_line_is_consistent() {
        Line::command().debug_assert();
    }

    #[test]
    fn token_commands_print_what_they_did() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(&folder);

        let made = args(&["token", "add", "ci"]).print(&config).unwrap().unwrap();
        let listed = args(&["token", "ls"]).print(&config).unwrap().unwrap();
        let removed = args(&["token", "rm", "ci"]).print(&config).unwrap().unwrap();

        assert_eq!(made.text.trim_end(), made.json.unwrap()["token"]);
        assert_eq!((listed.text.as_str(), listed.json.unwrap()), ("ci\n", json!(["ci"])));
        assert_eq!((removed.text.as_str(), removed.json.unwrap()["removed"].clone()), ("", json!(true)));
        assert!(args(&["token", "rm", "ci"]).print(&config).is_err());
    }

    #[test]
    fn tools_are_printed_and_serving_prints_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let printed = args(&["--print-tools", "markdown"]).print(&config(&folder)).unwrap().unwrap();

        assert!(printed.text.starts_with("# The MCP tools") && printed.json.is_none());
        assert_eq!(args(&[]).print(&config(&folder)).unwrap(), None);
        assert!(Line::try_parse_from(["mcp", "--pool", "21"]).is_err());
    }

    #[cfg(feature = "http")]
    #[tokio::test]
    async fn other_hosts_are_let_in_only_on_request() {
        let address = "0.0.0.0:0".parse().unwrap();
        let refused = args(&["--http", "0.0.0.0:0"]).listen(address).await;
        let allowed = args(&["--http", "0.0.0.0:0", "--allow-remote"]).listen(address).await;

        assert!(matches!(refused, Err(RunError::Usage { .. })));
        assert!(allowed.is_ok());
    }

    #[test]
    fn requests_of_clients_are_never_logged() {
        assert_eq!(log_directives("trace"), "trace,rmcp=error,hyper=warn,hyper_util=warn");
        assert_eq!(
            log_directives("agentiso_core=debug,rmcp::service=trace, rmcp=info,hyper[x]=trace"),
            "agentiso_core=debug,rmcp=error,hyper=warn,hyper_util=warn"
        );
    }
}
