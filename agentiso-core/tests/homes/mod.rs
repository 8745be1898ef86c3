//! State folders that a test has for itself, of which nothing stays whatever becomes of the test.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use agentiso_core::{Config, Host};

/// The state folder with an image that `cargo xtask test` prepares.
pub(crate) fn prepared() -> Option<PathBuf> {
    let home = std::env::var_os("AGENTISO_HOME").filter(|_| std::env::var_os("AGENTISO_TEST_SEED").is_some());
    if home.is_none() {
        println!("skipped: there is no state folder with an image; `cargo xtask test` makes one");
    }
    home.map(PathBuf::from)
}

/// An empty folder beside another one, for its owner alone.
pub(crate) fn folder_beside(home: &Path, prefix: &str) -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).permissions(fs::Permissions::from_mode(0o700));
    builder.tempdir_in(home.parent().unwrap()).unwrap()
}

/// Brings programs and image from one state folder to another, by `cp` with these options.
pub(crate) fn bring(from: &Path, to: &Path, options: &[&str]) {
    fs::create_dir_all(to.join("disks")).unwrap();
    for part in ["lib", "images", "disks/bases"] {
        let mut copy = Command::new("cp");
        copy.args(options).arg(from.join(part)).arg(to.join(part));
        assert!(copy.status().unwrap().success(), "could not copy {part}");
    }
}

/// Destroys whatever there is in a state folder, with its processes: as much of it as can be.
pub(crate) fn destroy_all(config: Config) {
    let home = config.state_dir.clone();
    // A runtime of its own cannot be on a thread of another one.
    let emptied = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let host = Host::open(config).await.map_err(io::Error::other)?;
            let mut done = Ok(());
            for left in host.list().await.map_err(io::Error::other)? {
                let destroyed = match host.workspace(&left.workspace_id.to_string()).await {
                    Ok(workspace) => workspace.destroy().await,
                    Err(error) => Err(error),
                };
                done = done.and(destroyed.map_err(io::Error::other));
            }
            host.close().await;
            done
        })
    });
    match emptied.join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => println!("could not empty {}: {error}", home.display()),
        Err(_panicked) => println!("could not empty {}", home.display()),
    }
}
