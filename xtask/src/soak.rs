//! `cargo xtask soak`: random operations of several processes on a few workspaces, some of them killed in the middle, and
//! at the end nothing may be left that should not be.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::build;
use crate::homes::Seed;
use crate::leftovers;
use crate::run::{self, Done, Failure};

const HELP: &str = "\
Usage: cargo xtask soak [--minutes N] [--workers N] [--seed N] [--home DIR --program FILE]

  --minutes N     how long (3)
  --workers N     processes at once (3)
  --seed N        what the operations are chosen by; the one of each run is printed
  --home DIR      a state folder with an image, instead of one made for the run; its workspaces
                  are all removed at the end
  --program FILE  the command line to use with it
";

/// Names that operations choose from. Fewer than operations at once would want, so that they meet.
const NAMES: [&str; 5] = ["soak-a", "soak-b", "soak-c", "soak-d", "soak-e"];

/// Workspaces from which on only those are removed that there are: machines take memory.
const MOST_WORKSPACES: usize = 8;

/// Longest time for one operation before it counts as hung, on a busy host that emulates CPUs.
const OPERATION_LIMIT: Duration = Duration::from_secs(240);

/// What no error may say, whoever was killed over what: that something is broken, or that a machine's memory or disk was
/// taken away from beneath it.
const BAD: [&str; 7] = [
    "panicked",
    "damaged",
    "corrupt",
    "no memory image",
    "No such file or directory",
    "does not exist",
    // Whoever starts a machine has its lock: nobody disturbs it.
    "did not start",
];

/// One in so many processes is killed.
const KILLED: u64 = 6;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    minutes: u64,
    workers: u64,
    seed: u64,
    home: Option<PathBuf>,
    program: Option<PathBuf>,
}

impl Plan {
    fn parse(words: &[&str]) -> Done<Self> {
        let mut plan = Self { minutes: 3, workers: 3, seed: fresh_seed(), home: None, program: None };
        let mut words = words.iter();
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| Failure::new(HELP))?;
            let number = || value.parse().ok().filter(|number| *number > 0).ok_or_else(|| Failure::new(HELP));
            match *option {
                "--minutes" => plan.minutes = number()?,
                "--workers" => plan.workers = number()?,
                "--seed" => plan.seed = number()?,
                "--home" => plan.home = Some(value.into()),
                "--program" => plan.program = Some(value.into()),
                _ => return Err(Failure::new(HELP)),
            }
        }
        if plan.home.is_some() != plan.program.is_some() {
            return Err(Failure::new("--home and --program go together"));
        }
        Ok(plan)
    }
}

fn fresh_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_secs().max(1)
}

/// Runs until the time is over; an error if anything was not as it must be.
pub(crate) fn soak(words: &[&str]) -> Done {
    if matches!(words, ["--help" | "-h"]) {
        print!("{HELP}");
        return Ok(());
    }
    let plan = Plan::parse(words)?;
    match (&plan.home, &plan.program) {
        (Some(home), Some(program)) => Soak::new(program.clone(), home.clone()).run(&plan),
        _ => {
            let work = run::target_folder()?.join("xtask");
            let built = build::build()?;
            let seed = Seed::prepare(&built, &work)?;
            let home = work.join(format!("soak-{}", std::process::id()));
            seed.clone_to(&home)?;
            let done = Soak::new(built.folder.join("agentiso"), home.clone()).run(&plan);
            if done.is_ok() {
                fs::remove_dir_all(&home).map_err(run::at("remove", &home))?;
            } else {
                eprintln!("xtask: the state folder stays for a look: {}", home.display());
            }
            done
        }
    }
}

/// What came of operations, by their kind.
#[derive(Default)]
struct Tally {
    succeeded: u64,
    refused: u64,
    killed: u64,
    longest: Duration,
}

struct Soak {
    program: PathBuf,
    home: PathBuf,
    tallies: Mutex<BTreeMap<&'static str, Tally>>,
    /// What must not happen.
    findings: Mutex<Vec<String>>,
    refusals: Mutex<BTreeMap<String, u64>>,
}

/// A generator of numbers: the same ones for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        let at = self.roll(all.len().max(1) as u64);
        usize::try_from(at).ok().and_then(|at| all.get(at).copied())
    }
}

impl Soak {
    fn new(program: PathBuf, home: PathBuf) -> Self {
        Self {
            program,
            home,
            tallies: Mutex::default(),
            findings: Mutex::default(),
            refusals: Mutex::default(),
        }
    }

    fn run(&self, plan: &Plan) -> Done {
        println!("soak: {} min, {} workers, seed {}", plan.minutes, plan.workers, plan.seed);
        self.remove_all()?;
        let before = self.inventory();
        let end = Instant::now() + Duration::from_secs(plan.minutes * 60);
        std::thread::scope(|scope| {
            for worker in 0..plan.workers {
                // Far apart from each other, and never 0.
                let seed = plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(worker + 1).max(1);
                scope.spawn(move || {
                    let mut dice = Dice(seed);
                    while Instant::now() < end {
                        self.operate(&mut dice);
                    }
                });
            }
        });
        self.look_at_what_runs();
        self.remove_all()?;
        self.compare(&before);
        if let Err(failure) = leftovers::check(&[&self.home]) {
            self.find(failure.to_string());
        }
        self.report()
    }

