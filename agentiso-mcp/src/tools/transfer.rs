//! Files between this host and a workspace.

use agentiso_core::{
    Workspace,
    channel::client::{FileRange, WriteOptions},
    types::DiskGib,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Call, Class, Effect, Group, Tool, params::absolute};
use crate::{failure::Failure, folder::TransferFolder};

/// Bytes that are read of a file at once.
const CHUNK: usize = 256 * 1024;

pub(crate) struct Transfer;

/// Where to.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Direction {
    Upload,
    Download,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransferParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// "upload" copies from the host into the workspace, "download" from the workspace to the host.
    direction: Direction,
    /// The file on the host, relative to the transfer folder; no "..", no symbolic links.
    host_path: String,
    /// The file in the workspace, an absolute path.
    guest_path: String,
}

impl Tool for Transfer {
    type Params = TransferParams;
    const NAME: &'static str = "file_transfer";
    const TITLE: &'static str = "Copy a file between host and workspace";
    const GROUP: Group = Group::File;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Copies one file of any size and kind between the transfer folder of this host and a \
        workspace. Only that folder of the host is ever touched; without one (flag --transfer-dir, AGENTISO_TRANSFER_DIR) \
        the tool is refused. A file that was there is replaced, all at once, when the copy is complete. Sends progress. \
        Returns direction, host_path, guest_path, bytes. Pack folders with tar first.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","direction":"upload","host_path":"data.tar","guest_path":"/root/data.tar"}"#,
        r#"{"workspace_id":"build","direction":"download","host_path":"out/result.bin","guest_path":"/root/result.bin"}"#,
    ];

    async fn call(call: &Call<'_>, params: TransferParams) -> Result<Value, Failure> {
        absolute("guest_path", &params.guest_path)?;
        let Some(folder) = &call.service.transfer else {
            return Err(Failure::request(
                "file transfers are off: the server has no transfer folder",
                "whoever runs the server starts it with --transfer-dir FOLDER, or AGENTISO_TRANSFER_DIR; up to 8 MiB \
                 of text go through file_write and file_read",
            ));
        };
        let workspace = call.caller.workspace(&params.workspace_id).await?;
        call.progress.stage("copying");
        let (direction, bytes) = match params.direction {
            Direction::Upload => ("upload", upload(call, folder, &workspace, &params).await?),
            Direction::Download => ("download", download(call, folder, &workspace, &params).await?),
        };
        Ok(json!({
            "direction": direction,
            "host_path": params.host_path,
            "guest_path": params.guest_path,
            "bytes": bytes,
        }))
    }
}

async fn upload(
    call: &Call<'_>,
    folder: &TransferFolder,
    workspace: &Workspace,
    params: &TransferParams,
) -> Result<u64, Failure> {
    let (file, size) = folder.open_file(&params.host_path)?;
    let mut file = tokio::fs::File::from_std(file);
    let failed = |error| Failure::guest(workspace, &error);
    let options = WriteOptions { mode: None, parents: true };
    let guest = workspace.guest().await?;
    let mut sink = guest.create_file(params.guest_path.clone(), options).await.map_err(failed)?;
    let mut buffer = vec![0; CHUNK];
    let mut done = 0_u64;
    loop {
        let read = file.read(&mut buffer).await.map_err(|error| local("read", &params.host_path, &error))?;
        if read == 0 {
            break;
        }
        sink.write(&buffer[..read]).await.map_err(failed)?;
        done += read as u64;
        call.progress.amount(done, Some(size));
    }
    sink.finish().await.map_err(failed)?;
    Ok(done)
}

async fn download(
    call: &Call<'_>,
    folder: &TransferFolder,
    workspace: &Workspace,
    params: &TransferParams,
) -> Result<u64, Failure> {
    let failed = |error| Failure::guest(workspace, &error);
    let local = |error: &_| local("write", &params.host_path, error);
    let guest = workspace.guest().await?;
    // No workspace has more, whatever its guest says.
    let range = FileRange { offset: 0, limit: Some(DiskGib::MAX.bytes()) };
    let mut stream = guest.open_file(params.guest_path.clone(), range).await.map_err(failed)?;
    // What is wrong with the guest's file shows before anything is made on the host.
    let mut next = stream.chunk().await.map_err(failed)?;
    let mut incoming = folder.create_file(&params.host_path)?;
    let Some(file) = incoming.take_file() else { return Err(Failure::internal("a file was used twice")) };
    let mut file = tokio::fs::File::from_std(file);
    let mut done = 0_u64;
    while let Some(chunk) = next {
        file.write_all(&chunk).await.map_err(|error| local(&error))?;
        done += chunk.len() as u64;
        call.progress.amount(done, None);
        next = stream.chunk().await.map_err(failed)?;
    }
    file.flush().await.map_err(|error| local(&error))?;
    incoming.finish(folder)?;
    Ok(done)
}

fn local(operation: &str, host_path: &str, error: &std::io::Error) -> Failure {
    Failure::request(
        format!("could not {operation} {host_path} in the transfer folder: {error}"),
        "check free space and access of the transfer folder on the host, and call again",
    )
}
