//! Base images: making them, finding them, removing them.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{Semaphore, watch},
};

use super::{
    Assets, CataloguedBases, Image, ImageError, ImageSource,
    builder::{Builder, Input, Site},
    catalog::{Catalog, CatalogError, NewImage},
    debian::{self, Bootstrap, Release},
    disk,
    error::chain,
    progress::{Progress, Stage},
};
use crate::channel::GuestChannel;
use crate::hypervisor::Hypervisor;
use crate::storage::{Storage, StorageError};
use crate::types::{BaseId, DiskGib, ImageName};

const GIB: u64 = 1024 * 1024 * 1024;

/// Disk of an image whose size is not asked for: this, or what its tar seems to need if that is more.
const DEFAULT_DISK_BYTES: u64 = GIB;

/// Disk of an image that comes from a stream of unknown length, unless asked for.
const STREAM_DISK_BYTES: u64 = 4 * GIB;

/// How much larger a disk is than the tar that fills it: file systems need room to breathe.
const DISK_PER_TAR: u64 = 3;

/// What a packed tar may unpack to, as a multiple.
const TAR_PER_PACKED: u64 = 4;

/// More builds than can be under way at once.
const MAX_BUILDS: u32 = 1 << 16;

/// Who is told how far a build is. Called often and from the work itself: it should return at once.
pub type BuildProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// The base images of a state folder. Cheap to clone.
///
/// Making an image boots a machine without a network that unpacks the root file system; the host passes bytes along.
/// Work that was begun ends in an orderly way: a build whose future is dropped is undone in the background, and
/// [`Images::idle`] waits for that.
#[derive(Clone)]
pub struct Images {
    site: Site,
    catalog: Catalog,
    builds: Arc<Semaphore>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("state", &self.site.state).finish_non_exhaustive()
    }
}

/// An image to make from Debian's packages.
#[derive(Clone, Debug)]
pub struct DebianSpec {
    /// Its name. An image that has it already gives way to the new one, and lives on for workspaces made from it.
    pub name: ImageName,
    /// Size of its disk, which is the least a workspace can have; 1 GiB if none.
    pub disk: Option<DiskGib>,
}

/// An image to make from a tar of a root file system.
pub struct ImportSpec {
    /// Its name. An image that has it already gives way to the new one, and lives on for workspaces made from it.
    pub name: ImageName,
    /// The tar: plain, gzip or zstd.
    pub input: ImportInput,
    /// Size of its disk; a guess from the tar's size if none.
    pub disk: Option<DiskGib>,
}

/// Where a tar comes from.
pub enum ImportInput {
    /// A file.
    File(PathBuf),
    /// A stream such as standard input.
    Stream(Pin<Box<dyn AsyncRead + Send>>),
}

/// A root file system on its way to the machine.
struct Root {
    stream: Pin<Box<dyn AsyncRead + Send>>,
    /// For errors.
    name: String,
    /// Size of the stream, where it is known.
    bytes: Option<u64>,
    /// Whatever makes the stream, to be waited for.
    bootstrap: Option<Bootstrap>,
}

impl Images {
    /// The images of the state folder at `state`, on these backends.
    pub fn new(
        state: &Path,
        hypervisor: Arc<dyn Hypervisor>,
        storage: Arc<dyn Storage>,
        channel: Arc<dyn GuestChannel>,
    ) -> Self {
        let catalog = Catalog::new(state.join("images"), state.join("locks/images.lock"));
        let site = Site { state: state.to_owned(), hypervisor, storage, channel, format: disk::format };
        Self { site, catalog, builds: Arc::new(Semaphore::new(MAX_BUILDS as usize)) }
    }

