//! Measurements of agentiso on real machines: `cargo bench -p agentiso-benches [-- [--quick] [NAME...]]`.
//!
//! One run on one machine prints one table, and keeps the raw samples of each row as JSON in `target/bench/`. What is
//! compared is sampled in turn, so that a load that comes and goes meets both. NAME picks the groups whose names
//! contain it; `--quick` takes few samples, to see that all works.
//!
//! Kernel, agent and image are those of the state folder that the environment names; machines live in a folder of the
//! benchmark's own, `target/bench/home`, which is cleared at the beginning and at the end of each run.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod floor;
mod groups;
mod home;
mod machine;
mod options;
mod recipe;
mod run;
mod series;
mod ssh;
mod table;
mod tools;

pub use options::Options;
pub use run::run;

/// What a measurement fails with.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a measurement comes to.
pub(crate) type Done<T = ()> = Result<T, BoxError>;
