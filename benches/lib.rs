//! Measurements of agentiso on real machines: `cargo bench -p agentiso-benches`.
//!
//! Each benchmark prints how many samples it took, their median and 99th percentile, and keeps the raw samples as JSON
//! in `target/bench/`. They use the state folder that the environment names and the image `debian`, or the one that
//! AGENTISO_BENCH_IMAGE names; where there is none, they say that they were skipped and why.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::{
    env,
    fmt::Write as _,
    future::Future,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use agentiso_core::{Config, Host, Workspace, WorkspaceSpec, types::ImageName};
use serde_json::json;

/// What a benchmark fails with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Samples of one measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    /// What was measured, a file name without its extension.
    pub name: &'static str,
    /// How long it took each time, in order.
    pub times: Vec<Duration>,
}

impl Samples {
    /// The smallest time that at least `per_mille` thousandths of the samples do not exceed (nearest rank).
    ///
    /// # Panics
    /// There are no samples.
    pub fn percentile(&self, per_mille: usize) -> Duration {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
        sorted[rank - 1]
    }

    /// The median.
    ///
    /// # Panics
    /// There are no samples.
    pub fn median(&self) -> Duration {
        self.percentile(500)
    }

    /// One line for people.
    ///
    /// # Panics
    /// There are no samples.
    pub fn line(&self) -> String {
        let mut line = format!("{:<28}", self.name);
        let (median, p99) = (self.median(), self.percentile(990));
        let _ = write!(line, " N {:>5}   median {median:>10.3?}   p99 {p99:>10.3?}", self.times.len());
        line
    }

    /// Writes the raw samples, in nanoseconds, to `<folder>/<name>.json`.
    ///
    /// # Errors
    /// The folder or file cannot be written.
    pub fn save(&self, folder: &Path, host: &Host) -> io::Result<PathBuf> {
        let isolation = host.isolation();
        let nanoseconds: Vec<_> =
            self.times.iter().map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).collect();
        let text = json!({
            "name": self.name,
            "version": env!("CARGO_PKG_VERSION"),
            "level": isolation.level,
            "hypervisor": isolation.hypervisor,
            "channel": isolation.channel,
            "storage": isolation.storage,
            "unit": "ns",
            "samples": nanoseconds,
        });
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("{}.json", self.name));
        std::fs::write(&path, format!("{text:#}\n"))?;
        Ok(path)
    }

    /// Prints the line and keeps the samples.
    ///
    /// # Errors
    /// As [`Samples::save`].
    ///
    /// # Panics
    /// There are no samples.
    pub fn report(&self, folder: &Path, host: &Host) -> io::Result<()> {
        println!("{}", self.line());
        self.save(folder, host).map(|_| ())
    }
}

/// A number that the environment may set.
///
/// # Errors
/// It is set to something that is no number from 1 on.
pub fn count_from_env(name: &str, default: usize) -> Result<usize, BoxError> {
    match env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => match text.parse() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(format!("{name} is {text:?}: it must be a number from 1 on").into()),
        },
    }
}

/// The image to make workspaces from.
fn image() -> String {
    env::var("AGENTISO_BENCH_IMAGE").unwrap_or_else(|_| "debian".to_owned())
}

/// A workspace that goes with this process.
///
/// # Errors
/// It cannot be created.
pub async fn throwaway(host: &Host) -> Result<Workspace, BoxError> {
    let mut spec = WorkspaceSpec::new(image());
    spec.throwaway = true;
    Ok(host.create(spec).await?)
}

/// The host at hand, if it has the image.
async fn open() -> Result<Host, BoxError> {
    let host = Host::open(Config::from_env()?).await?;
    host.images().find(&ImageName::new(image())?).await?;
    Ok(host)
}

/// Runs a benchmark on the host at hand.
///
/// Does nothing unless it was started by `cargo bench`: `cargo test --all-targets` starts it too.
pub fn run<B, F>(name: &str, benchmark: B) -> ExitCode
where
    B: FnOnce(Host) -> F,
    F: Future<Output = Result<(), BoxError>>,
{
    if !env::args().any(|argument| argument == "--bench") {
        println!("{name}: not measured, for this is not `cargo bench`");
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{name}: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let host = match open().await {
            Ok(host) => host,
            Err(reason) => {
                println!("{name}: skipped: {}", chain(&*reason));
                return ExitCode::SUCCESS;
            }
        };
        let measured = benchmark(host.clone()).await;
        host.close().await;
        match measured {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{name}: {}", chain(&*error));
                ExitCode::FAILURE
            }
        }
    })
}

/// An error and what lies beneath, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(milliseconds: impl IntoIterator<Item = u64>) -> Samples {
        Samples { name: "test", times: milliseconds.into_iter().map(Duration::from_millis).collect() }
    }

    #[test]
    fn percentiles_are_nearest_ranks_whatever_the_order() {
        let hundred = samples((1..=100).rev());
        assert_eq!(hundred.median(), Duration::from_millis(50));
        assert_eq!(hundred.percentile(990), Duration::from_millis(99));
        assert_eq!(hundred.percentile(1000), Duration::from_millis(100));
        let few = samples([30, 10, 20]);
        assert_eq!(few.median(), Duration::from_millis(20));
        assert_eq!(few.percentile(990), Duration::from_millis(30));
        assert_eq!(samples([7]).percentile(0), Duration::from_millis(7));
    }

    #[test]
    fn line_names_count_median_and_p99() {
        let line = samples([1, 2, 3]).line();
        assert_eq!(line, "test                         N     3   median    2.000ms   p99    3.000ms");
    }
}
