//! The books against a simple model: whatever comes in whatever order, what a session uses is the sum of what it owns,
//! and no workspace has two owners, or none by accident.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use uuid::Uuid;

use super::{DAY, MINUTE, ManualClock, draft, durable, in_memory, store};
use crate::session::{AuthError, AuthManager, Claimant, Clock, SessionQuota, SessionUsage};
use crate::store::{Store, StoreError};
use crate::types::{Owner, SessionId};

const QUOTA: SessionQuota = SessionQuota { max_workspaces: 3, max_memory_mb: 2048, max_disk_gb: 12 };
const SESSIONS: [&str; 3] = ["a", "b", "c"];
const SIZES: [(u64, u64); 3] = [(256, 1), (512, 5), (1024, 4)];
const PLACES: usize = 6;

#[derive(Clone, Debug)]
enum Step {
    Register(usize),
    /// Of how many, of which size, for a session.
    Create(usize, usize, usize),
    /// By the operator.
    CreateOwn(usize),
    Share(usize),
    Adopt {
        session: usize,
        place: usize,
        force: bool,
    },
    Check(usize, usize),
    Destroy(usize),
    Advance(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    let (session, place) = (0..SESSIONS.len(), 0..PLACES);
    prop_oneof![
        2 => session.clone().prop_map(Step::Register),
        4 => (1..=3_usize, 0..SIZES.len(), session.clone()).prop_map(|(n, size, s)| Step::Create(n, size, s)),
        1 => (0..SIZES.len()).prop_map(Step::CreateOwn),
        2 => place.clone().prop_map(Step::Share),
        6 => (session.clone(), place.clone(), any::<bool>())
            .prop_map(|(session, place, force)| Step::Adopt { session, place, force }),
        1 => (session, place.clone()).prop_map(|(session, place)| Step::Check(session, place)),
        3 => place.prop_map(Step::Destroy),
        4 => prop_oneof![
            Just(MINUTE - Duration::from_millis(1)), Just(MINUTE), Just(DAY / 2), Just(DAY)
        ].prop_map(Step::Advance),
    ]
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    UnknownSession,
    UnknownWorkspace,
    NotOwner,
    QuotaExceeded,
    OwnerActive,
    OperatorOwned,
    SessionOwned,
}

impl<T> From<Result<T, AuthError>> for Outcome {
    fn from(result: Result<T, AuthError>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(AuthError::UnknownSession { .. }) => Self::UnknownSession,
            Err(AuthError::UnknownWorkspace { .. }) => Self::UnknownWorkspace,
            Err(AuthError::NotOwner { .. }) => Self::NotOwner,
            Err(AuthError::QuotaExceeded { .. }) => Self::QuotaExceeded,
            Err(AuthError::OwnerActive { .. }) => Self::OwnerActive,
            Err(AuthError::OperatorOwned { .. }) => Self::OperatorOwned,
            Err(AuthError::SessionOwned { .. }) => Self::SessionOwned,
            Err(error) => panic!("{error}"),
        }
    }
}

fn session(index: usize) -> SessionId {
    SessionId::new(SESSIONS[index]).unwrap()
}

/// What should be so.
#[derive(Debug, Default)]
struct Model {
    /// When each last made a call.
    sessions: BTreeMap<SessionId, SystemTime>,
    workspaces: BTreeMap<Uuid, (Owner, usize)>,
    /// In the order of their creation.
    places: Vec<Uuid>,
}

impl Model {
    fn usage(&self, of: &SessionId) -> SessionUsage {
        let mut sum = SessionUsage::default();
        for (_, size) in self.workspaces.values().filter(|(owner, _)| owner.is_session(of)) {
            sum.workspace_count += 1;
            sum.memory_mb += SIZES[*size].0;
            sum.disk_gb += SIZES[*size].1;
        }
        sum
    }

    fn exceeds(&self, session: &SessionId, count: usize, size: usize) -> bool {
        let (usage, count) = (self.usage(session), u64::try_from(count).unwrap());
        usage.workspace_count + count > QUOTA.max_workspaces
            || usage.memory_mb + count * SIZES[size].0 > QUOTA.max_memory_mb
            || usage.disk_gb + count * SIZES[size].1 > QUOTA.max_disk_gb
    }

    fn expire(&mut self, now: SystemTime) {
        self.sessions.retain(|_, called| *called + DAY > now);
        for (owner, _) in self.workspaces.values_mut() {
            if matches!(owner, Owner::Session(session) if !self.sessions.contains_key(session)) {
                *owner = Owner::Nobody;
            }
        }
    }

