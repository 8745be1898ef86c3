//! State folders that a test has for itself, of which nothing stays whatever becomes of the test.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
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

/// Destroys whatever there is in a state folder, with its processes.
pub(crate) fn destroy_all(home: &Path) {
    let config = Config::at(home);
    let emptied = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let host = Host::open(config).await.map_err(io::Error::other)?;
            for summary in host.list().await.map_err(io::Error::other)? {
                let workspace = host.workspace(&summary.name).await.map_err(io::Error::other)?;
                workspace.destroy().await.map_err(io::Error::other)?;
            }
            host.close().await;
            Ok::<_, io::Error>(())
        })
    });
    if let Ok(Err(error)) = emptied.join() {
        println!("could not empty {}: {error}", home.display());
    }
}
