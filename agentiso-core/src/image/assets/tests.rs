use std::{fs, path::PathBuf};

use super::*;
use crate::image::kernel::{KernelSource, elf_with_note};

/// Fills the state folder in `folder` with small files that no machine could start with.
pub(in crate::image) fn install_fakes(folder: tempfile::TempDir) -> (tempfile::TempDir, PathBuf) {
    let fixture = Fixture::within(folder);
    fixture.install(&fixture.options()).unwrap();
    let state = fixture.state();
    (fixture.folder, state)
}

/// A state folder, a kernel to install and programs to install, all small.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    fn within(folder: tempfile::TempDir) -> Self {
        let fixture = Self { folder };
        let modules = fixture.path("6.1-test");
        fs::create_dir_all(fixture.path("bin")).unwrap();
        fs::create_dir(&modules).unwrap();
        fs::write(fixture.path("vmlinuz"), elf_with_note(b"Xen\0", 18)).unwrap();
        fs::write(modules.join("modules.builtin"), "a/virtio_mmio.ko\na/virtio_console.ko\na/ext4.ko\n")
            .unwrap();
        fs::write(modules.join("modules.dep"), "virtio_blk.ko:\n").unwrap();
        fs::write(modules.join("virtio_blk.ko"), "module").unwrap();
        fixture.set_program(AGENT, b"first");
        fixture.set_program(SHIM, b"first");
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn set_program(&self, name: &str, version: &[u8]) {
        let program = [&elf_with_note(b"GNU\0", 1)[..], version].concat();
        fs::write(self.path("bin").join(name), program).unwrap();
    }

    fn options(&self) -> InstallOptions {
        let kernel = KernelSource::Tree { kernel: self.path("vmlinuz"), modules: self.path("6.1-test") };
        InstallOptions { search: vec![self.path("bin")], kernel: Some(kernel), ..InstallOptions::default() }
    }

    fn install(&self, options: &InstallOptions) -> Result<InstallReport, AssetError> {
        install(&self.state(), options, &|_| ())
    }

    /// Installs with what is installed already.
    fn install_again(&self) -> Result<InstallReport, AssetError> {
        self.install(&InstallOptions { kernel: None, ..self.options() })
    }
}

#[test]
fn install_makes_what_load_finds() {
    let fixture = Fixture::new();
    let report = fixture.install(&fixture.options()).unwrap();
    assert_eq!(report.written, [VMLINUX, MODULES_TAR, INITRAMFS, AGENT, SHIM]);
    let assets = Assets::load(&fixture.state()).unwrap();
    assert_eq!(assets.manifest.kernel.release, "6.1-test");
    assert_eq!(fs::read(&assets.agent).unwrap(), fs::read(fixture.path("bin").join(AGENT)).unwrap());
    assert!(fs::read(&assets.initramfs).unwrap().starts_with(b"070701"));
}

#[test]
fn install_of_the_same_writes_nothing() {
    let fixture = Fixture::new();
    fixture.install(&fixture.options()).unwrap();
    assert!(fixture.install_again().unwrap().written.is_empty());
    assert!(fixture.install(&fixture.options()).unwrap().written.is_empty());
}

#[test]
fn changed_agent_makes_a_new_initramfs_and_keeps_the_kernel() {
    let fixture = Fixture::new();
    let before = fixture.install(&fixture.options()).unwrap();
    let old = fs::read(&before.assets.initramfs).unwrap();
    // Not needed any more: the modules come from the installed archive.
    fs::remove_file(fixture.path("vmlinuz")).unwrap();
    fixture.set_program(AGENT, b"second");

    let after = fixture.install_again().unwrap();

    assert_eq!(after.written, [INITRAMFS, AGENT]);
    let new = fs::read(&after.assets.initramfs).unwrap();
    assert_ne!(new, old);
    assert!(new.windows(6).any(|window| window == b"second"));
}

#[test]
fn changed_kernel_makes_everything_that_depends_on_it() {
    let fixture = Fixture::new();
    fixture.install(&fixture.options()).unwrap();
    fs::write(fixture.path("6.1-test/virtio_blk.ko"), "another module").unwrap();
    assert_eq!(fixture.install(&fixture.options()).unwrap().written, [MODULES_TAR, INITRAMFS]);
}

