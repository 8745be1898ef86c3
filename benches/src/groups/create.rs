//! From `create` to the first output of a command, beside a boot and beside QEMU alone.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use agentiso_core::{
    Host, Pool, PoolSpec,
    storage::{
        DiskOrigin, Storage,
        qcow2::{Qcow2Config, Qcow2Storage},
    },
    types::{DiskId, ImageName},
};

use super::{FIRST_COMMAND, IMAGE, machine, resources, run, spec};
use crate::{
    Done,
    floor::{self, Times},
    home,
    recipe::{Files, Recipe},
    run::Bench,
    series::Series,
    table::{Against, Table, Target},
};

/// Samples of what takes a tenth of a second.
const SAMPLES: usize = 30;

/// What a host is left alone for between two samples.
const SETTLE: Duration = Duration::from_millis(150);

/// Samples of a boot.
const BOOTS: usize = 5;

const VCPUS: [u64; 2] = [1, 2];

/// The rows of one size of machine.
struct Rows {
    vcpus: u64,
    recipe: Recipe,
    create: Series,
    cold: Series,
    pooled: Series,
    pool: Pool,
    floor: Series,
    parts: [Series; 4],
}

pub(super) async fn measure(bench: &mut Bench) -> Done {
    let cold = home::without_templates().await?;
    // A pool serves all creations of the host that holds it.
    let pooling = home::open_again().await?;
    let folder = tempfile::tempdir()?;
    let mut all = Vec::new();
    for vcpus in VCPUS {
        bench.host.warm(IMAGE, resources(vcpus)?).await?;
        all.push(rows(&bench.host, &pooling, vcpus, folder.path()).await?);
    }
    let samples = bench.options.samples(SAMPLES);
    let every = samples.div_ceil(bench.options.samples(BOOTS));
    for number in 0..samples {
        for rows in &mut all {
            // Each comes first as often as the other: what comes before both is not the same.
            for is_ours in [number % 2 == 0, number % 2 != 0] {
                settle().await;
                if is_ours {
                    rows.create.add(first_output(&bench.host, rows.vcpus).await?);
                } else {
                    let times = tokio::task::block_in_place(|| floor::sample(&rows.recipe, FIRST_COMMAND))?;
                    rows.add_floor(times);
                }
            }
            // The machine that takes its place shall not be made beside anything else that is measured.
            rows.pool.filled().await?;
            settle().await;
            rows.pooled.add(from_pool(&pooling, rows.vcpus).await?);
            rows.pool.filled().await?;
            if number % every == 0 {
                settle().await;
                rows.cold.add(first_output(&cold, rows.vcpus).await?);
            }
        }
    }
    for rows in all {
        rows.put(&mut bench.table).await;
    }
    cold.close().await;
    pooling.close().await;
    Ok(())
}

/// Waits until what the sample before has left to the kernel is done: memory of machines that have ended is freed, and
/// their files' pages are written back.
async fn settle() {
    tokio::time::sleep(SETTLE).await;
}

/// What a workspace takes from nothing to its first output.
async fn first_output(host: &Host, vcpus: u64) -> Done<Duration> {
    let begun = Instant::now();
    let workspace = host.create(spec(vcpus)?).await?;
    run(&workspace, FIRST_COMMAND).await?;
    let time = begun.elapsed();
    workspace.destroy().await?;
    Ok(time)
}

/// The same for one that is taken from a pool.
async fn from_pool(host: &Host, vcpus: u64) -> Done<Duration> {
    let begun = Instant::now();
    let workspace = host.create(spec(vcpus)?).await?;
    run(&workspace, FIRST_COMMAND).await?;
    let time = begun.elapsed();
    let pooled = workspace.is_from_pool();
    workspace.destroy().await?;
    if pooled { Ok(time) } else { Err("the pool did not give out the machine that it had ready".into()) }
}

async fn rows(host: &Host, pooling: &Host, vcpus: u64, folder: &Path) -> Done<Rows> {
    let machine = machine(host, vcpus).await?;
    let pid = machine.info().await?.pid.ok_or("the machine does not run")?;
    let home = home::folder().join("home");
    let storage = Qcow2Storage::open(Qcow2Config::new(home.join("disks"))).await?;
    let empty_layer = folder.join(format!("layer-{vcpus}"));
    take_empty_layer(host, &storage, vcpus, &empty_layer).await?;
    let chain = storage.open_disk(DiskId::from(*machine.id().as_uuid())).await?;
    let layers = chain.layers.into_iter().map(|layer| (layer.id.to_string(), layer.path)).collect();
    let recipe = Recipe::of(pid, Files { empty_layer, layers, images: home.join("memory/images") })?;
    machine.destroy().await?;
    let part = |name| Series::times(format!("  floor, {vcpus} vCPU: {name}"));
    Ok(Rows {
        vcpus,
        recipe,
        create: Series::times(format!("create to first output, {vcpus} vCPU")),
        cold: Series::times(format!("cold boot to first output, {vcpus} vCPU")),
        pooled: Series::times(format!("create from a pool to first output, {vcpus} vCPU")),
        pool: pooling
            .pool(PoolSpec { image: IMAGE.to_owned(), resources: resources(vcpus)?, size: 1 })
            .await?,
        floor: Series::times(format!("floor: QEMU alone, {vcpus} vCPU")),
        parts: ["QEMU to its greeting", "load", "cont", "exec"].map(part),
    })
}

/// Has the storage make an empty layer, and takes it.
async fn take_empty_layer(host: &Host, storage: &Qcow2Storage, vcpus: u64, to: &Path) -> Done {
    let image = host.images().find(&ImageName::new(IMAGE)?).await?;
    let disk = DiskId::random();
    storage.create_disk(disk, DiskOrigin::Base(image.base), resources(vcpus)?.disk_gb.bytes()).await?;
    let copied = match storage.open_disk(disk).await?.layers.first() {
        Some(layer) => std::fs::copy(&layer.path, to).map(drop),
        None => Err(std::io::Error::other("the disk has no layer")),
    };
    storage.destroy_disk(disk).await?;
    Ok(copied?)
}

impl Rows {
    fn add_floor(&mut self, times: Times) {
        let Times { greeting, load, run, exec, total } = times;
        self.floor.add(total);
        for (series, time) in self.parts.iter_mut().zip([greeting, load, run, exec]) {
            series.add(time);
        }
    }

    async fn put(self, table: &mut Table) {
        let Self { vcpus, create, cold, pooled, pool, floor, parts, .. } = self;
        pool.close().await;
        let faster = create.clone();
        table.add(floor.clone());
        parts.into_iter().for_each(|part| table.add(part));
        table.compare(create, Against::median(&floor), Some(Target::AtMostTimes(1.3)));
        let renamed = faster.named(format!("  the same beside a boot, {vcpus} vCPU"));
        table.compare(renamed, Against::median(&cold), Some(Target::Faster(10.0)));
        table.compare(pooled, Against::median(&cold), Some(Target::Faster(20.0)));
        table.compare(cold, None, Some(Target::AtMost(6000.0)));
    }
}
