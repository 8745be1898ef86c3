//! Faults that a test arms, and the record of what was called.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    channel::ChannelError, hypervisor::HypervisorError, network::NetworkError, storage::StorageError,
};

/// Every method that a fault can be armed for. A misspelt name in a test would arm nothing and prove nothing.
pub const METHODS: &[&str] = &[
    "hypervisor.launch",
    "hypervisor.status",
    "hypervisor.pause",
    "hypervisor.resume",
    "hypervisor.active_layer",
    "hypervisor.pivot_disk",
    "hypervisor.stream_disk",
    "hypervisor.cancel_stream",
    "hypervisor.power_button",
    "hypervisor.wait_exit",
    "hypervisor.kill",
    "hypervisor.memory_usage",
    "hypervisor.log_tail",
    "hypervisor.processes",
    "hypervisor.kill_process",
    "hypervisor.capture",
    "hypervisor.image",
    "hypervisor.images",
    "hypervisor.delete_image",
    "storage.begin_base",
    "storage.seal_base",
    "storage.delete_base",
    "storage.create_disk",
    "storage.open_disk",
    "storage.begin_snapshot",
    "storage.finish_snapshot",
    "storage.rollback",
    "storage.delete_snapshot",
    "storage.destroy_disk",
    "storage.shorten_plan",
    "storage.finish_shorten",
    "storage.usage",
    "storage.inventory",
    "network.attach",
    "network.update_policy",
    "network.add_forward",
    "network.remove_forward",
    "network.forwards",
    "network.is_alive",
    "network.detach",
    "network.processes",
    "network.kill_process",
    "network.leftovers",
    "channel.prepare",
    "channel.connect",
    "channel.release",
    "channel.leftovers",
    "agent.hello",
    "agent.power_button",
    "agent.ping",
    "agent.exec",
    "agent.job_start",
    "agent.job_list",
    "agent.job_poll",
    "agent.job_wait",
    "agent.job_attach",
    "agent.job_signal",
    "agent.file_read",
    "agent.file_write",
    "agent.file_edit",
    "agent.file_list",
    "agent.file_stat",
    "agent.walk",
    "agent.hash",
    "agent.archive_read",
    "agent.archive_write",
    "agent.env_set",
    "agent.env_clear",
    "agent.configure",
    "agent.freeze",
    "agent.thaw",
    "agent.sync",
    "agent.shutdown",
    "agent.info",
    "agent.void",
];

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and has no effect.
    Fail,
    /// It has its effect this much later.
    Delay(Duration),
    /// It never returns and has no effect: what a process that was killed before the call leaves.
    Hang,
    /// It has its effect and never returns: what a process that was killed after the call leaves.
    HangAfter,
}

/// Arms faults and tells what was called. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    calls: Vec<&'static str>,
    /// Calls still to come before each fault, this one included.
    armed: BTreeMap<&'static str, Vec<(usize, Fault)>>,
    /// No call has an effect or returns any more.
    is_stopped: bool,
}

impl Faults {
    /// Makes the `nth` call of a method from now on, counted from 1, go wrong.
    ///
    /// # Panics
    /// The method is not in [`METHODS`], or `nth` is 0: the fault would never happen.
    pub fn arm(&self, method: &str, nth: usize, fault: Fault) {
        let Some(known) = METHODS.iter().find(|known| **known == method) else {
            panic!("no fake has a method {method:?}; see testkit::METHODS");
        };
        assert!(nth > 0, "calls are counted from 1");
        self.lock().armed.entry(known).or_default().push((nth, fault));
    }

    /// From now on every call hangs without an effect, until [`Faults::disarm`]: what a process that was killed here
    /// would do.
    pub fn stop(&self) {
        self.lock().is_stopped = true;
    }

    /// Disarms whatever has not happened yet.
    pub fn disarm(&self) {
        let mut inner = self.lock();
        inner.armed.clear();
        inner.is_stopped = false;
    }

    /// The methods called so far, oldest first, those that a fault befell included.
    pub fn calls(&self) -> Vec<&'static str> {
        self.lock().calls.clone()
    }

    /// How often a method was called.
    pub fn count(&self, method: &str) -> usize {
        self.lock().calls.iter().filter(|call| **call == method).count()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call and lets the fault armed for it happen.
    pub(super) async fn enter(&self, method: &'static str) -> Result<Entered, InjectedFault> {
        let fault = self.lock().note(method);
        match fault {
            None => Ok(Entered { hang_after: false }),
            Some(Fault::Fail) => Err(InjectedFault { method }),
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                Ok(Entered { hang_after: false })
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::HangAfter) => Ok(Entered { hang_after: true }),
        }
    }
}

impl Inner {
    fn note(&mut self, method: &'static str) -> Option<Fault> {
        debug_assert!(METHODS.contains(&method), "{method} is missing in METHODS");
        self.calls.push(method);
        if self.is_stopped {
            return Some(Fault::Hang);
        }
        let armed = self.armed.get_mut(method)?;
        for (left, _) in armed.iter_mut() {
            *left -= 1;
        }
        let due = armed.iter().position(|(left, _)| *left == 0)?;
        Some(armed.swap_remove(due).1)
    }
}

/// A call under way that may have its effect.
#[must_use]
pub(super) struct Entered {
    hang_after: bool,
}

impl Entered {
    pub(super) async fn leave(self) {
        if self.hang_after {
            std::future::pending::<()>().await;
        }
    }
}

/// What an injected failure is reported as.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a test made {method} fail")]
pub struct InjectedFault {
    method: &'static str,
}

macro_rules! from_injected {
    ($($error:ident),*) => {
        $(impl From<InjectedFault> for $error {
            fn from(fault: InjectedFault) -> Self {
                Self::Io { operation: "call", object: fault.method.to_owned(), source: std::io::Error::other(fault) }
            }
        })*
    };
}
from_injected!(HypervisorError, StorageError, NetworkError, ChannelError);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn armed_call_fails_and_the_next_one_does_not() {
        let faults = Faults::default();
        faults.arm("storage.usage", 2, Fault::Fail);

        let results = [
            faults.enter("storage.usage").await.is_ok(),
            faults.enter("storage.usage").await.is_ok(),
            faults.enter("storage.usage").await.is_ok(),
        ];

        assert_eq!(results, [true, false, true]);
        assert_eq!(faults.count("storage.usage"), 3);
    }

    #[tokio::test]
    async fn hanging_call_never_returns() {
        let faults = Faults::default();
        faults.arm("storage.usage", 1, Fault::Hang);
        faults.arm("storage.usage", 2, Fault::HangAfter);

        let before = tokio::time::timeout(Duration::from_millis(20), faults.enter("storage.usage")).await;
        let entered = faults.enter("storage.usage").await.unwrap();
        let after = tokio::time::timeout(Duration::from_millis(20), entered.leave()).await;

        assert!(before.is_err());
        assert!(after.is_err());
    }

    #[test]
    #[should_panic(expected = "no fake has a method")]
    fn unknown_method_cannot_be_armed() {
        Faults::default().arm("storage.usages", 1, Fault::Fail);
    }
}
