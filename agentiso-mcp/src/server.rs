use agentiso_core::Host;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
        ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
    },
    service::RequestContext,
};

use crate::tools::ToolKind;

const INSTRUCTIONS: &str = "Each workspace is a Linux machine of its own. Make one with workspace_create, run \
commands in it as root with exec, remove it with workspace_destroy. Workspaces outlive this session; workspace_list \
shows those there are.";

/// Answers the MCP requests of one client.
pub(crate) struct Server {
    host: Host,
}

impl Server {
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("agentiso", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(ToolKind::ALL.iter().map(|tool| tool.describe()).collect()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        ToolKind::by_name(name).map(ToolKind::describe)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(tool) = ToolKind::by_name(&request.name) else {
            return Err(ErrorData::invalid_params(format!("there is no tool {:?}", request.name), None));
        };
        let arguments = request.arguments.unwrap_or_default();
        let outcome = tokio::select! {
            outcome = tool.call(&self.host, arguments) => outcome,
            // Dropping the call gives it up: a command is hung up, a workspace half made is undone.
            () = context.ct.cancelled() => {
                return Err(ErrorData::internal_error("the call was cancelled", None));
            }
        };
        let result = match outcome {
            Ok(json) => CallToolResult::success(vec![ContentBlock::text(json.to_string())]),
            Err(failure) => {
                failure.log(tool.name());
                failure.into_result()
            }
        };
        Ok(result.into())
    }
}
