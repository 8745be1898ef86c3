//! Environment variables of all later commands.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Class, Effect, Group, Tool, params::Variables};
use crate::failure::Failure;

pub(crate) struct SetEnv;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetEnvParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// Names and values. At most 256 variables, each at most 32 KiB; all are set or none.
    vars: Variables,
}

impl Tool for SetEnv {
    type Params = SetEnvParams;
    const NAME: &'static str = "set_env";
    const TITLE: &'static str = "Set environment variables";
    const GROUP: Group = Group::Exec;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Sets environment variables for all later commands in a workspace. They are kept in \
        the guest's memory alone: gone after a stop, copied by a fork, and held by snapshots with memory. Values never \
        appear in logs or in workspace_info. Returns the names that were set. Names that would make a shell or the loader \
        run something else (LD_*, BASH_*, ENV, ...) are refused.";
    const EXAMPLES: &'static [&'static str] =
        &[r#"{"workspace_id":"build","vars":{"API_TOKEN":"secret","LANG":"C"}}"#];

    async fn call(call: &Call<'_>, params: SetEnvParams) -> Result<Value, Failure> {
        let workspace = call.caller.workspace(&params.workspace_id).await?;
        let names: Vec<String> = params.vars.keys().cloned().collect();
        let vars = params.vars.into_iter().map(|(name, value)| (name, Some(value))).collect();
        let set = workspace.guest().await?.env_set(vars).await;
        set.map_err(|error| Failure::guest(&workspace, &error))?;
        Ok(json!({ "workspace_id": workspace.id(), "set": names }))
    }
}