    fn find(&self, what: String) {
        println!("soak: {what}");
        lock(&self.findings).push(what);
    }

    /// One process that does one thing, and is perhaps killed.
    fn operate(&self, dice: &mut Dice) {
        let existing = self.names();
        let is_full = existing.len() >= MOST_WORKSPACES;
        let kinds: &[&'static str] = if is_full {
            &["rm", "rm", "exec", "stop", "ls"]
        } else {
            &[
                "create", "create", "exec", "exec", "exec", "write", "snapshot", "restore", "fork", "stop",
                "start", "rm", "info", "ls", "port", "policy", "tree",
            ]
        };
        let Some(kind) = dice.pick(kinds) else { return };
        let existing: Vec<&str> = existing.iter().map(String::as_str).collect();
        // Mostly one that is there, or was a moment ago.
        let among = if kind == "create" || dice.roll(8) == 0 { &NAMES } else { existing.as_slice() };
        let name = dice.pick(among).unwrap_or("soak-a");
        let port = format!("{}:{}", 20_000 + dice.roll(1000), 80);
        let words: Vec<&str> = match kind {
            "create" => vec!["create", name],
            "exec" => vec!["exec", name, "--", "sh", "-c", "echo $((6*7)); sleep 0.1"],
            "write" => vec!["exec", name, "--", "sh", "-c", "head -c 2000000 /dev/urandom > /soak; sync"],
            "snapshot" => vec!["snapshot", "create", name, "s"],
            "restore" => vec!["restore", name, "s"],
            "fork" => vec!["fork", name, "--count", "2"],
            "stop" => vec!["stop", name],
            "start" => vec!["start", name],
            "rm" => vec!["rm", "-f", name],
            "info" => vec!["info", name],
            "port" => vec!["port", "add", name, &port],
            "policy" => vec!["policy", name, "--internet", "on"],
            "tree" => vec!["tree"],
            _ => vec!["ls"],
        };
        let kill_after = (dice.roll(KILLED) == 0).then(|| Duration::from_millis(dice.roll(3000)));
        let begun = Instant::now();
        match self.agentiso(&words, kill_after) {
            Ok((status, errors)) => self.judge(kind, &words, status, &errors, begun.elapsed()),
            Err(failure) => self.find(failure.to_string()),
        }
    }

    fn judge(&self, kind: &'static str, words: &[&str], status: ExitStatus, errors: &str, took: Duration) {
        let mut tallies = lock(&self.tallies);
        let tally = tallies.entry(kind).or_default();
        tally.longest = tally.longest.max(took);
        if status.signal() == Some(KILL) {
            tally.killed += 1;
        } else if status.success() {
            tally.succeeded += 1;
        } else {
            tally.refused += 1;
            let line = errors.lines().next().unwrap_or_default();
            *lock(&self.refusals).entry(without_particulars(line)).or_default() += 1;
        }
        drop(tallies);
        let is_bad = BAD.iter().any(|words| errors.contains(words));
        if is_bad || (status.signal().is_some() && status.signal() != Some(KILL)) {
            self.find(format!("{}: {status}: {errors}", words.join(" ")));
        }
        if took > OPERATION_LIMIT {
            self.find(format!("{}: it hung for {} s and was killed", words.join(" "), took.as_secs()));
        }
    }

    /// Runs the command line; what it says on standard error comes back.
    fn agentiso(&self, words: &[&str], kill_after: Option<Duration>) -> Done<(ExitStatus, String)> {
        let errors_path = self.home.join(format!("soak-{:?}.err", std::thread::current().id()));
        let failed = |error| Failure::new(format!("could not run agentiso {}: {error}", words.join(" ")));
        let mut child = Command::new(&self.program)
            .args(words)
            .env("AGENTISO_HOME", &self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&errors_path).map_err(run::at("create", &errors_path))?)
            .spawn()
            .map_err(failed)?;
        let deadline = Instant::now() + kill_after.unwrap_or(OPERATION_LIMIT);
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if Instant::now() >= deadline {
                child.kill().map_err(failed)?;
                break child.wait().map_err(failed)?;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = fs::read(&errors_path).unwrap_or_default();
        let _ = fs::remove_file(&errors_path);
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    }

    fn names(&self) -> Vec<String> {
        let mut command = Command::new(&self.program);
        let listed = run::output(command.args(["ls", "--json"]).env("AGENTISO_HOME", &self.home));
        listed.map(|json| names_in(&json)).unwrap_or_default()
    }

