//! What image authors and distributions hand over, and entries that are not what the catalogue wrote.

use std::path::Path;

use super::{Image, images, kernel as kernels};

/// Most bytes that a fuzzed kernel may unpack to; the real limit would take the fuzzer's memory.
const MAX_UNPACKED_BYTES: usize = 4 * 1024 * 1024;

/// Reads bytes as an image's entry in the catalogue.
///
/// # Panics
/// An entry was accepted that cannot be written and read again.
pub fn image_entry(bytes: &[u8]) {
    if let Ok(image) = serde_json::from_slice::<Image>(bytes) {
        let _ = image.content_digest();
        let again = serde_json::to_vec(&image).and_then(|text| serde_json::from_slice::<Image>(&text));
        assert!(again.as_ref().is_ok_and(|again| *again == image), "an entry changes: {again:?}");
    }
}

/// Takes bytes for the beginning of a root file system's tar.
///
/// # Panics
/// The disk that is made for it is out of bounds.
pub fn import_beginning(bytes: &[u8]) {
    images::fuzzing::guess(bytes);
}

/// Takes bytes for a kernel, and for each way to pack one.
///
/// # Panics
/// More was unpacked than allowed, or a kernel was accepted that is none when it is looked at again.
pub fn kernel(bytes: &[u8]) {
    use kernels::PackedAs;
    let formats =
        [PackedAs::detect(bytes), PackedAs::Gzip, PackedAs::Xz, PackedAs::Zstd, PackedAs::Lz4Legacy];
    for format in formats {
        if let Ok(unpacked) = format.unpack(bytes, MAX_UNPACKED_BYTES) {
            assert!(unpacked.len() <= MAX_UNPACKED_BYTES, "{format}: more than the limit");
        }
    }
    let file = Path::new("vmlinuz");
    if let Ok(kernel) = kernels::extract_limited(file, bytes.to_vec(), MAX_UNPACKED_BYTES) {
        let again = kernels::extract_limited(file, kernel.image.clone(), MAX_UNPACKED_BYTES);
        assert!(again.is_ok_and(|again| again.image == kernel.image), "an unpacked kernel is none");
    }
}
