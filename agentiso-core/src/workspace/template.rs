//! Templates: machines that have booted already, of which new workspaces begin with disk and memory.
//!
//! There is one for each image and size, made when the first workspace of that kind is asked for. Its id is a digest of
//! everything that decides whether a machine can begin with it, so a newer QEMU, kernel or agent, or an image that was
//! built anew, finds none and makes its own; the old one goes when it was not used for a while.

use std::{sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::engine::{Callers, Engine, caller, now};
use super::info::WorkspaceState;
use super::lock::WorkspaceLock;
use super::machine::Begin;
use crate::channel::client::{CollectOptions, Configure, ExecSpec};
use crate::error::EngineError;
use crate::hypervisor::{AfterCapture, CaptureSpec, DiskStep, HypervisorError};
use crate::image::{Assets, Image};
use crate::network::NetworkPolicy;
use crate::storage::{DiskOrigin, Outcome};
use crate::store::{TemplateRecord, WorkspaceRecord};
use crate::types::{DiskId, ImageName, MachineUid, Owner, Resources, SnapshotId, WorkspaceId, WorkspaceName};

/// How long a template is kept that nobody uses.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How many templates are kept: each takes about as much of the host's disk as its guest has touched of its memory.
const MOST: usize = 16;

/// How exact the records are about when a template was used last: more would cost every creation a write.
const USE_RECORDED_EVERY: Duration = Duration::from_secs(60 * 60);

/// Commands that run once in each template, so that what they need is in its page cache and every machine finds it
/// there. What an image does not have is no loss.
const WARM_UP: [&str; 3] = ["/bin/sh -c true", "env true; cat /dev/null; ls / > /dev/null", "bash -c true"];

/// The host name that a template is kept with. Every machine's own is at least as long: files that hold it grow when it
/// is set, which an ext4 does with a fraction of the work that shortening them takes.
const SHORT_NAME: &str = "t";

/// How long each may take.
const WARM_UP_LIMIT: Duration = Duration::from_secs(20);

/// The first user id given to templates' machines, above those of workspaces and images that are being made; each has
/// one of its own, from the digits of its id, so that two are as good as never the same.
const FIRST_UID: u32 = 2_100_000_000;
const UIDS: u32 = 40_000_000;

impl Engine {
    /// What a new workspace's disk and machine begin with: a template, made now if there is none; the image itself where
    /// templates cannot be had.
    pub(super) async fn beginning(
        self: &Arc<Self>,
        image: &Image,
        resources: Resources,
        callers: Callers,
    ) -> Result<(DiskOrigin, Begin), EngineError> {
        if !self.config.templates {
            return Ok((DiskOrigin::Base(image.base), Begin::Boot));
        }
        match self.template(image, resources, callers).await {
            Ok(id) => {
                let origin = DiskOrigin::Snapshot { disk: DiskId::from(id), snapshot: SnapshotId::from(id) };
                Ok((origin, Begin::Template(SnapshotId::from(id))))
            }
            // A machine that cannot boot will not boot a second time, and a full disk is full.
            Err(
                error @ (EngineError::Start { .. }
                | EngineError::Abandoned { .. }
                | EngineError::Storage(_)
                | EngineError::Store(_)),
            ) => Err(error),
            Err(error) => {
                tracing::warn!(image = %image.name, error = %error.report(), "no template could be made; booting instead");
                Ok((DiskOrigin::Base(image.base), Begin::Boot))
            }
        }
    }

    /// Makes the template of an image and size, if there is none yet.
    pub(super) async fn warm(
        self: &Arc<Self>,
        image: &ImageName,
        resources: Resources,
    ) -> Result<(), EngineError> {
        let image = self.images.find(image).await?;
        super::create::check_disk(resources.disk_gb, image.bytes, || format!("image {}", image.name))?;
        let (caller, callers) = caller();
        let engine = Arc::clone(self);
        let made =
            self.finish(async move { engine.template(&image, resources, callers).await.map(drop) }).await;
        caller.received(made)
    }

    /// The template of an image and size.
    async fn template(
        self: &Arc<Self>,
        image: &Image,
        resources: Resources,
        mut callers: Callers,
    ) -> Result<Uuid, EngineError> {
        let id = self.template_id(image, resources);
        if self.usable_template(id, image).await? {
            return Ok(id);
        }
        // Whoever comes second waits for the first, which takes a boot.
        let limit = self.config.boot_timeout + self.config.lock_timeout;
        let locks = self.layout.locks();
        let taken = tokio::select! {
            taken = WorkspaceLock::take(&locks, id, limit) => taken,
            () = callers.gone() => return Err(abandoned(image)),
        };
        let lock = match taken {
            Ok(Some(lock)) => lock,
            Ok(None) => return Err(EngineError::Busy { workspace: template_name(id), waited: limit }),
            Err(source) => {
                return Err(self.lock_failed(source));
            }
        };
        if self.usable_template(id, image).await? {
            lock.remove();
            return Ok(id);
        }
        let made = tokio::select! {
            made = self.make_template(id, image, resources) => made,
            () = callers.gone() => Err(abandoned(image)),
        };
        if let Err(error) = made {
            if let Err(undo) = self.discard_template(id).await {
                tracing::warn!(error = %undo.report(), "could not remove a template that was not finished");
            }
            lock.remove();
            return Err(error);
        }
        lock.remove();
        self.collect_templates().await?;
        Ok(id)
    }

    /// Everything that decides whether a machine can begin with a template, as an id.
    fn template_id(&self, image: &Image, resources: Resources) -> Uuid {
        // Without a manifest nothing is installed, and no machine will start that could be told from another.
        let installed = Assets::load(self.layout.root())
            .map(|assets| assets.manifest.files.into_values().map(|file| file.sha256.to_string()).collect())
            .unwrap_or_else(|_| Vec::new());
        let Resources { vcpus, memory_mb, disk_gb } = resources;
        let mut digest = Sha256::new();
        for part in [
            self.backends.hypervisor.image_key(),
            self.backends.storage.capabilities().name,
            self.backends.channel.capabilities().name,
            self.backends.network.capabilities().name,
            image.base.to_string(),
            format!("{vcpus} {memory_mb} {disk_gb}"),
            installed.join(" "),
        ] {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
        let bytes: [u8; 32] = digest.finalize().into();
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = bytes;
        uuid::Builder::from_custom_bytes([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]).into_uuid()
    }

    /// Whether a template is there and can be used; notes the use.
    async fn usable_template(&self, id: Uuid, image: &Image) -> Result<bool, EngineError> {
        let Some(record) = self.records(move |store| store.template(id)).await? else { return Ok(false) };
        match self.backends.hypervisor.image(SnapshotId::from(id)).await {
            Ok(found) if found.obstacle.is_none() => {}
            Ok(_) | Err(HypervisorError::NoImage { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let used_at = now();
        if used_at.saturating_sub(record.used_at) >= USE_RECORDED_EVERY.as_secs() {
            let record = TemplateRecord { id, base: image.base, used_at };
            self.records(move |store| store.put_template(&record)).await?;
        }
        Ok(true)
    }

    /// Boots a machine and keeps it. The caller holds the template's lock, and discards what a failure leaves.
    async fn make_template(&self, id: Uuid, image: &Image, resources: Resources) -> Result<(), EngineError> {
        self.discard_template(id).await?;
        let (storage, disk) = (&self.backends.storage, DiskId::from(id));
        storage.create_disk(disk, DiskOrigin::Base(image.base), resources.disk_gb.bytes()).await?;
        // It has no row of its own: it is found by its id, as the disk and the process are, if this process dies.
        let mut record = template_workspace(id, image, resources)?;
        self.boot(&mut record, Begin::Boot).await?;
        self.warm_up(&record).await;
        let Some(runtime) = &record.runtime else { return Err(super::engine::not_running(&record, "kept")) };
        let client = self.client_of(runtime);
        client
            .sync()
            .await
            .map_err(|source| EngineError::operation("flush", record.name.as_str(), source))?;
        let snapshot = SnapshotId::from(id);
        let capture = CaptureSpec {
            image: snapshot,
            uid: record.uid,
            disk: DiskStep::Keep,
            restores: 1,
            durable: true,
            after: AfterCapture::StayPaused,
        };
        self.backends.hypervisor.capture(&runtime.machine, capture).await?;
        self.clear_machine(&mut record).await?;
        self.remove_run_dir(record.id)?;
        // Nobody uses the disk any more, so it does not matter how this storage goes about it.
        storage.begin_snapshot(disk, snapshot).await?;
        storage.finish_snapshot(disk, snapshot, Outcome::Commit).await?;
        let template = TemplateRecord { id, base: image.base, used_at: now() };
        self.records(move |store| store.put_template(&template)).await
    }

    async fn warm_up(&self, record: &WorkspaceRecord) {
        let Some(runtime) = &record.runtime else { return };
        let client = self.client_of(runtime);
        for line in WARM_UP {
            let spec = ExecSpec { timeout: Some(WARM_UP_LIMIT), ..ExecSpec::shell(line) };
            if let Err(error) = client.exec_collect(spec, CollectOptions::default()).await {
                tracing::debug!(%error, line, "a template could not be warmed up");
            }
        }
        let named = Configure { hostname: Some(SHORT_NAME.to_owned()), ..Configure::default() };
        if let Err(error) = client.configure(named).await {
            tracing::debug!(%error, "a template could not be given its short name");
        }
    }

    /// Removes a template, whole or not. Workspaces that were made from it go on. The caller holds its lock.
    async fn discard_template(&self, id: Uuid) -> Result<(), EngineError> {
        self.records(move |store| store.remove_template(id)).await?;
        self.kill_strays(&[WorkspaceId::from(id)]).await?;
        self.backends.hypervisor.delete_image(SnapshotId::from(id)).await?;
        self.backends.storage.destroy_disk(DiskId::from(id)).await?;
        self.remove_run_dir(WorkspaceId::from(id))
    }

    /// Removes the templates that nobody will miss: those not used for a week, those of images that are gone, the
    /// least used ones beyond the number that is kept. What somebody is busy with stays.
    pub(super) async fn collect_templates(&self) -> Result<(), EngineError> {
        let catalogued = self.images.bases().await?;
        let oldest = now().saturating_sub(KEPT.as_secs());
        for (place, template) in self.records(|store| store.templates()).await?.into_iter().enumerate() {
            if place >= MOST || template.used_at < oldest || !catalogued.contains(&template.base) {
                self.try_discard(template.id).await?;
            }
        }
        Ok(())
    }

    /// Removes the templates of an image, so that it can be removed itself.
    pub(super) async fn discard_templates_of(&self, image: &ImageName) -> Result<(), EngineError> {
        let Ok(image) = self.images.find(image).await else { return Ok(()) };
        for template in self.records(|store| store.templates()).await? {
            if template.base == image.base {
                self.try_discard(template.id).await?;
            }
        }
        Ok(())
    }

    async fn try_discard(&self, id: Uuid) -> Result<(), EngineError> {
        if let Some(lock) = self.try_lock(id)? {
            self.discard_template(id).await?;
            lock.remove();
        }
        Ok(())
    }
}

fn abandoned(image: &Image) -> EngineError {
    EngineError::Abandoned { workspace: format!("from image {}", image.name) }
}

fn template_name(id: Uuid) -> String {
    let digits = id.simple().to_string();
    format!("template-{}", digits.get(..8).unwrap_or(&digits))
}

/// The workspace that a template's machine is started as. It is in no record.
fn template_workspace(id: Uuid, image: &Image, resources: Resources) -> Result<WorkspaceRecord, EngineError> {
    let [first, second, third, fourth, ..] = *id.as_bytes();
    let uid = FIRST_UID + u32::from_be_bytes([first, second, third, fourth]) % UIDS;
    Ok(WorkspaceRecord {
        id: WorkspaceId::from(id),
        name: WorkspaceName::new(template_name(id))?,
        state: WorkspaceState::Creating,
        crashed: false,
        created_at: now(),
        image: image.name.clone(),
        base: image.base,
        resources,
        policy: NetworkPolicy::default(),
        uid: rustix::process::geteuid().is_root().then_some(MachineUid(uid)),
        owner: Owner::Operator,
        inherited: false,
        throwaway_of: None,
        forked_from: None,
        runtime: None,
        boot_time_ms: None,
        pooled: false,
    })
}
