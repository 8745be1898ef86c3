//! The first root of a machine: the agent as `/init` and the modules by which it reaches its disk and its channel.

use std::io::Write;

use super::{
    cpio::CpioWriter,
    kernel::{KernelError, ModuleTree},
};

/// Folders that the agent mounts on before it has the machine's own root.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "root", "run", "sys"];

/// /dev/console, without which the kernel gives its first process no output (Documentation/admin-guide/devices.txt).
const CONSOLE_DEVICE: (u32, u32) = (5, 1);

/// Makes the initramfs. The same agent and kernel make the same bytes.
///
/// It is not compressed: unpacking costs a guest more than reading the rest (docs/operations.md has the figures).
///
/// # Errors
/// A module that no guest can do without is not there, or one cannot be read.
pub(super) fn build(agent: &[u8], modules: &ModuleTree) -> Result<Vec<u8>, KernelError> {
    let order = modules.guest_load_order()?;
    let mut contents = Vec::with_capacity(order.len());
    let mut list = String::new();
    for module in &order {
        let file = format!("{}.ko", module.name);
        list += &file;
        list.push('\n');
        contents.push((file, module.read_unpacked()?));
    }
    contents.sort();
    write(agent, &contents, &list).map_err(KernelError::io("write", "the initramfs"))
}

fn write(agent: &[u8], modules: &[(String, Vec<u8>)], order: &str) -> std::io::Result<Vec<u8>> {
    let mut cpio = CpioWriter::new(Vec::new());
    for folder in MOUNT_POINTS {
        cpio.directory(folder, 0o755)?;
    }
    cpio.character_device("dev/console", 0o600, CONSOLE_DEVICE)?;
    cpio.file("init", 0o755, agent)?;
    cpio.directory("modules", 0o755)?;
    for (file, content) in modules {
        cpio.file(&format!("modules/{file}"), 0o644, content)?;
    }
    cpio.file("modules/order", 0o644, order.as_bytes())?;
    let mut archive = cpio.finish()?;
    archive.flush()?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_agent_and_modules_make_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("6.1-test");
        std::fs::create_dir(&dir).unwrap();
        let builtin = "a/virtio_mmio.ko\na/virtio_console.ko\na/ext4.ko\n";
        std::fs::write(dir.join("modules.builtin"), builtin).unwrap();
        std::fs::write(dir.join("modules.dep"), "virtio_blk.ko: virtio.ko\nvirtio.ko:\n").unwrap();
        std::fs::write(dir.join("virtio_blk.ko"), b"\x7fELF blk").unwrap();
        std::fs::write(dir.join("virtio.ko"), b"\x7fELF virtio").unwrap();
        let tree = ModuleTree::read(&dir).unwrap();

        let first = build(b"agent", &tree).unwrap();

        assert_eq!(first, build(b"agent", &tree).unwrap());
        assert_ne!(first, build(b"other", &tree).unwrap());
        let text = String::from_utf8_lossy(&first);
        assert!(text.contains("virtio.ko\nvirtio_blk.ko\n"), "{text}");
    }
}
