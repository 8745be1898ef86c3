//! Memory of machines: found, copied, kept in files and put back.
//!
//! A machine's RAM is a private, copy-on-write mapping of a *base* file, so what it has written since it was started is
//! what its process has copies of. `pages` finds those, `copy` reads and writes them, `image` keeps them: as a
//! *difference* to the base that the machine has, or, when that is cheaper for those who will be started from it, as a
//! new base of its own. Memory is never deeper than one base and one difference.
//!
//! Bases are shared by hard links: each image and each machine's run folder has one, and the file is gone with the last
//! of them. Nobody counts, so nobody can miscount when a process is killed.

pub(super) mod base;
pub(super) mod copy;
pub(super) mod difference;
pub(super) mod image;
pub(super) mod pages;
pub(super) mod sys;

/// Size of a page of every machine's memory and of the host's, in bytes.
pub(super) const PAGE: u64 = 4096;

/// Pages of a machine's memory that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Where it begins in the machine's memory, in bytes.
    pub(super) offset: u64,
    /// How long it is, in bytes.
    pub(super) bytes: u64,
}

/// Sum of the lengths of runs, in bytes.
pub(super) fn total(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.bytes).sum()
}