    /// All images, in order of their names. One whose entry is damaged is left out with a warning.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let listed = self.blocking(|catalog| catalog.list()).await?;
        let readable = listed.into_iter().filter_map(|image| {
            image.inspect_err(|error| tracing::warn!(error = %chain(error), "left an image out")).ok()
        });
        Ok(readable.collect())
    }

    /// The image of that name.
    ///
    /// # Errors
    /// There is none, or its entry is damaged.
    pub async fn find(&self, name: &ImageName) -> Result<Image, ImageError> {
        let name = name.clone();
        Ok(self.blocking(move |catalog| catalog.get(&name)).await?)
    }

    /// The bases that images need.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn bases(&self) -> Result<CataloguedBases, ImageError> {
        Ok(self.blocking(|catalog| catalog.bases()).await?)
    }

    /// Removes an image, one whose entry is damaged too. [`Host::remove_image`](crate::Host::remove_image) removes what was
    /// made ready from it as well.
    ///
    /// # Errors
    /// There is none; [`ImageError::InUse`] if workspaces were made from it, or made ready, and nothing is changed.
    pub async fn remove(&self, name: &str) -> Result<(), ImageError> {
        let name = ImageName::new(name)?;
        let base = match self.find(&name).await {
            Ok(image) => Some(image.base),
            // Its disk, whichever that is, is found to belong to no image when the state folder is opened next.
            Err(ImageError::Catalog(CatalogError::Damaged { .. })) => None,
            Err(error) => return Err(error),
        };
        if let Some(base) = base {
            self.delete_base(&name, base).await?;
        }
        Ok(self.blocking(move |catalog| catalog.remove(&name, base)).await?)
    }

    /// Makes an image from Debian's packages: this host's release and mirrors if it is Debian, else the default.
    ///
    /// On failure, and when the future is dropped, nothing is left of it.
    ///
    /// # Errors
    /// mmdebstrap is missing or failed (no network), a machine that does not start, a full disk.
    pub async fn build_debian(&self, spec: DebianSpec, progress: BuildProgress) -> Result<Image, ImageError> {
        let DebianSpec { name, disk } = spec;
        let release = Release::of_this_host();
        let packages = debian::PACKAGES.map(str::to_owned).into();
        let source = ImageSource::Debian { suite: release.suite.clone(), packages };
        self.make(Plan { name, source, disk }, move || debian_root(&release), progress).await
    }

    /// Makes an image from a tar of a root file system, which this host passes on without looking into it.
    ///
    /// On failure, and when the future is dropped, nothing is left of it.
    ///
    /// # Errors
    /// The tar cannot be read or unpacked, or does not fit; a machine that does not start; a full disk.
    pub async fn import(&self, spec: ImportSpec, progress: BuildProgress) -> Result<Image, ImageError> {
        let ImportSpec { name, input, disk } = spec;
        let file = match &input {
            ImportInput::File(path) => Some(path.clone()),
            ImportInput::Stream(_) => None,
        };
        let source = ImageSource::Tar { file };
        self.make(Plan { name, source, disk }, move || tar_root(input), progress).await
    }

    /// Enters an image without content, for workspaces whose machines are fakes.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) async fn add_empty(&self, name: ImageName, bytes: u64) -> Result<BaseId, ImageError> {
        let base = BaseId::random();
        let failed = |source| ImageError::Storage { operation: "make", image: name.clone(), source };
        self.site.storage.begin_base(base, bytes).await.map_err(failed)?;
        let sealed = self.site.storage.seal_base(base).await.map_err(failed)?;
        let nothing = super::files::Sha256Writer::default().finish();
        let image = Image::from(NewImage {
            name: name.clone(),
            base,
            source: ImageSource::Tar { file: None },
            bytes: sealed.bytes,
            used_bytes: sealed.used_bytes,
            tar_bytes: 0,
            tar_sha256: nothing.clone(),
            kernel_release: String::new(),
            modules_sha256: nothing,
            has_shell: true,
        });
        self.publish(&image).await.map(|()| base)
    }

    /// Waits until no build is under way any more, abandoned ones included.
    pub async fn idle(&self) {
        drop(self.builds.acquire_many(MAX_BUILDS).await);
    }

    /// Runs a build to its end, or to its undoing if the caller goes.
    async fn make(
        &self,
        plan: Plan,
        open: impl FnOnce() -> Result<Root, ImageError> + Send + 'static,
        progress: BuildProgress,
    ) -> Result<Image, ImageError> {
        // Never closed, so a permit always comes.
        let permit = Arc::clone(&self.builds).acquire_owned().await.ok();
        let (caller, mut callers) = watch::channel(());
        let images = self.clone();
        let image = plan.name.clone();
        let task = tokio::spawn(async move {
            let _permit = permit;
            // The sender never sends: this returns when it is dropped.
            let gone = async move { while callers.changed().await.is_ok() {} };
            images.make_or_undo(&plan, open, gone, progress).await
        });
        let result = task.await;
        drop(caller);
        match result {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends.
                Err(_) => Err(ImageError::Interrupted { image }),
            },
        }
    }

    async fn make_or_undo(
        &self,
        plan: &Plan,
        open: impl FnOnce() -> Result<Root, ImageError>,
        gone: impl Future<Output = ()>,
        progress: BuildProgress,
    ) -> Result<Image, ImageError> {
        let assets = self.load_assets().await?;
        let mut root = open()?;
        let made = self.build_or_undo(plan, &assets, &mut root, gone, &*progress).await;
        if let Some(bootstrap) = root.bootstrap {
            bootstrap.close().await;
        }
        made
    }

    async fn build_or_undo(
        &self,
        plan: &Plan,
        assets: &Assets,
        root: &mut Root,
        gone: impl Future<Output = ()>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        let mut builder = Builder::claim(&self.site, &plan.name)?;
        let made = tokio::select! {
            biased;
            () = gone => Err(ImageError::Interrupted { image: plan.name.clone() }),
            made = fill(plan, &mut builder, assets, root, progress) => made,
        };
        // Not to be interrupted, and while the lock is held: a disk that is in no catalogue is for anyone to remove.
        let made = match made {
            Ok(image) => self.publish(&image).await.map(|()| image),
            Err(error) => Err(error),
        };
        let closed = builder.close(made.is_ok()).await;
        match (made, closed) {
            (Err(failed), Err(undo)) => {
                Err(ImageError::Undo { failed: Box::new(failed), undo: chain(&undo) })
            }
            (Ok(_), Err(error)) => Err(error),
            (made, Ok(())) => made,
        }
    }

    /// Enters a finished image into the catalogue, and removes the one whose name it takes if no workspace needs it.
    async fn publish(&self, image: &Image) -> Result<(), ImageError> {
        let entry = image.clone();
        let replaced = self.blocking(move |catalog| catalog.put(&entry)).await?;
        if let Some(replaced) = replaced
            && let Err(error) = self.delete_base(&replaced.name, replaced.base).await
        {
            tracing::debug!(error = %chain(&error), "kept the disk of the image that was replaced");
        }
        Ok(())
    }

    async fn delete_base(&self, image: &ImageName, base: BaseId) -> Result<(), ImageError> {
        self.site.storage.delete_base(base).await.map_err(|source| match source {
            StorageError::InUse { dependents, .. } => ImageError::InUse { image: image.clone(), dependents },
            source => ImageError::Storage { operation: "remove", image: image.clone(), source },
        })
    }

    async fn load_assets(&self) -> Result<Assets, ImageError> {
        let state = self.site.state.clone();
        let loaded = tokio::task::spawn_blocking(move || Assets::load(&state)).await;
        Ok(loaded.map_err(|error| ImageError::io("read", &self.site.state)(error.into()))??)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Catalog) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let catalog = self.catalog.clone();
        match tokio::task::spawn_blocking(move || work(&catalog)).await {
            Ok(result) => result,
            Err(error) => Err(CatalogError::Io {
                operation: "read",
                path: self.site.state.join("images"),
                source: error.into(),
            }),
        }
    }
}

