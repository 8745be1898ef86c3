//! `cargo xtask fuzz`: every target of `fuzz/`, one after the other, each with what earlier runs found.
//!
//! What is committed (`fuzz/corpus`) is only read; what a run finds goes to the target folder, and into the committed
//! corpus with `--minimise`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use crate::run::{self, Done, Failure};
use crate::stages::{Counts, Outcome};

/// Seconds for each target when nobody says.
const DEFAULT_SECONDS: u64 = 60;

/// Seconds for each target in `cargo xtask test --all`.
pub(crate) const STAGE_SECONDS: u64 = 20;

/// Most bytes of one target's committed corpus.
const MAX_CORPUS_BYTES: u64 = 2 * 1024 * 1024;

/// Longest input. Most decoders are through their states long before.
const MAX_INPUT_BYTES: u32 = 16 * 1024;

/// Memory of a target, in MiB, above which it counts as a finding. The sanitizer takes most of it.
const MEMORY_MIB: u32 = 2048;

/// Seconds for one input above which it counts as a finding.
const INPUT_SECONDS: u32 = 20;

/// Beginning of the names of inputs that were written, not found.
const SEED_PREFIX: &str = "seed-";

const HELP: &str = "\
Usage: cargo xtask fuzz [--seconds N | --cpu-seconds N] [--coverage] [--minimise] [TARGET]...

  --seconds N       how long each target runs (60)
  --cpu-seconds N   the same in CPU time, for a busy host
  --coverage        then says how much of our source files the inputs reach (needs llvm-symbolizer)
  --minimise        then puts what was found, minimised, into the committed corpus
";

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    seconds: Option<u64>,
    cpu_seconds: Option<u64>,
    coverage: bool,
    minimise: bool,
    targets: Vec<String>,
}

impl Plan {
    fn parse(words: &[&str]) -> Done<Self> {
        let mut plan = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--seconds" => plan.seconds = Some(number(words.next())?),
                "--cpu-seconds" => plan.cpu_seconds = Some(number(words.next())?),
                "--coverage" => plan.coverage = true,
                "--minimise" => plan.minimise = true,
                option if option.starts_with('-') => return Err(Failure::new(HELP)),
                target => plan.targets.push(target.to_owned()),
            }
        }
        if plan.seconds.is_some() && plan.cpu_seconds.is_some() {
            return Err(Failure::new("--seconds and --cpu-seconds exclude each other"));
        }
        Ok(plan)
    }
}

fn number(word: Option<&&str>) -> Done<u64> {
    word.and_then(|word| word.parse().ok())
        .filter(|number| *number > 0)
        .ok_or_else(|| Failure::new("a number of seconds above 0 is missing"))
}

/// Runs the targets that the words name, or all.
pub(crate) fn fuzz(words: &[&str]) -> Done {
    if matches!(words, ["--help" | "-h"]) {
        print!("{HELP}");
        return Ok(());
    }
    let plan = Plan::parse(words)?;
    let site = Site::find()?;
    let targets = site.targets(&plan.targets)?;
    site.build()?;
    let mut failed = Vec::new();
    let mut results = Vec::new();
    for target in &targets {
        match site.run(target, &plan) {
            Ok(result) => results.push(result),
            Err(failure) => {
                eprintln!("xtask: {failure}");
                failed.push(target.as_str());
                continue;
            }
        }
        if plan.minimise {
            site.minimise(target)?;
        }
        if plan.coverage {
            site.coverage(target)?;
        }
    }
    println!(
        "\n{:<13} {:>8} {:>8} {:>7} {:>7} {:>10} {:>8}",
        "target", "wall s", "CPU s", "cov", "ft", "runs", "corpus"
    );
    for result in &results {
        println!("{result}");
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!(
            "findings in {}: the inputs are in {}",
            failed.join(", "),
            site.fuzz.join("artifacts").display()
        )))
    }
}

/// The stage of `cargo xtask test --all`.
pub(crate) fn stage() -> Outcome {
    let site = match Site::find() {
        Ok(site) => site,
        Err(failure) => return Outcome::Skipped(failure.to_string()),
    };
    let seconds = STAGE_SECONDS.to_string();
    let counted = site.targets(&[]).map(|targets| targets.len());
    match (counted, fuzz(&["--seconds", &seconds])) {
        (Ok(passed), Ok(())) => Outcome::Passed(Counts { passed, ..Counts::default() }),
        (Err(failure), _) | (_, Err(failure)) => {
            Outcome::Failed(Counts { failed: 1, ..Counts::default() }, failure)
        }
    }
}

