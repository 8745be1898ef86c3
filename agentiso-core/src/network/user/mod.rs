//! The network that needs no privileges: one confined process per machine, `agentiso-shim net`.
//!
//! QEMU passes the machine's frames to it over a stream socket; it is the machine's gateway and name server, and the
//! other end of everything the machine connects to (see `shim::net`). It outlives whoever made it, ends with QEMU,
//! and is operated over a unix socket in the machine's run folder.
//!
//! Why not what exists: QEMU's own user network connects and listens inside QEMU, maps an address of the machine's
//! network to the host's loopback, and fixes at start whether a machine is restricted. passt has no forwards that can
//! be added or removed while it runs and no policy that can change, and what it lets a machine reach of the host
//! depends on the host's addresses at its start. Here a destination is asked of the kernel at each connection, so
//! that a machine never reaches the host's own addresses, and policy and forwards change while connections live.
//!
//! What a machine sees: its address 10.0.2.15/24 (by configuration or DHCP), a gateway 10.0.2.2 that answers pings
//! and is where forwarded connections come from, a name server 10.0.2.3 that asks the host's. IPv4; TCP and UDP.
//! A refused connection is reset, a refused datagram answered by an ICMP message. Pings go no further than the
//! gateway. Packets are as long as IPv4 allows (see `addresses::MTU`), never fragments.
//!
//! The host's name servers are read from /etc/resolv.conf when a card is made and at each change of policy; a host
//! that changes them in between is followed at the next of these.

pub(crate) mod addresses;
mod client;
pub(crate) mod protocol;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use agentiso_guest::message::NetworkConfiguration;
use async_trait::async_trait;
use rustix::{pipe::PipeFlags, process::Signal};
use serde::{Deserialize, Serialize};

use self::{
    client::{Client, RunFolder, is_gone},
    protocol::{Reply, Request},
};
use super::{
    AttachSpec, Attachment, Network, NetworkCapabilities, NetworkError, NetworkPolicy, NetworkRecord, Nic,
    NicBackend, resolvers,
};
use crate::{
    process::{Detached, FileRules, Sockets, Started, program_folders, start_name},
    types::{GuestPort, HostPort, ProcessRef, WorkspaceId},
};

/// The first argument of a network process.
const TRADE: &str = "net";

/// Descriptors a network process may have: enough for its tables to be full (see `shim::net`).
const OPEN_FILES: u64 = 2048;

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Most of a failed process's last words that an error repeats, in bytes.
const MAX_LAST_WORDS: u64 = 2048;

/// What a user network needs to know.
#[derive(Clone, Debug)]
pub struct UserNetworkConfig {
    /// The state folder's id, by which its processes are found.
    pub state_id: String,
    /// The program `agentiso-shim`. Started by root, it must be executable for everyone.
    pub shim: PathBuf,
}

/// See the module.
#[derive(Debug)]
pub struct UserNetwork {
    config: UserNetworkConfig,
}

/// What a record holds beside the address.
#[derive(Debug, Serialize, Deserialize)]
struct Details {
    process: ProcessRef,
    run_dir: PathBuf,
}

impl UserNetwork {
    /// A user network. Starts nothing, and needs the program only when something is attached.
    pub fn new(config: UserNetworkConfig) -> Self {
        Self { config }
    }

    fn check_program(&self) -> Result<(), NetworkError> {
        let access = rustix::fs::Access::EXEC_OK;
        rustix::fs::access(&self.config.shim, access).map_err(|_| NetworkError::Missing {
            what: format!("the network program {}", self.config.shim.display()),
            remedy: "put it there with `agentiso init`".to_owned(),
        })
    }

    fn start(&self, spec: &AttachSpec) -> Result<Card, NetworkError> {
        let socket_error = |operation| {
            let run_dir = spec.run_dir.display().to_string();
            move |source| NetworkError::Io {
                operation,
                object: format!("the network socket in {run_dir}"),
                source,
            }
        };
        let folder = RunFolder::open(&spec.run_dir).map_err(socket_error("open"))?;
        let control = folder.listen().map_err(socket_error("make"))?;
        // From here on, what fails or is given up leaves no socket behind.
        let folder = SocketGuard(Some(folder));
        let (qemu, link) = UnixStream::pair().map_err(socket_error("connect"))?;
        let (last_words, stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|error| socket_error("watch")(error.into()))?;

        let mut program = Detached::new(&self.config.shim);
        program.args([TRADE, &start_name(&self.config.state_id, spec.id)]);
        program.pass(link.into());
        program.pass(control.into());
        let files = program_folders(&self.config.shim)
            .into_iter()
            .fold(FileRules::nothing().allow_tcp(), FileRules::read_execute);
        program.stderr(stderr).uid(spec.uid).files(files).sockets(Sockets::Internet).open_files(OPEN_FILES);
        let process = program.start().map_err(|error| NetworkError::Io {
            operation: "start",
            object: format!("the network process of machine {}", spec.id),
            source: io::Error::other(error),
        })?;
        Ok(Card { qemu: qemu.into(), process, last_words, folder })
    }