    /// Notes a call of a session's.
    fn called(&mut self, session: &SessionId, now: SystemTime) -> bool {
        self.sessions.get_mut(session).map(|called| *called = now).is_some()
    }

    fn adopt(&mut self, to: &SessionId, id: Uuid, force: bool, now: SystemTime) -> Outcome {
        if !self.called(to, now) {
            return Outcome::UnknownSession;
        }
        let Some((owner, size)) = self.workspaces.get(&id).cloned() else { return Outcome::UnknownWorkspace };
        if owner.is_session(to) {
            return Outcome::Done;
        }
        if owner != Owner::Nobody && !force {
            return Outcome::NotOwner;
        }
        if self.exceeds(to, 1, size) {
            return Outcome::QuotaExceeded;
        }
        match owner {
            Owner::Operator => return Outcome::OperatorOwned,
            Owner::Session(previous) if self.sessions[&previous] + MINUTE > now => {
                return Outcome::OwnerActive;
            }
            _ => {}
        }
        self.workspaces.insert(id, (to.clone().into(), size));
        Outcome::Done
    }

    fn owner(&self, id: Uuid) -> Option<&Owner> {
        self.workspaces.get(&id).map(|(owner, _)| owner)
    }

    /// The workspace in a place, there or gone; one that never was in an empty place.
    fn place(&self, place: usize) -> Uuid {
        self.places.iter().rev().nth(place).copied().unwrap_or_default()
    }

    fn add(&mut self, id: Uuid, owner: Owner, size: usize) {
        self.places.push(id);
        self.workspaces.insert(id, (owner, size));
    }
}

/// What is tested, by turns through each of its managers.
struct Subject {
    managers: Vec<AuthManager>,
    clock: Arc<ManualClock>,
    store: Arc<Store>,
    /// Whether workspaces have records there.
    records: bool,
    turn: usize,
}

impl Subject {
    async fn in_memory() -> Self {
        let (manager, clock) = in_memory(QUOTA);
        let store = manager.store().await.unwrap();
        Self { managers: vec![manager], clock, store, records: false, turn: 0 }
    }

    async fn durable(folder: &Path) -> Self {
        let clock = ManualClock::new();
        let managers = (0..2).map(|_| durable(folder, QUOTA, clock.clone())).collect();
        Self { managers, clock, store: Arc::new(store(folder)), records: true, turn: 0 }
    }

    async fn step(&mut self, model: &mut Model, step: &Step) {
        self.turn += 1;
        let auth = self.managers[self.turn % self.managers.len()].clone();
        let now = self.clock.now();
        match *step {
            Step::Register(who) => {
                auth.register_session(SESSIONS[who].to_owned()).await.unwrap();
                model.sessions.insert(session(who), now);
            }
            Step::Create(count, size, who) => self.create(&auth, model, (count, size), &session(who)).await,
            Step::CreateOwn(size) if self.records => {
                let made = self.make_records(&auth, 1, size, &Claimant::Operator).await.unwrap();
                model.add(made[0], Owner::Operator, size);
            }
            Step::Share(place) if self.records => {
                let id = model.place(place);
                let (expected, owner) = match model.owner(id) {
                    None => (Outcome::UnknownWorkspace, None),
                    Some(Owner::Session(_)) => (Outcome::SessionOwned, None),
                    Some(_) => (Outcome::Done, Some(Owner::Nobody)),
                };
                assert_eq!(
                    Outcome::from(self.store.give_orphan(
                        Claimant::now(&*self.clock),
                        id.into(),
                        &Owner::Nobody
                    )),
                    expected
                );
                if let (Some(owner), Some(workspace)) = (owner, model.workspaces.get_mut(&id)) {
                    workspace.0 = owner;
                }
            }
            Step::Adopt { session: who, place, force } => {
                let (to, id) = (session(who), model.place(place));
                // In memory one that is gone would be one that is new.
                if self.records || model.owner(id).is_some() {
                    let adopted = auth.adopt_workspace(&to, &id, 1, 1, force).await;
                    assert_eq!(Outcome::from(adopted), model.adopt(&to, id, force, now));
                }
            }
            Step::Check(who, place) => {
                let (who, id) = (session(who), model.place(place));
                let expected = match model.called(&who, now) {
                    false => Outcome::UnknownSession,
                    true if model.owner(id).is_some_and(|owner| owner.is_session(&who)) => Outcome::Done,
                    true => Outcome::NotOwner,
                };
                assert_eq!(Outcome::from(auth.check_ownership(&who, id).await), expected);
            }
            Step::Destroy(place) => self.destroy(&auth, model, model.place(place)).await,
            Step::Advance(time) => self.clock.advance(time),
            Step::CreateOwn(_) | Step::Share(_) => {}
        }
    }