/// Where things are.
struct Site {
    /// `fuzz/`.
    fuzz: PathBuf,
    /// What runs find.
    found: PathBuf,
    /// Where cargo-fuzz builds the targets.
    programs: PathBuf,
}

/// How a target's run went.
struct Ran {
    target: String,
    wall: u64,
    cpu: u64,
    statistics: Statistics,
    inputs: usize,
}

/// What libFuzzer says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Statistics {
    /// Edges of the program that were taken.
    coverage: u64,
    /// Edges and how often.
    features: u64,
    runs: u64,
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { target, wall, cpu, statistics, inputs } = self;
        let Statistics { coverage, features, runs } = statistics;
        write!(f, "{target:<13} {wall:>8} {cpu:>8} {coverage:>7} {features:>7} {runs:>10} {inputs:>8}")
    }
}

impl Site {
    /// Installs cargo-fuzz if it is missing.
    fn find() -> Done<Self> {
        if !run::succeeds(run::cargo().args(["fuzz", "--version"])) {
            run::run(run::cargo().args(["install", "cargo-fuzz", "--locked"]))?;
        }
        let fuzz = run::repository()?.join("fuzz");
        let host = run::output(Command::new("rustc").args(["--print", "host-tuple"]))?;
        let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| fuzz.join("target"), PathBuf::from);
        let programs = built.join(host.trim()).join("release");
        Ok(Self { fuzz, found: run::target_folder()?.join("fuzz-found"), programs })
    }

    /// The names of all targets, or those of the given that there are.
    fn targets(&self, wanted: &[String]) -> Done<Vec<String>> {
        let path = self.fuzz.join("Cargo.toml");
        let manifest = fs::read_to_string(&path).map_err(run::at("read", &path))?;
        let all = target_names(&manifest);
        if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
            return Err(Failure::new(format!("there is no target {unknown}; there are {}", all.join(", "))));
        }
        Ok(if wanted.is_empty() { all } else { wanted.to_vec() })
    }

    fn cargo_fuzz(&self, subcommand: &str) -> Command {
        let mut command = run::cargo();
        // The sanitizers are there in a stable compiler, behind this.
        command.env("RUSTC_BOOTSTRAP", "1").arg("fuzz").arg(subcommand);
        command.arg("--fuzz-dir").arg(&self.fuzz);
        command
    }

    fn build(&self) -> Done {
        run::run(&mut self.cargo_fuzz("build"))
    }

    /// A target as `cargo fuzz run` starts it, but without another look at whether it is built.
    fn program(&self, target: &str) -> Done<Command> {
        let artifacts = self.fuzz.join("artifacts").join(target);
        fs::create_dir_all(&artifacts).map_err(run::at("create", &artifacts))?;
        let mut command = Command::new(self.programs.join(target));
        command
            .env("ASAN_OPTIONS", "detect_odr_violation=0")
            .arg(format!("-artifact_prefix={}/", artifacts.display()));
        Ok(command)
    }

    fn committed(&self, target: &str) -> PathBuf {
        self.fuzz.join("corpus").join(target)
    }

    fn found(&self, target: &str) -> Done<PathBuf> {
        let folder = self.found.join(target);
        fs::create_dir_all(&folder).map_err(run::at("create", &folder))?;
        Ok(folder)
    }

    /// Runs a target for its time; an error if it found something.
    fn run(&self, target: &str, plan: &Plan) -> Done<Ran> {
        let log = self.found.join(format!("{target}.log"));
        let folder = self.found(target)?;
        let begun = (Instant::now(), children_cpu_seconds());
        let mut statistics = Statistics::default();
        loop {
            let used = children_cpu_seconds().saturating_sub(begun.1);
            let seconds = match plan.cpu_seconds {
                Some(cpu) => cpu.saturating_sub(used).max(1),
                None => plan.seconds.unwrap_or(DEFAULT_SECONDS),
            };
            let mut command = self.program(target)?;
            command.arg(&folder).arg(self.committed(target));
            command.args([
                format!("-max_total_time={seconds}"),
                format!("-max_len={MAX_INPUT_BYTES}"),
                format!("-rss_limit_mb={MEMORY_MIB}"),
                format!("-timeout={INPUT_SECONDS}"),
                "-print_final_stats=1".to_owned(),
            ]);
            let dictionary = self.fuzz.join("dictionaries").join(format!("{target}.dict"));
            if dictionary.is_file() {
                command.arg(format!("-dict={}", dictionary.display()));
            }
            let runs = statistics.runs;
            statistics.runs = 0;
            run::run_logged(&mut command, &log, |line| {
                statistics.see(line);
                line.contains("ERROR: ")
            })?;
            statistics.runs += runs;
            let used = children_cpu_seconds().saturating_sub(begun.1);
            if plan.cpu_seconds.is_none_or(|cpu| used >= cpu) {
                break;
            }
        }
        let result = Ran {
            target: target.to_owned(),
            wall: begun.0.elapsed().as_secs(),
            cpu: children_cpu_seconds().saturating_sub(begun.1),
            statistics,
            inputs: files(&folder)?.len() + files(&self.committed(target))?.len(),
        };
        println!("{result}");
        Ok(result)
    }

    /// Puts a small set of inputs with the same coverage into the committed corpus; seeds stay. How often code is run does
    /// not count: that would be three times as many files.
    fn minimise(&self, target: &str) -> Done {
        let committed = self.committed(target);
        fs::create_dir_all(&committed).map_err(run::at("create", &committed))?;
        let merged = self.found.join(format!("{target}.merged"));
        let _ = fs::remove_dir_all(&merged);
        fs::create_dir_all(&merged).map_err(run::at("create", &merged))?;
        let mut command = self.program(target)?;
        command
            .args([&merged, &committed, &self.found(target)?])
            .args(["-set_cover_merge=1", "-use_counters=0"]);
        command.arg(format!("-max_len={MAX_INPUT_BYTES}"));
        let log = self.found.join(format!("{target}.merge.log"));
        run::run_logged(&mut command, &log, |_| false)?;
        let seeds: BTreeSet<Vec<u8>> = files(&committed)?
            .iter()
            .filter(|path| is_seed(path))
            .map(|path| fs::read(path).map_err(run::at("read", path)))
            .collect::<Done<_>>()?;
        for path in files(&committed)?.iter().filter(|path| !is_seed(path)) {
            fs::remove_file(path).map_err(run::at("remove", path))?;
        }
        let mut new: Vec<(Vec<u8>, PathBuf)> = Vec::new();
        for path in files(&merged)? {
            new.push((fs::read(&path).map_err(run::at("read", &path))?, path));
        }
        // The short ones first: what does not fit any more are few and long.
        new.sort_by_key(|(content, _)| content.len());
        let mut total: u64 = seeds.iter().map(|seed| seed.len() as u64).sum();
        for (content, path) in new.iter().filter(|(content, _)| !seeds.contains(content)) {
            total += content.len() as u64;
            let Some(name) = path.file_name().filter(|_| total <= MAX_CORPUS_BYTES) else { break };
            let kept = committed.join(name);
            fs::copy(path, &kept).map_err(run::at("write", &kept))?;
        }
        fs::remove_dir_all(&merged).map_err(run::at("remove", &merged))
    }

    /// Prints how much of each of our own source files the inputs reach, in edges between blocks of code.
    fn coverage(&self, target: &str) -> Done {
        let mut command = self.program(target)?;
        command.arg(self.found(target)?).arg(self.committed(target)).args(["-runs=0", "-print_coverage=1"]);
        let symbolizer = run::output(Command::new("sh").args(["-c", "command -v llvm-symbolizer"]));
        let Ok(symbolizer) = symbolizer else {
            println!("  {target}: no coverage by file, for llvm-symbolizer is not installed (package llvm)");
            return Ok(());
        };
        command.env("ASAN_SYMBOLIZER_PATH", symbolizer.trim());
        let mut files: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        run::run_logged(&mut command, &self.found.join(format!("{target}.coverage.log")), |line| {
            if let Some((file, taken, all)) = edges(line) {
                let sum = files.entry(file.to_owned()).or_default();
                *sum = (sum.0 + taken, sum.1 + all);
            }
            false
        })?;
        for (file, (taken, all)) in files.iter().filter(|(_, (taken, _))| *taken > 0) {
            println!("  {target}: {file}: {taken} of {all} edges");
        }
        Ok(())
    }
}

