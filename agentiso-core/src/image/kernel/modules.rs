use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use super::{KernelError, PackedAs};

/// Most bytes of one unpacked module. The largest of Debian's have 10 MB.
const MAX_MODULE_BYTES: usize = 128 * 1024 * 1024;

/// What a guest of agentiso drives: which modules its initramfs carries if the kernel has them as modules.
///
/// What only some work in the guest wants (overlay, nf_tables, ...) is not here: the machine's own /lib/modules has it
/// and the kernel asks modprobe for it.
const WANTED: [(&str, Need); 10] = [
    // How a microvm's devices are found.
    ("virtio_mmio", Need::Required),
    // The root disk and its file system.
    ("virtio_blk", Need::Required),
    ("ext4", Need::Required),
    // The channel: serial slots.
    ("virtio_console", Need::Required),
    // The channel: vsock, where the host has vhost.
    ("vmw_vsock_virtio_transport", Need::Optional),
    // The key of that channel.
    ("qemu_fw_cfg", Need::Optional),
    ("virtio_net", Need::Optional),
    ("virtio_rng", Need::Optional),
    // The power button, as an input device.
    ("button", Need::Optional),
    ("evdev", Need::Optional),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

/// One module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFile {
    /// As `lsmod` shows it: `virtio_blk`.
    pub name: String,
    /// Where it is, perhaps packed.
    pub path: PathBuf,
}

impl ModuleFile {
    /// The module as the kernel loads it, unpacked if it was not.
    ///
    /// # Errors
    /// It cannot be read or unpacked.
    pub fn read_unpacked(&self) -> Result<Vec<u8>, KernelError> {
        let bytes = fs::read(&self.path).map_err(KernelError::io("read", &self.path))?;
        // A plain module is an ELF file and can look like nothing else.
        let packed = PackedAs::detect(&bytes);
        packed.unpack(&bytes, MAX_MODULE_BYTES).map_err(|source| KernelError::Decompress {
            file: self.path.clone(),
            packed,
            source,
        })
    }
}

/// The modules of one kernel: a folder such as `/lib/modules/6.1.0-56-cloud-amd64`, after depmod.
#[derive(Debug)]
pub struct ModuleTree {
    dir: PathBuf,
    release: String,
    /// Paths by module name.
    paths: BTreeMap<String, PathBuf>,
    /// Names of the modules that each one needs, from modules.dep.
    needs: BTreeMap<String, Vec<String>>,
    /// Names (or aliases) of the modules that should be loaded before each, from modules.softdep.
    wants: BTreeMap<String, Vec<String>>,
    aliases: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

impl ModuleTree {
    /// Reads the lists of a modules folder.
    ///
    /// # Errors
    /// `modules.dep` or `modules.builtin` is missing or damaged.
    pub fn read(dir: &Path) -> Result<Self, KernelError> {
        let release = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let mut tree = Self {
            dir: dir.to_owned(),
            release,
            paths: BTreeMap::new(),
            needs: BTreeMap::new(),
            wants: BTreeMap::new(),
            aliases: BTreeMap::new(),
            builtin: BTreeSet::new(),
        };
        tree.read_dependencies()?;
        tree.builtin = tree.list("modules.builtin")?.lines().filter_map(module_name).collect();
        tree.read_preferences()?;
        Ok(tree)
    }

    /// The kernel's release, as `uname -r`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The modules that a guest loads before it has its root disk, each after those that it needs.
    ///
    /// # Errors
    /// [`KernelError::NoModule`] if the kernel has a driver neither built in nor as a module that no guest can do without.
    pub fn guest_load_order(&self) -> Result<Vec<ModuleFile>, KernelError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, need) in WANTED {
            if self.paths.contains_key(name) {
                self.visit(name, &mut seen, &mut order);
            } else if need == Need::Required && !self.builtin.contains(name) {
                return Err(KernelError::NoModule { release: self.release.clone(), module: name });
            }
        }
        Ok(order)
    }

    /// Adds a module after everything it needs. Each name is visited once, so a circle ends.
    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<ModuleFile>) {
        if !seen.insert(name.to_owned()) {
            return;
        }
        // depmod writes the dependencies of one line last-needed first.
        for needed in self.needs.get(name).into_iter().flatten().rev() {
            self.visit(needed, seen, order);
        }
        for wanted in self.wants.get(name).into_iter().flatten() {
            self.visit(wanted, seen, order);
            for module in self.aliases.get(wanted).into_iter().flatten() {
                self.visit(module, seen, order);
            }
        }
        if let Some(path) = self.paths.get(name) {
            order.push(ModuleFile { name: name.to_owned(), path: path.clone() });
        }
    }

    fn list(&self, file: &str) -> Result<String, KernelError> {
        let path = self.dir.join(file);
        fs::read_to_string(&path).map_err(KernelError::io("read", path))
    }

    /// modules.dep: `path: path path ...`, all relative to the folder.
    fn read_dependencies(&mut self) -> Result<(), KernelError> {
        for line in self.list("modules.dep")?.lines() {
            let damaged = |reason: &str| KernelError::Damaged {
                file: self.dir.join("modules.dep"),
                reason: format!("{reason}: {line:.200}"),
            };
            let (path, needs) = line.split_once(':').ok_or_else(|| damaged("no colon in"))?;
            let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
            let name = module_name(path).filter(|_| inside).ok_or_else(|| damaged("no module path in"))?;
            let needs = needs
                .split_whitespace()
                .map(|path| module_name(path).ok_or_else(|| damaged("no module path in")));
            let needs = needs.collect::<Result<_, _>>()?;
            self.paths.insert(name.clone(), self.dir.join(path));
            self.needs.insert(name, needs);
        }
        Ok(())
    }

    /// modules.softdep: `softdep NAME pre: A B post: C`; modules.alias: `alias PATTERN NAME`. Neither need exist.
    fn read_preferences(&mut self) -> Result<(), KernelError> {
        let optional = |list: Result<String, KernelError>| match list {
            Err(KernelError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(String::new())
            }
            other => other,
        };
        for line in optional(self.list("modules.softdep"))?.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(name) = words.next() else { continue };
            let before = words
                .skip_while(|word| *word != "pre:")
                .skip(1)
                .take_while(|word| !word.ends_with(':'))
                .map(normalised);
            self.wants.entry(normalised(name)).or_default().extend(before);
        }
        let wanted: BTreeSet<&String> = self.wants.values().flatten().collect();
        for line in optional(self.list("modules.alias"))?.lines() {
            if let ["alias", alias, module] = line.split_whitespace().collect::<Vec<_>>()[..]
                && wanted.contains(&normalised(alias))
            {
                self.aliases.entry(normalised(alias)).or_default().push(normalised(module));
            }
        }
        Ok(())
    }
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is `virtio_rng`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.gz", ".ko.xz", ".ko.zst"].iter().find_map(|ending| file.strip_suffix(ending))?;
    (!stem.is_empty()).then(|| normalised(stem))
}

