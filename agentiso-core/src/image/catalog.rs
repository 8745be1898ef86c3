//! Which base images there are: one small file for each, by its name.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{self, Sha256Digest};
use crate::file_lock::FileLock;
use crate::types::{BaseId, ImageName};

/// Format of the entries that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// Most bytes of an entry.
const MAX_ENTRY_BYTES: u64 = 256 * 1024;

const ENTRY_ENDING: &str = ".json";

/// A base image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    format: u32,
    /// What people call it.
    pub name: ImageName,
    /// Its disk in the storage.
    pub base: BaseId,
    /// When it was made, in seconds since 1970.
    pub created_at: u64,
    /// What it was made from.
    pub source: ImageSource,
    /// Size of its disk, in bytes. Workspaces need at least as much.
    pub bytes: u64,
    /// Space it takes up on the host, in bytes.
    pub used_bytes: u64,
    /// Size of the tar stream it was made from, as given, in bytes.
    pub tar_bytes: u64,
    /// Digest of that stream.
    pub tar_sha256: Sha256Digest,
    /// Release of the kernel whose modules are in its /lib/modules.
    pub kernel_release: String,
    /// Digest of those modules.
    pub modules_sha256: Sha256Digest,
    /// Whether /bin/sh runs in it.
    pub has_shell: bool,
}

/// What an image was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ImageSource {
    /// Debian's packages.
    Debian {
        /// The release's code name.
        suite: String,
        /// The packages asked for by name.
        packages: Vec<String>,
    },
    /// A tar of a root file system.
    Tar {
        /// The file; none if it came from a stream.
        file: Option<PathBuf>,
    },
}

/// What is new about an image; the rest an entry knows by itself.
#[derive(Clone, Debug)]
pub(super) struct NewImage {
    pub(super) name: ImageName,
    pub(super) base: BaseId,
    pub(super) source: ImageSource,
    pub(super) bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) tar_bytes: u64,
    pub(super) tar_sha256: Sha256Digest,
    pub(super) kernel_release: String,
    pub(super) modules_sha256: Sha256Digest,
    pub(super) has_shell: bool,
}

impl From<NewImage> for Image {
    fn from(new: NewImage) -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        Self {
            format: FORMAT,
            name: new.name,
            base: new.base,
            created_at: since_1970.map_or(0, |since| since.as_secs()),
            source: new.source,
            bytes: new.bytes,
            used_bytes: new.used_bytes,
            tar_bytes: new.tar_bytes,
            tar_sha256: new.tar_sha256,
            kernel_release: new.kernel_release,
            modules_sha256: new.modules_sha256,
            has_shell: new.has_shell,
        }
    }
}