/// The file of ours that a line of libFuzzer's coverage is about, and how many edges of a function in it were taken:
/// `COVERED_FUNC: hits: 3 edges: 5/9 name /path/to/file.rs:12`.
fn edges(line: &str) -> Option<(&str, u64, u64)> {
    let (_, rest) = line.split_once("COVERED_FUNC: hits: ")?;
    let (_, rest) = rest.split_once(" edges: ")?;
    let (edges, rest) = rest.split_once(' ')?;
    let (taken, all) = edges.split_once('/')?;
    let (path, _line) = rest.rsplit(' ').next()?.rsplit_once(':')?;
    // Ours are named from the repository on.
    let at = ["agentiso-core/src/", "agentiso-guest/src/", "agentiso-cli/src/", "agentiso-mcp/src/"]
        .iter()
        .find_map(|ours| path.find(ours))?;
    Some((path.get(at..)?, taken.parse().ok()?, all.parse().ok()?))
}

/// The names in the `[[bin]]` sections of the manifest.
fn target_names(manifest: &str) -> Vec<String> {
    let sections = manifest.split("[[bin]]").skip(1);
    let names =
        sections.filter_map(|section| section.lines().find_map(|line| line.strip_prefix("name = \"")));
    names.map(|name| name.trim_end_matches('"').to_owned()).collect()
}

