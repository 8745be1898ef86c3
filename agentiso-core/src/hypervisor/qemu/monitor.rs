//! Conversations with a machine's QEMU. Its control socket serves one client at a time; a file lock, which the kernel
//! releases if its holder dies, makes the others wait their turn.

use std::{
    fs::{File, TryLockError},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::UnixStream, time::timeout};

use super::{
    command_line::{BytesIn, Role, block_node, descriptor_label, layer_of_node, node_name},
    files::Folder,
    qmp::{Qmp, QmpError},
    stream::layer_of_filter,
};
use crate::{
    hypervisor::HypervisorError,
    storage::{DiskLayer, LayerId},
};

/// The socket for operations.
pub(super) const SOCKET: &str = "qmp";
/// The socket that is kept for whoever watches over a long operation.
pub(super) const RESERVED_SOCKET: &str = "qmp2";
/// The lock of the socket for operations.
pub(super) const LOCK: &str = "qmp.lock";

/// How long to wait for others to end their conversations. Longer than any one of theirs may take.
const TURN_LIMIT: Duration = Duration::from_secs(60);

/// How long QEMU may take to greet a client once the machine runs.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// How long a question may take that QEMU answers from memory.
pub(super) const QUICK: Duration = Duration::from_secs(5);

/// How long a command may take that flushes or drains the disk: the host's disk may be slow.
pub(super) const FLUSHING: Duration = Duration::from_secs(30);

/// How long loading a device state may take: some ten kilobytes.
const LOADING: Duration = Duration::from_secs(30);

/// A conversation. Others wait until it is dropped.
#[derive(Debug)]
pub(super) struct Monitor {
    pub(super) qmp: Qmp,
    /// The layer that was opened for a move that is to come.
    added: Option<LayerId>,
    _turn: File,
}

/// QEMU's answer to `add-fd`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Added {
    fdset_id: usize,
}

/// Why there is no conversation.
#[derive(Debug, thiserror::Error)]
pub(super) enum MonitorError {
    /// Nobody listens.
    #[error("QEMU does not listen on its control socket")]
    NotListening,
    /// Others keep it busy.
    #[error("the control socket was busy with other operations for {TURN_LIMIT:?}")]
    Busy,
    /// The lock or the socket.
    #[error("could not {operation} the control socket")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// What QEMU said.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The run folder.
    #[error(transparent)]
    Folder(#[from] HypervisorError),
    /// QEMU could not make sense of a device state.
    #[error("QEMU could not load the machine's device state")]
    Load,
    /// The disk of the machine is not what it was launched with.
    #[error("QEMU names no layer of ours as the machine's disk")]
    UnknownDisk,
    /// Its layers are being copied.
    #[error("layers of the disk are still being copied: that must be given up, or finished, first")]
    Streaming,
    /// Its layers could not be copied.
    #[error("QEMU could not copy the layers of the disk: {reason}")]
    NotStreamed {
        /// QEMU's words.
        reason: String,
    },
    /// What the disk holds may not be on the host's disk.
    #[error("QEMU could not write all of the disk to the host's: {reason}")]
    NotFlushed {
        /// QEMU's words.
        reason: String,
    },
}

/// The machine's disk as QEMU has it.
#[derive(Clone, Debug)]
pub(super) struct Drive {
    /// The layer that is written to.
    pub(super) layer: LayerId,
    /// How many layers there are beneath it.
    pub(super) beneath: usize,
    /// Whether layers are being copied up into it.
    pub(super) streaming: bool,
}

/// What QEMU calls a machine's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunState {
    Running,
    Stopped,
    /// It will not run again.
    Crashed,
}

impl Monitor {
    /// Waits for its turn and for QEMU.
    pub(super) async fn open(run_dir: &Path) -> Result<Self, MonitorError> {
        Self::open_within(run_dir, GREETING_LIMIT).await
    }

