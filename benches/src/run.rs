//! One run: everything in turn, one table at the end.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use agentiso_core::Host;

use crate::{BoxError, Done, Options, groups::Group, home, machine, table::Table};

/// What groups measure with, and where they put what they find.
pub(crate) struct Bench {
    pub(crate) host: Host,
    pub(crate) options: Options,
    pub(crate) table: Table,
}

/// Measures, prints the table and keeps the samples.
///
/// `folder` is where the samples go, and the state folder of the run. Machines are removed whatever happens. A group that fails is said and the others go on; the exit status is then 1.
pub fn run(options: &Options, folder: PathBuf) -> ExitCode {
    home::place(folder);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("could not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        match measure(options).await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("could not measure: {}", chain(&*error));
                ExitCode::FAILURE
            }
        }
    })
}

/// Whether no group failed.
async fn measure(options: &Options) -> Done<bool> {
    let begun = Instant::now();
    let host = home::open().await?;
    let mut bench = Bench { host: host.clone(), options: options.clone(), table: Table::default() };
    let description = machine::describe(&host);
    eprintln!("{}", machine::line(&description));
    let mut failed = false;
    for group in Group::ALL.into_iter().filter(|group| options.wants(*group)) {
        eprintln!("{} ({:.0} s, load {})", group.name(), begun.elapsed().as_secs_f64(), machine::load());
        let measured = tokio::select! {
            measured = group.measure(&mut bench) => measured,
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        };
        if let Err(error) = measured {
            failed = true;
            eprintln!("  {} failed: {}", group.name(), chain(&*error));
            bench.table.not_measured(group.name(), chain(&*error));
        }
        // Nothing of one group shall run beside the next.
        home::clear(&host).await?;
    }
    host.close().await;
    bench.table.save(&home::folder(), &description)?;
    let (met, targets) = bench.table.met();
    println!("{}\n\n{}", machine::line(&description), bench.table.text());
    println!("{met} of {targets} targets met, in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(!failed)
}

/// An error and what lies beneath, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let below = error.to_string();
        if !text.ends_with(&below) {
            text = format!("{text}: {below}");
        }
        cause = error.source();
    }
    text.replace(['\n', '|'], " ")
}

impl Bench {
    /// A group's error with what it was about.
    pub(crate) fn error(text: impl Into<String>) -> BoxError {
        text.into().into()
    }
}
