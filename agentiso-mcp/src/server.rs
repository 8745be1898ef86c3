use agentiso_core::ErrorKind;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, GetPromptRequestParams,
        GetPromptResponse, Implementation, ListPromptsResult, ListResourceTemplatesResult,
        ListResourcesResult, ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams,
        ReadResourceResponse, ServerCapabilities, ServerConfig, Tool,
    },
    service::RequestContext,
};

use crate::{
    caller::Caller,
    progress::Progress,
    prompts, resources,
    service::Service,
    tools::{self, Call},
};

/// What a model is told before anything else.
const INSTRUCTIONS: &str = "Each workspace is a Linux machine of its own, in which you are root. Make one with \
    workspace_create, run commands in it with exec, servers and long work with exec_background. Take a snapshot before \
    what may go wrong, and fork a running workspace to try several ways at once. Workspaces outlive this session: remove \
    what is no longer needed with workspace_destroy. They have no internet access unless network_policy or \
    workspace_create gives it. Errors say what to do next.";

/// Answers the MCP requests of one client.
#[derive(Clone)]
pub(crate) struct Server {
    service: Service,
    caller: Caller,
}

impl Server {
    pub(crate) fn new(service: Service, caller: Caller) -> Self {
        Self { service, caller }
    }

    /// Carries out a call of a tool.
    async fn call(
        &self,
        tool: &'static tools::Entry,
        arguments: rmcp::model::JsonObject,
        context: &RequestContext<RoleServer>,
    ) -> CallToolResult {
        let caller = self.caller.for_call();
        let account = self.service.account(caller.name(), tool.name, caller.touched());
        let service = &self.service;
        let outcome = Progress::follow(context, |progress| async move {
            let _call = caller.enter(tool.class).await?;
            tool.call(&Call { caller: &caller, service, progress: &progress }, arguments).await
        })
        .await;
        match outcome {
            Ok(json) => {
                account.end("ok");
                CallToolResult::success(vec![ContentBlock::text(json.to_string())])
            }
            Err(failure) => {
                account.end(match failure.code() {
                    ErrorKind::InvalidParams => "invalid_params",
                    ErrorKind::InvalidRequest => "invalid_request",
                    ErrorKind::InternalError => "internal_error",
                });
                failure.log(tool.name);
                failure.map_message(|message| self.service.without_paths(message)).into_result()
            }
        }
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities =
            ServerCapabilities::builder().enable_tools().enable_resources().enable_prompts().build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("agentiso", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::TOOLS.iter().map(tools::Entry::listed).collect()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools::by_name(name).map(tools::Entry::listed)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(tool) = tools::by_name(&request.name) else {
            return Err(ErrorData::invalid_params(format!("there is no tool {:?}", request.name), None));
        };
        let arguments = request.arguments.unwrap_or_default();
        tokio::select! {
            result = self.call(tool, arguments, &context) => Ok(result.into()),
            // Dropping the call gives it up: a command is hung up, a workspace half made is undone.
            () = context.ct.cancelled() => Err(ErrorData::internal_error("the call was cancelled", None)),
        }
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        resources::list(&self.caller.for_call()).await.map(ListResourcesResult::with_all_items)
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(resources::templates()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let caller = self.caller.for_call();
        tokio::select! {
            read = resources::read(&caller, &self.service, &request.uri) => Ok(read?.into()),
            () = context.ct.cancelled() => Err(ErrorData::internal_error("the request was cancelled", None)),
        }
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(prompts::list()))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        prompts::get(&request.name, &request.arguments.unwrap_or_default()).map(Into::into)
    }
}
