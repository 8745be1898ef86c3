//! A host played by a network namespace, with a state folder.

use std::{collections::BTreeMap, future::Future, net::Ipv4Addr, sync::Arc};

use agentiso_core::{
    leases::Leases,
    network::{
        AttachSpec, Network, NetworkPolicy, NetworkRecord,
        netlink::{ForwardsFrom, NetlinkConfig, NetlinkNetwork},
    },
    testkit,
    types::{GuestPort, HostPort, WorkspaceId},
};

use crate::guest::{Guest, Namespace, leave_host, sh};

/// Why these tests cannot run here.
pub(crate) fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    (!std::path::Path::new("/dev/net/tun").exists()).then(|| "no /dev/net/tun".to_owned())
}

/// Runs a test in a namespace of its own that has nothing but a loopback; says `skipped: ...` where that cannot be.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if let Some(reason) = obstacle() {
        println!("skipped: {reason}");
        return;
    }
    let run = || {
        leave_host();
        // Its threads are started from here, and so in the namespace too.
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    };
    let result = std::thread::scope(|scope| scope.spawn(run).join());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Who removes a folder.
pub(crate) enum Folder {
    Ours(tempfile::TempDir),
    Theirs(std::path::PathBuf),
}

impl Folder {
    pub(crate) fn path(&self) -> &std::path::Path {
        match self {
            Self::Ours(folder) => folder.path(),
            Self::Theirs(folder) => folder,
        }
    }
}

/// A state folder.
pub(crate) struct State {
    pub(crate) folder: Folder,
    pub(crate) config: NetlinkConfig,
}

impl State {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let leases: Arc<dyn Leases> = testkit::leases(&folder.path().join("records.db")).unwrap();
        let id = WorkspaceId::random().to_string();
        let mut config = NetlinkConfig::new(id, folder.path().to_owned(), leases);
        config.resolver = Some(internet::ADDRESS);
        Self { folder: Folder::Ours(folder), config }
    }

    /// The state folder that another process has.
    pub(crate) fn again(folder: &std::path::Path, id: &str) -> Self {
        let leases: Arc<dyn Leases> = testkit::leases(&folder.join("records.db")).unwrap();
        let mut config = NetlinkConfig::new(id.to_owned(), folder.to_owned(), leases);
        config.resolver = Some(internet::ADDRESS);
        Self { folder: Folder::Theirs(folder.to_owned()), config }
    }

    pub(crate) fn with_range(range: &str) -> Self {
        let mut state = Self::new();
        state.config.range = range.parse().unwrap();
        state
    }

    pub(crate) fn from_anywhere() -> Self {
        let mut state = Self::new();
        state.config.forwards_from = ForwardsFrom::Anywhere;
        state
    }

    pub(crate) async fn open(&self) -> NetlinkNetwork {
        NetlinkNetwork::open(self.config.clone()).await.unwrap()
    }

    pub(crate) fn spec(&self, policy: &NetworkPolicy) -> AttachSpec {
        AttachSpec {
            id: WorkspaceId::random(),
            uid: None,
            policy: policy.clone(),
            forwards: BTreeMap::new(),
            run_dir: self.folder.path().to_owned(),
        }
    }

    /// The part of the names of bridge and tables that is this state folder's.
    pub(crate) fn names(&self) -> String {
        let links = sh("ip -o link");
        let at = links.find("agbr").unwrap();
        links[at + 4..at + 12].to_owned()
    }
}

pub(crate) async fn start(network: &NetlinkNetwork, state: &State, policy: &NetworkPolicy) -> Guest {
    Guest::start(network.attach(state.spec(policy)).await.unwrap())
}

pub(crate) async fn forward(network: &NetlinkNetwork, record: &NetworkRecord, guest: u64) -> HostPort {
    network.add_forward(record, GuestPort::new(guest).unwrap(), None).await.unwrap()
}

pub(crate) fn internet_on() -> NetworkPolicy {
    NetworkPolicy { allow_internet: true, ..NetworkPolicy::default() }
}

pub(crate) fn groups(names: &[&str]) -> NetworkPolicy {
    NetworkPolicy {
        groups: names.iter().map(|name| name.parse().unwrap()).collect(),
        ..NetworkPolicy::default()
    }
}

/// Packets that a rule of this purpose has counted.
pub(crate) fn counted(purpose: &str) -> u64 {
    let rules = sh("nft list ruleset");
    let line = rules
        .lines()
        .find(|line| line.contains(&format!("comment \"{purpose}\"")))
        .unwrap_or_else(|| panic!("{rules}"));
    let mut words = line.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

/// Everything of this namespace that a network may have changed.
pub(crate) fn everything() -> String {
    let settings = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/conf/*/route_localnet";
    sh(&format!(
        "nft list ruleset; ip -o link | cut -d: -f2-; ip -o addr | cut -d: -f2-; ip route; bridge fdb; {settings}"
    ))
}

pub(crate) mod internet {
    //! The internet, played by another namespace: 203.0.113.1 and 198.51.100.7 on its side, 203.0.113.2 on the host's.
    use super::*;

    pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    /// An address beyond.
    pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    /// The host's.
    pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

    /// Connects this namespace to it.
    pub(crate) fn connect_host() -> Namespace {
        let internet = Namespace::new();
        sh(&format!(
            "ip link add uplink type veth peer name eth0 netns {}
             ip addr add {HOST}/24 dev uplink
             ip link set uplink addrgenmode none up",
            internet.path()
        ));
        internet.sh(&format!(
            "ip addr add {ADDRESS}/24 dev eth0
             ip addr add {FAR}/32 dev lo
             ip link set eth0 up"
        ));
        sh(&format!("ip route add default via {ADDRESS}"));
        internet
    }
}
