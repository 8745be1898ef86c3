//! The typed client against the real agent, which runs as a service of this host behind a unix socket.
//!
//! What would change this host (identity, freezing, power) is left to the tests on real machines.

mod agent;
mod commands;
mod data;
mod jobs;
