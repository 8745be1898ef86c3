mod adoption;
mod expiry;
mod model;
mod processes;
mod quotas;
mod rates;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use crate::network::NetworkPolicy;
use crate::session::{AuthManager, Claimant, Clock, SessionQuota};
use crate::store::{Store, WorkspaceRecord};
use crate::types::{
    BaseId, DiskGib, ImageName, MemoryMib, Owner, Resources, SessionId, WorkspaceId, WorkspaceName,
};
use crate::workspace::WorkspaceState;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MILLISECOND: Duration = Duration::from_millis(1);

/// A clock that goes on when it is told to.
#[derive(Debug)]
struct ManualClock(Mutex<SystemTime>);

impl ManualClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(SystemTime::UNIX_EPOCH + 20_000 * DAY)))
    }

    /// One that stands at the present.
    fn at_present() -> Arc<Self> {
        Arc::new(Self(Mutex::new(SystemTime::now())))
    }

    fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }

    fn set_back(&self, by: Duration) {
        *self.0.lock().unwrap() -= by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// Books in memory, and what they go by.
fn in_memory(quota: SessionQuota) -> (AuthManager, Arc<ManualClock>) {
    let clock = ManualClock::new();
    (AuthManager::new(quota).with_clock(clock.clone()), clock)
}

/// The books of a state folder, as another process has them.
fn durable(folder: &Path, quota: SessionQuota, clock: Arc<ManualClock>) -> AuthManager {
    AuthManager::open(Arc::new(store(folder)), quota).with_clock(clock)
}

fn store(folder: &Path) -> Store {
    Store::open(&folder.join("agentiso.db")).unwrap()
}

async fn register(auth: &AuthManager, name: &str) -> SessionId {
    auth.register_session(name.to_owned()).await.unwrap()
}

/// A record as the engine makes it.
fn draft(memory_mb: u64, disk_gb: u64) -> WorkspaceRecord {
    let id = WorkspaceId::random();
    WorkspaceRecord {
        id,
        name: WorkspaceName::new(format!("ws-{id}")).unwrap(),
        state: WorkspaceState::Creating,
        crashed: false,
        created_at: 7,
        image: ImageName::new("debian").unwrap(),
        base: BaseId::random(),
        resources: Resources {
            memory_mb: MemoryMib::new(memory_mb).unwrap(),
            disk_gb: DiskGib::new(disk_gb).unwrap(),
            ..Resources::default()
        },
        policy: NetworkPolicy::default(),
        uid: None,
        owner: Owner::Operator,
        inherited: false,
        throwaway_of: None,
        forked_from: None,
        runtime: None,
        boot_time_ms: None,
        pooled: false,
    }
}

/// Adds a workspace of the operator's that was shared.
fn add_orphan(store: &Store, clock: &ManualClock) -> WorkspaceId {
    let made = store.insert_claimed(vec![draft(512, 5)], None, &Claimant::Operator, false).unwrap();
    store.give_orphan(Claimant::now(clock), made[0].id, &Owner::Nobody).unwrap();
    made[0].id
}
