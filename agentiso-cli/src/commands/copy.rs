//! `cp`.

use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use agentiso_core::channel::client::{Compression, GuestClient};
use clap::Args;
use serde_json::json;

use crate::{
    context::Context,
    error::CliError,
    progress::Progress,
    transfer::{
        self, Download, Observer,
        guest_path::{self, Found},
        rules::{self, Existing, Place, RuleError, SourceKind, Spelled, Target},
    },
};

/// Copy files and folders between this host and a workspace
///
/// Works as `docker cp`: a folder is copied with all that is in it; FOLDER/. means what is in it without the folder
/// itself; modes, times and links stay. Paths in a workspace begin at its root. `-` is a tar stream on standard input
/// or output.
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Keep the owners of files too (otherwise they belong to root in the workspace, and to you on this host)
    #[arg(short, long)]
    archive: bool,

    /// Copy what a symbolic link at the end of SOURCE points to
    #[arg(short = 'L', long)]
    follow_link: bool,

    /// PATH, WORKSPACE:PATH, or - for a tar stream on standard input
    #[arg(value_name = "SOURCE")]
    source: OsString,

    /// PATH, WORKSPACE:PATH, or - for a tar stream on standard output
    #[arg(value_name = "DESTINATION")]
    destination: OsString,
}

impl From<RuleError> for CliError {
    fn from(error: RuleError) -> Self {
        let next_step = match &error {
            RuleError::NoPath(workspace) => format!("its root is {workspace}:/"),
            RuleError::NotUtf8 => "copy the folder that the file is in".to_owned(),
            RuleError::NoFolder(_) => "make the folder first".to_owned(),
            RuleError::NotAFolder(_) | RuleError::FolderOntoFile(_) | RuleError::NotAFile(_) => {
                "choose another destination".to_owned()
            }
        };
        Self::request(error.to_string(), next_step)
    }
}

/// Shows how far a copy is, and what it leaves out.
#[derive(Clone, Debug)]
struct Watch {
    progress: Arc<Mutex<Progress>>,
    what: String,
    total: Option<u64>,
}

impl Watch {
    fn new(context: &Context, what: String, total: Option<u64>) -> Self {
        Self { progress: Arc::new(Mutex::new(context.progress(what.clone()))), what, total }
    }
}

impl Observer for Watch {
    fn bytes(&self, done: u64) {
        // The headers of the archive come on top of the file's own bytes.
        let total = self.total.map(|total| total.max(done));
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.bytes(self.what.clone(), done, total);
    }

    fn left_out(&self, path: &Path) {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.say(&format!("agentiso: left out {}: neither file, folder nor link", path.display()));
    }
}

pub(crate) async fn cp(args: CpArgs, context: &Context) -> Result<u8, CliError> {
    let source = Place::parse(&args.source)?;
    let destination = Place::parse(&args.destination)?;
    let bytes = match (source, destination) {
        (Place::Host(source), Place::Guest { workspace, path }) => {
            let guest = context.workspace(&workspace).await?.guest().await?;
            upload(&args, &source, &guest, &path, context).await?
        }
        (Place::Guest { workspace, path }, Place::Host(destination)) => {
            let guest = context.workspace(&workspace).await?.guest().await?;
            download(&args, &guest, &path, &destination, context).await?
        }
        (Place::Stream, Place::Guest { workspace, path }) => {
            let guest = context.workspace(&workspace).await?.guest().await?;
            upload_stream(&args, &guest, &path, context).await?
        }
        (Place::Guest { workspace, path }, Place::Stream) => {
            if io::stdout().is_terminal() {
                return Err(CliError::request(
                    "a tar stream is nothing for a terminal",
                    "send it to a file or a pipe",
                ));
            }
            let guest = context.workspace(&workspace).await?.guest().await?;
            let spelled = Spelled::new(Path::new(&path));
            let (path, follow) = source_path(&args, &spelled, &guest).await?;
            let watch = Watch::new(context, "copying".to_owned(), None);
            transfer::download_stream(&guest, &path, follow, watch).await?;
            // Standard output is the archive: nothing else is printed there.
            return Ok(0);
        }
        (Place::Guest { .. }, Place::Guest { .. }) => {
            return Err(CliError::request(
                "both source and destination are in a workspace",
                "copy to this host first, or `agentiso cp A:PATH - | agentiso cp - B:FOLDER`",
            ));
        }
        _ => {
            return Err(CliError::request(
                "neither source nor destination is in a workspace",
                "name one of them WORKSPACE:PATH",
            ));
        }
    };
    context.output.print_json_only(&json!({ "archive_bytes": bytes }))?;
    Ok(0)
}

async fn upload(
    args: &CpArgs,
    source: &Path,
    guest: &GuestClient,
    destination: &str,
    context: &Context,
) -> Result<u64, CliError> {
    let spelled = Spelled::new(source);
    let follow = args.follow_link || spelled.is_folder;
    let metadata = if follow { spelled.path.metadata() } else { spelled.path.symlink_metadata() }
        .map_err(|error| CliError::local(format!("could not read {}", source.display()), error))?;
    if spelled.is_folder && !metadata.is_dir() {
        return Err(RuleError::NotAFolder(spelled.path).into());
    }
    let kind = if metadata.is_dir() { SourceKind::Folder } else { SourceKind::File };
    // `..` has a name too, just not one that can be read off.
    let own_name = match spelled.name() {
        Some(name) => Some(name.to_owned()),
        None => {
            std::fs::canonicalize(&spelled.path).ok().and_then(|path| path.file_name().map(OsStr::to_owned))
        }
    };
    let (resolved, existing) = guest_path::destination(guest, &trimmed(destination)).await?;
    let place = Spelled { path: resolved.into(), ..Spelled::new(Path::new(destination)) };
    let (folder, name) =
        match rules::target(kind, own_name.as_deref(), spelled.is_contents, &place, existing)? {
            Target::As { folder, name } => (folder, Some(name)),
            Target::ContentsInto { folder } => (folder, None),
        };
    let folder = utf8(folder)?;
    let total = metadata.is_file().then_some(metadata.len());
    let watch = Watch::new(context, format!("copying {}", source.display()), total);
    transfer::upload(guest, spelled.path, follow, name, &folder, args.archive, watch).await
}

