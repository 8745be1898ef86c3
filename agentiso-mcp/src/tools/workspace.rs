//! Making, finding, starting, stopping and removing workspaces.

use agentiso_core::{
    EngineError, Workspace, WorkspaceSpec, WorkspaceState,
    types::{DiskGib, MemoryMib, Resources, VcpuCount},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Class, Effect, Group, Tool, params::size};
use crate::{DEFAULT_IMAGE, failure::Failure};

/// A tool's one parameter is the workspace.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OneWorkspace {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
}

pub(crate) struct Create;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateParams {
    /// What to call it: 1-128 of the characters A-Z a-z 0-9 . _ - and not taken by another workspace. One is made up if
    /// none is given.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9._-]+$"))]
    name: Option<String>,
    /// The base image; "debian" unless given.
    base_image: Option<String>,
    /// CPUs; 2 unless given.
    #[schemars(range(min = 1, max = 8))]
    vcpus: Option<u64>,
    /// Memory in MiB; 512 unless given.
    #[schemars(range(min = 128, max = 8192))]
    memory_mb: Option<u64>,
    /// Disk in GiB; 10 unless given. It only takes up what is written to it.
    #[schemars(range(min = 1, max = 100))]
    disk_gb: Option<u64>,
    /// Whether it may reach the internet (never this host); false unless given. network_policy changes it later.
    allow_internet: Option<bool>,
}

impl Tool for Create {
    type Params = CreateParams;
    const NAME: &'static str = "workspace_create";
    const TITLE: &'static str = "Create a workspace";
    const GROUP: Group = Group::Workspace;
    const CLASS: Class = Class::Create;
    const EFFECT: Effect = Effect::Adds;
    const DESCRIPTION: &'static str = "Makes a workspace, a Linux machine of its own, and boots it; it runs and answers \
        when this returns. Returns workspace_id, name, state, ip, boot_time_ms, from_pool, resources. It lives until \
        workspace_destroy, also when this client and the server are gone. Without internet unless allow_internet is \
        true. Sends progress. Cancelled: nothing is left of it.";
    const EXAMPLES: &'static [&'static str] =
        &["{}", r#"{"name":"build","vcpus":4,"memory_mb":2048,"allow_internet":true}"#];

    async fn call(call: &Call<'_>, params: CreateParams) -> Result<Value, Failure> {
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
            spec = spec.name(name).map_err(EngineError::from)?;
        }
        call.progress.stage("booting the machine");
        let workspace = call.caller.create(spec).await?;
        call.service.metrics.created(workspace.is_from_pool());
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
}

pub(crate) struct Destroy;

impl Tool for Destroy {
    type Params = OneWorkspace;
    const NAME: &'static str = "workspace_destroy";
    const TITLE: &'static str = "Destroy a workspace";
    const GROUP: Group = Group::Workspace;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Ends a workspace's machine and removes its disk and its snapshots. There is no \
        way back. Forks of it live on. Returns workspace_id, name, destroyed.";
    const EXAMPLES: &'static [&'static str] = &[r#"{"workspace_id":"build"}"#];

    async fn call(call: &Call<'_>, params: OneWorkspace) -> Result<Value, Failure> {
        let workspace = call.caller.workspace(&params.workspace_id).await?;
        call.progress.stage("removing the machine and its disk");
        workspace.destroy().await?;
        Ok(json!({ "workspace_id": workspace.id(), "name": workspace.name(), "destroyed": true }))
    }
}

pub(crate) struct Start;

impl Tool for Start {
    type Params = OneWorkspace;
    const NAME: &'static str = "workspace_start";
    const TITLE: &'static str = "Start a workspace";
    const GROUP: Group = Group::Workspace;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Adds;
    const DESCRIPTION: &'static str = "Boots the machine of a stopped workspace, or lets a paused one run on. No effect \
        if it runs. Returns workspace_id, name, state.";
    const EXAMPLES: &'static [&'static str] = &[r#"{"workspace_id":"build"}"#];

    async fn call(call: &Call<'_>, params: OneWorkspace) -> Result<Value, Failure> {
        let workspace = call.caller.workspace(&params.workspace_id).await?;
        call.progress.stage("booting the machine");
        call.caller.concealed(workspace.start().await).await?;
        call.service.metrics.booted();
        state_of(&workspace).await
    }
}

