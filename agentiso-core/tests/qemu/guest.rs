//! A guest that needs nothing but QEMU: prints a line on the console and halts.

use std::path::Path;

/// What the guest prints.
pub(crate) const GREETING: &str = "the test guest is up";

/// Where the code is loaded.
const LOAD_ADDRESS: u64 = 0x10_0000;

/// Length of the ELF header, of a program header, and of the PVH note.
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const NOTE: usize = 24;

/// Writes the guest as a kernel image: an ELF file with a PVH note (`XEN_ELFNOTE_PHYS32_ENTRY`).
pub(crate) fn write_kernel(path: &Path) {
    let code_at = ELF_HEADER + 2 * PROGRAM_HEADER + NOTE;
    let entry = LOAD_ADDRESS + code_at as u64;
    let code = code(entry);
    let file_bytes = (code_at + code.len()) as u64;
    let note_at = (ELF_HEADER + 2 * PROGRAM_HEADER) as u64;

    let mut image = Vec::new();
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend(2_u16.to_le_bytes()); // executable
    image.extend(62_u16.to_le_bytes()); // x86_64
    image.extend(1_u32.to_le_bytes());
    for field in [entry, ELF_HEADER as u64, 0] {
        image.extend(field.to_le_bytes());
    }
    image.extend(0_u32.to_le_bytes());
    for field in [ELF_HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0] {
        image.extend(field.to_le_bytes());
    }
    // What is loaded: the whole file. And where its note is.
    for (kind, offset, bytes, align) in [(1_u32, 0, file_bytes, 4096), (4, note_at, NOTE as u64, 4)] {
        image.extend(kind.to_le_bytes());
        image.extend(7_u32.to_le_bytes());
        for field in [offset, LOAD_ADDRESS + offset, LOAD_ADDRESS + offset, bytes, bytes, align] {
            image.extend(field.to_le_bytes());
        }
    }
    for field in [4_u32, 8, 18] {
        image.extend(field.to_le_bytes());
    }
    image.extend(b"Xen\0");
    image.extend(entry.to_le_bytes());
    image.extend(code);
    std::fs::write(path, image).unwrap();
}

/// 32-bit code that writes the greeting to the first serial port and then halts for ever.
fn code(entry: u64) -> Vec<u8> {
    let mut code = vec![
        0xfc, // cld
        0xbe, 0, 0, 0, 0, // mov esi, text
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz halt
        0xee, // out dx, al
        0xeb, 0xf8, // jmp next
        0xf4, // halt: hlt
        0xeb, 0xfd, // jmp halt
    ];
    let text = u32::try_from(entry).unwrap() + u32::try_from(code.len()).unwrap();
    code[2..6].copy_from_slice(&text.to_le_bytes());
    code.extend(GREETING.as_bytes());
    code.extend(b"\r\n\0");
    code
}
