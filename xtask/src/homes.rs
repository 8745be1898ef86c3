//! State folders for tests. The image is made once, in a seed; each run gets a folder of its own that shares the seed's
//! unchanging files by hard links.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::build::{self, Built};
use crate::run::{self, Done};

/// What of a state folder never changes once it is made. The rest (records, sockets, locks) is each folder's own.
const SHARED: [&str; 3] = ["lib", "images", "disks/bases"];

/// What decides how an image is made.
const IMAGE_SOURCES: [&str; 3] = ["debian.rs", "disk.rs", "builder.rs"];

/// The state folder that holds the Debian image for all tests.
pub(crate) struct Seed {
    folder: PathBuf,
}

impl Seed {
    /// Fills it: kernel, agent, image. What is there and made from the same is kept.
    pub(crate) fn prepare(built: &Built, work: &Path) -> Done<Self> {
        let folder = work.join("seed");
        private_folder(&folder)?;
        let agentiso = || {
            let mut command = built.agentiso();
            // mmdebstrap works as another user, who may not be able to enter ours.
            command.env("AGENTISO_HOME", &folder).env_remove("TMPDIR");
            command
        };
        run::run(agentiso().arg("init"))?;
        // How images are made may have changed too.
        let key = key()?;
        let key_file = work.join("seed.key");
        if fs::read_to_string(&key_file).is_ok_and(|present| present == key) {
            build::ensure_image(agentiso)?;
        } else {
            run::run(agentiso().args(["image", "build", "debian"]))?;
            fs::write(&key_file, key).map_err(run::at("write", &key_file))?;
        }
        Ok(Self { folder })
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Tells tests where it is.
    pub(crate) fn show_to(&self, command: &mut Command) {
        command.env("AGENTISO_TEST_SEED", &self.folder);
    }

    /// Makes a state folder with what the seed holds.
    pub(crate) fn clone_to(&self, home: &Path) -> Done {
        private_folder(home)?;
        for part in SHARED {
            let from = self.folder.join(part);
            if from.is_dir() {
                link_all(&from, &home.join(part)).map_err(run::at("link the test image into", home))?;
            }
        }
        Ok(())
    }
}

fn private_folder(path: &Path) -> Done {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(run::at("create", path))
}

/// Changes when the image in the seed should be made again.
fn key() -> Done<String> {
    let mut hasher = DefaultHasher::new();
    let sources = run::repository()?.join("agentiso-core/src/image");
    for source in IMAGE_SOURCES {
        let path = sources.join(source);
        fs::read(&path).map_err(run::at("read", &path))?.hash(&mut hasher);
    }
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link_all(&entry.path(), &target)?;
        } else {
            fs::hard_link(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clone_shares_what_never_changes_and_nothing_else() {
        let work = std::env::temp_dir().join(format!("xtask-homes-{}", std::process::id()));
        let seed = Seed { folder: work.join("seed") };
        for folder in ["lib", "images", "disks/bases", "disks/layers"] {
            fs::create_dir_all(seed.folder.join(folder)).unwrap();
            fs::write(seed.folder.join(folder).join("file"), folder).unwrap();
        }
        fs::write(seed.folder.join("agentiso.db"), "records").unwrap();
        let home = work.join("home");

        seed.clone_to(&home).unwrap();

        let exists = |path: &str| home.join(path).exists();
        let shared = ["lib/file", "images/file", "disks/bases/file"].map(exists);
        let own = ["disks/layers", "agentiso.db"].map(exists);
        fs::remove_dir_all(&work).unwrap();
        assert_eq!((shared, own), ([true; 3], [false; 2]));
    }
}
