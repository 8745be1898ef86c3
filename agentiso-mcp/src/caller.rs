//! On whose behalf tools act: the one place that decides which workspaces a call sees and operates.

use agentiso_core::{
    ForkReport, ForkSpec, Host, PromoteReport, PromoteSpec, TreeNode, Workspace, WorkspaceSpec,
    WorkspaceSummary,
};

use crate::{audit::Touched, failure::Failure, tools::Class};

/// Who owns what is made by whoever can open the state folder.
const OPERATOR: &str = "operator";

/// A principal at work.
#[derive(Clone)]
pub(crate) struct Caller {
    host: Host,
    touched: Touched,
}

/// A workspace that a caller sees.
pub(crate) struct Seen {
    pub(crate) summary: WorkspaceSummary,
    /// Whether it belongs to the caller.
    pub(crate) owned: bool,
}

impl Caller {
    /// The operator, who sees and operates everything.
    pub(crate) fn operator(host: Host) -> Self {
        Self { host, touched: Touched::default() }
    }

    /// The same, with an account of its own of what it touches.
    pub(crate) fn for_call(&self) -> Self {
        Self { touched: Touched::default(), ..self.clone() }
    }

    /// The workspaces that it has touched.
    pub(crate) fn touched(&self) -> Touched {
        self.touched.clone()
    }

    /// What logs call it.
    pub(crate) fn name(&self) -> &str {
        OPERATOR
    }

    /// Begins a call of this class.
    pub(crate) async fn enter(&self, _class: Class) -> Result<(), Failure> {
        Ok(())
    }

    /// A workspace that it may operate.
    pub(crate) async fn workspace(&self, given: &str) -> Result<Workspace, Failure> {
        let workspace = self.host.workspace(given).await?;
        self.touched.add(workspace.id());
        Ok(workspace)
    }

    /// A workspace that it may look at, and whether it owns it.
    pub(crate) async fn see(&self, given: &str) -> Result<(Workspace, bool), Failure> {
        let workspace = self.host.workspace(given).await?;
        self.touched.add(workspace.id());
        let owned = workspace.info().await?.summary.owner == OPERATOR;
        Ok((workspace, owned))
    }

    /// The workspaces that it sees.
    pub(crate) async fn list(&self) -> Result<Vec<Seen>, Failure> {
        let all = self.host.list().await?;
        Ok(all.into_iter().map(|summary| Seen { owned: summary.owner == OPERATOR, summary }).collect())
    }

    /// Makes a workspace of its own.
    pub(crate) async fn create(&self, spec: WorkspaceSpec) -> Result<Workspace, Failure> {
        let workspace = self.host.create(spec).await?;
        self.touched.add(workspace.id());
        Ok(workspace)
    }

    /// Removes one of its workspaces.
    pub(crate) async fn destroy(&self, workspace: &Workspace) -> Result<(), Failure> {
        Ok(workspace.destroy().await?)
    }

    /// Makes forks of one of its workspaces.
    pub(crate) async fn fork(&self, workspace: &Workspace, spec: ForkSpec) -> Result<ForkReport, Failure> {
        let report = workspace.fork(spec).await?;
        report.workers.iter().for_each(|worker| self.touched.add(worker.workspace_id));
        Ok(report)
    }

    /// Lets one of its forks take the place of the one it was forked from.
    pub(crate) async fn promote(
        &self,
        fork: &Workspace,
        spec: PromoteSpec,
    ) -> Result<PromoteReport, Failure> {
        Ok(fork.promote(spec).await?)
    }

    /// The trees of forks that it sees.
    pub(crate) async fn tree(&self, root: Option<&str>) -> Result<Vec<TreeNode>, Failure> {
        Ok(self.host.tree(root).await?)
    }

    /// Takes over a workspace that nobody owns.
    pub(crate) async fn adopt(&self, given: &str, _force: bool) -> Result<WorkspaceSummary, Failure> {
        Ok(self.host.workspace(given).await?.info().await?.summary)
    }

    /// The state folder, for what is no workspace's.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }
}
