//! `init`.

use std::{path::PathBuf, sync::Arc};

use agentiso_core::{
    Layout,
    image::{
        assets::{InstallOptions, install},
        kernel::KernelSource,
    },
    prepare_zfs,
};
use clap::Args;
use serde_json::json;

use crate::{context::Context, error::CliError};

/// Fill the state folder with what machines are started with: kernel, initramfs, agent
///
/// What is there and up to date stays untouched. The agent and the companion program are looked for beside this program
/// and in ../lib/agentiso from there; the kernel is Debian's kernel for virtual machines, fetched with apt.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The static agent to put into machines
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,

    /// The companion program of machines, agentiso-shim
    #[arg(long, value_name = "PATH")]
    shim: Option<PathBuf>,

    /// Take the kernel from this Debian package instead of fetching one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "modules"])]
    kernel_deb: Option<PathBuf>,

    /// Take this kernel (a bzImage, or a vmlinux with a PVH note); needs --modules
    #[arg(long, value_name = "FILE", requires = "modules")]
    kernel: Option<PathBuf>,

    /// The modules of --kernel: the folder that is named as its release and holds modules.dep
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,

    /// Keep disks on ZFS: make the dataset POOL/agentiso (or the one that is named, as tank/machines) and write it into the
    /// configuration file of the state folder. The pool must be there. Needs root
    #[arg(long, value_name = "POOL")]
    zfs: Option<String>,
}

impl InitArgs {
    fn options(self) -> InstallOptions {
        let kernel = match (self.kernel_deb, self.kernel, self.modules) {
            (Some(file), ..) => Some(KernelSource::Deb(file)),
            (None, Some(kernel), Some(modules)) => Some(KernelSource::Tree { kernel, modules }),
            _ => None,
        };
        InstallOptions { agent: self.agent, shim: self.shim, kernel, ..InstallOptions::default() }
    }
}

pub(crate) async fn init(args: InitArgs, context: &Context) -> Result<u8, CliError> {
    let config = context.config()?;
    let state = config.state_dir.clone();
    let pool = args.zfs.clone();
    // First: it takes moments, and what is missing for it is known before a kernel is fetched.
    let zfs = match pool {
        Some(pool) => Some(prepare_zfs(&config, &pool).await?),
        None => None,
    };
    let options = args.options();
    let progress = Arc::new(context.progress("looking at what is there"));
    let shown = Arc::clone(&progress);
    let folder = state.clone();
    let installing = tokio::task::spawn_blocking(move || {
        Layout::new(&folder).prepare()?;
        Ok::<_, CliError>(install(&folder, &options, &|step| shown.stage(step.stage.to_string()))?)
    });
    let report = installing.await.map_err(|error| {
        CliError::local("the installation ended unexpectedly", std::io::Error::other(error))
    })??;
    drop(progress);
    context.output.say(&match report.written.len() {
        0 => format!("{} is up to date", state.display()),
        _ => format!("wrote {} to {}", report.written.join(", "), state.join("lib").display()),
    });
    if let Some(zfs) = &zfs {
        context.output.say(&format!(
            "disks are kept in the dataset {} ({})",
            zfs.dataset,
            zfs.file.display()
        ));
    }
    context.output.print_json_only(&json!({
        "zfs": zfs,
        "state_dir": state.to_string_lossy(),
        "written": report.written,
        "kernel_release": report.assets.manifest.kernel.release,
    }))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: InitArgs,
    }

    #[test]
    fn kernel_comes_from_one_place() {
        let deb = Line::try_parse_from(["init", "--kernel-deb", "k.deb"]).unwrap().args.options();
        let tree = Line::try_parse_from(["init", "--kernel", "k", "--modules", "m"]).unwrap().args.options();

        assert_eq!(deb.kernel, Some(KernelSource::Deb("k.deb".into())));
        assert_eq!(tree.kernel, Some(KernelSource::Tree { kernel: "k".into(), modules: "m".into() }));
        assert_eq!(Line::try_parse_from(["init"]).unwrap().args.options().kernel, None);
    }

    #[test]
    fn pool_is_named_and_never_taken_for_granted() {
        let zfs = Line::try_parse_from(["init", "--zfs", "tank"]).unwrap().args.zfs;

        assert_eq!(zfs.as_deref(), Some("tank"));
        assert!(Line::try_parse_from(["init", "--zfs"]).is_err());
    }

    #[test]
    fn kernel_and_modules_belong_together() {
        for line in [
            vec!["init", "--kernel", "k"],
            vec!["init", "--modules", "m"],
            vec!["init", "--kernel-deb", "d", "--kernel", "k", "--modules", "m"],
        ] {
            assert!(Line::try_parse_from(&line).is_err(), "{line:?}");
        }
    }
}
