//! What is measured, in groups that a run can be limited to.

mod copy;
mod create;
mod fork;
mod list;
mod memory;
mod others;
mod pause;
mod round_trip;

use agentiso_core::{
    ForkSpec, Host, Workspace, WorkspaceSpec,
    channel::client::{CollectOptions, ExecSpec},
    types::{MemoryMib, Resources, VcpuCount},
};

use crate::{Done, run::Bench};

/// Measurements that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Create,
    RoundTrip,
    Pause,
    Fork,
    Memory,
    Copy,
    List,
    Others,
}

impl Group {
    /// In the order in which they are measured.
    pub(crate) const ALL: [Self; 8] = [
        Self::Create,
        Self::RoundTrip,
        Self::Pause,
        Self::Fork,
        Self::Memory,
        Self::Copy,
        Self::List,
        Self::Others,
    ];

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::RoundTrip => "round-trip",
            Self::Pause => "pause",
            Self::Fork => "fork",
            Self::Memory => "memory",
            Self::Copy => "copy",
            Self::List => "list",
            Self::Others => "others",
        }
    }

    pub(crate) async fn measure(self, bench: &mut Bench) -> Done {
        match self {
            Self::Create => create::measure(bench).await,
            Self::RoundTrip => round_trip::measure(bench).await,
            Self::Pause => pause::measure(bench).await,
            Self::Fork => fork::measure(bench).await,
            Self::Memory => memory::measure(bench).await,
            Self::Copy => copy::measure(bench).await,
            Self::List => list::measure(bench).await,
            Self::Others => others::measure(bench),
        }
    }
}

/// The image that machines are made from.
const IMAGE: &str = "debian";

/// The machine's memory in all rows, in MiB.
const MEMORY_MIB: u64 = 512;

/// Prints a word, so that the output of a command is what is waited for.
const FIRST_COMMAND: &str = "echo ready";

/// The machine of a row.
fn resources(vcpus: u64) -> Done<Resources> {
    Ok(Resources {
        vcpus: VcpuCount::new(vcpus)?,
        memory_mb: MemoryMib::new(MEMORY_MIB)?,
        ..Resources::default()
    })
}

/// What is asked of a host. The workspace goes with this process if nothing else removes it.
fn spec(vcpus: u64) -> Done<WorkspaceSpec> {
    let mut spec = WorkspaceSpec::new(IMAGE).resources(resources(vcpus)?);
    spec.throwaway = true;
    Ok(spec)
}

async fn machine(host: &Host, vcpus: u64) -> Done<Workspace> {
    let workspace = host.create(spec(vcpus)?).await?;
    run(&workspace, FIRST_COMMAND).await?;
    Ok(workspace)
}

/// Runs a line of shell that must succeed, however long it takes, and returns what it printed.
pub(crate) async fn run(workspace: &Workspace, line: &str) -> Done<String> {
    let output = workspace.exec_with(ExecSpec::shell(line), CollectOptions::default()).await?;
    if !output.success() {
        return Err(Bench::error(format!(
            "`{line}` ended with {} in the guest: {}",
            output.exit_code(),
            output.stderr_text().trim()
        )));
    }
    Ok(output.stdout_text().into_owned())
}

/// Forks a machine as it runs; all of them or an error.
async fn fork(
    host: &Host,
    parent: &Workspace,
    count: u32,
) -> Done<(Vec<Workspace>, agentiso_core::ForkReport)> {
    let report = parent.fork(ForkSpec { count, ..ForkSpec::default() }).await?;
    let mut children = Vec::new();
    for worker in &report.workers {
        children.push(host.workspace(&worker.workspace_id.to_string()).await?);
    }
    if let Some(failure) = report.failures.first() {
        return Err(Bench::error(format!("fork {} failed: {}", failure.name, failure.error)));
    }
    Ok((children, report))
}

/// Runs the first command in each of them at once.
async fn all_answer(children: &[Workspace]) -> Done {
    let mut commands = tokio::task::JoinSet::new();
    for child in children {
        let child = child.clone();
        commands.spawn(async move { run(&child, FIRST_COMMAND).await.map(drop) });
    }
    while let Some(answered) = commands.join_next().await {
        answered??;
    }
    Ok(())
}

async fn destroy(machines: &[Workspace]) -> Done {
    for machine in machines {
        machine.destroy().await?;
    }
    Ok(())
}