    async fn create(
        &self,
        auth: &AuthManager,
        model: &mut Model,
        (count, size): (usize, usize),
        who: &SessionId,
    ) {
        // One by one is another thing than all at once, of which some may be too many.
        let count = if self.records { count } else { 1 };
        let expected = match model.called(who, self.clock.now()) {
            false => Outcome::UnknownSession,
            true if model.exceeds(who, count, size) => Outcome::QuotaExceeded,
            true => Outcome::Done,
        };
        if self.records {
            let made = self.make_records(auth, count, size, &auth.claimant(who)).await;
            for id in made.as_ref().into_iter().flatten() {
                model.add(*id, who.clone().into(), size);
            }
            assert_eq!(Outcome::from(made), expected);
        } else {
            let (id, (memory_mb, disk_gb)) = (Uuid::new_v4(), SIZES[size]);
            let made = auth.register_workspace(who, id, memory_mb, disk_gb).await;
            if made.is_ok() {
                model.add(id, who.clone().into(), size);
            }
            assert_eq!(Outcome::from(made), expected);
        }
    }

    async fn make_records(
        &self,
        auth: &AuthManager,
        count: usize,
        size: usize,
        claimant: &Claimant,
    ) -> Result<Vec<Uuid>, AuthError> {
        let (memory_mb, disk_gb) = SIZES[size];
        let drafts = (0..count).map(|_| draft(memory_mb, disk_gb)).collect();
        let made = auth.store().await.unwrap().insert_claimed(drafts, None, claimant, false)?;
        Ok(made.into_iter().map(|record| *record.id.as_uuid()).collect())
    }

    async fn destroy(&self, auth: &AuthManager, model: &mut Model, id: Uuid) {
        if self.records {
            self.store.remove(id.into()).unwrap();
            model.workspaces.remove(&id);
        } else if let Some(Owner::Session(owner)) = model.owner(id).cloned() {
            auth.unregister_workspace(&owner, id).await.unwrap();
            model.called(&owner, self.clock.now());
            model.workspaces.remove(&id);
        }
    }

    async fn compare(&self, model: &mut Model) {
        let now = self.clock.now();
        model.expire(now);
        for auth in &self.managers {
            for who in (0..SESSIONS.len()).map(session) {
                match auth.get_usage(&who).await {
                    Ok(usage) => assert_eq!(usage, model.usage(&who), "{who}"),
                    Err(AuthError::UnknownSession { .. }) => assert!(!model.sessions.contains_key(&who)),
                    Err(error) => panic!("{error}"),
                }
            }
        }
        for (id, (owner, _)) in &model.workspaces {
            let id = (*id).into();
            let ownership =
                self.store.with_ledger(Claimant::now(&*self.clock), None, |ledger| ledger.ownership(id));
            assert_eq!(&ownership.unwrap().unwrap().owner, owner);
            if self.records {
                assert_eq!(&self.store.get(id).unwrap().unwrap().owner, owner);
            }
        }
        let books = self.store.owned_workspaces().unwrap();
        assert_eq!(books, model.workspaces.keys().map(|id| (*id).into()).collect::<Vec<_>>());
    }
}

async fn run(mut subject: Subject, steps: &[Step]) {
    let mut model = Model::default();
    for step in steps {
        subject.step(&mut model, step).await;
        subject.compare(&mut model).await;
    }
}

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn books_in_memory_do_what_the_model_does(steps in proptest::collection::vec(step(), 1..50)) {
        block_on(async { run(Subject::in_memory().await, &steps).await });
    }

    #[test]
    fn books_of_two_processes_do_what_the_model_does(steps in proptest::collection::vec(step(), 1..50)) {
        let folder = tempfile::tempdir().unwrap();
        block_on(async { run(Subject::durable(folder.path()).await, &steps).await });
    }
}

#[test]
fn row_without_an_owner_is_the_operators() -> Result<(), StoreError> {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let record = store.insert(draft(512, 5), false)?;
    rusqlite::Connection::open(folder.path().join("agentiso.db"))
        .unwrap()
        .execute("DELETE FROM owners", [])
        .unwrap();

    assert_eq!(store.get(record.id)?.unwrap().owner, Owner::Operator);
    assert_eq!(store.visible(&session(0), Some(&record.name), None)?, []);
    Ok(())
}
