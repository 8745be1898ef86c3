//! The machine that fills an image's disk: all that has to do with a root file system happens in there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agentiso_guest::message::{Compression, ErrorCode};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    Assets, ImageError, command,
    files::{self, Sha256Digest, Sha256Writer},
    progress::{Progress, Stage},
};
use crate::channel::client::{CollectOptions, DataSink, ExecSpec, GuestClient, GuestError};
use crate::channel::{ChannelRecord, ChannelSpec, GuestChannel, PreparedChannel};
use crate::file_lock::FileLock;
use crate::hypervisor::{AgentOption, Hypervisor, LaunchSpec, Machine, MachineLog, MachineStatus, Start};
use crate::storage::{BaseInfo, LayerFormat, Storage, StorageError};
use crate::types::{BaseId, ImageName, MachineUid, MemoryMib, VcpuCount, WorkspaceId};

/// How long a builder may take from its start until its agent answers. The emulator is slow on a busy host.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// How often a working builder is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// How long the builder may take to write everything to its disk, and then to end.
const FLUSH_LIMIT: Duration = Duration::from_secs(300);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);

/// How long the attempt to run /bin/sh may take.
const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// Bytes of the console that an error shows.
const CONSOLE_BYTES: u64 = 2048;

/// Bytes that are read of a root file system at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// With less than this the host's disk counts as full.
const HOST_FULL_BYTES: u64 = 64 * 1024 * 1024;

/// User ids for builders, when root starts them: beyond those of workspaces, which count up from 1,900,000,000.
const FIRST_BUILDER_UID: u32 = 2_000_000_000;
const BUILDER_UIDS: u32 = 100_000_000;

/// What builders stand on.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) state: PathBuf,
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) channel: Arc<dyn GuestChannel>,
    /// Makes a file system; [`super::disk::format`] but in tests, whose disks are no files.
    pub(super) format: fn(&Path) -> Result<(), super::CommandError>,
}

/// One image under construction, and all there is of it so far.
///
/// Disk, machine and lock have one id: whoever opens the state folder leaves alone what has a lock that is held, and
/// removes the rest.
pub(super) struct Builder {
    site: Site,
    image: ImageName,
    base: BaseId,
    lock: FileLock,
    run_dir: PathBuf,
    has_base: bool,
    disk_bytes: u64,
    /// The folder of the disk, once it is known.
    disk_folder: Option<PathBuf>,
    channel: Option<ChannelRecord>,
    machine: Option<Machine>,
}

/// What went through [`Builder::unpack`].
pub(super) struct Unpacked {
    pub(super) bytes: u64,
    pub(super) sha256: Sha256Digest,
}

impl Builder {
    /// Claims an id. Nothing else is there yet.
    pub(super) fn claim(site: &Site, image: &ImageName) -> Result<Self, ImageError> {
        let base = BaseId::random();
        let path = lock_path(&site.state, base);
        let lock = FileLock::acquire(&path).map_err(ImageError::io("lock", path))?;
        Ok(Self {
            site: site.clone(),
            image: image.clone(),
            base,
            lock,
            run_dir: site.state.join("run").join(base.to_string()),
            has_base: false,
            disk_bytes: 0,
            disk_folder: None,
            channel: None,
            machine: None,
        })
    }

    pub(super) fn base(&self) -> BaseId {
        self.base
    }

    /// Makes the disk, formats it and boots a machine with it, without a network. Returns once its agent answers.
    pub(super) async fn boot(&mut self, assets: &Assets, disk_bytes: u64) -> Result<GuestClient, ImageError> {
        let image = self.image.clone();
        let storage = |source| ImageError::Storage { operation: "make", image: image.clone(), source };
        self.has_base = true;
        self.disk_bytes = disk_bytes;
        let chain = self.site.storage.begin_base(self.base, disk_bytes).await.map_err(storage)?;
        let Some(layer) = chain.layers.first().filter(|layer| layer.format == LayerFormat::Raw) else {
            return Err(storage(StorageError::Damaged {
                record: self.base.to_string(),
                reason: "a new base must be raw".to_owned(),
            }));
        };
        let path = layer.path.clone();
        self.disk_folder = path.parent().map(Path::to_owned);
        let format = self.site.format;
        let formatted = tokio::task::spawn_blocking(move || format(&path)).await;
        formatted.map_err(|error| ImageError::io("format", "the disk")(error.into()))??;

        let id = WorkspaceId::from(*self.base.as_uuid());
        files::create_private_folder(&self.run_dir).map_err(ImageError::io("create", &self.run_dir))?;
        let spec = ChannelSpec { id, run_dir: self.run_dir.clone() };
        let prepared = self.site.channel.prepare(spec).await;
        let PreparedChannel { device, record } =
            prepared.map_err(|source| ImageError::Channel { image: image.clone(), source })?;
        self.channel = Some(record.clone());
        let launch = LaunchSpec {
            id,
            uid: rustix::process::geteuid().is_root().then(|| builder_uid(self.base)),
            start: Start::Boot,
            vcpus: VcpuCount::default(),
            memory: MemoryMib::default(),
            kernel: assets.kernel.clone(),
            initramfs: assets.initramfs.clone(),
            agent_options: vec![AgentOption::EmptyRoot],
            disk: chain,
            nic: None,
            channel: device,
            run_dir: self.run_dir.clone(),
        };
        let machine = self.site.hypervisor.launch(launch).await.map_err(|source| ImageError::Machine {
            operation: "start",
            image: image.clone(),
            source,
        })?;
        self.machine = Some(machine);
        let client = GuestClient::new(Arc::clone(&self.site.channel), record);
        let first = client.clone().with_connect_limit(BOOT_LIMIT);
        self.watched("start the machine that builds", first.ping()).await?;
        Ok(client)
    }

