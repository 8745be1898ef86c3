//! The state folder that a run measures in.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use agentiso_core::{Config, Host};

use crate::Done;

/// What of a state folder never changes once it is made; the rest is each folder's own.
const SHARED: [&str; 3] = ["lib", "images", "disks/bases"];

/// Cargo says it to the benchmark, not to its library.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Says where everything of a run goes. The first word counts.
pub(crate) fn place(folder: PathBuf) {
    FOLDER.get_or_init(|| folder);
}

/// Where raw samples go, and the state folder.
pub(crate) fn folder() -> PathBuf {
    FOLDER.get().cloned().unwrap_or_else(|| std::env::temp_dir().join("agentiso-bench"))
}

/// A state folder of the benchmark's own, with kernel, agent and images of the one that the environment names, and no
/// machine in it.
pub(crate) async fn open() -> Done<Host> {
    let named = Config::from_env()?;
    let home = folder().join("home");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&home)?;
    for part in SHARED {
        let from = named.state_dir.join(part);
        if !from.is_dir() {
            let place = from.display();
            return Err(format!("there is no {place}: run `cargo xtask demo`, or `cargo xtask bench`").into());
        }
        share(&from, &home.join(part))?;
    }
    let host = Host::open(Config { state_dir: home, ..named }).await?;
    clear(&host).await?;
    Ok(host)
}

/// The same state folder, opened once more.
pub(crate) async fn open_again() -> Done<Host> {
    Ok(Host::open(Config { state_dir: folder().join("home"), ..Config::from_env()? }).await?)
}

/// The same state folder, whose machines boot from nothing.
pub(crate) async fn without_templates() -> Done<Host> {
    let config = Config::from_env()?;
    Ok(Host::open(Config { state_dir: folder().join("home"), templates: false, ..config }).await?)
}

/// Destroys every workspace, also those that an interrupted run left.
pub(crate) async fn clear(host: &Host) -> Done {
    for left in host.list().await? {
        host.workspace(&left.workspace_id.to_string()).await?.destroy().await?;
    }
    Ok(())
}

/// Makes `to` have what `from` has: links, or copies where the two are on different file systems.
fn share(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            share(&entry.path(), &target)?;
            continue;
        }
        match fs::remove_file(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match fs::hard_link(entry.path(), &target) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                fs::copy(entry.path(), &target)?;
            }
            linked => linked?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharing_again_takes_over_what_changed() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        fs::create_dir_all(from.join("below")).unwrap();
        fs::write(from.join("below/file"), "old").unwrap();
        share(&from, &to).unwrap();
        fs::remove_file(from.join("below/file")).unwrap();
        fs::write(from.join("below/file"), "new").unwrap();

        share(&from, &to).unwrap();

        assert_eq!(fs::read_to_string(to.join("below/file")).unwrap(), "new");
    }
}
