//! What a workspace reaches, and how it is reached.

use agentiso_core::{
    EngineError, PolicyChange,
    types::{GuestPort, HostPort},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Class, Effect, Group, Tool, params::unwanted};
use crate::failure::Failure;

/// Most ports of one policy.
const MAX_PORTS: usize = 256;

pub(crate) struct Forward;

/// What to do.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Action {
    Add,
    Remove,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForwardParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// "add" (guest_port, host_port) or "remove" (guest_port).
    action: Action,
    /// The TCP port in the workspace.
    #[schemars(range(min = 1, max = 65535))]
    guest_port: u64,
    /// add: the port of this host's 127.0.0.1; a free one is picked unless given. Ports below 1024, and those in use, are
    /// refused.
    #[schemars(range(min = 1024, max = 65535))]
    host_port: Option<u64>,
}

impl Tool for Forward {
    type Params = ForwardParams;
    const NAME: &'static str = "port_forward";
    const TITLE: &'static str = "Forward a port";
    const GROUP: Group = Group::Network;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Forwards a TCP port of this host's 127.0.0.1 to a port of a workspace, so that \
        programs on the host reach a server in it; or ends a forward. add returns guest_port and host_port. A forward is \
        kept over stop and start; forks do not inherit it. workspace_info lists them.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","action":"add","guest_port":8000}"#,
        r#"{"workspace_id":"build","action":"remove","guest_port":8000}"#,
    ];

    async fn call(call: &Call<'_>, params: ForwardParams) -> Result<Value, Failure> {
        let guest = GuestPort::new(params.guest_port).map_err(EngineError::from)?;
        match params.action {
            Action::Add => {
                let host = params.host_port.map(HostPort::new).transpose().map_err(EngineError::from)?;
                let workspace = call.caller.workspace(&params.workspace_id).await?;
                Ok(json!(call.caller.concealed(workspace.add_forward(guest, host).await).await?))
            }
            Action::Remove => {
                unwanted(&params.host_port, "host_port", "remove")?;
                let workspace = call.caller.workspace(&params.workspace_id).await?;
                workspace.remove_forward(guest).await?;
                Ok(json!({ "guest_port": guest, "removed": true }))
            }
        }
    }
}

pub(crate) struct Policy;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// Whether it reaches the internet (never this host).
    allow_internet: Option<bool>,
    /// Whether it reaches other workspaces, where the host's network can do that.
    allow_inter_vm: Option<bool>,
    /// With internet: the only destination ports it reaches; an empty list for all. DNS always goes through.
    #[schemars(length(max = 256))]
    allowed_ports: Option<Vec<u64>>,
}

impl Tool for Policy {
    type Params = PolicyParams;
    const NAME: &'static str = "network_policy";
    const TITLE: &'static str = "Change what a workspace reaches";
    const GROUP: Group = Group::Network;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Changes what a workspace may reach. What is not given stays as it is; port forwards \
        and connections that stay allowed are not touched. Returns the policy now in force: allow_internet, \
        allow_inter_vm, allowed_ports. With nothing to change it only returns it.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","allow_internet":true,"allowed_ports":[80,443]}"#,
        r#"{"workspace_id":"build","allow_internet":false}"#,
    ];

    async fn call(call: &Call<'_>, params: PolicyParams) -> Result<Value, Failure> {
        let allowed_ports = params.allowed_ports.map(ports).transpose()?;
        let change = PolicyChange {
            allow_internet: params.allow_internet,
            allow_inter_vm: params.allow_inter_vm,
            allowed_ports,
            ..PolicyChange::default()
        };
        let workspace = call.caller.workspace(&params.workspace_id).await?;
        if change == PolicyChange::default() {
            return Ok(json!(workspace.info().await?.network));
        }
        Ok(json!(workspace.set_policy(change).await?))
    }
}

fn ports(given: Vec<u64>) -> Result<Vec<u16>, Failure> {
    if given.len() > MAX_PORTS {
        return Err(Failure::parameter(
            format!("allowed_ports has {} entries: it can have at most {MAX_PORTS}", given.len()),
            "name fewer ports, or none to allow all",
        ));
    }
    given
        .into_iter()
        .map(|port| {
            u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| {
                Failure::parameter(
                    format!("allowed_ports holds {port}: a port is 1 to 65535"),
                    "correct the port, or give an empty list to allow all",
                )
            })
        })
        .collect()
}
