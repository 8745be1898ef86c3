//! As much of ELF as tells a bootable vmlinux from anything else.

/// Name and type of the note that gives a kernel's PVH entry point (Xen's XEN_ELFNOTE_PHYS32_ENTRY).
const PVH_NOTE: (&[u8], u32) = (b"Xen\0", 18);

const MACHINE_X86_64: u16 = 62;
const PROGRAM_HEADER_BYTES: usize = 56;
const SEGMENT_NOTE: u32 = 4;

/// Checks that `image` is a 64-bit x86 ELF file with a PVH entry point, by which QEMU starts a vmlinux.
///
/// # Errors
/// What it is instead, or lacks.
pub(super) fn check_pvh(image: &[u8]) -> Result<(), &'static str> {
    // e_ident: magic number, 64-bit class (2), little-endian (1).
    if !image.starts_with(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return Err("it is not a 64-bit ELF file");
    }
    if u16_at(image, 18) != Some(MACHINE_X86_64) {
        return Err("it is not for x86-64");
    }
    let truncated = "its ELF header is damaged";
    let table = offset_at(image, 32).ok_or(truncated)?;
    let count = usize::from(u16_at(image, 56).ok_or(truncated)?);
    let entry_bytes = usize::from(u16_at(image, 54).ok_or(truncated)?);
    if entry_bytes != PROGRAM_HEADER_BYTES {
        return Err(truncated);
    }
    for index in 0..count {
        let header = table.checked_add(index * PROGRAM_HEADER_BYTES).ok_or(truncated)?;
        if u32_at(image, header).ok_or(truncated)? != SEGMENT_NOTE {
            continue;
        }
        let start = offset_at(image, header.saturating_add(8)).ok_or(truncated)?;
        let length = offset_at(image, header.saturating_add(32)).ok_or(truncated)?;
        let end = start.checked_add(length).ok_or(truncated)?;
        if has_pvh_note(image.get(start..end).ok_or(truncated)?) {
            return Ok(());
        }
    }
    Err("it has no PVH entry point (the kernel was built without CONFIG_PVH)")
}

/// Notes are: name length, description length, type, then name and description, each padded to 4 bytes.
fn has_pvh_note(mut notes: &[u8]) -> bool {
    let padded = |length: u32| usize::try_from(length).ok()?.checked_next_multiple_of(4);
    while let (Some(name), Some(description), Some(kind)) =
        (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
    {
        if kind == PVH_NOTE.1 && notes.get(12..).is_some_and(|rest| rest.starts_with(PVH_NOTE.0)) {
            return true;
        }
        let next = padded(name)
            .zip(padded(description))
            .and_then(|(name, text)| name.checked_add(text)?.checked_add(12));
        match next.and_then(|next| notes.get(next..)) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn offset_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The smallest ELF file with one note segment.
    pub(in crate::image) fn elf_with_note(name: &[u8], kind: u32) -> Vec<u8> {
        let mut image = vec![0; 64 + PROGRAM_HEADER_BYTES];
        image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        image[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        image[32..40].copy_from_slice(&64u64.to_le_bytes());
        image[54..56].copy_from_slice(&56u16.to_le_bytes());
        image[56..58].copy_from_slice(&1u16.to_le_bytes());
        image[64..68].copy_from_slice(&SEGMENT_NOTE.to_le_bytes());
        let start = image.len() as u64;
        image[72..80].copy_from_slice(&start.to_le_bytes());
        for (note_name, note_kind) in [(&b"GNU\0"[..], 3), (name, kind)] {
            image.extend_from_slice(&u32::try_from(note_name.len()).unwrap().to_le_bytes());
            image.extend_from_slice(&5u32.to_le_bytes());
            image.extend_from_slice(&note_kind.to_le_bytes());
            image.extend_from_slice(note_name);
            image.extend_from_slice(&[0; 8]);
        }
        let length = image.len() as u64 - start;
        image[96..104].copy_from_slice(&length.to_le_bytes());
        image
    }

    #[test]
    fn check_pvh_accepts_a_kernel_with_the_note() {
        assert_eq!(check_pvh(&elf_with_note(b"Xen\0", 18)), Ok(()));
    }

    #[test]
    fn check_pvh_refuses_a_kernel_without_the_note() {
        for (name, kind) in [(&b"Xen\0"[..], 17), (b"GNU\0", 18)] {
            assert!(check_pvh(&elf_with_note(name, kind)).unwrap_err().contains("PVH"));
        }
    }

    #[test]
    fn check_pvh_refuses_every_truncation_without_a_panic() {
        let image = elf_with_note(b"Xen\0", 18);
        for length in 0..image.len() - 12 {
            assert!(check_pvh(&image[..length]).is_err(), "{length}");
        }
    }

    proptest::proptest! {
        #[test]
        fn check_pvh_never_panics(mut bytes: Vec<u8>) {
            let mut image = elf_with_note(b"Xen\0", 18);
            for (place, byte) in image.iter_mut().skip(20).zip(bytes.drain(..)) {
                *place ^= byte;
            }
            let _ = check_pvh(&image);
        }
    }
}
