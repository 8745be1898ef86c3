//! Manifests that are not what this storage wrote.

use std::path::Path;

use super::{
    Qcow2Config,
    files::Folder,
    manifest::{self, BaseManifest, DiskManifest, Manifest},
};

/// Reads bytes as a disk's manifest and as a base's: as they are, and with the checksum that they should have.
///
/// # Panics
/// A manifest was accepted that cannot be written and read again, or names a file outside of its folder.
pub fn disk_manifest(bytes: &[u8]) {
    let nowhere = Path::new("x.json");
    let _ = manifest::decode::<DiskManifest>(bytes, nowhere);
    let _ = manifest::decode::<BaseManifest>(bytes, nowhere);
    let mut sealed = bytes.to_vec();
    sealed.extend(format!("\n{}\n", manifest::checksum(bytes)).into_bytes());
    // The file's name must be that of the record in it, whichever that is.
    let Some(id) = id_in(bytes) else { return };
    let path = Path::new(&id).with_extension("json");
    if let Ok(disk) = manifest::decode::<DiskManifest>(&sealed, &path) {
        check(&disk, &path);
        let folder = Folder::at(&Qcow2Config { folder: "/disks".into(), reserve_bytes: 0 });
        for layer in disk.named_layers() {
            let file = layer.path(&folder);
            assert!(
                file.components().count() == 4 && !file.to_string_lossy().contains(".."),
                "a layer outside of its folder: {}",
                file.display()
            );
        }
    }
    if let Ok(base) = manifest::decode::<BaseManifest>(&sealed, &path) {
        check(&base, &path);
    }
}

fn id_in(bytes: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let id: uuid::Uuid = value.get("record")?.get("id")?.as_str()?.parse().ok()?;
    Some(id.to_string())
}

fn check<T: Manifest + PartialEq + std::fmt::Debug>(manifest: &T, path: &Path) {
    let again = manifest::encode(manifest, path).and_then(|bytes| manifest::decode::<T>(&bytes, path));
    assert!(again.as_ref().is_ok_and(|again| again == manifest), "a manifest changes: {again:?}");
}