    fn set_policy(policy: &NetworkPolicy) -> Result<Request, NetworkError> {
        if policy.allow_inter_vm {
            return Err(NetworkError::Unsupported {
                what: "traffic between machines".to_owned(),
                remedy: "leave it off; programs of the host can use the forwarded ports of both".to_owned(),
            });
        }
        if !policy.groups.is_empty() {
            return Err(NetworkError::Unsupported {
                what: "a group of machines that may talk to each other".to_owned(),
                remedy: "leave groups out; programs of the host can use the forwarded ports of all"
                    .to_owned(),
            });
        }
        let resolvers = resolvers::of_host(Path::new(resolvers::RESOLV_CONF));
        Ok(Request::SetPolicy { policy: policy.clone(), resolvers })
    }

    /// Asks the process of a record one thing.
    async fn ask(record: &NetworkRecord, request: &Request) -> Result<Reply, NetworkError> {
        let details = Details::of(record)?;
        let gone = NetworkError::Gone { id: record.id };
        // A later process of the same machine listens at the same place.
        if !details.process.is_running() {
            return Err(gone);
        }
        let answer = match RunFolder::open(&details.run_dir) {
            Ok(folder) => folder.ask(request).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(Reply::Failed { reason }) => Err(asked(record.id, io::Error::other(reason))),
            Ok(reply) => Ok(reply),
            Err(error) if is_gone(&error) => Err(gone),
            Err(error) => Err(asked(record.id, error)),
        }
    }
}

/// A card that is being made. Dropped, it leaves nothing.
struct Card {
    qemu: OwnedFd,
    process: Started,
    /// What the process says on its stderr.
    last_words: OwnedFd,
    folder: SocketGuard,
}