/// Why the catalogue could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No such image.
    #[error("there is no image {name}")]
    NotFound {
        /// Its name.
        name: ImageName,
    },
    /// An entry makes no sense. Others are not affected.
    #[error("the entry of image {name} is damaged ({reason}): remove the image and make it again")]
    Damaged {
        /// Which image.
        name: ImageName,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the host.
    #[error("could not {operation} {path}")]
    Io {
        /// What was being done, as in "read".
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

impl CatalogError {
    fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

/// The bases that images need.
#[derive(Clone, Debug)]
pub struct CataloguedBases {
    known: BTreeSet<BaseId>,
    /// An entry that cannot be read may be of any base.
    is_complete: bool,
}

impl CataloguedBases {
    /// Whether an image may need this base. While an entry is damaged, every base counts as needed: better too much
    /// is kept than an image lost.
    pub fn contains(&self, base: &BaseId) -> bool {
        !self.is_complete || self.known.contains(base)
    }
}

/// The folder of entries. Blocks; changes exclude each other, reading takes no lock.
#[derive(Clone, Debug)]
pub(super) struct Catalog {
    folder: PathBuf,
    lock: PathBuf,
}

impl Catalog {
    /// `folder` holds the entries, `lock` excludes changes at the same time. Both are made when needed.
    pub(super) fn new(folder: PathBuf, lock: PathBuf) -> Self {
        Self { folder, lock }
    }

    /// All entries, in order of their names; a damaged one is an error in its own place only.
    pub(super) fn list(&self) -> Result<Vec<Result<Image, CatalogError>>, CatalogError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(CatalogError::io("list", &self.folder)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(CatalogError::io("list", &self.folder))?.file_name();
            // Whatever else lies there is not ours.
            let name = file.to_str().and_then(|file| ImageName::new(file.strip_suffix(ENTRY_ENDING)?).ok());
            names.extend(name);
        }
        names.sort();
        let images = names.iter().map(|name| self.get(name));
        // An image that was removed since the folder was listed is not there.
        Ok(images.filter(|image| !matches!(image, Err(CatalogError::NotFound { .. }))).collect())
    }

    pub(super) fn get(&self, name: &ImageName) -> Result<Image, CatalogError> {
        let path = self.path(name);
        let damaged = |reason: String| CatalogError::Damaged { name: name.clone(), reason };
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_ENTRY_BYTES => return Err(damaged("it is too long".into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CatalogError::NotFound { name: name.clone() });
            }
            Err(error) => return Err(CatalogError::io("read", path)(error)),
        }
        let text = fs::read(&path).map_err(CatalogError::io("read", path))?;
        let image: Image = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if image.format > FORMAT {
            return Err(damaged("a later version of agentiso wrote it".into()));
        }
        if image.name != *name {
            return Err(damaged(format!("it is the entry of {}", image.name)));
        }
        Ok(image)
    }

    /// Adds an image. Returns the one of the same name that it takes the place of.
    pub(super) fn put(&self, image: &Image) -> Result<Option<Image>, CatalogError> {
        files::create_private_folder(&self.folder).map_err(CatalogError::io("create", &self.folder))?;
        let _lock = self.lock()?;
        files::remove_temporary_files(&self.folder).map_err(CatalogError::io("clean", &self.folder))?;
        // One that cannot be read is lost already.
        let replaced = self.get(&image.name).ok();
        let path = self.path(&image.name);
        files::replace(&path, 0o600, |file| serde_json::to_writer_pretty(file, image).map_err(Into::into))
            .map_err(CatalogError::io("write", path))?;
        Ok(replaced)
    }

    /// Removes an entry, damaged or not, if it is (still) the one of this base. Not there: no effect.
    pub(super) fn remove(&self, name: &ImageName, base: Option<BaseId>) -> Result<(), CatalogError> {
        let _lock = self.lock()?;
        match (self.get(name), base) {
            (Err(CatalogError::NotFound { .. }), _) => return Ok(()),
            (Ok(image), Some(base)) if image.base != base => return Ok(()),
            _ => {}
        }
        let path = self.path(name);
        fs::remove_file(&path).map_err(CatalogError::io("remove", path))
    }

    pub(super) fn bases(&self) -> Result<CataloguedBases, CatalogError> {
        let mut bases = CataloguedBases { known: BTreeSet::new(), is_complete: true };
        for image in self.list()? {
            match image {
                Ok(image) => drop(bases.known.insert(image.base)),
                Err(_) => bases.is_complete = false,
            }
        }
        Ok(bases)
    }

    fn lock(&self) -> Result<FileLock, CatalogError> {
        FileLock::acquire(&self.lock).map_err(CatalogError::io("lock", &self.lock))
    }

    /// Names hold nothing that a file name may not.
    fn path(&self, name: &ImageName) -> PathBuf {
        self.folder.join(format!("{name}{ENTRY_ENDING}"))
    }
}

/// Digest of what an image is made of, for keys: two images with the same one hold the same.
impl Image {
    /// Identifies what went into the image: root file system, kernel modules, size.
    pub fn content_digest(&self) -> Sha256Digest {
        Sha256Digest::of(format!("{} {} {}", self.tar_sha256, self.modules_sha256, self.bytes).as_bytes())
    }

    /// Whether its modules are of the kernel that machines are started with.
    pub fn fits(&self, assets: &super::Assets) -> bool {
        assets.manifest.digest(super::assets::MODULES_TAR) == Some(&self.modules_sha256)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn catalog(folder: &Path) -> Catalog {
        Catalog::new(folder.join("images"), folder.join("locks/images.lock"))
    }

    fn image(name: &str) -> Image {
        Image::from(NewImage {
            name: ImageName::new(name).unwrap(),
            base: BaseId::random(),
            source: ImageSource::Tar { file: None },
            bytes: 1 << 30,
            used_bytes: 1 << 20,
            tar_bytes: 1 << 20,
            tar_sha256: Sha256Digest::of(b"tar"),
            kernel_release: "6.1".into(),
            modules_sha256: Sha256Digest::of(b"modules"),
            has_shell: true,
        })
    }

    #[test]
    fn put_image_is_found_listed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (catalog, one) = (catalog(folder.path()), image("one"));
        assert_eq!(catalog.put(&one).unwrap(), None);
        assert_eq!(catalog.get(&one.name).unwrap(), one);
        assert_eq!(catalog.list().unwrap().len(), 1);
        assert!(catalog.bases().unwrap().contains(&one.base));
        catalog.remove(&one.name, Some(one.base)).unwrap();
        catalog.remove(&one.name, Some(one.base)).unwrap();
        assert!(matches!(catalog.get(&one.name), Err(CatalogError::NotFound { .. })));
        assert!(!catalog.bases().unwrap().contains(&one.base));
    }

    #[test]
    fn put_returns_the_image_that_it_replaces_and_remove_spares_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let (catalog, old, new) = (catalog(folder.path()), image("same"), image("same"));
        catalog.put(&old).unwrap();
        assert_eq!(catalog.put(&new).unwrap(), Some(old.clone()));
        catalog.remove(&old.name, Some(old.base)).unwrap();
        assert_eq!(catalog.get(&old.name).unwrap(), new);
    }

    #[test]
    fn damaged_entry_hides_no_other_and_no_base_counts_as_unneeded() {
        let folder = tempfile::tempdir().unwrap();
        let (catalog, good) = (catalog(folder.path()), image("good"));
        catalog.put(&good).unwrap();
        fs::write(folder.path().join("images/bad.json"), "{").unwrap();
        fs::write(folder.path().join("images/other.json"), serde_json::to_vec(&good).unwrap()).unwrap();
        fs::write(folder.path().join("images/notes.txt"), "not ours").unwrap();
        let listed = catalog.list().unwrap();
        let names: Vec<_> = listed.iter().flatten().map(|image| image.name.as_str()).collect();
        assert_eq!((listed.len(), names), (3, vec!["good"]));
        assert!(catalog.bases().unwrap().contains(&BaseId::random()));
        catalog.remove(&ImageName::new("bad").unwrap(), None).unwrap();
        catalog.remove(&ImageName::new("other").unwrap(), None).unwrap();
        assert!(!catalog.bases().unwrap().contains(&BaseId::random()));
    }

    #[test]
    fn catalogue_that_was_never_written_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        assert!(catalog(folder.path()).list().unwrap().is_empty());
    }
}
