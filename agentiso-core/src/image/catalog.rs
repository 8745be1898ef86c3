//! Which base images there are: one small JSON file each, written all at once.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::types::{BaseId, ImageName};

/// A base image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEntry {
    /// What people call it.
    pub name: ImageName,
    /// Its disk.
    pub base: BaseId,
    /// When it was made, in seconds since 1970.
    pub created_at: u64,
    /// Where it came from, for people: `debian bookworm` or the name of a tar file.
    pub source: String,
    /// Size of its disk, in bytes: a workspace's disk cannot be smaller.
    pub bytes: u64,
    /// Space it takes up on the host, in bytes.
    pub used_bytes: u64,
    /// Release of the kernel whose modules it holds.
    pub kernel_release: String,
}

/// The base images of a state folder.
#[derive(Clone, Debug)]
pub struct Catalog {
    folder: PathBuf,
}

impl Catalog {
    /// The catalogue in this folder, which exists.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// An image by its name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] names those there are; its entry cannot be read.
    pub fn find(&self, name: &ImageName) -> Result<ImageEntry, CatalogError> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let available = self.names()?.iter().map(ToString::to_string).collect();
                Err(CatalogError::NotFound { name: name.to_string(), available })
            }
            Err(source) => Err(failed("read", &path, source)),
        }
    }

    /// All images, by name.
    ///
    /// # Errors
    /// An entry cannot be read.
    pub fn list(&self) -> Result<Vec<ImageEntry>, CatalogError> {
        self.names()?.iter().map(|name| self.find(name)).collect()
    }

    /// The disks of all images.
    ///
    /// # Errors
    /// An entry cannot be read: then nobody knows which disk it needs, and none may be removed.
    pub fn bases(&self) -> Result<BTreeSet<BaseId>, CatalogError> {
        Ok(self.list()?.into_iter().map(|entry| entry.base).collect())
    }

    /// Adds an image, or replaces the one of its name. Returns the one it replaced.
    ///
    /// # Errors
    /// The entry cannot be written; the catalogue is as before then.
    pub fn put(&self, entry: &ImageEntry) -> Result<Option<ImageEntry>, CatalogError> {
        let path = self.path(&entry.name);
        let old = match self.find(&entry.name) {
            Ok(old) => Some(old),
            Err(CatalogError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let json = serde_json::to_vec_pretty(entry).map_err(|error| failed("write", &path, error.into()))?;
        write_whole(&path, &json).map_err(|source| failed("write", &path, source))?;
        Ok(old)
    }

    /// Removes an image's entry; its disk is the storage's. Not there: no effect.
    ///
    /// # Errors
    /// The entry cannot be removed.
    pub fn remove(&self, name: &ImageName) -> Result<(), CatalogError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, error)),
            _ => Ok(()),
        }
    }

    fn names(&self) -> Result<BTreeSet<ImageName>, CatalogError> {
        let entries = fs::read_dir(&self.folder).map_err(|source| failed("list", &self.folder, source))?;
        let mut names = BTreeSet::new();
        for entry in entries {
            let file = entry.map_err(|source| failed("list", &self.folder, source))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
            names.extend(name.and_then(|name| ImageName::new(name).ok()));
        }
        Ok(names)
    }

    fn path(&self, name: &ImageName) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<ImageEntry, CatalogError> {
    serde_json::from_slice(bytes)
        .map_err(|source| CatalogError::Damaged { path: path.display().to_string(), source })
}

/// Writes a file so that a reader, also after a power cut, sees the old content or the new, never a part.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let folder = path.parent().unwrap_or(Path::new("."));
    // No name ends in `.new`, so nobody takes it for an entry.
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(folder)?.sync_all()
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> CatalogError {
    CatalogError::Io { operation, path: path.display().to_string(), source }
}

/// Why the catalogue could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No image of that name.
    #[error("there is no image {name}{}", if .available.is_empty() { String::new() } else { format!(" (there is {})", .available.join(", ")) })]
    NotFound {
        /// The name.
        name: String,
        /// The names there are.
        available: Vec<String>,
    },
    /// An entry cannot be understood.
    #[error("the image entry {path} is damaged")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file of the host.
    #[error("could not {operation} {path}")]
    Io {
        /// What was being done, as in "read".
        operation: &'static str,
        /// The file.
        path: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> ImageEntry {
        ImageEntry {
            name: ImageName::new(name).unwrap(),
            base: BaseId::random(),
            created_at: 1,
            source: "test".into(),
            bytes: 1 << 30,
            used_bytes: 4096,
            kernel_release: "6.1.0".into(),
        }
    }

    #[test]
    fn put_then_find_gives_the_entry_and_list_all() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(folder.path());
        let (one, two) = (entry("a.b"), entry("b"));
        assert_eq!(catalog.put(&one).unwrap(), None);
        assert_eq!(catalog.put(&two).unwrap(), None);

        assert_eq!(catalog.find(&one.name).unwrap(), one);
        assert_eq!(catalog.list().unwrap(), vec![one.clone(), two.clone()]);
        assert_eq!(catalog.put(&one).unwrap(), Some(one));
    }

    #[test]
    fn find_of_an_unknown_image_names_those_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(folder.path());
        catalog.put(&entry("debian")).unwrap();

        let error = catalog.find(&ImageName::new("alpine").unwrap()).unwrap_err();

        assert_eq!(error.to_string(), "there is no image alpine (there is debian)");
    }

    #[test]
    fn a_damaged_entry_keeps_bases_from_being_told() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(folder.path());
        fs::write(folder.path().join("x.json"), "{").unwrap();

        assert!(matches!(catalog.bases(), Err(CatalogError::Damaged { .. })));
    }

    #[test]
    fn remove_is_idempotent() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(folder.path());
        catalog.put(&entry("a")).unwrap();

        for _ in 0..2 {
            catalog.remove(&ImageName::new("a").unwrap()).unwrap();
        }

        assert_eq!(catalog.list().unwrap(), vec![]);
    }
}
