//! `agentiso init --zfs`: the dataset, and the configuration that names it.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;

use super::disks;
use crate::config::{Backend, Config, ConfigError};
use crate::error::EngineError;
use crate::storage::zfs::{DEFAULT_DATASET, ZfsStorage};
use crate::store::Store;

/// What was set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZfsSetup {
    /// The dataset that disks are kept in.
    pub dataset: String,
    /// The configuration file that names it.
    pub file: PathBuf,
    /// Whether the file was written: it may have named the dataset already.
    pub written: bool,
}

/// Makes the dataset of a state folder in a pool, or the dataset of that name in it (`tank/machines`), and writes it into
/// the state folder's configuration file. Done already: no effect.
///
/// # Errors
/// What is missing, with its remedy; another dataset is configured; disks are kept somewhere else. Nothing is changed then.
pub async fn prepare_zfs(config: &Config, pool: &str) -> Result<ZfsSetup, EngineError> {
    let dataset = if pool.contains('/') { pool.to_owned() } else { format!("{pool}/{DEFAULT_DATASET}") };
    let file = config.file();
    let unusable = |reason: String| ConfigError::Unusable { backend: Backend::Zfs, reason };
    if !config.choices.allows(Backend::Zfs) {
        return Err(unusable("the configuration does without it: take that out first".to_owned()).into());
    }
    let text = match &config.zfs.dataset {
        Some(configured) if *configured == dataset => None,
        Some(configured) => {
            let reason = format!("the dataset {configured} is configured already: change that in the file");
            return Err(unusable(reason).into());
        }
        None => Some(with_dataset(config, &file, &dataset)?),
    };
    let layout = config.layout();
    layout.prepare()?;
    let database = layout.database();
    let store = tokio::task::spawn_blocking(move || Store::open(&database))
        .await
        .map_err(EngineError::Panicked)??;
    let store = Arc::new(store);
    ZfsStorage::prepare(&dataset, store.state_id()).await?;
    disks::expect_unmoved(config, &store, Some(&dataset)).await?;
    let written = text.is_some();
    if let Some(text) = text {
        write(&file, &text).map_err(|source| ConfigError::Write { path: file.clone(), source })?;
    }
    Ok(ZfsSetup { dataset, file, written })
}

/// The text of the state folder's configuration file with a dataset in it.
fn with_dataset(config: &Config, file: &Path, dataset: &str) -> Result<String, ConfigError> {
    let by_hand = |path: &Path| ConfigError::Unusable {
        backend: Backend::Zfs,
        reason: format!("write this into {} yourself: `dataset = {dataset:?}` under [zfs]", path.display()),
    };
    let before = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // A file of its own would take the place of the host's.
            let host = Path::new(crate::config::FILE_OF_THE_HOST);
            if host.exists() {
                return Err(by_hand(host));
            }
            String::new()
        }
        Err(source) => return Err(ConfigError::Read { path: file.to_owned(), source }),
    };
    let separator = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    // JSON's strings are TOML's.
    let quoted = serde_json::Value::from(dataset).to_string();
    let text = format!("{before}{separator}[zfs]\ndataset = {quoted}\n");
    match Config::at(&config.state_dir).with_file(file, &text) {
        Ok(config) if config.zfs.dataset.as_deref() == Some(dataset) => Ok(text),
        _ => Err(by_hand(file)),
    }
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension(format!("toml.{}", uuid::Uuid::new_v4().simple()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // It may never have been made.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dataset_is_added_to_what_the_file_says_already() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::at(folder.path());
        let file = config.file();
        std::fs::write(&file, "# mine\ntemplates = false").unwrap();

        let text = with_dataset(&config, &file, "tank/\"odd\"").unwrap();

        assert_eq!(text, "# mine\ntemplates = false\n[zfs]\ndataset = \"tank/\\\"odd\\\"\"\n");
        write(&file, &text).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn file_that_a_dataset_cannot_simply_be_added_to_is_left_to_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::at(folder.path());
        let file = config.file();
        std::fs::write(&file, "[zfs]\nreserve_gib = 2\n").unwrap();

        let error = with_dataset(&config, &file, "tank/a").unwrap_err().to_string();

        assert!(error.contains("dataset = \"tank/a\"") && error.contains("yourself"), "{error}");
    }

    #[tokio::test]
    async fn other_dataset_than_the_configured_one_is_refused_and_nothing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::at(folder.path().join("state")).zfs("tank/one");

        let error = prepare_zfs(&config, "tank/two").await.unwrap_err().report();
        let forbidden = prepare_zfs(&config.forbid(Backend::Zfs), "tank/one").await.unwrap_err().report();

        assert!(error.contains("tank/one is configured already"), "{error}");
        assert!(forbidden.contains("does without"), "{forbidden}");
        assert!(!folder.path().join("state").exists());
    }
}
