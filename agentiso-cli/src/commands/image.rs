//! `image`.

use std::{ffi::OsString, sync::Arc};

use agentiso_core::{
    image::{BuildProgress, DebianSpec, Image, ImageSource, ImportInput, ImportSpec},
    types::{DiskGib, ImageName},
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::args::{SizeArgs, disk as disk_size};
use crate::{
    context::Context,
    error::{self, CliError},
    output::{self, fields, table},
    progress::Progress,
};

/// Make, list and remove the base images that machines begin from
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make an image from a distribution's packages; prints its name
    Build {
        /// The distribution
        #[arg(value_name = "DISTRIBUTION", value_enum)]
        distribution: Distribution,
        /// Name of the image, if not the distribution's; an image that has it already is replaced
        #[arg(long, value_name = "NAME")]
        name: Option<ImageName>,
        /// Size of its disk in GiB, the least that a workspace can have; 1 if none is given
        #[arg(long, value_name = "GIB", value_parser = disk_size)]
        disk: Option<DiskGib>,
    },
    /// Make an image from a tar of a root file system (plain, gzip or zstd); prints its name
    Import {
        /// Name of the image; one that has it already is replaced
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// The tar, or - for standard input
        #[arg(value_name = "FILE")]
        file: OsString,
        /// Size of its disk in GiB, the least that a workspace can have; guessed from the tar if none is given
        #[arg(long, value_name = "GIB", value_parser = disk_size)]
        disk: Option<DiskGib>,
    },
    /// List the images
    Ls,
    /// Show everything about an image
    Info {
        /// Name of the image
        #[arg(value_name = "NAME")]
        name: ImageName,
    },
    /// Make ready what workspaces of an image and size begin with, so that the first is as quick as the next
    Warm {
        /// Name of the image
        #[arg(value_name = "NAME")]
        name: ImageName,
        #[command(flatten)]
        size: SizeArgs,
    },
    /// Remove images; one that workspaces began from is kept, with an error
    Rm {
        /// Names of the images; all are tried, whichever fail
        #[arg(value_name = "NAME", required = true)]
        names: Vec<ImageName>,
    },
}

/// A distribution that images can be made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Distribution {
    /// Debian: bash, coreutils, python3, git, curl, ca-certificates, procps, iproute2, e2fsprogs
    Debian,
}

pub(crate) async fn image(args: ImageArgs, context: &Context) -> Result<u8, CliError> {
    let host = context.host().await?;
    let images = host.images();
    match args.command {
        ImageCommand::Build { distribution: Distribution::Debian, name, disk } => {
            let name = match name {
                Some(name) => name,
                None => ImageName::new("debian").map_err(agentiso_core::EngineError::from)?,
            };
            let (progress, report) = watch(context);
            let image = images.build_debian(DebianSpec { name, disk }, report).await?;
            drop(progress);
            context.output.print(&image, |image| format!("{}\n", image.name))?;
        }
        ImageCommand::Import { name, file, disk } => {
            let input = if file == "-" {
                ImportInput::Stream(Box::pin(tokio::io::stdin()))
            } else {
                ImportInput::File(file.into())
            };
            let (progress, report) = watch(context);
            let image = images.import(ImportSpec { name, input, disk }, report).await?;
            drop(progress);
            context.output.print(&image, |image| format!("{}\n", image.name))?;
        }
        ImageCommand::Ls => {
            let list = images.list().await?;
            context.output.print(&list, |list| listing(list))?;
        }
        ImageCommand::Info { name } => {
            let image = images.find(&name).await?;
            context.output.print(&image, description)?;
        }
        ImageCommand::Warm { name, size } => {
            let progress = context.progress(format!("making {name} ready"));
            host.warm(name.as_str(), size.resources()).await?;
            drop(progress);
            context.output.print_json_only(&json!({ "name": name, "resources": size.resources() }))?;
        }
        ImageCommand::Rm { names } => {
            let total = names.len();
            let (mut removed, mut failures) = (Vec::new(), Vec::new());
            for name in names {
                match host.remove_image(name.as_str()).await.map_err(CliError::from) {
                    Ok(()) => removed.push(name),
                    Err(error) => {
                        error::print(&error, context.output.json);
                        failures.push(json!({ "name": name, "error": error::chain(&error) }));
                    }
                }
            }
            context.output.print_json_only(&json!({ "removed": removed, "failures": failures }))?;
            if !failures.is_empty() {
                return Err(CliError::Partly { failed: failures.len(), total });
            }
        }
    }
    Ok(0)
}

/// Something that shows how far a build is.
fn watch(context: &Context) -> (Arc<Progress>, BuildProgress) {
    let progress = Arc::new(context.progress("beginning"));
    let shown = Arc::clone(&progress);
    let report: BuildProgress = Arc::new(move |step| match (step.done, step.total) {
        (0, None) => shown.stage(step.stage.to_string()),
        (done, total) => shown.bytes(step.stage.to_string(), done, total),
    });
    (progress, report)
}

fn listing(images: &[Image]) -> String {
    let rows: Vec<Vec<String>> = images
        .iter()
        .map(|image| {
            vec![
                image.name.to_string(),
                source(image),
                output::bytes(image.used_bytes),
                output::bytes(image.bytes),
                format!("{} ago", output::age(image.created_at)),
            ]
        })
        .collect();
    table(&["NAME", "SOURCE", "SIZE", "DISK", "CREATED"], &rows)
}

fn source(image: &Image) -> String {
    match &image.source {
        ImageSource::Debian { suite, .. } => format!("Debian {suite}"),
        ImageSource::Tar { file: Some(file) } => format!("tar {}", file.display()),
        ImageSource::Tar { file: None } => "tar stream".to_owned(),
    }
}

fn description(image: &Image) -> String {
    let mut lines = vec![
        ("name", image.name.to_string()),
        ("source", source(image)),
        ("created", output::utc(image.created_at)),
        ("size", output::bytes(image.used_bytes)),
        ("disk", output::bytes(image.bytes)),
        ("tar", format!("{}, SHA-256 {}", output::bytes(image.tar_bytes), image.tar_sha256.as_str())),
        ("kernel modules", image.kernel_release.clone()),
        ("shell", output::yes_no(image.has_shell)),
    ];
    if let ImageSource::Debian { packages, .. } = &image.source {
        lines.push(("packages", packages.join(" ")));
    }
    fields(&lines)
}
