//! The lab's root file system: made once, kept under the name of everything that went into it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use super::recipe::{self, BOOT_MODULES, Kernel};
use crate::run::{self, Done, Failure};

const ROOT: &str = "root.ext4";
const BUSYBOX: &str = "busybox";
const MODULES: &str = "modules";

/// An image that is whole.
pub(crate) struct Image {
    folder: PathBuf,
}

impl Image {
    /// The image of a kernel (its files are in `lib`), which is made if it is not there. Nothing is fetched otherwise.
    pub(crate) fn ensure(work: &Path, lib: &Path) -> Done<Self> {
        let kernel = Kernel::installed(lib)?;
        let key = recipe::key(&kernel);
        let images = work.join("images");
        let image = Self { folder: images.join(&key) };
        if image.folder.is_dir() {
            println!("lab: the image {key} is there (Linux {})", kernel.release);
            return Ok(image);
        }
        let reason = match fs::read_dir(&images).map(|mut entries| entries.next()) {
            Ok(Some(_)) => "the recipe or the kernel has changed",
            _ => "there is none",
        };
        println!(
            "lab: making the image {key}: {reason}. Debian {} with Linux {}, its ZFS module built for it: some minutes, once",
            recipe::SUITE,
            kernel.release
        );
        let building = work.join("building");
        remove(&building)?;
        remove(&images)?;
        fs::create_dir_all(&building).map_err(run::at("create", &building))?;
        image.make(work, lib, &kernel, &building)?;
        fs::create_dir_all(&images).map_err(run::at("create", &images))?;
        // Only what is whole and on the disk gets its name.
        let root = building.join(ROOT);
        File::open(&root).and_then(|file| file.sync_all()).map_err(run::at("write", &root))?;
        fs::rename(&building, &image.folder).map_err(run::at("create", &image.folder))?;
        File::open(&images).and_then(|file| file.sync_all()).map_err(run::at("write", &images))?;
        Ok(image)
    }

    fn make(&self, work: &Path, lib: &Path, kernel: &Kernel, building: &Path) -> Done {
        let sources = recipe::sources()?;
        let tar = File::create(building.join("root.tar")).map_err(run::at("write", building))?;
        // Should this program be killed, it goes on to its end and removes its own files and mounts then.
        let mut bootstrap = Command::new("mmdebstrap");
        // It may work as another user, who cannot enter a private folder for temporary files.
        bootstrap.args(recipe::bootstrap_arguments(kernel, &sources)).env_remove("TMPDIR").envs(apt_proxy());
        let log = work.join("image.log");
        println!("lab: installing packages, building ZFS; the log is {}", log.display());
        run::run_logged_to(&mut bootstrap, &log, tar).map_err(|failure| explained(failure, &log, kernel))?;
        println!("lab: making its disk");
        let mut assemble = if is_root()? { Command::new("sh") } else { fakeroot() };
        assemble
            .args(["-euc", recipe::ASSEMBLE, "sh", &kernel.release])
            .arg(lib.join("modules.tar"))
            .args(BOOT_MODULES)
            .env("PATH", super::path_with_system_folders())
            .current_dir(building);
        run::run_logged(&mut assemble, &work.join("disk.log"), |_| false)
    }

    /// The disk.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join(ROOT)
    }

    /// A program that does what booting needs.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.folder.join(BUSYBOX)
    }

    /// A module that booting needs.
    pub(crate) fn module(&self, name: &str) -> PathBuf {
        self.folder.join(MODULES).join(format!("{name}.ko"))
    }
}

/// Mirrors keep what belongs to the newest kernel only.
fn explained(failure: Failure, log: &Path, kernel: &Kernel) -> Failure {
    let headers = format!("package linux-headers-{}", kernel.release);
    if !fs::read_to_string(log).is_ok_and(|text| text.contains(&headers)) {
        return failure;
    }
    Failure::new(format!(
        "{failure}\nDebian's mirror no longer has the headers of Linux {}: remove target/xtask/seed, so that the next run \
         takes the newest kernel",
        kernel.release
    ))
}

pub(super) fn remove(folder: &Path) -> Done {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(run::at("remove", folder)(error)),
        _ => Ok(()),
    }
}

fn is_root() -> Done<bool> {
    Ok(run::output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// For an ordinary user: what is unpacked belongs to whom it says, as far as the programs within can see.
fn fakeroot() -> Command {
    let mut command = Command::new("fakeroot");
    command.args(["--", "sh"]);
    command
}

/// mmdebstrap does not read this host's apt configuration, but a proxy that is set there is needed.
fn apt_proxy() -> Option<(&'static str, String)> {
    if std::env::var_os("http_proxy").is_some() {
        return None;
    }
    let mut ask = Command::new("apt-config");
    let shown = run::output(ask.args(["dump", "--format=%v%n", "Acquire::http::Proxy"])).ok()?;
    let proxy = shown.lines().next()?.trim().to_owned();
    proxy.starts_with("http").then_some(("http_proxy", proxy))
}
