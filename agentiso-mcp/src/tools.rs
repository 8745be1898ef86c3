use std::{collections::BTreeMap, time::Duration};

use agentiso_core::{
    Host, Workspace, WorkspaceSpec, WorkspaceState, WorkspaceSummary,
    channel::client::{CollectOptions, DEFAULT_EXEC_TIMEOUT, DEFAULT_MAX_OUTPUT_BYTES, ExecSpec},
    types::{DiskGib, MemoryMib, Resources, VcpuCount},
};
use rmcp::{
    handler::server::tool::schema_for_type,
    model::{JsonObject, Tool, ToolAnnotations},
};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{DEFAULT_IMAGE, failure::Failure};

/// Longest time a command may be given, in seconds: a day.
const MAX_TIMEOUT_SECS: u64 = 24 * 60 * 60;

/// Most output of each stream that a call may ask for, in bytes: it is held in memory and sent in one message.
const MAX_OUTPUT_BYTES: usize = 16 * 1024 * 1024;

/// Who owns what is made by whoever can open the state folder, this server included.
const OPERATOR: &str = "operator";

/// The tools there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToolKind {
    WorkspaceCreate,
    WorkspaceList,
    WorkspaceDestroy,
    Exec,
}

impl ToolKind {
    pub(crate) const ALL: [Self; 4] =
        [Self::WorkspaceCreate, Self::WorkspaceList, Self::WorkspaceDestroy, Self::Exec];

    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WorkspaceCreate => "workspace_create",
            Self::WorkspaceList => "workspace_list",
            Self::WorkspaceDestroy => "workspace_destroy",
            Self::Exec => "exec",
        }
    }

    /// The tool as clients are told of it.
    pub(crate) fn describe(self) -> Tool {
        let (text, schema, hints) = match self {
            Self::WorkspaceCreate => (
                "Makes a workspace, a Linux machine of its own, and boots it. Returns when it answers.",
                schema_for_type::<CreateParams>(),
                ToolAnnotations::new().destructive(false),
            ),
            Self::WorkspaceList => (
                "Lists the workspaces: id, name, state, and whether this session owns each.",
                schema_for_type::<ListParams>(),
                ToolAnnotations::new().read_only(true),
            ),
            Self::WorkspaceDestroy => (
                "Ends a workspace's machine and removes its disk and snapshots. There is no way back.",
                schema_for_type::<DestroyParams>(),
                ToolAnnotations::new().destructive(true),
            ),
            Self::Exec => (
                "Runs a command as root in a workspace (/bin/sh -c) and returns exit_code, stdout and stderr. \
                 A command that runs out of time has exit_code 124 and what it had printed.",
                schema_for_type::<ExecParams>(),
                ToolAnnotations::new().destructive(true),
            ),
        };
        Tool::new(self.name(), text, schema).with_annotations(hints)
    }

    /// Carries out a call. Dropping the future gives it up.
    pub(crate) async fn call(self, host: &Host, arguments: JsonObject) -> Result<Value, Failure> {
        match self {
            Self::WorkspaceCreate => create(host, params(arguments)?).await,
            Self::WorkspaceList => list(host, &params(arguments)?).await,
            Self::WorkspaceDestroy => destroy(host, &params(arguments)?).await,
            Self::Exec => exec(host, params(arguments)?).await,
        }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateParams {
    /// What to call it: 1-128 of A-Z a-z 0-9 . _ - and not taken. One is made up if none is given.
    name: Option<String>,
    /// The base image; "debian" unless given.
    base_image: Option<String>,
    /// CPUs, 1-8; 2 unless given.
    vcpus: Option<u64>,
    /// Memory in MiB, 128-8192; 512 unless given.
    memory_mb: Option<u64>,
    /// Disk in GiB, 1-100; 10 unless given.
    disk_gb: Option<u64>,
    /// Whether it may reach the internet; not unless given.
    allow_internet: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListParams {
    /// Only workspaces in this state: creating, starting, running, paused, stopping, stopped or destroying.
    state_filter: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DestroyParams {
    /// The workspace: its id, 8 or more digits of it, or its name.
    workspace_id: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ExecParams {
    /// The workspace: its id, 8 or more digits of it, or its name.
    workspace_id: String,
    /// What /bin/sh -c runs.
    command: String,
    /// Seconds after which the command and all its children are killed, 1-86400; 120 unless given.
    timeout_secs: Option<u64>,
    /// The folder to run it in, an absolute path.
    workdir: Option<String>,
    /// Environment variables for this command alone.
    env: Option<BTreeMap<String, String>>,
    /// How much of each stream to return, in bytes, at most 16777216; 262144 unless given.
    max_output_bytes: Option<u64>,
}

fn params<T: DeserializeOwned>(arguments: JsonObject) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| {
        Failure::parameter(
            format!("the parameters are not what this tool takes: {error}"),
            "correct them as the tool's input schema says and call again",
        )
    })
}

fn bounded(what: &str, given: u64, min: u64, max: u64) -> Result<u64, Failure> {
    if (min..=max).contains(&given) {
        return Ok(given);
    }
    Err(Failure::parameter(
        format!("{what} is {given}: it can be {min} to {max}"),
        format!("give {what} a value from {min} to {max}"),
    ))
}

async fn workspace(host: &Host, given: &str) -> Result<Workspace, Failure> {
    Ok(host.workspace(given).await?)
}

/// A size parameter; its type's default if it was not given.
fn size<T>(given: Option<u64>) -> Result<T, Failure>
where
    T: Default + TryFrom<u64, Error = agentiso_core::types::InvalidSize>,
{
    given.map_or(Ok(T::default()), |given| {
        T::try_from(given).map_err(|error| Failure::from(agentiso_core::EngineError::from(error)))
    })
}

async fn create(host: &Host, params: CreateParams) -> Result<Value, Failure> {
    let image = params.base_image.unwrap_or_else(|| DEFAULT_IMAGE.to_owned());
    let resources = Resources {
        vcpus: size::<VcpuCount>(params.vcpus)?,
        memory_mb: size::<MemoryMib>(params.memory_mb)?,
        disk_gb: size::<DiskGib>(params.disk_gb)?,
    };
    let mut spec = WorkspaceSpec::new(image)
        .resources(resources)
        .allow_internet(params.allow_internet.unwrap_or_default());
    if let Some(name) = params.name {
        spec = spec.name(name).map_err(agentiso_core::EngineError::from)?;
    }
    let workspace = host.create(spec).await?;
    let info = workspace.info().await?;
    Ok(json!({
        "workspace_id": info.summary.workspace_id,
        "name": info.summary.name,
        "state": info.summary.state,
        "ip": info.summary.ip,
        "boot_time_ms": info.boot_time_ms,
        "from_pool": workspace.is_from_pool(),
        "resources": info.summary.resources,
    }))
}

async fn list(host: &Host, params: &ListParams) -> Result<Value, Failure> {
    let filter = params.state_filter.as_deref().map(state).transpose()?;
    let workspaces: Vec<Value> = host
        .list()
        .await?
        .iter()
        .filter(|summary| filter.is_none_or(|state| summary.state == state))
        .map(listed)
        .collect();
    Ok(json!({ "workspaces": workspaces }))
}

fn state(text: &str) -> Result<WorkspaceState, Failure> {
    serde_json::from_value(Value::from(text)).map_err(|_| {
        Failure::parameter(
            format!("state_filter {text:?} is no state of a workspace"),
            "use creating, starting, running, paused, stopping, stopped or destroying, or leave it out",
        )
    })
}

fn listed(summary: &WorkspaceSummary) -> Value {
    let mut line = json!(summary);
    line["owned"] = (summary.owner == OPERATOR).into();
    line
}

async fn destroy(host: &Host, params: &DestroyParams) -> Result<Value, Failure> {
    let workspace = workspace(host, &params.workspace_id).await?;
    workspace.destroy().await?;
    Ok(json!({ "workspace_id": workspace.id(), "name": workspace.name(), "destroyed": true }))
}

async fn exec(host: &Host, params: ExecParams) -> Result<Value, Failure> {
    let timeout = match params.timeout_secs {
        None => DEFAULT_EXEC_TIMEOUT,
        Some(given) => Duration::from_secs(bounded("timeout_secs", given, 1, MAX_TIMEOUT_SECS)?),
    };
    let max_output_bytes = match params.max_output_bytes {
        None => DEFAULT_MAX_OUTPUT_BYTES,
        Some(given) => {
            let given = bounded("max_output_bytes", given, 0, MAX_OUTPUT_BYTES as u64)?;
            usize::try_from(given).unwrap_or(MAX_OUTPUT_BYTES)
        }
    };
    let mut spec = ExecSpec::shell(params.command).timeout(timeout);
    spec.command.workdir = params.workdir;
    spec.command.env = params.env.unwrap_or_default();
    let options = CollectOptions { max_output_bytes, ..CollectOptions::default() };
    let output = workspace(host, &params.workspace_id).await?.exec_with(spec, options).await?;
    Ok(json!({
        "exit_code": output.exit_code(),
        "stdout": output.stdout_text(),
        "stderr": output.stderr_text(),
    }))
}
