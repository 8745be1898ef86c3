//! Fault points at every change of the records, for tests: a process that is killed right before or right after one, and
//! a disk that is full when one is written.
//!
//! A killed process does nothing more at all. So once a point is reached every later change of the records by it fails,
//! and the test is told, so that it lets nothing else have an effect either.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::StoreError;

/// On which side of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    After,
}

type Told = Box<dyn Fn() + Send>;

#[derive(Default)]
struct Plan {
    /// Every point that was passed, by the name of its change.
    passed: Vec<(&'static str, Moment)>,
    /// Points still to come, the one of the crash included, and who is told.
    armed: Option<(usize, Moment, Told)>,
    is_dead: bool,
    /// Changes still to come before there is no room for one, that one included, and for how long.
    filling: Option<(usize, Room)>,
    /// How many changes found no room.
    refused: usize,
}

/// How long there is no room once there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// For the next change there is some again.
    ComesBack,
    /// There is none until [`Points::disarm`].
    IsGone,
}

/// Plans by the database they are for: tests of one process do not meet each other's.
static PLANS: Mutex<Option<HashMap<String, Arc<Mutex<Plan>>>>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The points of one database. Dropped, there are none any more.
pub(crate) struct Points {
    file: String,
    plan: Arc<Mutex<Plan>>,
}

impl Points {
    pub(crate) fn of(database: &Path) -> Self {
        let (file, plan) = (database.display().to_string(), Arc::default());
        lock(&PLANS).get_or_insert_default().insert(file.clone(), Arc::clone(&plan));
        Self { file, plan }
    }

    /// The changes that were completed so far, in order.
    pub(crate) fn changes(&self) -> Vec<&'static str> {
        let plan = lock(&self.plan);
        plan.passed.iter().filter(|(_, moment)| *moment == Moment::After).map(|(name, _)| *name).collect()
    }

    /// Crashes at the `nth` change from now on, counted from 1.
    pub(crate) fn arm(&self, nth: usize, moment: Moment, told: impl Fn() + Send + 'static) {
        lock(&self.plan).armed = Some((nth, moment, Box::new(told)));
    }

    /// The host's disk is full when the `nth` change from now on is written, counted from 1.
    pub(crate) fn fill(&self, nth: usize, room: Room) {
        let mut plan = lock(&self.plan);
        plan.filling = Some((nth, room));
        plan.refused = 0;
    }

    /// How many changes found no room since [`Points::fill`].
    pub(crate) fn refused(&self) -> usize {
        lock(&self.plan).refused
    }

    pub(crate) fn has_crashed(&self) -> bool {
        lock(&self.plan).is_dead
    }

    /// The dead process is buried; the next one lives, and there is room.
    pub(crate) fn disarm(&self) {
        let mut plan = lock(&self.plan);
        plan.armed = None;
        plan.filling = None;
        plan.is_dead = false;
    }
}

impl Plan {
    /// Counts a change down; whether there is no room for it.
    fn finds_no_room(&mut self) -> bool {
        let Some((left, room)) = &mut self.filling else { return false };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return false;
        }
        if *room == Room::ComesBack {
            self.filling = None;
        }
        self.refused += 1;
        true
    }
}

impl Drop for Points {
    fn drop(&mut self) {
        if let Some(plans) = lock(&PLANS).as_mut() {
            plans.remove(&self.file);
        }
    }
}

/// Passes a point, or does not.
pub(super) fn pass(file: &str, name: &'static str, moment: Moment) -> Result<(), StoreError> {
    let plan = lock(&PLANS).as_ref().and_then(|plans| plans.get(file).cloned());
    let Some(plan) = plan else { return Ok(()) };
    let mut plan = lock(&plan);
    if moment == Moment::Before && plan.finds_no_room() {
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        let full = rusqlite::Error::SqliteFailure(full, Some("database or disk is full".to_owned()));
        return Err(StoreError::sql(name, file, full));
    }
    if !plan.is_dead {
        plan.passed.push((name, moment));
        if let Some((left, when, told)) = plan.armed.as_mut()
            && *when == moment
        {
            *left -= 1;
            if *left == 0 {
                told();
                plan.is_dead = true;
            }
        }
    }
    if plan.is_dead {
        return Err(StoreError::sql(name, file, rusqlite::Error::InvalidQuery));
    }
    Ok(())
}