/// What to make.
struct Plan {
    name: ImageName,
    source: ImageSource,
    disk: Option<DiskGib>,
}

/// From a stream to a sealed disk. Whatever stops it, the builder knows what there is.
async fn fill(
    plan: &Plan,
    builder: &mut Builder,
    assets: &Assets,
    root: &mut Root,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Image, ImageError> {
    progress(Progress::begin(if root.bootstrap.is_some() { Stage::Packages } else { Stage::Unpack }));
    // The stream begins when packages are installed: no machine needs to wait for that.
    let first = first_chunk(root).await?;
    let disk_bytes = plan.disk.map_or_else(|| guessed_disk_bytes(root, &first), DiskGib::bytes);

    progress(Progress::begin(Stage::Boot));
    let client = builder.boot(assets, disk_bytes).await?;

    let input = Input {
        name: &root.name,
        operation: "unpack the root file system of",
        folder: "/",
        stage: Stage::Unpack,
        total: root.bytes,
    };
    let stream = AsyncReadExt::chain(&first[..], &mut root.stream);
    let unpacked = builder.unpack(&client, input, stream, progress).await?;
    if let Some(bootstrap) = &mut root.bootstrap {
        bootstrap.finish().await?;
    }

    let name = assets.modules_tar.display().to_string();
    let modules = tokio::fs::File::open(&assets.modules_tar)
        .await
        .map_err(ImageError::io("read", &assets.modules_tar))?;
    let input = Input {
        name: &name,
        operation: "unpack the kernel's modules into",
        folder: "/lib/modules",
        stage: Stage::InstallModules,
        total: assets.manifest.files.get(super::assets::MODULES_TAR).map(|record| record.bytes),
    };
    let modules = builder.unpack(&client, input, modules, progress).await?;

    progress(Progress::begin(Stage::Check));
    let has_shell = builder.check_shell(&client).await?;
    progress(Progress::begin(Stage::Seal));
    let sealed = builder.seal(&client).await?;
    Ok(Image::from(NewImage {
        name: plan.name.clone(),
        base: builder.base(),
        source: plan.source.clone(),
        bytes: sealed.bytes,
        used_bytes: sealed.used_bytes,
        tar_bytes: unpacked.bytes,
        tar_sha256: unpacked.sha256,
        kernel_release: assets.manifest.kernel.release.clone(),
        modules_sha256: modules.sha256,
        has_shell,
    }))
}

/// Waits for the beginning of a stream. A stream without one is an error: its maker's, if that failed.
async fn first_chunk(root: &mut Root) -> Result<Vec<u8>, ImageError> {
    let mut first = vec![0; 4096];
    let read = root.stream.read(&mut first).await;
    let read = read.map_err(|source| ImageError::Input { input: root.name.clone(), source })?;
    if read == 0 {
        if let Some(bootstrap) = &mut root.bootstrap {
            bootstrap.finish().await?;
        }
        return Err(ImageError::EmptyInput { input: root.name.clone() });
    }
    first.truncate(read);
    Ok(first)
}

/// A disk for a tar of this size, in whole GiB.
fn guessed_disk_bytes(root: &Root, first: &[u8]) -> u64 {
    let Some(bytes) = root.bytes else {
        return if root.bootstrap.is_some() { DEFAULT_DISK_BYTES } else { STREAM_DISK_BYTES };
    };
    // A tar begins with a file name, which is neither gzip's nor zstd's magic number.
    let is_packed = first.starts_with(&[0x1f, 0x8b]) || first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let tar = bytes.saturating_mul(if is_packed { TAR_PER_PACKED } else { 1 });
    let wanted = tar.saturating_mul(DISK_PER_TAR).max(DEFAULT_DISK_BYTES);
    wanted.div_ceil(GIB).saturating_mul(GIB).min(DiskGib::MAX.bytes())
}

fn debian_root(release: &Release) -> Result<Root, ImageError> {
    let (bootstrap, stdout) = Bootstrap::start(release)?;
    let name = "what mmdebstrap made".to_owned();
    Ok(Root { stream: Box::pin(stdout), name, bytes: None, bootstrap: Some(bootstrap) })
}

fn tar_root(input: ImportInput) -> Result<Root, ImageError> {
    match input {
        ImportInput::File(path) => {
            let name = path.display().to_string();
            let failed = |source| ImageError::Input { input: name.clone(), source };
            let file = std::fs::File::open(&path).map_err(failed)?;
            let metadata = file.metadata().map_err(failed)?;
            if metadata.is_dir() {
                return Err(failed(std::io::ErrorKind::IsADirectory.into()));
            }
            // A pipe or device has no length.
            let bytes = metadata.is_file().then_some(metadata.len());
            Ok(Root { stream: Box::pin(tokio::fs::File::from_std(file)), name, bytes, bootstrap: None })
        }
        ImportInput::Stream(stream) => {
            Ok(Root { stream, name: "the input stream".to_owned(), bytes: None, bootstrap: None })
        }
    }
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;

#[cfg(feature = "fuzzing")]
#[path = "images_fuzzing.rs"]
pub(super) mod fuzzing;
