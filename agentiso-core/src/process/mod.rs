//! Processes of the host: told apart from later ones of the same number, started detached and confined, reaped, and
//! found again by what their command line says.
//!
//! * [`ProcessRef`](crate::types::ProcessRef) gets its methods in `reference`.
//! * [`Detached`] starts a program that outlives its starter, with the descriptors and rights it is given and no
//!   others.
//! * `reaper` collects what `Detached` started, and only that.
//! * [`FileRules`] is what Landlock will let a program open.
//! * `idmap` opens files of root's for one machine's user id alone.
//! * `cgroup` limits a process from outside of it.
//! * `scan` finds processes of a state folder. `yama` tells who may read their memory.

pub(crate) mod cgroup;
mod detached;
mod idmap;
mod landlock;
mod reaper;
mod reference;
mod scan;
mod seccomp;
mod sys;
mod yama;

pub(crate) use detached::{Detached, SpawnError, Started};
pub(crate) use idmap::{is_supported as has_private_files, open_for};
pub(crate) use landlock::{FileRules, program_folders};
pub(crate) use reference::boot_id;
pub(crate) use scan::{named, start_name};
#[allow(unused_imports, reason = "for the network's companion processes")]
pub(crate) use seccomp::Sockets;
pub(crate) use yama::asks_for_a_reader;

/// What stands between a program started by [`Detached`] and the host, one line each, and what should and does not on
/// this host, with the reason.
pub(crate) fn confinement_report() -> (Vec<String>, Vec<String>) {
    let mut stands = Vec::new();
    let mut open = Vec::new();
    stands.push("no_new_privs, no capabilities, core dumps off, no descriptor but those passed".to_owned());
    if rustix::process::geteuid().is_root() {
        stands.push("a user id of its own per machine, without groups".to_owned());
    } else {
        open.push(
            "runs under your own user id: what keeps a machine that was broken into from your files and processes is \
             Landlock and seccomp alone; start agentiso as root for a user id per machine"
                .to_owned(),
        );
    }
    landlock::report(&mut stands, &mut open);
    seccomp::report(&mut stands, &mut open);
    (stands, open)
}
