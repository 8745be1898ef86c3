//! The contract of every network, with machines that answer.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::{Arc, Mutex},
};

use agentiso_core::{
    network::{
        AttachSpec, Attachment, Network, NetworkCapabilities, NetworkError, NetworkPolicy, NetworkRecord,
        Nic, NicBackend, netlink::NetlinkNetwork,
    },
    testkit::contract::network::NetworkFixture,
    types::{GuestPort, HostPort, ProcessRef, WorkspaceId},
};
use async_trait::async_trait;

use crate::{
    fixture::{State, obstacle},
    guest::{Guest, leave_host, sh},
};

/// Ports that the contract forwards to.
const PORTS: [u16; 3] = [80, 81, 8080];

type Machines = Arc<Mutex<Vec<(Guest, Vec<TcpListener>)>>>;

struct Fixture {
    state: State,
    machines: Machines,
    folders: Mutex<Vec<tempfile::TempDir>>,
}

impl Fixture {
    /// Called on the test's own thread: what runs on it, and the threads started from it, are in the namespace.
    fn new() -> Result<Self, String> {
        if let Some(reason) = obstacle() {
            return Err(reason);
        }
        leave_host();
        Ok(Self { state: State::new(), machines: Machines::default(), folders: Mutex::default() })
    }
}

#[async_trait]
impl NetworkFixture for Fixture {
    async fn open(&self) -> Box<dyn Network> {
        Box::new(Played { network: self.state.open().await, machines: self.machines.clone() })
    }

    async fn spec(&self) -> AttachSpec {
        let folder = tempfile::tempdir().unwrap();
        let spec =
            AttachSpec { run_dir: folder.path().to_owned(), ..self.state.spec(&NetworkPolicy::default()) };
        self.folders.lock().unwrap().push(folder);
        spec
    }

    async fn crash(&self, attachment: &NetworkRecord) {
        sh(&format!("ip link del {}", attachment.details["tap"].as_str().unwrap()));
    }
}

/// The network, with a machine on each card it makes: a forward needs somebody who answers.
struct Played {
    network: NetlinkNetwork,
    machines: Machines,
}

#[async_trait]
impl Network for Played {
    fn capabilities(&self) -> NetworkCapabilities {
        self.network.capabilities()
    }

    async fn attach(&self, spec: AttachSpec) -> Result<Attachment, NetworkError> {
        let made = self.network.attach(spec).await?;
        let NicBackend::Tap(card) = &made.nic.backend else { panic!("a TAP device was expected") };
        let copy = Attachment {
            nic: Nic { mac: made.nic.mac, backend: NicBackend::Tap(card.try_clone().unwrap()) },
            record: made.record.clone(),
            guest: made.guest.clone(),
        };
        let machine = Guest::start(copy);
        let listeners = PORTS.map(|port| machine.listen(port)).into();
        self.machines.lock().unwrap().push((machine, listeners));
        Ok(made)
    }

    async fn update_policy(&self, of: &NetworkRecord, policy: &NetworkPolicy) -> Result<(), NetworkError> {
        self.network.update_policy(of, policy).await
    }

    async fn add_forward(
        &self,
        of: &NetworkRecord,
        guest: GuestPort,
        host: Option<HostPort>,
    ) -> Result<HostPort, NetworkError> {
        self.network.add_forward(of, guest, host).await
    }

    async fn remove_forward(&self, of: &NetworkRecord, guest: GuestPort) -> Result<(), NetworkError> {
        self.network.remove_forward(of, guest).await
    }

    async fn forwards(&self, of: &NetworkRecord) -> Result<BTreeMap<GuestPort, HostPort>, NetworkError> {
        self.network.forwards(of).await
    }

    async fn is_alive(&self, of: &NetworkRecord) -> Result<bool, NetworkError> {
        self.network.is_alive(of).await
    }

    async fn detach(&self, of: &NetworkRecord) -> Result<(), NetworkError> {
        self.network.detach(of).await
    }

    async fn processes(&self) -> Result<Vec<(WorkspaceId, ProcessRef)>, NetworkError> {
        self.network.processes().await
    }

    async fn kill_process(&self, process: &ProcessRef) -> Result<(), NetworkError> {
        self.network.kill_process(process).await
    }

    async fn leftovers(&self) -> Result<Vec<NetworkRecord>, NetworkError> {
        self.network.leftovers().await
    }
}

agentiso_core::network_contract!(Fixture::new());