#[test]
fn damaged_files_are_noticed_and_repaired() {
    let fixture = Fixture::new();
    let assets = fixture.install(&fixture.options()).unwrap().assets;
    for path in [&assets.kernel, &assets.initramfs, &assets.shim, &assets.modules_tar] {
        let whole = fs::read(path).unwrap();
        fs::write(path, &whole[..whole.len() - 1]).unwrap();
        let error = Assets::load(&fixture.state()).unwrap_err().to_string();
        assert!(error.contains("agentiso init"), "{error}");

        fixture.install_again().unwrap();

        assert_eq!(fs::read(path).unwrap(), whole);
    }
    // Same size, other content.
    fs::write(&assets.kernel, vec![0; fs::read(&assets.kernel).unwrap().len()]).unwrap();
    assert!(fixture.install_again().unwrap().written.contains(&VMLINUX));
}

#[test]
fn load_of_an_empty_folder_names_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let error = Assets::load(folder.path()).unwrap_err();
    assert!(matches!(error, AssetError::NotInstalled { .. }));
    assert!(error.to_string().contains("agentiso init"), "{error}");
}

#[test]
fn missing_agent_is_an_error_that_names_the_build_command() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.path("bin").join(AGENT)).unwrap();
    let error = fixture.install(&fixture.options()).unwrap_err().to_string();
    assert!(
        error.contains("crt-static") && error.contains(&*fixture.path("bin").to_string_lossy()),
        "{error}"
    );
}

#[test]
fn dynamically_linked_agent_is_refused() {
    let fixture = Fixture::new();
    let mut program = elf_with_note(b"GNU\0", 1);
    program[64] = 3; // the segment that names an interpreter
    fs::write(fixture.path("bin").join(AGENT), program).unwrap();
    let error = fixture.install(&fixture.options()).unwrap_err().to_string();
    assert!(error.contains("not statically linked"), "{error}");
}

#[test]
fn failed_install_leaves_what_was_there() {
    let fixture = Fixture::new();
    fixture.install(&fixture.options()).unwrap();
    fs::write(fixture.path("vmlinuz"), "no kernel").unwrap();
    fixture.set_program(AGENT, b"second");

    assert!(fixture.install(&fixture.options()).is_err());

    assert!(Assets::load(&fixture.state()).is_ok());
    let names = fs::read_dir(fixture.state().join(LIB_FOLDER)).unwrap().count();
    assert_eq!(names, 6);
}

#[test]
fn leftovers_of_a_killed_install_are_removed() {
    let fixture = Fixture::new();
    let leftover = fixture.state().join(LIB_FOLDER).join(".tmpkilled");
    fs::create_dir_all(leftover.join("tree")).unwrap();
    fixture.install(&fixture.options()).unwrap();
    assert!(!leftover.exists());
}

#[test]
fn manifest_of_a_later_version_is_refused_and_kept() {
    let fixture = Fixture::new();
    fixture.install(&fixture.options()).unwrap();
    let manifest = fixture.state().join(LIB_FOLDER).join(MANIFEST);
    fs::write(&manifest, r#"{"format": 2, "unknown": true}"#).unwrap();
    assert!(matches!(fixture.install(&fixture.options()), Err(AssetError::TooNew { found: 2, .. })));
    assert!(matches!(Assets::load(&fixture.state()), Err(AssetError::TooNew { .. })));
}

#[test]
fn unreadable_manifest_is_replaced() {
    let fixture = Fixture::new();
    fixture.install(&fixture.options()).unwrap();
    fs::write(fixture.state().join(LIB_FOLDER).join(MANIFEST), "{").unwrap();
    assert!(matches!(Assets::load(&fixture.state()), Err(AssetError::Damaged { .. })));
    fixture.install(&fixture.options()).unwrap();
    assert!(Assets::load(&fixture.state()).is_ok());
}

#[test]
fn installs_at_the_same_time_all_succeed() {
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        let installs: Vec<_> = (0..4).map(|_| scope.spawn(|| fixture.install(&fixture.options()))).collect();
        for install in installs {
            install.join().unwrap().unwrap();
        }
    });
    assert!(Assets::load(&fixture.state()).is_ok());
}
