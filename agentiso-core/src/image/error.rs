use std::path::PathBuf;

use super::{AssetError, CatalogError, CommandError};
use crate::channel::ChannelError;
use crate::channel::client::GuestError;
use crate::hypervisor::HypervisorError;
use crate::storage::StorageError;
use crate::types::{DiskId, ImageName, InvalidName};

/// Why a base image could not be made, found or removed. Whatever the reason, nothing of an image that was being made
/// is left.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name is not valid.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// The catalogue: no such image, or one whose entry is damaged.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// What machines are started with is not there.
    #[error(transparent)]
    Assets(#[from] AssetError),
    /// A program of the host is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Workspaces were made from the image.
    #[error("image {image} is in use by {} workspace(s): remove them first", .dependents.len())]
    InUse {
        /// The image.
        image: ImageName,
        /// The disks that were made from it.
        dependents: Vec<DiskId>,
    },
    /// The storage.
    #[error("could not {operation} the disk of image {image}")]
    Storage {
        /// What was being done, as in "make".
        operation: &'static str,
        /// The image.
        image: ImageName,
        /// What went wrong.
        #[source]
        source: StorageError,
    },
    /// The builder machine could not be started or watched.
    #[error("could not {operation} the machine that builds image {image}")]
    Machine {
        /// What was being done, as in "start".
        operation: &'static str,
        /// The image.
        image: ImageName,
        /// What went wrong.
        #[source]
        source: HypervisorError,
    },
    /// The way to the builder machine could not be prepared.
    #[error("could not connect the machine that builds image {image}")]
    Channel {
        /// The image.
        image: ImageName,
        /// What went wrong.
        #[source]
        source: ChannelError,
    },
    /// The builder machine ended by itself.
    #[error("the machine that builds image {image} ended unexpectedly{}", tail(.console))]
    Crashed {
        /// The image.
        image: ImageName,
        /// The end of its console.
        console: String,
    },
    /// The builder machine did not do as asked.
    #[error("could not {operation} image {image}{}", tail(.console))]
    Guest {
        /// What was being done, as in "unpack the root file system of".
        operation: &'static str,
        /// The image.
        image: ImageName,
        /// The end of the machine's console; empty where it says no more than the cause.
        console: String,
        /// What went wrong.
        #[source]
        source: Box<GuestError>,
    },
    /// The root file system does not fit.
    #[error("the root file system does not fit on the {gib} GiB disk of image {image}: give it a larger one")]
    TooLarge {
        /// The image.
        image: ImageName,
        /// Size of the disk in GiB.
        gib: u64,
        /// What the guest said.
        #[source]
        source: Box<GuestError>,
    },
    /// The host's disk is full.
    #[error("the host's disk is full ({} MiB free in {folder}): image {image} needs more", .free_bytes / (1024 * 1024))]
    HostFull {
        /// The image.
        image: ImageName,
        /// Where the storage keeps disks.
        folder: PathBuf,
        /// What is left, in bytes.
        free_bytes: u64,
    },
    /// `/bin/sh` is in the image and does not run.
    #[error("/bin/sh of image {image} does not run, is it for another processor? {reason}")]
    Unusable {
        /// The image.
        image: ImageName,
        /// What came of the attempt.
        reason: String,
    },
    /// The machine did not end after it was told to.
    #[error("the machine that builds image {image} did not shut down within {seconds} s")]
    NoShutdown {
        /// The image.
        image: ImageName,
        /// How long was waited.
        seconds: u64,
    },
    /// The tar stream could not be read.
    #[error("could not read {input}")]
    Input {
        /// What it is, as in a path.
        input: String,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// Nothing is in it.
    #[error("{input} is empty")]
    EmptyInput {
        /// What it is, as in a path.
        input: String,
    },
    /// A file of the host.
    #[error("could not {operation} {path}")]
    Io {
        /// What was being done, as in "create".
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// Whoever wanted the image stopped waiting for it.
    #[error("making image {image} was interrupted")]
    Interrupted {
        /// The image.
        image: ImageName,
    },
    /// Making it failed, and so did removing what there was of it.
    #[error("{failed}; and what there was of it could not be removed: {undo}")]
    Undo {
        /// What went wrong first.
        failed: Box<ImageError>,
        /// What went wrong then.
        undo: String,
    },
}

impl ImageError {
    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

fn tail(console: &str) -> String {
    if console.is_empty() { String::new() } else { format!("\nthe end of its console:\n{console}") }
}

/// An error and what lies beneath, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