    /// The same, for a QEMU that has only been started.
    pub(super) async fn open_within(run_dir: &Path, greeting: Duration) -> Result<Self, MonitorError> {
        let folder = Folder::open(run_dir)?;
        let turn = take_turn(&folder).await?;
        let stream = match UnixStream::connect(folder.short_path(SOCKET)).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) =>
            {
                return Err(MonitorError::NotListening);
            }
            Err(source) => return Err(MonitorError::Io { operation: "connect to", source }),
        };
        Ok(Self { qmp: Qmp::greet(stream, greeting).await?, added: None, _turn: turn })
    }

    /// What the machine does.
    pub(super) async fn run_state(&mut self) -> Result<RunState, MonitorError> {
        #[derive(Deserialize)]
        struct Status {
            status: String,
        }
        let reply: Status = self.qmp.execute("query-status", json!({}), QUICK).await?;
        Ok(match reply.status.as_str() {
            "running" => RunState::Running,
            // QEMU refuses to go on from these.
            "internal-error" | "guest-panicked" | "shutdown" => RunState::Crashed,
            _ => RunState::Stopped,
        })
    }

    /// Stops the vCPUs; the disk is drained.
    pub(super) async fn stop(&mut self) -> Result<(), MonitorError> {
        self.plain("stop", FLUSHING).await
    }

    /// Lets the vCPUs run.
    pub(super) async fn run(&mut self) -> Result<(), MonitorError> {
        self.plain("cont", FLUSHING).await
    }

    /// Presses the power button.
    pub(super) async fn power_button(&mut self) -> Result<(), MonitorError> {
        self.plain("system_powerdown", QUICK).await
    }

    async fn plain(&mut self, command: &'static str, limit: Duration) -> Result<(), MonitorError> {
        let _: Value = self.qmp.execute(command, json!({}), limit).await?;
        Ok(())
    }

    /// The layer that the disk writes to.
    pub(super) async fn active_layer(&mut self) -> Result<LayerId, MonitorError> {
        Ok(self.drive().await?.layer)
    }

    /// The machine's disk.
    pub(super) async fn drive(&mut self) -> Result<Drive, MonitorError> {
        #[derive(Deserialize)]
        struct Device {
            qdev: Option<String>,
            inserted: Option<Inserted>,
        }
        #[derive(Deserialize)]
        struct Inserted {
            #[serde(rename = "node-name")]
            node_name: String,
            backing_file_depth: usize,
        }
        let devices: Vec<Device> = self.qmp.execute("query-block", json!({}), QUICK).await?;
        devices
            .into_iter()
            .filter(|device| {
                device.qdev.as_deref().is_some_and(|path| path == "disk" || path.contains("/disk/"))
            })
            .find_map(|device| {
                let Inserted { node_name, backing_file_depth: beneath } = device.inserted?;
                let layer = layer_of_node(&node_name);
                let streaming = layer.is_none();
                let layer = layer.or_else(|| layer_of_filter(&node_name))?;
                Some(Drive { layer, beneath, streaming })
            })
            .ok_or(MonitorError::UnknownDisk)
    }

    /// Makes the disk write to a new layer above its present one, and takes QEMU's right to write to the latter away.
    /// When it fails the disk may have moved all the same, if the connection broke: ask a new one.
    pub(super) async fn pivot(&mut self, to: &DiskLayer) -> Result<(), MonitorError> {
        let Drive { layer: from, streaming, .. } = self.drive().await?;
        if from == to.id {
            return Ok(());
        }
        if streaming {
            return Err(MonitorError::Streaming);
        }
        if self.added.as_ref() != Some(&to.id) {
            self.prepare_pivot(to).await?;
        }
        self.added = None;
        let moved = self.move_to(&from, &to.id).await;
        if let Err(error) = moved {
            // Best effort: if the connection broke, the next attempt does it.
            let _ = self.forget_layer(&to.id).await;
            return Err(error);
        }
        self.close_descriptors(&descriptor_label(&from, Role::Write)).await
    }

    /// Opens a new layer for the disk, so that [`Monitor::pivot`] has only to move there.
    pub(super) async fn prepare_pivot(&mut self, to: &DiskLayer) -> Result<(), MonitorError> {
        // What an attempt that was interrupted left behind.
        self.forget_layer(&to.id).await?;
        if let Err(error) = self.add_layer(to).await {
            // Best effort: if the connection broke, the next attempt does it.
            let _ = self.forget_layer(&to.id).await;
            return Err(error);
        }
        self.added = Some(to.id.clone());
        Ok(())
    }

    /// Lets QEMU use an open file, as often as it likes, under the path that is returned.
    pub(super) async fn lend_file(
        &mut self,
        file: &impl AsFd,
        label: &'static str,
    ) -> Result<String, MonitorError> {
        self.take_back(label).await?;
        let arguments = json!({ "opaque": label });
        let Added { fdset_id } = self.qmp.execute_with_fd("add-fd", arguments, file.as_fd(), QUICK).await?;
        Ok(format!("/dev/fdset/{fdset_id}"))
    }

    /// Takes back what was lent under a label.
    pub(super) async fn take_back(&mut self, label: &'static str) -> Result<(), MonitorError> {
        self.close_descriptors(label).await
    }

    /// Writes the state of the machine's devices, all but its memory and disk. The machine must stand still.
    pub(super) async fn save_devices(&mut self, to: &str) -> Result<(), MonitorError> {
        let arguments = json!({ "filename": to, "live": false });
        let _: Value = self.qmp.execute("xen-save-devices-state", arguments, FLUSHING).await?;
        Ok(())
    }

    /// Loads the state of the machine's devices and returns when it has. Its memory must be in place: what lies in
    /// there is read.
    pub(super) async fn load_devices(&mut self, from: &str) -> Result<(), MonitorError> {
        #[derive(Deserialize)]
        struct Migration {
            status: String,
        }
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        let _: Value = self.qmp.execute("migrate-set-capabilities", events, QUICK).await?;
        let arguments = json!({ "uri": format!("file:{from}") });
        let _: Value = self.qmp.execute("migrate-incoming", arguments, LOADING).await?;
        loop {
            let event = self.qmp.event("migrate-incoming", LOADING).await?;
            let status = serde_json::from_value(event.data).map(|migration: Migration| migration.status);
            match (event.event.as_str(), status.as_deref()) {
                ("MIGRATION", Ok("completed")) => return Ok(()),
                ("MIGRATION", Ok("failed")) => return Err(MonitorError::Load),
                _ => {}
            }
        }
    }

    async fn add_layer(&mut self, layer: &DiskLayer) -> Result<(), MonitorError> {
        let (write, read) = open_layer(layer)?;
        let label = descriptor_label(&layer.id, Role::Write);
        let Added { fdset_id: set } =
            self.qmp.execute_with_fd("add-fd", json!({ "opaque": label }), write.as_fd(), QUICK).await?;
        let label = descriptor_label(&layer.id, Role::Read);
        let arguments = json!({ "fdset-id": set, "opaque": label });
        let _: Added = self.qmp.execute_with_fd("add-fd", arguments, read.as_fd(), QUICK).await?;
        let bytes_in = bytes_in(&write, &layer.path)?;
        let node = block_node(&layer.id, layer.format, bytes_in, set, false, Value::Null);
        let _: Value = self.qmp.execute("blockdev-add", node, FLUSHING).await?;
        Ok(())
    }

    async fn move_to(&mut self, from: &LayerId, to: &LayerId) -> Result<(), MonitorError> {
        let arguments = json!({ "node": node_name(from), "overlay": node_name(to) });
        let _: Value = self.qmp.execute("blockdev-snapshot", arguments, FLUSHING).await?;
        Ok(())
    }

    /// Removes a layer that is not part of the disk, and its descriptors. Not there: no effect.
    pub(super) async fn forget_layer(&mut self, layer: &LayerId) -> Result<(), MonitorError> {
        let removed: Result<Value, QmpError> =
            self.qmp.execute("blockdev-del", json!({ "node-name": node_name(layer) }), FLUSHING).await;
        match removed {
            Ok(_) | Err(QmpError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        for role in [Role::Read, Role::Write] {
            self.close_descriptors(&descriptor_label(layer, role)).await?;
        }
        Ok(())
    }

    /// Closes the descriptors that were passed with this label. Those that QEMU made from them are its own.
    async fn close_descriptors(&mut self, label: &str) -> Result<(), MonitorError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Set {
            fdset_id: u64,
            fds: Vec<Passed>,
        }
        #[derive(Deserialize)]
        struct Passed {
            fd: i64,
            opaque: Option<String>,
        }
        let sets: Vec<Set> = self.qmp.execute("query-fdsets", json!({}), QUICK).await?;
        for set in sets {
            for passed in set.fds.iter().filter(|passed| passed.opaque.as_deref() == Some(label)) {
                let arguments = json!({ "fdset-id": set.fdset_id, "fd": passed.fd });
                let _: Value = self.qmp.execute("remove-fd", arguments, QUICK).await?;
            }
        }
        Ok(())
    }
}

