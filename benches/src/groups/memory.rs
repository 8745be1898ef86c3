//! What a child takes up of the host's memory.

use agentiso_core::{Workspace, channel::client::Command};

use super::{all_answer, destroy, fork, machine, run};
use crate::{
    Done,
    machine::Footprint,
    run::Bench,
    series::{Series, Unit},
    table::Target,
};

const CHILDREN: u32 = 6;

/// MiB of anonymous memory that an idle child may have.
const IDLE_LIMIT: f64 = 32.0;

/// Touches 32 MiB, says so and keeps them.
const ACTIVE: &str = "import mmap,time
memory = mmap.mmap(-1, 32 << 20)
for at in range(0, 32 << 20, 4096):
    memory[at] = 1
with open('/run/active', 'w') as pipe:
    pipe.write('touched')
while True:
    time.sleep(3600)
";

/// Anonymous, all, and unique memory of each child.
struct Rows([Series; 3]);

impl Rows {
    fn new(of: &str) -> Self {
        Self(
            ["anonymous PSS", "PSS", "unique memory"]
                .map(|what| Series::new(format!("{what} of {of} child, 2 vCPU, 512 MiB"), Unit::Mebibytes)),
        )
    }

    async fn measure(&mut self, children: &[Workspace]) -> Done {
        for child in children {
            let pid = child.info().await?.pid.ok_or("a child does not run")?;
            let Footprint { pss, anonymous, unique } = Footprint::of(pid)?;
            for (series, value) in self.0.iter_mut().zip([anonymous, pss, unique]) {
                series.add_value(value);
            }
        }
        Ok(())
    }
}

pub(super) async fn measure(bench: &mut Bench) -> Done {
    let parent = machine(&bench.host, 2).await?;
    let (children, _) = fork(&bench.host, &parent, CHILDREN).await?;
    // Idle: it runs and answers, and nobody has asked anything else of it.
    for child in &children {
        child.guest().await?.ping().await?;
    }
    let (mut idle, mut active) = (Rows::new("an idle"), Rows::new("an active"));
    idle.measure(&children).await?;
    all_answer(&children).await?;
    for child in &children {
        run(child, "mkfifo /run/active").await?;
        let argv = ["python3", "-c", ACTIVE].map(str::to_owned).to_vec();
        child.guest().await?.job_start(Command { argv, ..Command::default() }).await?;
        run(child, "cat /run/active").await?;
    }
    active.measure(&children).await?;
    destroy(&children).await?;
    parent.destroy().await?;
    let mut limit = Some(Target::AtMost(IDLE_LIMIT));
    for series in idle.0 {
        bench.table.compare(series, None, limit.take());
    }
    active.0.into_iter().for_each(|series| bench.table.add(series));
    Ok(())
}
