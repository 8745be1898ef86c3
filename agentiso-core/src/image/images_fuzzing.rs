use super::{DiskGib, GIB, Root, guessed_disk_bytes};

/// See [`crate::image::fuzzing::import_beginning`]. The first eight bytes are the tar's size.
pub(in crate::image) fn guess(bytes: &[u8]) {
    let Some((size, first)) = bytes.split_first_chunk::<8>() else { return };
    for bytes in [None, Some(u64::from_le_bytes(*size))] {
        let root = Root { stream: Box::pin(tokio::io::empty()), name: String::new(), bytes, bootstrap: None };
        let disk = guessed_disk_bytes(&root, first);
        assert!(disk.is_multiple_of(GIB) && (GIB..=DiskGib::MAX.bytes()).contains(&disk), "{disk}");
    }
}