    /// Everything that is said to run must answer.
    fn look_at_what_runs(&self) {
        for name in self.names() {
            for words in [vec!["start", &name], vec!["exec", &name, "--", "true"]] {
                match self.agentiso(&words, None) {
                    Ok((status, _)) if status.success() => {}
                    Ok((status, errors)) => {
                        self.find(format!("at the end {}: {status}: {errors}", words.join(" ")))
                    }
                    Err(failure) => self.find(failure.to_string()),
                }
            }
        }
    }

    /// Forks may still need what their parents left: two rounds.
    fn remove_all(&self) -> Done {
        for _ in 0..3 {
            for name in self.names() {
                let (status, errors) = self.agentiso(&["rm", "-f", &name], None)?;
                if !status.success() {
                    println!("soak: rm -f {name}: {errors}");
                }
            }
        }
        match self.names() {
            left if left.is_empty() => Ok(()),
            left => Err(Failure::new(format!("could not remove {}", left.join(", ")))),
        }
    }

    /// What there is in the state folder when there is no workspace.
    fn inventory(&self) -> BTreeMap<&'static str, Vec<String>> {
        const FOLDERS: [&str; 6] =
            ["run", "locks", "disks/disks", "disks/layers", "disks/bases", "memory/images"];
        let list = |folder: &&'static str| {
            let entries = fs::read_dir(self.home.join(folder)).into_iter().flatten().flatten();
            let mut names: Vec<String> =
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            (*folder, names)
        };
        FOLDERS.iter().map(list).collect()
    }

    fn compare(&self, before: &BTreeMap<&'static str, Vec<String>>) {
        let after = self.inventory();
        for (folder, names) in &after {
            // A template that was made meanwhile stays, with its disk, its layer and its memory: one more of each.
            let allowed = match *folder {
                "run" | "locks" | "disks/bases" => 0,
                _ => 1,
            };
            let old = before.get(folder).map(Vec::as_slice).unwrap_or_default();
            let new: Vec<&String> = names.iter().filter(|name| !old.contains(name)).collect();
            // A lock that is being taken has its file; the catalogue's own stays.
            let new: Vec<_> = new.into_iter().filter(|name| !name.contains("images.lock")).collect();
            if new.len() > allowed + usize::from(*folder == "disks/layers") {
                self.find(format!("left in {folder}: {new:?}"));
            }
        }
        let database = self.home.join("agentiso.db");
        let bytes = fs::metadata(&database).map(|file| file.len()).unwrap_or_default();
        println!("soak: the records have {bytes} bytes");
    }

    fn report(&self) -> Done {
        println!("\n{:<10} {:>9} {:>9} {:>9} {:>10}", "operation", "done", "refused", "killed", "longest s");
        let mut total = 0;
        for (kind, tally) in lock(&self.tallies).iter() {
            let Tally { succeeded, refused, killed, longest } = tally;
            total += succeeded + refused + killed;
            println!("{kind:<10} {succeeded:>9} {refused:>9} {killed:>9} {:>10.1}", longest.as_secs_f64());
        }
        println!("\nwhat was refused:");
        for (what, times) in lock(&self.refusals).iter() {
            println!("{times:>6} {what}");
        }
        let findings = lock(&self.findings);
        println!("\n{total} operations, {} findings", findings.len());
        if findings.is_empty() { Ok(()) } else { Err(Failure::new(findings.join("\n"))) }
    }
}

/// SIGKILL.
const KILL: i32 = 9;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The names in what `ls --json` prints.
fn names_in(json: &str) -> Vec<String> {
    let after = json.split("\"name\":").skip(1);
    after
        .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next().map(str::to_owned))
        .collect()
}

/// A line without the numbers, names and ids in it, so that like ones are counted together.
fn without_particulars(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let is_particular = word.contains("soak-") || word.chars().any(|c| c.is_ascii_digit());
        if is_particular { "..." } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_takes_numbers_and_a_program_with_its_home() {
        let plan = Plan::parse(&["--minutes", "30", "--seed", "7"]).unwrap();
        assert_eq!((plan.minutes, plan.seed, plan.workers), (30, 7, 3));
        for wrong in [&["--minutes"][..], &["--minutes", "0"], &["--home", "/x"], &["--what", "1"]] {
            assert!(Plan::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_are_read_from_the_list() {
        assert_eq!(
            names_in(r#"[{"workspace_id":"1","name":"a"},{"name": "b-1","state":"running"}]"#),
            ["a", "b-1"]
        );
        assert!(names_in("[]").is_empty());
    }

    #[test]
    fn like_refusals_are_one() {
        assert_eq!(without_particulars("there is no workspace soak-a"), "there is no workspace ...");
        assert_eq!(without_particulars("port 20001 is taken"), "port ... is taken");
    }

    #[test]
    fn dice_of_one_seed_fall_alike_and_stay_in_bounds() {
        let (mut one, mut other) = (Dice(7), Dice(7));
        for _ in 0..100 {
            let roll = one.roll(6);
            assert_eq!(roll, other.roll(6));
            assert!(roll < 6);
        }
        assert_eq!(one.pick::<u8>(&[]), None);
    }
}