    /// Unpacks a tar stream below a folder of the machine and returns what it was.
    pub(super) async fn unpack(
        &self,
        client: &GuestClient,
        what: Input<'_>,
        mut stream: impl AsyncRead + Unpin,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Unpacked, ImageError> {
        let mut hasher = Sha256Writer::default();
        let mut done = 0_u64;
        let mut buffer = vec![0; CHUNK_BYTES];
        progress(Progress { stage: what.stage, done, total: what.total });
        let begin = client.write_archive(what.folder, Compression::Detect, true);
        let mut sink: DataSink = self.watched(what.operation, begin).await?;
        loop {
            let read = stream
                .read(&mut buffer)
                .await
                .map_err(|source| ImageError::Input { input: what.name.to_owned(), source })?;
            let Some(chunk @ [_, ..]) = buffer.get(..read) else { break };
            hasher.update(chunk);
            self.watched(what.operation, sink.write(chunk)).await?;
            done += u64::try_from(read).unwrap_or(u64::MAX);
            progress(Progress { stage: what.stage, done, total: what.total });
        }
        self.watched(what.operation, sink.finish()).await?;
        Ok(Unpacked { bytes: done, sha256: hasher.finish() })
    }

    /// Tries /bin/sh. `false` if there is none, which is no error: the image can still run programs.
    pub(super) async fn check_shell(&self, client: &GuestClient) -> Result<bool, ImageError> {
        let operation = "check";
        let mut spec = ExecSpec::program(["/bin/sh", "-c", "exit 0"]);
        spec.timeout = Some(CHECK_LIMIT);
        let unusable = |reason: String| ImageError::Unusable { image: self.image.clone(), reason };
        match self.watched(operation, client.exec_collect(spec, CollectOptions::default())).await {
            Ok(output) if output.success() => Ok(true),
            Ok(output) => {
                Err(unusable(command::clean_tail(&output.stderr_text(), command::SHOWN_ERROR_BYTES)))
            }
            Err(ImageError::Guest { operation, image, console, source }) => match *source {
                GuestError::Refused { code: ErrorCode::NotFound, .. } => Ok(false),
                GuestError::Refused { message, .. } => Err(unusable(message)),
                other => Err(ImageError::Guest { operation, image, console, source: Box::new(other) }),
            },
            Err(error) => Err(error),
        }
    }

    /// Has the machine write everything to its disk and end, and makes the disk immutable.
    pub(super) async fn seal(&mut self, client: &GuestClient) -> Result<BaseInfo, ImageError> {
        let operation = "write out";
        let flush = async {
            let begun = tokio::time::Instant::now();
            loop {
                match client.sync().await {
                    // A slow disk: the data goes on being written, so ask again.
                    Err(GuestError::Timeout { .. }) if begun.elapsed() < FLUSH_LIMIT => {}
                    other => return other,
                }
            }
        };
        self.watched(operation, flush).await?;
        let Some(machine) = &self.machine else { return Err(self.crashed().await) };
        client
            .shutdown(Duration::ZERO)
            .await
            .map_err(|error| self.guest_error(operation, error, String::new()))?;
        let exited = self.site.hypervisor.wait_exit(machine, SHUTDOWN_LIMIT).await;
        if !exited.map_err(|source| self.machine_error("watch", source))? {
            return Err(ImageError::NoShutdown {
                image: self.image.clone(),
                seconds: SHUTDOWN_LIMIT.as_secs(),
            });
        }
        self.clear_machine().await?;
        let sealed = self.site.storage.seal_base(self.base).await;
        sealed.map_err(|source| ImageError::Storage { operation: "seal", image: self.image.clone(), source })
    }

    /// Ends the machine and removes all there is, also the disk unless it is `kept`.
    pub(super) async fn close(mut self, kept: bool) -> Result<(), ImageError> {
        let machine = self.clear_machine().await;
        let base = if self.has_base && !kept {
            let deleted = self.site.storage.delete_base(self.base).await;
            deleted.map_err(|source| ImageError::Storage {
                operation: "remove",
                image: self.image.clone(),
                source,
            })
        } else {
            Ok(())
        };
        // What could not be removed keeps no lock: whoever opens the state folder next tries again.
        self.lock.remove();
        machine.and(base)
    }

    async fn clear_machine(&mut self) -> Result<(), ImageError> {
        if let Some(machine) = &self.machine {
            let killed = self.site.hypervisor.kill(machine).await;
            killed.map_err(|source| self.machine_error("end", source))?;
            self.machine = None;
        }
        if let Some(channel) = &self.channel {
            let released = self.site.channel.release(channel).await;
            released.map_err(|source| ImageError::Channel { image: self.image.clone(), source })?;
            self.channel = None;
        }
        match std::fs::remove_dir_all(&self.run_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ImageError::io("remove", &self.run_dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Waits for the guest while making sure that there still is one.
    async fn watched<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, GuestError>>,
    ) -> Result<T, ImageError> {
        let result = tokio::select! {
            biased;
            result = work => result,
            error = self.watch() => return Err(error),
        };
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(self.explained(operation, error).await),
        }
    }

    /// Returns when the machine cannot go on.
    async fn watch(&self) -> ImageError {
        let Some(machine) = &self.machine else { return self.crashed().await };
        loop {
            match self.site.hypervisor.wait_exit(machine, WATCH_INTERVAL).await {
                Ok(true) => return self.crashed().await,
                Ok(false) => {}
                Err(source) => return self.machine_error("watch", source),
            }
            // QEMU pauses a machine whose disk cannot be written because the host's is full.
            match self.site.hypervisor.status(machine).await {
                Ok(MachineStatus::Paused) => {
                    return match self.host_full() {
                        Some(full) => full,
                        None => self.crashed().await,
                    };
                }
                Ok(_) => {}
                Err(source) => return self.machine_error("watch", source),
            }
        }
    }

    /// The most useful form of what the client reports.
    async fn explained(&self, operation: &'static str, error: GuestError) -> ImageError {
        if let Some(full) = self.host_full() {
            return full;
        }
        if let GuestError::Refused { code: ErrorCode::Exhausted, .. } = &error {
            let gib = self.disk_bytes.div_ceil(1 << 30);
            return ImageError::TooLarge { image: self.image.clone(), gib, source: Box::new(error) };
        }
        let console =
            if matches!(error, GuestError::Refused { .. }) { String::new() } else { self.console().await };
        self.guest_error(operation, error, console)
    }

    fn guest_error(&self, operation: &'static str, source: GuestError, console: String) -> ImageError {
        ImageError::Guest { operation, image: self.image.clone(), console, source: Box::new(source) }
    }

    fn machine_error(
        &self,
        operation: &'static str,
        source: crate::hypervisor::HypervisorError,
    ) -> ImageError {
        ImageError::Machine { operation, image: self.image.clone(), source }
    }

    async fn crashed(&self) -> ImageError {
        ImageError::Crashed { image: self.image.clone(), console: self.console().await }
    }

    async fn console(&self) -> String {
        let log = self.site.hypervisor.log_tail(&self.run_dir, MachineLog::Console, CONSOLE_BYTES).await;
        let bytes = usize::try_from(CONSOLE_BYTES).unwrap_or(usize::MAX);
        log.map(|log| command::clean_tail(&String::from_utf8_lossy(&log), bytes)).unwrap_or_default()
    }

    /// The error of a full host disk, if it is full.
    fn host_full(&self) -> Option<ImageError> {
        let folder = self.disk_folder.clone()?;
        let stat = rustix::fs::statvfs(&folder).ok()?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        (free_bytes < HOST_FULL_BYTES).then(|| ImageError::HostFull {
            image: self.image.clone(),
            folder,
            free_bytes,
        })
    }
}

/// What is unpacked where.
pub(super) struct Input<'a> {
    /// For errors: what is read.
    pub(super) name: &'a str,
    /// For errors, before "image NAME".
    pub(super) operation: &'static str,
    pub(super) folder: &'static str,
    pub(super) stage: Stage,
    /// Size of the stream, where it is known.
    pub(super) total: Option<u64>,
}

fn lock_path(state: &Path, base: BaseId) -> PathBuf {
    state.join("locks").join(format!("{base}.lock"))
}

/// Random enough that two builders of one host have different ones.
fn builder_uid(base: BaseId) -> MachineUid {
    let [first, second, third, fourth, ..] = *base.as_uuid().as_bytes();
    MachineUid(FIRST_BUILDER_UID + u32::from_be_bytes([first, second, third, fourth]) % BUILDER_UIDS)
}
