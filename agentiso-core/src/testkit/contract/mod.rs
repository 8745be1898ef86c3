//! What every backend of a trait must do, as tests.
//!
//! A suite is a list of checks, each a plain function on a fixture: what the backend at hand supplies where machines,
//! packets or disk contents are needed. The macros `hypervisor_contract!`, `storage_contract!`, `network_contract!`
//! and `channel_contract!` turn a suite into one `#[tokio::test]` per check. Each takes an expression for
//! `Result<impl ..Fixture, String>` that is evaluated, and may await, once per check; `Err` says why the suite cannot
//! run here, and each test prints that it was skipped for this reason.
//!
//! ```
//! # #[cfg(test)]
//! mod tests {
//!     agentiso_core::storage_contract!(MyFixture::new().await);
//! }
//! ```

pub mod channel;
pub mod fake;
pub mod hypervisor;
pub mod memory;
pub mod network;
pub mod storage;

use std::{collections::BTreeSet, path::Path, time::Duration};

/// How long a check waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until `condition` holds.
///
/// # Panics
/// It does not within [`PATIENCE`].
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Names in a folder; none if it is not there.
pub(crate) fn names_in(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Writes a record as text and reads it back, as records do that outlive a process.
pub(crate) fn through_text<T: serde::Serialize + serde::de::DeserializeOwned>(record: &T) -> T {
    serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap()
}

/// One test per check of a suite. Used by the macros of the suites.
#[doc(hidden)]
#[macro_export]
macro_rules! contract_tests {
    ($suite:ident, $fixture:expr, [$($check:ident),* $(,)?]) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                match { $fixture } {
                    Ok(fixture) => $crate::testkit::contract::$suite::$check(&fixture).await,
                    Err(reason) => {
                        let reason: String = reason;
                        println!("skipped {}: {reason}", stringify!($check));
                    }
                }
            }
        )*
    };
}