/// Opens a layer for reading and writing, and read-only: QEMU takes the second when the layer is frozen.
pub(super) fn open_layer(layer: &DiskLayer) -> Result<(File, File), HypervisorError> {
    Ok((open_file(&layer.path, true)?, open_file(&layer.path, false)?))
}

/// What kind of file holds a layer that was opened.
pub(super) fn bytes_in(file: &File, path: &Path) -> Result<BytesIn, HypervisorError> {
    use std::os::unix::fs::FileTypeExt;
    let kind = file.metadata().map_err(|e| super::files::io_error("inspect", path, e))?.file_type();
    Ok(if kind.is_block_device() { BytesIn::BlockDevice } else { BytesIn::File })
}

/// Opens a regular file or a block device.
pub(super) fn open_file(path: &Path, write: bool) -> Result<File, HypervisorError> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let opened = File::options().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|e| super::files::io_error("open", path, e))?;
    let kind = file.metadata().map_err(|e| super::files::io_error("inspect", path, e))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device");
        return Err(super::files::io_error("open", path, source));
    }
    Ok(file)
}

/// Takes the lock of the control socket.
async fn take_turn(folder: &Folder) -> Result<File, MonitorError> {
    let failed = |source| MonitorError::Io { operation: "lock", source };
    loop {
        let file = open_lock(folder).map_err(failed)?;
        let locked = match file.try_lock() {
            Ok(()) => file,
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) => wait_for_lock(file).await?,
        };
        // The machine before may have been ended, and the file removed, while we waited for it.
        let mine = locked.metadata().map_err(failed)?;
        match std::fs::metadata(folder.short_path(LOCK)) {
            Ok(there) if (there.dev(), there.ino()) == (mine.dev(), mine.ino()) => return Ok(locked),
            _ => {}
        }
    }
}