fn is_seed(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SEED_PREFIX))
}

fn files(folder: &Path) -> Done<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(run::at("list", folder))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(run::at("list", folder))).collect()
}

impl Statistics {
    /// Lines such as `#8192 pulse cov: 412 ft: 900 corp: ...` and `stat::number_of_executed_units: 9000`.
    fn see(&mut self, line: &str) {
        let after = |word: &str| line.split_once(word).and_then(|(_, rest)| rest.split_whitespace().next());
        let read = |word: &str| after(word).and_then(|number| number.parse().ok());
        if let Some(coverage) = read(" cov: ") {
            self.coverage = coverage;
        }
        if let Some(features) = read(" ft: ") {
            self.features = features;
        }
        if let Some(runs) = read("stat::number_of_executed_units:") {
            self.runs = runs;
        }
    }
}

/// CPU time of all children that have ended, in seconds.
fn children_cpu_seconds() -> u64 {
    /// What the kernel counts processes' time in, on every architecture that Rust knows.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 16 and 17; the second one, the name, may hold anything.
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok());
    ticks.sum::<u64>() / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_takes_times_and_targets() {
        let plan = Plan::parse(&["--seconds", "5", "frames", "--coverage", "qmp"]).unwrap();
        let expected = Plan {
            seconds: Some(5),
            coverage: true,
            targets: vec!["frames".to_owned(), "qmp".to_owned()],
            ..Plan::default()
        };
        assert_eq!(plan, expected);
        for wrong in
            [&["--seconds"][..], &["--seconds", "0"], &["--what"], &["--seconds", "1", "--cpu-seconds", "1"]]
        {
            assert!(Plan::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_target_of_the_manifest_has_a_source_file_and_seeds() {
        let fuzz = run::repository().unwrap().join("fuzz");
        let targets = target_names(&fs::read_to_string(fuzz.join("Cargo.toml")).unwrap());
        assert!(targets.len() >= 10, "{targets:?}");
        for target in targets {
            assert!(fuzz.join("fuzz_targets").join(format!("{target}.rs")).is_file(), "{target}");
            let corpus = files(&fuzz.join("corpus").join(&target)).unwrap();
            assert!(corpus.iter().any(|path| is_seed(path)), "{target} has no seeds");
            let bytes: u64 = corpus.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
            assert!(bytes <= MAX_CORPUS_BYTES, "the corpus of {target} has {bytes} bytes");
        }
    }

    #[test]
    fn statistics_are_those_of_the_last_line() {
        let mut statistics = Statistics::default();
        for line in [
            "#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 40Mb",
            "#8192\tpulse  cov: 412 ft: 900 corp: 55/2Kb lim: 100 exec/s: 4096 rss: 60Mb",
            "stat::number_of_executed_units: 9000",
        ] {
            statistics.see(line);
        }
        assert_eq!(statistics, Statistics { coverage: 412, features: 900, runs: 9000 });
    }

    #[test]
    fn edges_are_those_of_our_own_files() {
        let line = "COVERED_FUNC: hits: 3 edges: 5/9 <x as y<z>>::f /w/agentiso-guest/src/frame.rs:12";
        assert_eq!(edges(line), Some(("agentiso-guest/src/frame.rs", 5, 9)));
        let line = "UNCOVERED_FUNC: hits: 0 edges: 0/7 g ./agentiso-core/src/a/b.rs:1";
        assert_eq!(edges(line), Some(("agentiso-core/src/a/b.rs", 0, 7)));
        assert_eq!(edges("COVERED_FUNC: hits: 3 edges: 5/9 h /rustc/library/core/src/x.rs:1"), None);
        assert_eq!(edges("#2 INITED cov: 1 ft: 1"), None);
    }
}