pub(crate) struct Stop;

impl Tool for Stop {
    type Params = OneWorkspace;
    const NAME: &'static str = "workspace_stop";
    const TITLE: &'static str = "Stop a workspace";
    const GROUP: Group = Group::Workspace;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Shuts a workspace's machine down with its file systems flushed. Processes end, \
        the disk and the snapshots are kept. No effect if it is stopped. Returns workspace_id, name, state.";
    const EXAMPLES: &'static [&'static str] = &[r#"{"workspace_id":"build"}"#];

    async fn call(call: &Call<'_>, params: OneWorkspace) -> Result<Value, Failure> {
        let workspace = call.caller.workspace(&params.workspace_id).await?;
        call.progress.stage("shutting the machine down");
        workspace.stop().await?;
        state_of(&workspace).await
    }
}

async fn state_of(workspace: &Workspace) -> Result<Value, Failure> {
    let summary = workspace.info().await?.summary;
    Ok(json!({ "workspace_id": summary.workspace_id, "name": summary.name, "state": summary.state }))
}

pub(crate) struct List;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    /// Only workspaces in this state.
    state_filter: Option<StateFilter>,
}

/// A state, as parameters name it.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum StateFilter {
    Creating,
    Starting,
    Running,
    Paused,
    Stopping,
    Stopped,
    Destroying,
}

impl From<StateFilter> for WorkspaceState {
    fn from(filter: StateFilter) -> Self {
        match filter {
            StateFilter::Creating => Self::Creating,
            StateFilter::Starting => Self::Starting,
            StateFilter::Running => Self::Running,
            StateFilter::Paused => Self::Paused,
            StateFilter::Stopping => Self::Stopping,
            StateFilter::Stopped => Self::Stopped,
            StateFilter::Destroying => Self::Destroying,
        }
    }
}

impl Tool for List {
    type Params = ListParams;
    const NAME: &'static str = "workspace_list";
    const TITLE: &'static str = "List workspaces";
    const GROUP: Group = Group::Workspace;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Reads;
    const DESCRIPTION: &'static str = "Lists the workspaces that this session owns, and those that nobody owns \
        (owned: false), which workspace_adopt can take. Returns {\"workspaces\": [{workspace_id, name, state, owned, \
        crashed, image, created_at, resources, ip, ...}]}.";
    const EXAMPLES: &'static [&'static str] = &["{}", r#"{"state_filter":"running"}"#];

    async fn call(call: &Call<'_>, params: ListParams) -> Result<Value, Failure> {
        let filter = params.state_filter.map(WorkspaceState::from);
        let workspaces: Vec<Value> = call
            .caller
            .list()
            .await?
            .into_iter()
            .filter(|line| filter.is_none_or(|state| line.seen.state == state))
            .map(|line| json!(line))
            .collect();
        Ok(json!({ "workspaces": workspaces }))
    }
}

pub(crate) struct Info;

impl Tool for Info {
    type Params = OneWorkspace;
    const NAME: &'static str = "workspace_info";
    const TITLE: &'static str = "Show a workspace";
    const GROUP: Group = Group::Workspace;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Reads;
    const DESCRIPTION: &'static str = "Everything about one workspace: state, pid, resources, snapshots with their \
        sizes, network policy, port_forwards, disk_used_bytes, memory, what it was forked from (forked_from), and what \
        isolates it from this host (isolation).";
    const EXAMPLES: &'static [&'static str] = &[r#"{"workspace_id":"build"}"#];

    async fn call(call: &Call<'_>, params: OneWorkspace) -> Result<Value, Failure> {
        Ok(json!(call.caller.info(&params.workspace_id).await?))
    }
}
