//! Taking over workspaces.

use agentiso_core::session::Adoption;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Class, Effect, Group, Tool};
use crate::failure::Failure;

pub(crate) struct Adopt;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdoptParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name. Without it every workspace that
    /// nobody owns is adopted, never another session's.
    workspace_id: Option<String>,
    /// Take it also from another session, if that has not called for 60 seconds; needs the full UUID. False unless
    /// given.
    force: Option<bool>,
}

impl Tool for Adopt {
    type Params = AdoptParams;
    const NAME: &'static str = "workspace_adopt";
    const TITLE: &'static str = "Adopt workspaces";
    const GROUP: Group = Group::Session;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Makes this session the owner of a workspace that nobody owns (owned: false in \
        workspace_list): of one, or of all there are. They count against this session's quota; a refused adoption \
        changes nothing. Adoption clears what set_env had put there. Returns adopted: [{workspace_id, name, state}] and \
        failures: [{name, error}]. Its own already: no effect.";
    const EXAMPLES: &'static [&'static str] = &[r#"{"workspace_id":"build"}"#, "{}"];

    async fn call(call: &Call<'_>, params: AdoptParams) -> Result<Value, Failure> {
        let force = params.force.unwrap_or_default();
        let adoption = match params.workspace_id {
            Some(given) => {
                Adoption { adopted: vec![call.caller.adopt(&given, force).await?], ..Adoption::default() }
            }
            None if force => {
                return Err(Failure::parameter(
                    "force was given without a workspace",
                    "name the one workspace to take with its full UUID, or leave force out",
                ));
            }
            None => call.caller.adopt_orphans().await?,
        };
        let mut adopted = Vec::new();
        for workspace in &adoption.adopted {
            let state = workspace.info().await?.summary.state;
            adopted.push(json!({ "workspace_id": workspace.id(), "name": workspace.name(), "state": state }));
        }
        let failures: Vec<Value> = adoption
            .left
            .into_iter()
            .map(|(workspace, error)| {
                json!({ "name": workspace.name(), "error": Failure::from(error).message() })
            })
            .collect();
        Ok(json!({ "adopted": adopted, "failures": failures }))
    }
}
