use std::{ops::Range, path::Path};

use super::{KernelError, PackedAs, elf};

/// Most bytes of an unpacked kernel. Debian's cloud kernel has 60 MB, its debug sections left out.
const MAX_VMLINUX_BYTES: usize = 512 * 1024 * 1024;

/// Places in the setup header of a bzImage (the kernel's Documentation/arch/x86/boot.rst).
const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The first boot protocol version whose header says where the payload is.
const VERSION_WITH_PAYLOAD: u16 = 0x0208;

/// Bytes at the payload's end that hold its unpacked size; gzip has them in its own format.
const SIZE_BYTES: usize = 4;

/// An unpacked kernel.
#[derive(Debug)]
pub struct Vmlinux {
    /// The ELF file.
    pub image: Vec<u8>,
    /// How it was packed.
    pub packed: PackedAs,
}

/// Gets the vmlinux out of `kernel`, the content of `file`: a bzImage (what distributions call vmlinuz), or a
/// vmlinux already. Under emulation a machine starts a second faster with it, for the guest need not unpack it.
///
/// # Errors
/// No x86 kernel, damaged, packed in a way that agentiso cannot unpack, or without a PVH entry point.
pub fn extract_vmlinux(file: &Path, kernel: Vec<u8>) -> Result<Vmlinux, KernelError> {
    extract_limited(file, kernel, MAX_VMLINUX_BYTES)
}

/// The same for a kernel of at most `limit` bytes.
pub(in crate::image) fn extract_limited(
    file: &Path,
    kernel: Vec<u8>,
    limit: usize,
) -> Result<Vmlinux, KernelError> {
    let not_bootable =
        |reason: &str| KernelError::NotBootable { file: file.to_owned(), reason: reason.to_owned() };
    if kernel.starts_with(b"\x7fELF") {
        elf::check_pvh(&kernel).map_err(not_bootable)?;
        return Ok(Vmlinux { image: kernel, packed: PackedAs::Plain });
    }
    let payload = payload(&kernel).map_err(not_bootable)?;
    let payload =
        kernel.get(payload).ok_or_else(|| not_bootable("its payload goes past the end of the file"))?;
    let packed = PackedAs::detect(payload);
    let (data, size) = match packed {
        PackedAs::Plain if payload.starts_with(b"\x7fELF") => (payload, None),
        PackedAs::Plain => return Err(not_bootable("its payload is packed in an unknown way")),
        PackedAs::Gzip => (payload, None),
        _ => {
            let at =
                payload.len().checked_sub(SIZE_BYTES).ok_or_else(|| not_bootable("its payload is empty"))?;
            let (data, _) = payload.split_at(at);
            (data, elf::u32_at(payload, at).and_then(|size| usize::try_from(size).ok()))
        }
    };
    let image = packed.unpack(data, limit).map_err(|source| KernelError::Decompress {
        file: file.to_owned(),
        packed,
        source,
    })?;
    if size.is_some_and(|size| size != image.len()) {
        return Err(not_bootable("it unpacks to another size than its header says"));
    }
    elf::check_pvh(&image).map_err(not_bootable)?;
    Ok(Vmlinux { image, packed })
}

/// Where a bzImage's payload is.
fn payload(kernel: &[u8]) -> Result<Range<usize>, &'static str> {
    let is_bzimage = kernel.get(BOOT_FLAG..).is_some_and(|rest| rest.starts_with(&[0x55, 0xaa]))
        && kernel.get(MAGIC..).is_some_and(|rest| rest.starts_with(b"HdrS"));
    if !is_bzimage {
        return Err("it is neither an x86 bzImage nor an ELF file");
    }
    if elf::u16_at(kernel, VERSION).unwrap_or(0) < VERSION_WITH_PAYLOAD {
        return Err("it is older than Linux 2.6.26");
    }
    let at = |place| elf::u32_at(kernel, place).and_then(|value| usize::try_from(value).ok());
    let truncated = "its setup header is cut off";
    // Zero stands for 4, for old boot loaders.
    let sectors =
        kernel.get(SETUP_SECTORS).map(|sectors| if *sectors == 0 { 4 } else { usize::from(*sectors) });
    let start = sectors.ok_or(truncated)?.saturating_add(1) * 512;
    let start = start.checked_add(at(PAYLOAD_OFFSET).ok_or(truncated)?).ok_or(truncated)?;
    let end = start.checked_add(at(PAYLOAD_LENGTH).ok_or(truncated)?).ok_or(truncated)?;
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut kernel = vec![0; 3 * 512];
        kernel[SETUP_SECTORS] = 1;
        kernel[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        kernel[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        kernel[VERSION..VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        kernel[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&512u32.to_le_bytes());
        kernel[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4]
            .copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        kernel.extend_from_slice(payload);
        kernel
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn extract(kernel: Vec<u8>) -> Result<Vmlinux, KernelError> {
        extract_vmlinux(Path::new("vmlinuz"), kernel)
    }

    #[test]
    fn extract_unpacks_a_bzimage() {
        let vmlinux = elf::tests::elf_with_note(b"Xen\0", 18);
        let extracted = extract(bzimage(&gzip(&vmlinux))).unwrap();
        assert_eq!(extracted.packed, PackedAs::Gzip);
        assert_eq!(extracted.image, vmlinux);
    }

    #[test]
    fn extract_passes_a_vmlinux_through() {
        let vmlinux = elf::tests::elf_with_note(b"Xen\0", 18);
        assert_eq!(extract(vmlinux.clone()).unwrap().image, vmlinux);
    }

    #[test]
    fn extract_names_what_is_wrong() {
        let no_pvh = elf::tests::elf_with_note(b"GNU\0", 1);
        let mut cut = bzimage(&gzip(&elf::tests::elf_with_note(b"Xen\0", 18)));
        cut.truncate(cut.len() - 8);
        for (kernel, reason) in [
            (b"hello".to_vec(), "neither"),
            (bzimage(&gzip(&no_pvh)), "PVH"),
            (bzimage(b"BZh9..........."), "bzip2"),
            (bzimage(b"????"), "unknown"),
            (cut, "past the end"),
        ] {
            let error = extract(kernel).unwrap_err();
            let text = format!("{error} {:?}", std::error::Error::source(&error));
            assert!(text.contains(reason), "{text}");
        }
    }

    #[test]
    fn extract_never_panics_on_a_truncated_file() {
        let kernel = bzimage(&gzip(&elf::tests::elf_with_note(b"Xen\0", 18)));
        for length in 0..kernel.len() {
            assert!(extract(kernel[..length].to_vec()).is_err(), "{length}");
        }
    }
}