impl Card {
    /// Puts policy and forwards in force; the process is ready then.
    async fn set_up(&self, spec: &AttachSpec, policy: &Request) -> Result<(), NetworkError> {
        let failed = |source| asked(spec.id, source);
        let mut client = match self.folder.get()?.connect().await {
            Ok(client) => client,
            Err(error) => return Err(failed(self.with_last_words(error))),
        };
        self.ask(&mut client, spec.id, policy).await?;
        for (&guest, &host) in &spec.forwards {
            match self.ask(&mut client, spec.id, &Request::AddForward { guest, host: Some(host) }).await? {
                Reply::Forwarded { .. } => {}
                other => return Err(refusal(spec.id, guest, other)),
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        client: &mut Client,
        id: WorkspaceId,
        request: &Request,
    ) -> Result<Reply, NetworkError> {
        match client.ask(request).await {
            Ok(Reply::Failed { reason }) => Err(asked(id, io::Error::other(reason))),
            Ok(reply) => Ok(reply),
            Err(error) => Err(asked(id, self.with_last_words(error))),
        }
    }

    /// An error, with what the process said if it is gone: that is the better reason.
    fn with_last_words(&self, error: io::Error) -> io::Error {
        let mut words = String::new();
        if is_gone(&error)
            && let Ok(pipe) = self.last_words.try_clone()
            && rustix::io::ioctl_fionbio(&pipe, true).is_ok()
        {
            // What could be read is there also after an error.
            let _ = std::fs::File::from(pipe).take(MAX_LAST_WORDS).read_to_string(&mut words);
        }
        match words.trim() {
            "" => error,
            words => io::Error::other(words.to_owned()),
        }
    }
}

/// The control socket of a card that is being made.
struct SocketGuard(Option<RunFolder>);

impl SocketGuard {
    fn get(&self) -> Result<&RunFolder, NetworkError> {
        self.0.as_ref().ok_or_else(|| NetworkError::Io {
            operation: "use",
            object: "a run folder".to_owned(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|folder| folder.remove_socket()) {
            tracing::warn!(%error, "a network socket was left behind");
        }
    }
}

impl Details {
    fn of(record: &NetworkRecord) -> Result<Self, NetworkError> {
        Self::deserialize(&record.details).map_err(|error| NetworkError::Io {
            operation: "read",
            object: format!("the network record of machine {}", record.id),
            source: error.into(),
        })
    }
}

fn asked(id: WorkspaceId, source: io::Error) -> NetworkError {
    NetworkError::Io { operation: "set up", object: format!("the network of machine {id}"), source }
}

/// What a reply other than the hoped-for one means.
fn refusal(id: WorkspaceId, guest: GuestPort, reply: Reply) -> NetworkError {
    match reply {
        Reply::PortTaken { port } => NetworkError::PortTaken { port },
        Reply::AlreadyForwarded { host } => NetworkError::AlreadyForwarded { guest, host },
        _ => asked(id, io::Error::other("it gave the answer to another question")),
    }
}

#[async_trait]
impl Network for UserNetwork {
    fn capabilities(&self) -> NetworkCapabilities {
        NetworkCapabilities {
            name: "user network, one confined process per machine".to_owned(),
            live_policy: true,
            live_forwards: true,
            inter_vm: false,
            open: vec![
                "with internet allowed, a machine also reaches other hosts of the networks that this host is on"
                    .to_owned(),
                "with internet allowed, a machine's questions about names go to this host's name servers".to_owned(),
            ],
        }
    }

    async fn attach(&self, spec: AttachSpec) -> Result<Attachment, NetworkError> {
        let policy = Self::set_policy(&spec.policy)?;
        self.check_program()?;
        let network = Self { config: self.config.clone() };
        let mac = addresses::machine_mac(spec.id);
        let start = tokio::task::spawn_blocking(move || network.start(&spec).map(|card| (card, spec)));
        let (card, spec) = start.await.map_err(|error| NetworkError::Io {
            operation: "start",
            object: "a network process".to_owned(),
            source: error.into(),
        })??;
        if let Err(error) = card.set_up(&spec, &policy).await {
            // Its ports are free again when this returns, not some time later.
            let process = card.process.process().clone();
            drop(card);
            let _ = process.wait_exit(KILL_LIMIT).await;
            return Err(error);
        }

        card.folder.keep();
        let details = Details { process: card.process.keep(), run_dir: spec.run_dir };
        let details = serde_json::to_value(details).map_err(|error| asked(spec.id, error.into()))?;
        Ok(Attachment {
            nic: Nic { mac, backend: NicBackend::Stream(card.qemu) },
            record: NetworkRecord { id: spec.id, address: addresses::GUEST.to_string(), details },
            guest: NetworkConfiguration {
                mac: Some(mac.to_string()),
                address: addresses::GUEST.to_string(),
                prefix: addresses::PREFIX,
                gateway: Some(addresses::GATEWAY.to_string()),
                dns: vec![addresses::RESOLVER.to_string()],
                mtu: Some(addresses::MTU.into()),
                ipv6: false,
            },
        })
    }

    async fn update_policy(
        &self,
        attachment: &NetworkRecord,
        policy: &NetworkPolicy,
    ) -> Result<(), NetworkError> {
        Self::ask(attachment, &Self::set_policy(policy)?).await.map(drop)
    }

    async fn add_forward(
        &self,
        attachment: &NetworkRecord,
        guest: GuestPort,
        host: Option<HostPort>,
    ) -> Result<HostPort, NetworkError> {
        match Self::ask(attachment, &Request::AddForward { guest, host }).await? {
            Reply::Forwarded { host } => Ok(host),
            other => Err(refusal(attachment.id, guest, other)),
        }
    }

    async fn remove_forward(&self, attachment: &NetworkRecord, guest: GuestPort) -> Result<(), NetworkError> {
        match Self::ask(attachment, &Request::RemoveForward { guest }).await {
            // Its forwards ended with it.
            Ok(_) | Err(NetworkError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn forwards(
        &self,
        attachment: &NetworkRecord,
    ) -> Result<BTreeMap<GuestPort, HostPort>, NetworkError> {
        match Self::ask(attachment, &Request::Forwards).await? {
            Reply::Forwards { forwards } => Ok(forwards.into_iter().collect()),
            _ => Err(asked(attachment.id, io::Error::other("it gave the answer to another question"))),
        }
    }

    async fn is_alive(&self, attachment: &NetworkRecord) -> Result<bool, NetworkError> {
        match Self::ask(attachment, &Request::Status).await {
            Ok(_) => Ok(true),
            Err(NetworkError::Gone { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn detach(&self, attachment: &NetworkRecord) -> Result<(), NetworkError> {
        let details = Details::of(attachment)?;
        self.kill_process(&details.process).await?;
        match RunFolder::open(&details.run_dir).and_then(|folder| folder.remove_socket()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetworkError::Io {
                operation: "remove",
                object: format!("the network socket in {}", details.run_dir.display()),
                source: error,
            }),
            _ => Ok(()),
        }
    }

    async fn leftovers(&self) -> Result<Vec<NetworkRecord>, NetworkError> {
        // All that an attachment consists of is its process.
        Ok(Vec::new())
    }

    async fn processes(&self) -> Result<Vec<(WorkspaceId, ProcessRef)>, NetworkError> {
        let state_id = self.config.state_id.clone();
        let found = tokio::task::spawn_blocking(move || crate::process::named(&state_id));
        let found = found.await.map_err(io::Error::from).flatten().map_err(|source| NetworkError::Io {
            operation: "look for",
            object: "network processes".to_owned(),
            source,
        })?;
        Ok(found
            .into_iter()
            .filter(|found| found.words.get(1).is_some_and(|word| word == TRADE))
            .map(|found| (found.workspace, found.process))
            .collect())
    }

    async fn kill_process(&self, process: &ProcessRef) -> Result<(), NetworkError> {
        let failed = |operation| {
            let object = format!("network process {}", process.pid);
            move |source| NetworkError::Io { operation, object, source }
        };
        process.signal(Signal::KILL).map_err(failed("end"))?;
        if process.wait_exit(KILL_LIMIT).await.map_err(failed("wait for"))? {
            return Ok(());
        }
        Err(failed("end")(io::Error::new(io::ErrorKind::TimedOut, "it is still there after 5 seconds")))
    }
}