async fn download(
    args: &CpArgs,
    guest: &GuestClient,
    source: &str,
    destination: &Path,
    context: &Context,
) -> Result<u64, CliError> {
    let spelled = Spelled::new(Path::new(source));
    let (path, follow) = source_path(args, &spelled, guest).await?;
    let found = guest_path::resolve(guest, &path, follow).await?.found;
    let (kind, total) = match found {
        Found::Folder => (SourceKind::Folder, None),
        Found::File(bytes) => (SourceKind::File, Some(bytes)),
        _ => (SourceKind::File, None),
    };
    let (resolved, existing) = host_destination(destination)?;
    let place = Spelled { path: resolved, ..Spelled::new(destination) };
    let target = rules::target(kind, spelled.name(), spelled.is_contents, &place, existing)?;
    let (folder, name) = match target {
        Target::As { folder, name } => (folder, Some(name)),
        Target::ContentsInto { folder } => (folder, None),
    };
    let target =
        Download { folder, name, from_root: Path::new(&path).file_name().is_none(), owners: args.archive };
    let watch = Watch::new(context, format!("copying {source}"), total);
    transfer::download(guest, &path, follow, target, watch).await
}

async fn upload_stream(
    args: &CpArgs,
    guest: &GuestClient,
    destination: &str,
    context: &Context,
) -> Result<u64, CliError> {
    let (folder, existing) = guest_path::destination(guest, &trimmed(destination)).await?;
    match existing {
        Existing::Folder => {}
        Existing::Nothing { .. } => return Err(RuleError::NoFolder(folder.into()).into()),
        Existing::File | Existing::Other => return Err(RuleError::NotAFolder(folder.into()).into()),
    }
    let sink = guest.write_archive(folder, Compression::Detect, args.archive).await?;
    transfer::upload_stream(sink, Watch::new(context, "copying".to_owned(), None)).await
}

/// The path to ask a guest for, and whether a link at its end is to be followed. It exists.
async fn source_path(
    args: &CpArgs,
    spelled: &Spelled,
    guest: &GuestClient,
) -> Result<(String, bool), CliError> {
    let follow = args.follow_link || spelled.is_folder;
    let path = utf8(spelled.path.clone())?;
    let resolved = guest_path::resolve(guest, &path, follow).await?;
    match resolved.found {
        Found::Nothing => Err(CliError::request(
            format!("there is no {path} in the workspace"),
            "see what is there with `agentiso exec WORKSPACE -- ls`",
        )),
        Found::Other => Err(RuleError::NotAFile(path.into()).into()),
        Found::File(_) | Found::Link if spelled.is_folder => Err(RuleError::NotAFolder(path.into()).into()),
        _ => Ok((path, follow)),
    }
}

/// Where a destination on this host is once its links are followed, and what is there.
fn host_destination(destination: &Path) -> Result<(PathBuf, Existing), CliError> {
    let mut path = Spelled::new(destination).path;
    // As many links as the kernel follows; the last one that is followed may lead to nothing.
    for _ in 0..40 {
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => {
                let target = path
                    .read_link()
                    .map_err(|error| CliError::local(format!("could not read {}", path.display()), error))?;
                path = rules::parent(&path).join(target);
            }
            Ok(metadata) if metadata.is_dir() => return Ok((path, Existing::Folder)),
            Ok(metadata) if metadata.is_file() => return Ok((path, Existing::File)),
            Ok(_) => return Ok((path, Existing::Other)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent_exists = rules::parent(&path).is_dir();
                return Ok((path, Existing::Nothing { parent_exists }));
            }
            Err(error) => {
                return Err(CliError::local(format!("could not look at {}", path.display()), error));
            }
        }
    }
    Err(CliError::request(
        format!("{} is behind too many symbolic links", destination.display()),
        "name the folder itself",
    ))
}

fn trimmed(path: &str) -> String {
    Spelled::new(Path::new(path)).path.to_string_lossy().into_owned()
}

fn utf8(path: PathBuf) -> Result<String, CliError> {
    path.into_os_string().into_string().map_err(|_| RuleError::NotUtf8.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_destination_follows_links_to_where_they_lead() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("file", at("to-file")).unwrap();
        std::os::unix::fs::symlink(folder.path(), at("to-folder")).unwrap();
        std::os::unix::fs::symlink("missing", at("to-nothing")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();

        assert_eq!(host_destination(&at("to-file")).unwrap(), (at("file"), Existing::File));
        assert_eq!(
            host_destination(&at("to-folder/")).unwrap(),
            (folder.path().to_owned(), Existing::Folder)
        );
        assert_eq!(
            host_destination(&at("to-nothing")).unwrap(),
            (at("missing"), Existing::Nothing { parent_exists: true })
        );
        assert_eq!(
            host_destination(&at("no/where")).unwrap(),
            (at("no/where"), Existing::Nothing { parent_exists: false })
        );
        assert!(host_destination(&at("loop")).is_err());
    }
}
