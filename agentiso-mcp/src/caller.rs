//! On whose behalf tools act: the one place that decides which workspaces a call sees and operates.

use agentiso_core::{
    DiffSpec, DiffStream, EngineError, ForkReport, ForkSpec, PromoteReport, PromoteSpec, TreeNode, Workspace,
    WorkspaceInfo, WorkspaceSpec, WorkspaceSummary,
    session::{Adoption, Call, Class, Seen, Session},
};

use crate::{audit::Touched, failure::Failure, tools};

/// A session at work.
#[derive(Clone)]
pub(crate) struct Caller {
    session: Session,
    touched: Touched,
}

impl Caller {
    pub(crate) fn new(session: Session) -> Self {
        Self { session, touched: Touched::default() }
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
        self.session.id().as_str()
    }

    /// Begins a call of this class, which has ended when the value is dropped.
    pub(crate) async fn enter(&self, class: tools::Class) -> Result<Call, Failure> {
        let class = match class {
            tools::Class::Create => Class::Create,
            tools::Class::Exec => Class::Exec,
            tools::Class::Other => Class::Other,
        };
        Ok(self.session.enter(class).await?)
    }

    /// A workspace of its own.
    pub(crate) async fn workspace(&self, given: &str) -> Result<Workspace, Failure> {
        let workspace = self.session.workspace(given).await?;
        self.touched.add(workspace.id());
        Ok(workspace)
    }

    /// Everything about a workspace that it sees, its own or nobody's.
    pub(crate) async fn info(&self, given: &str) -> Result<Seen<WorkspaceInfo>, Failure> {
        let info = self.session.info(given).await?;
        self.touched.add(info.seen.summary.workspace_id);
        Ok(info)
    }

    /// The workspaces that it sees.
    pub(crate) async fn list(&self) -> Result<Vec<Seen<WorkspaceSummary>>, Failure> {
        Ok(self.session.list().await?)
    }

    /// Makes a workspace of its own.
    pub(crate) async fn create(&self, spec: WorkspaceSpec) -> Result<Workspace, Failure> {
        let workspace = self.session.create(spec).await?;
        self.touched.add(workspace.id());
        Ok(workspace)
    }

    /// Makes forks of one of its workspaces.
    pub(crate) async fn fork(&self, given: &str, spec: ForkSpec) -> Result<ForkReport, Failure> {
        let report = self.session.fork(given, spec).await?;
        self.touched.add(report.forked_from.workspace_id);
        report.workers.iter().for_each(|worker| self.touched.add(worker.workspace_id));
        Ok(report)
    }

    /// Lets one of its forks take the place of the one it was forked from.
    pub(crate) async fn promote(&self, given: &str, spec: PromoteSpec) -> Result<PromoteReport, Failure> {
        let report = self.session.promote(given, spec).await?;
        self.touched.add(report.promoted.workspace_id);
        report.parent.iter().for_each(|parent| self.touched.add(parent.workspace_id));
        Ok(report)
    }

    /// Compares two of its workspaces.
    pub(crate) async fn diff(&self, spec: DiffSpec) -> Result<DiffStream, Failure> {
        Ok(self.session.diff(spec).await?)
    }

    /// The trees of forks that it sees.
    pub(crate) async fn tree(&self, root: Option<&str>) -> Result<Vec<TreeNode>, Failure> {
        Ok(self.session.tree(root).await?)
    }

    /// What came of an operation on a workspace that it got here: an error names nothing that it does not see.
    pub(crate) async fn concealed<T>(&self, result: Result<T, EngineError>) -> Result<T, Failure> {
        match result {
            Ok(done) => Ok(done),
            Err(error) => Err(self.session.conceal(error).await.into()),
        }
    }

    /// Takes over a workspace that nobody owns, or with `force` one of an idle session's.
    pub(crate) async fn adopt(&self, given: &str, force: bool) -> Result<Workspace, Failure> {
        let workspace = self.session.adopt(given, force).await?;
        self.touched.add(workspace.id());
        Ok(workspace)
    }

    /// Takes over all workspaces that nobody owns.
    pub(crate) async fn adopt_orphans(&self) -> Result<Adoption, Failure> {
        let adoption = self.session.adopt_orphans().await?;
        adoption.adopted.iter().for_each(|workspace| self.touched.add(workspace.id()));
        Ok(adoption)
    }
}
