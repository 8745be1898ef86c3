//! `cargo xtask bench`: the measurements, with everything that they need made first.

use crate::build;
use crate::homes::Seed;
use crate::run::{self, Done};
use crate::setup;

/// Measures in a state folder with the image of the tests. `words` go to the benchmark.
pub(crate) fn bench(words: &[&str]) -> Done {
    setup::setup()?;
    let built = build::build()?;
    let work = run::target_folder()?.join("xtask");
    let seed = Seed::prepare(&built, &work)?;
    let mut command = run::cargo();
    command.args(["bench", "-p", "agentiso-benches", "--"]).args(words);
    run::run(command.env("AGENTISO_HOME", seed.folder()))
}
