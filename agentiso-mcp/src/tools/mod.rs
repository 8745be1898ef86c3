//! The tools: what clients are told of each, and how a call becomes work of the engine.
//!
//! Each tool is a type that implements [`Tool`]; its parameters' type is its schema. The files are named by the groups
//! that docs/tools.md shows.

mod diagnostics;
mod environment;
mod exec;
mod file;
mod git;
mod jobs;
mod lineage;
mod network;
mod parallel;
mod params;
mod schema;
mod session;
mod snapshot;
mod text;
mod transfer;
mod workspace;

use std::{future::Future, pin::Pin, sync::Arc};

use rmcp::model::{JsonObject, Tool as ListedTool, ToolAnnotations};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{caller::Caller, failure::Failure, progress::Progress, service::Service};

pub(crate) use diagnostics::read as read_log;
#[cfg(feature = "fuzzing")]
pub(crate) use git::fuzzing;
pub(crate) use text::cut;

/// The groups that docs/tools.md shows tools in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Workspace,
    Exec,
    File,
    Snapshot,
    Network,
    Session,
    Git,
    Diagnostics,
}

impl Group {
    pub(crate) const ALL: [Self; 8] = [
        Self::Workspace,
        Self::Exec,
        Self::File,
        Self::Snapshot,
        Self::Network,
        Self::Session,
        Self::Git,
        Self::Diagnostics,
    ];

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Workspace => "Workspaces",
            Self::Exec => "Commands",
            Self::File => "Files",
            Self::Snapshot => "Snapshots",
            Self::Network => "Network",
            Self::Session => "Sessions",
            Self::Git => "Git",
            Self::Diagnostics => "Diagnostics",
        }
    }
}

/// What a call costs its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Makes machines.
    Create,
    /// Runs commands.
    Exec,
    /// Everything else.
    Other,
}

/// What a tool does to the world, for clients that ask before they let it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Only looks.
    Reads,
    /// Adds; nothing that was there is lost.
    Adds,
    /// May change or remove what was there.
    Changes,
}

/// One call under way.
pub(crate) struct Call<'a> {
    /// On whose behalf.
    pub(crate) caller: &'a Caller,
    /// What the server was started with.
    pub(crate) service: &'a Service,
    /// Where to say how far it is.
    pub(crate) progress: &'a Progress,
}

/// A tool. Dropping the future of a call gives the work up.
pub(crate) trait Tool {
    /// What it takes.
    type Params: DeserializeOwned + JsonSchema + Send + 'static;

    const NAME: &'static str;
    const TITLE: &'static str;
    const GROUP: Group;
    const CLASS: Class;
    const EFFECT: Effect;
    /// For models: what it does, what it returns, what to watch out for.
    const DESCRIPTION: &'static str;
    /// Parameters of typical calls, as JSON.
    const EXAMPLES: &'static [&'static str];

    /// Carries out a call.
    fn call(call: &Call<'_>, params: Self::Params) -> impl Future<Output = Result<Value, Failure>> + Send;
}

type Outcome<'a> = Pin<Box<dyn Future<Output = Result<Value, Failure>> + Send + 'a>>;

/// A tool as the server keeps it.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) group: Group,
    pub(crate) class: Class,
    pub(crate) effect: Effect,
    pub(crate) description: &'static str,
    pub(crate) examples: &'static [&'static str],
    schema: fn(&[&str]) -> Arc<JsonObject>,
    run: for<'a> fn(&'a Call<'a>, JsonObject) -> Outcome<'a>,
}

impl Entry {
    const fn of<T: Tool>() -> Self {
        Self {
            name: T::NAME,
            title: T::TITLE,
            group: T::GROUP,
            class: T::CLASS,
            effect: T::EFFECT,
            description: T::DESCRIPTION,
            examples: T::EXAMPLES,
            schema: schema::of::<T::Params>,
            run: |call, arguments| Box::pin(async move { T::call(call, params::parse(arguments)?).await }),
        }
    }

    /// The JSON schema of its parameters.
    pub(crate) fn schema(&self) -> Arc<JsonObject> {
        (self.schema)(self.examples)
    }

    /// The tool as clients are told of it.
    pub(crate) fn listed(&self) -> ListedTool {
        let hints = ToolAnnotations::with_title(self.title)
            .read_only(self.effect == Effect::Reads)
            .destructive(self.effect == Effect::Changes)
            .open_world(matches!(self.group, Group::Exec | Group::Git));
        ListedTool::new(self.name, self.description, self.schema())
            .with_title(self.title)
            .with_annotations(hints)
    }

    /// Carries out a call. Dropping the future gives it up.
    pub(crate) async fn call(&self, call: &Call<'_>, arguments: JsonObject) -> Result<Value, Failure> {
        (self.run)(call, arguments).await
    }
}

/// All tools, in the order in which they are listed.
pub(crate) const TOOLS: &[Entry] = &[
    Entry::of::<workspace::Create>(),
    Entry::of::<workspace::Destroy>(),
    Entry::of::<workspace::Start>(),
    Entry::of::<workspace::Stop>(),
    Entry::of::<workspace::List>(),
    Entry::of::<workspace::Info>(),
    Entry::of::<lineage::Fork>(),
    Entry::of::<lineage::Tree>(),
    Entry::of::<lineage::Diff>(),
    Entry::of::<lineage::Promote>(),
    Entry::of::<exec::Exec>(),
    Entry::of::<jobs::Background>(),
    Entry::of::<environment::SetEnv>(),
    Entry::of::<parallel::Parallel>(),
    Entry::of::<file::Read>(),
    Entry::of::<file::Write>(),
    Entry::of::<file::Edit>(),
    Entry::of::<file::List>(),
    Entry::of::<transfer::Transfer>(),
    Entry::of::<snapshot::Snapshot>(),
    Entry::of::<network::Forward>(),
    Entry::of::<network::Policy>(),
    Entry::of::<session::Adopt>(),
    Entry::of::<git::Clone>(),
    Entry::of::<git::Status>(),
    Entry::of::<git::Commit>(),
    Entry::of::<git::Push>(),
    Entry::of::<git::Diff>(),
    Entry::of::<diagnostics::Logs>(),
];

/// The tool of this name.
pub(crate) fn by_name(name: &str) -> Option<&'static Entry> {
    TOOLS.iter().find(|tool| tool.name == name)
}