fn open_lock(folder: &Folder) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, openat};
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(folder, LOCK, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Waits in a thread of its own, for the kernel offers no other way. The thread may outlive the wait, but no longer
/// than the conversation it waits for, and gives the lock back at once when nobody wants it any more.
async fn wait_for_lock(file: File) -> Result<File, MonitorError> {
    let failed = |source| MonitorError::Io { operation: "lock", source };
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("agentiso-lock".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || drop(sender.send(file.lock().map(|()| file))))
        .map_err(failed)?;
    match timeout(TURN_LIMIT, receiver).await {
        Ok(Ok(locked)) => locked.map_err(failed),
        Ok(Err(_)) => Err(failed(io::Error::other("the waiting thread ended"))),
        Err(_) => Err(MonitorError::Busy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn second_conversation_waits_for_the_first() {
        let run = tempfile::tempdir().unwrap();
        let folder = Folder::open(run.path()).unwrap();
        let first = take_turn(&folder).await.unwrap();

        let early = timeout(Duration::from_millis(50), take_turn(&folder)).await;
        drop(first);
        let second = timeout(Duration::from_secs(10), take_turn(&folder)).await;

        assert!(early.is_err() && second.unwrap().is_ok());
    }

    #[tokio::test]
    async fn lock_of_an_earlier_machine_is_not_taken_for_the_present_one() {
        let run = tempfile::tempdir().unwrap();
        let folder = Folder::open(run.path()).unwrap();
        let first = take_turn(&folder).await.unwrap();
        let waiting = take_turn(&folder);
        let removal = async {
            tokio::task::yield_now().await;
            folder.remove(LOCK).unwrap();
            // The present machine's.
            std::fs::write(run.path().join(LOCK), "").unwrap();
            drop(first);
        };

        let (second, ()) = tokio::join!(waiting, removal);

        let there = std::fs::metadata(run.path().join(LOCK)).unwrap();
        assert_eq!(second.unwrap().metadata().unwrap().ino(), there.ino());
    }

    #[tokio::test]
    async fn machine_that_is_gone_does_not_listen() {
        let run = tempfile::tempdir().unwrap();
        drop(Folder::open(run.path()).unwrap().listen(SOCKET).unwrap());

        assert!(matches!(Monitor::open(run.path()).await, Err(MonitorError::NotListening)));
    }

    #[test]
    fn layer_that_is_no_file_is_refused() {
        assert!(open_file(Path::new("/dev/null"), true).is_err());
        assert!(open_file(Path::new("/tmp"), false).is_err());
    }
}
