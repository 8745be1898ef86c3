//! `ls`, by how many workspaces there are.
//!
//! The records are real ones in a real database, made by the engine with pretended machines; they are listed by a host
//! that knows nothing of that.

use std::{sync::Arc, time::Instant};

use agentiso_core::{
    Backends, Config, Host, WorkspaceSpec,
    testkit::{FakeHost, add_image},
};

use crate::{Done, run::Bench, series::Series};

const COUNTS: [usize; 3] = [1, 100, 1000];

const SAMPLES: usize = 50;

pub(super) async fn measure(bench: &mut Bench) -> Done {
    let folder = tempfile::tempdir()?;
    let config = Config { templates: false, ..Config::at(folder.path().join("state")) };
    let mut made = 0;
    for count in COUNTS {
        fill(&config, count - made).await?;
        made = count;
        // Machines that were pretended are not there: this host finds them stopped and says so once, when it opens.
        let host = Host::open(config.clone()).await?;
        let found = host.list().await?.len();
        if found != count {
            return Err(Bench::error(format!("{found} workspaces were listed where there are {count}")));
        }
        let mut list = Series::times(format!("list of {count} workspaces, folder open"));
        let mut whole = Series::times(format!("opening the folder and list of {count}, as `ls` does"));
        for _ in 0..bench.options.samples(SAMPLES) {
            let begun = Instant::now();
            host.list().await?;
            list.add(begun.elapsed());
            let begun = Instant::now();
            Host::open(config.clone()).await?.list().await?;
            whole.add(begun.elapsed());
        }
        host.close().await;
        bench.table.add(list);
        bench.table.add(whole);
    }
    Ok(())
}

async fn fill(config: &Config, count: usize) -> Done {
    let fakes = FakeHost::new();
    let backends = Backends {
        hypervisor: Arc::new(fakes.hypervisor()),
        storage: Arc::new(fakes.storage()),
        network: Arc::new(fakes.network()),
        channel: Arc::new(fakes.channel()),
    };
    let host = Host::open_with(config.clone(), backends).await?;
    let name = format!("image-{count}");
    add_image(&host, &name, 1 << 30).await?;
    for _ in 0..count {
        host.create(WorkspaceSpec::new(&name)).await?.stop().await?;
    }
    host.close().await;
    Ok(())
}
