//! From `fork` of a running machine to the first output of all its children.

use std::time::{Duration, Instant};

use agentiso_core::{Host, Workspace};

use super::{all_answer, destroy, fork, machine};
use crate::{
    Done,
    run::Bench,
    series::Series,
    table::{Against, Target},
};

/// How many children, and how many samples.
const FORKS: [(u32, usize); 3] = [(1, 30), (4, 30), (16, 6)];

/// What sixteen children may take, of sixteen times what one does.
const SHARE: f64 = 0.75;

pub(super) async fn measure(bench: &mut Bench) -> Done {
    let parent = machine(&bench.host, 2).await?;
    let mut all: Vec<(u32, usize, Series)> = FORKS
        .into_iter()
        .map(|(count, samples)| {
            let name = format!("fork of {count} until all have answered, 2 vCPU");
            (count, bench.options.samples(samples), Series::times(name))
        })
        .collect();
    let rounds = all.iter().map(|(_, samples, _)| *samples).max().unwrap_or_default();
    for number in 0..rounds {
        for (count, samples, series) in &mut all {
            // Spread over all rounds.
            if number * *samples / rounds != (number + 1) * *samples / rounds {
                series.add(one(&bench.host, &parent, *count).await?);
            }
        }
    }
    parent.destroy().await?;
    let alone = all.first().and_then(|(_, _, series)| Against::median(series));
    for (count, _, series) in all {
        let against = alone
            .as_ref()
            .filter(|_| count > 1)
            .map(|alone| Against::value(format!("{count} x a fork of one"), alone.value * f64::from(count)));
        let target = (count == 16).then_some(Target::AtMostTimes(SHARE));
        bench.table.compare(series, against, target);
    }
    Ok(())
}

async fn one(host: &Host, parent: &Workspace, count: u32) -> Done<Duration> {
    let begun = Instant::now();
    let (children, _) = fork(host, parent, count).await?;
    all_answer(&children).await?;
    let time = begun.elapsed();
    destroy(&children).await?;
    Ok(time)
}
