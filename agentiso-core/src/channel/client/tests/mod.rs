//! The client against agents that follow a script, honest and hostile ones.

mod clock;
mod exec;
mod fake;
mod files;
mod hello;
mod key;
mod replies;
mod serial;
mod walk;
