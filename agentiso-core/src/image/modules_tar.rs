//! The kernel's modules as a tar stream for a machine's /lib/modules.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Packs a modules folder. Entries are named from the folder's own name on (`6.1.0-56-cloud-amd64/...`), so the place
/// to unpack it is /lib/modules, wherever an image has that. Sorted, of root, of the year 1970: the same modules make
/// the same bytes. Symbolic links (`build`, `source`) are left out: they lead out of the folder.
pub(super) fn write(modules: &Path, out: impl Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(out);
    builder.mode(tar::HeaderMode::Deterministic);
    let name = modules.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    add_folder(&mut builder, modules, Path::new(name))?;
    builder.into_inner()?.flush()
}

fn add_folder(builder: &mut tar::Builder<impl Write>, folder: &Path, name: &Path) -> io::Result<()> {
    builder.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), name, io::empty())?;
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name, kind) = (entry.path(), name.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            add_folder(builder, &path, &name)?;
        } else if kind.is_file() {
            let file = File::open(&path)?;
            let size = file.metadata()?.len();
            builder.append_data(&mut header(tar::EntryType::Regular, 0o644, size), &name, file)?;
        }
    }
    Ok(())
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Unpacks what [`write`] wrote below an empty folder and returns the modules folder.
pub(super) fn read(archive: &Path, into: &Path) -> io::Result<std::path::PathBuf> {
    tar::Archive::new(File::open(archive)?).unpack(into)?;
    let mut entries = fs::read_dir(into)?;
    entries.next().ok_or(io::ErrorKind::InvalidData)?.map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_survive_the_archive_without_links() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("6.1-test");
        let deep = format!("kernel/{}", "long-folder-name/".repeat(10));
        fs::create_dir_all(modules.join(&deep)).unwrap();
        fs::write(modules.join("modules.dep"), "x").unwrap();
        fs::write(modules.join(&deep).join("x.ko"), "module").unwrap();
        std::os::unix::fs::symlink("/usr/src", modules.join("build")).unwrap();
        let archive = folder.path().join("modules.tar");
        let unpacked = folder.path().join("out");
        fs::create_dir(&unpacked).unwrap();

        write(&modules, File::create(&archive).unwrap()).unwrap();
        let found = read(&archive, &unpacked).unwrap();

        assert_eq!(found, unpacked.join("6.1-test"));
        assert_eq!(fs::read(found.join(&deep).join("x.ko")).unwrap(), b"module");
        assert!(fs::symlink_metadata(found.join("build")).is_err());
        let mut again = Vec::new();
        write(&modules, &mut again).unwrap();
        assert_eq!(again, fs::read(&archive).unwrap());
    }
}