fn normalised(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<ModuleTree, KernelError>) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("6.1-test");
        fs::create_dir(&dir).unwrap();
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
        let tree = ModuleTree::read(&dir);
        (folder, tree)
    }

    fn names(order: &[ModuleFile]) -> Vec<&str> {
        order.iter().map(|module| module.name.as_str()).collect()
    }

    const DEPENDENCIES: &str = "\
kernel/drivers/virtio/virtio_mmio.ko.xz: kernel/drivers/virtio/virtio.ko.xz kernel/drivers/virtio/virtio_ring.ko.xz
kernel/drivers/virtio/virtio.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz
kernel/drivers/virtio/virtio_ring.ko.xz:
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/char/hw_random/virtio-rng.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz
kernel/fs/jbd2/jbd2.ko.xz:
kernel/arch/x86/crypto/crc32c-intel.ko.xz:
kernel/drivers/gpu/drm/i915.ko.xz:
";

    #[test]
    fn load_order_puts_each_module_after_what_it_needs() {
        let (_folder, tree) = tree(&[
            ("modules.dep", DEPENDENCIES),
            ("modules.builtin", "kernel/drivers/char/virtio_console.ko\n"),
            ("modules.softdep", "# comment\nsoftdep ext4 pre: crc32c post: other\n"),
            ("modules.alias", "alias crc32c crc32c_intel\nalias unrelated i915\n"),
        ]);
        let order = tree.unwrap().guest_load_order().unwrap();
        assert_eq!(
            names(&order),
            [
                "virtio_ring",
                "virtio",
                "virtio_mmio",
                "virtio_blk",
                "jbd2",
                "crc32c_intel",
                "ext4",
                "virtio_rng"
            ]
        );
    }

    #[test]
    fn load_order_without_a_required_driver_is_an_error_that_names_it() {
        let (_folder, tree) = tree(&[("modules.dep", DEPENDENCIES), ("modules.builtin", "")]);
        let error = tree.unwrap().guest_load_order().unwrap_err();
        assert!(error.to_string().contains("6.1-test has no virtio_console"), "{error}");
    }

    #[test]
    fn load_order_ends_although_modules_need_each_other() {
        let circle = "a/virtio_mmio.ko: a/virtio_blk.ko\na/virtio_blk.ko: a/virtio_mmio.ko\n";
        let builtin = "a/ext4.ko\na/virtio_console.ko\n";
        let (_folder, tree) = tree(&[("modules.dep", circle), ("modules.builtin", builtin)]);
        assert_eq!(tree.unwrap().guest_load_order().unwrap().len(), 2);
    }

    #[test]
    fn dependencies_outside_the_folder_are_refused() {
        for line in ["../../etc/x.ko:", "/etc/x.ko:", "no colon", "kernel/x.txt:"] {
            let (_folder, tree) = tree(&[("modules.dep", line), ("modules.builtin", "")]);
            assert!(matches!(tree, Err(KernelError::Damaged { .. })), "{line}");
        }
    }

    #[test]
    fn module_name_drops_folder_ending_and_hyphens() {
        for (path, name) in [
            ("kernel/a/virtio-rng.ko", "virtio_rng"),
            ("x.ko.zst", "x"),
            ("x.ko.xz", "x"),
            ("a/x_y.ko.gz", "x_y"),
        ] {
            assert_eq!(module_name(path).as_deref(), Some(name));
        }
        assert_eq!(module_name("kernel/.ko"), None);
        assert_eq!(module_name("modules.order"), None);
    }
}
