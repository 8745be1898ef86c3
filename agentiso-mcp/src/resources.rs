//! What clients can read without a tool: consoles and files of workspaces.
//!
//! - `agentiso://workspace/{id}/console`: what the machine's kernel and agent have printed.
//! - `agentiso://workspace/{id}/files{+path}`: a file, as in `agentiso://workspace/build/files/etc/hostname`.

use agentiso_core::{WorkspaceState, channel::client::FileRange, hypervisor::MachineLog};
use rmcp::{
    ErrorData,
    model::{ReadResourceResult, Resource, ResourceContents, ResourceTemplate},
};

use crate::{caller::Caller, failure::Failure, service::Service, tools};

const SCHEME: &str = "agentiso://workspace/";

/// Most bytes of a file that is read as a resource.
const MAX_FILE_BYTES: u64 = 8 * 1024 * 1024;

/// The resources there are: a console for each workspace of the caller.
pub(crate) async fn list(caller: &Caller) -> Result<Vec<Resource>, ErrorData> {
    let _call = caller.enter(tools::Class::Other).await.map_err(|failure| error(&failure))?;
    let seen = caller.list().await.map_err(|failure| error(&failure))?;
    let consoles =
        seen.into_iter().filter(|line| line.owned && line.seen.state != WorkspaceState::Destroying);
    Ok(consoles
        .map(|line| {
            let name = &line.seen.name;
            Resource::new(format!("{SCHEME}{}/console", line.seen.workspace_id), format!("{name} console"))
                .with_description(format!("What the machine of {name} has printed."))
                .with_mime_type("text/plain")
        })
        .collect())
}

/// How further resources are named.
pub(crate) fn templates() -> Vec<ResourceTemplate> {
    vec![
        ResourceTemplate::new(format!("{SCHEME}{{id}}/console"), "console")
            .with_description("What a workspace's kernel and agent have printed. {id} is its UUID or name.")
            .with_mime_type("text/plain"),
        ResourceTemplate::new(format!("{SCHEME}{{id}}/files{{+path}}"), "file").with_description(
            "A text file of a workspace, at most 8 MiB; {+path} is its absolute path, percent-encoded where needed.",
        ),
    ]
}

/// Reads a resource.
pub(crate) async fn read(
    caller: &Caller,
    service: &Service,
    uri: &str,
) -> Result<ReadResourceResult, ErrorData> {
    let content = async {
        let _call = caller.enter(tools::Class::Other).await?;
        contents(caller, uri).await
    };
    match content.await {
        Ok(Some(text)) => {
            Ok(ReadResourceResult::new(vec![ResourceContents::text(text, uri).with_mime_type("text/plain")]))
        }
        Ok(None) => Err(ErrorData::resource_not_found(
            format!("there is no resource {uri:?}: resources/templates/list says how they are named"),
            None,
        )),
        Err(failure) => Err(error(&failure.map_message(|message| service.without_paths(message)))),
    }
}

/// A resource as text; none if nothing is named so.
async fn contents(caller: &Caller, uri: &str) -> Result<Option<String>, Failure> {
    let Some((id, rest)) = uri.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')) else {
        return Ok(None);
    };
    if rest == "console" {
        let workspace = caller.workspace(id).await?;
        return tools::read_log(&workspace, MachineLog::Console).await.map(Some);
    }
    let Some(path) = rest.strip_prefix("files/").and_then(percent_decoded) else { return Ok(None) };
    let path = format!("/{path}");
    let workspace = caller.workspace(id).await?;
    let failed = |error| Failure::guest(&workspace, &error);
    let range = FileRange { offset: 0, limit: Some(MAX_FILE_BYTES + 1) };
    let mut stream = workspace.guest().await?.open_file(path.clone(), range).await.map_err(failed)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&chunk);
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::request(
            format!("{path} is longer than 8 MiB"),
            "read parts of it with file_read, or copy it with file_transfer",
        ));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| {
        Failure::request(format!("{path} is no text (UTF-8)"), "copy it to the host with file_transfer")
    })
}

/// `%20` becomes a space; none if that leaves no text.
fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = std::str::from_utf8(&digits).ok().filter(|digits| !digits.starts_with('+'))?;
            decoded.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

fn error(failure: &Failure) -> ErrorData {
    let message = format!("{}; {}", failure.message(), failure.next_step());
    match failure.code() {
        agentiso_core::ErrorKind::InternalError => ErrorData::internal_error(message, None),
        _ => ErrorData::invalid_params(message, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_undone_or_refused() {
        assert_eq!(percent_decoded("a%20b/%C3%A4").as_deref(), Some("a b/ä"));
        for bad in ["%", "%2", "%zz", "%ff", "%+1"] {
            assert_eq!(percent_decoded(bad), None, "{bad}");
        }
    }
}
