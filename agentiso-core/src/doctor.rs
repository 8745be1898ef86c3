//! What this host offers, what is missing, and how to get it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::channel::vsock::VsockChannel;
use crate::config::{Backend, BackendKind, Config, ConfigError, Requirement};
use crate::error::EngineError;
use crate::hypervisor::{Hypervisor, HypervisorError, qemu};
use crate::image::{AssetError, Assets};
use crate::native::{self, BackendChoice, choice};

/// With less free space than this in the state folder, images and disks will soon not fit.
const LOW_SPACE_BYTES: u64 = 5 << 30;

/// The kind of a file system in memory (linux/magic.h). A page of a hole in a file there is memory of its own as soon as it
/// is read, and whoever reads one when there is no more room gets SIGBUS: a machine that touches new memory, too.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Machines work, but not as well, or not as isolated, as they could.
    Warning,
    /// Something does not work without it.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// What was found.
    pub status: CheckStatus,
    /// What that means, for people.
    pub detail: String,
    /// The command, or the change, that mends it.
    pub remedy: Option<String>,
}

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Doctor {
    /// Whether machines can run.
    pub usable: bool,
    /// The state folder.
    pub state_dir: PathBuf,
    /// Each thing that was looked at.
    pub checks: Vec<Check>,
}

impl Doctor {
    /// A backend that is used, and why the other one of its kind is not.
    fn choice(&mut self, choice: &BackendChoice) {
        let BackendChoice { kind, used, why, passed_over } = choice;
        let detail = format!("{used}: {why}; not {}: {}", passed_over.backend, passed_over.why);
        // Groups and the CPU are what a host should have; the rest is as good without.
        let should_be_there = matches!(passed_over.backend, Backend::Kvm | Backend::Cgroup);
        let status = match &passed_over.remedy {
            Some(_) if should_be_there => CheckStatus::Warning,
            _ => CheckStatus::Ok,
        };
        self.add(&kind.to_string(), status, detail, passed_over.remedy.clone());
    }

    fn add(&mut self, name: &str, status: CheckStatus, detail: impl Into<String>, remedy: Option<String>) {
        self.checks.push(Check { name: name.to_owned(), status, detail: detail.into(), remedy });
    }

    /// Something that no machine runs without.
    fn need(&mut self, name: &str, found: Result<String, (String, String)>) {
        match found {
            Ok(detail) => self.add(name, CheckStatus::Ok, detail, None),
            Err((detail, remedy)) => {
                self.usable = false;
                self.add(name, CheckStatus::Missing, detail, Some(remedy));
            }
        }
    }
}

/// Looks at this host, and says which backend of each kind is used, and why. Changes nothing but a file in which the speed
/// of the host's clock is kept, and that only where there is a state folder already.
pub async fn doctor(config: &Config) -> Doctor {
    let mut doctor = Doctor { usable: true, state_dir: config.state_dir.clone(), checks: Vec::new() };
    doctor.need("state folder", state_folder(&config.state_dir));
    hypervisor(config, &mut doctor).await;
    doctor.need("kernel, initramfs, agent", assets(&config.state_dir));
    image_tools(&mut doctor);
    backends(config, &mut doctor).await;
    file_system(&config.state_dir, &mut doctor);
    doctor
}

fn state_folder(path: &Path) -> Result<String, (String, String)> {
    use std::os::unix::fs::MetadataExt;
    let shown = path.display();
    let user = rustix::process::geteuid().as_raw();
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.uid() != user => Err((
            format!("{shown} belongs to user {}", metadata.uid()),
            "set AGENTISO_HOME to a folder of your own".into(),
        )),
        Ok(metadata) if metadata.mode() & 0o077 != 0 => {
            Err((format!("{shown} is open to others"), format!("chmod 700 {shown}")))
        }
        Ok(_) => Ok(shown.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err((format!("{shown} does not exist yet"), "agentiso init".into()))
        }
        Err(error) => Err((format!("{shown}: {error}"), "set AGENTISO_HOME to a folder of your own".into())),
    }
}

async fn hypervisor(config: &Config, doctor: &mut Doctor) {
    match crate::native::qemu(config, "doctor").await {
        Ok(qemu) => {
            let capabilities = qemu.capabilities();
            doctor.need("QEMU", Ok(capabilities.name.clone()));
            doctor.choice(&choice::cpu(config, &qemu));
            for line in capabilities.confinement {
                doctor.add("confinement", CheckStatus::Ok, line, None);
            }
            for line in capabilities.open {
                // Limits are a choice of their own.
                if !line.ends_with(qemu.why_not_limited()) {
                    doctor.add("confinement", CheckStatus::Warning, line, None);
                }
            }
        }
        Err(HypervisorError::Missing { what, remedy }) => {
            doctor.need("QEMU", Err((format!("{what} is missing"), remedy)));
        }
        Err(HypervisorError::TooOld { found, needed, remedy }) => {
            doctor.need("QEMU", Err((format!("{found} is too old, {needed} or later is needed"), remedy)));
        }
        Err(error) => {
            let error = crate::EngineError::from(error).report();
            doctor.need("QEMU", Err((error, "set AGENTISO_QEMU to a QEMU that works".into())));
        }
    }
}

/// Disks, network, channel and limits; the CPU is QEMU's matter.
async fn backends(config: &Config, doctor: &mut Doctor) {
    if let Err(error) = config.choices.check() {
        return doctor
            .need("configuration", Err((error.to_string(), "see docs/configuration.md".to_owned())));
    }
    let limits = config.choices.allows(Backend::Cgroup).then(qemu::limits_obstacle).flatten();
    let forced = config.choices.forced_of(BackendKind::Limits) == Some(Backend::Cgroup);
    if let Some(obstacle) =
        limits.as_ref().filter(|_| forced || config.require.contains(&Requirement::Limits))
    {
        let remedy = "do as it says, or take limits out of the configuration".to_owned();
        doctor.need("limits", Err((obstacle.clone(), remedy)));
    }
    let choices = [
        choice::disks(config),
        Ok(choice::network(config)),
        choice::channel(config, VsockChannel::obstacle()),
        Ok(choice::limits(config, limits)),
    ];
    for choice in choices {
        match choice {
            Ok(choice) => doctor.choice(&choice),
            Err(ConfigError::Unusable { backend, reason }) => {
                let remedy = format!("do as it says, or forbid {backend} in the configuration");
                doctor.need(&backend.kind().to_string(), Err((reason, remedy)));
            }
            Err(error) => doctor.need("configuration", Err((error.to_string(), "mend it".to_owned()))),
        }
    }
    for (backend, opened) in native::try_open(config).await {
        if let Err(error) = opened {
            let remedy = error.next_step().unwrap_or_else(|| "see docs/configuration.md".to_owned());
            doctor.need(backend.name(), Err((EngineError::report(&error), remedy)));
        }
    }
}

fn assets(state: &Path) -> Result<String, (String, String)> {
    match Assets::load(state) {
        Ok(assets) => Ok(format!("kernel {}", assets.manifest.kernel.release)),
        Err(error @ AssetError::TooNew { .. }) => Err((error.to_string(), "use a newer agentiso".into())),
        Err(error) => Err((error.to_string(), "agentiso init".into())),
    }
}

/// Programs that only making images needs: machines run without them.
fn image_tools(doctor: &mut Doctor) {
    let tools = [
        ("mke2fs", "e2fsprogs", "formats the disks of images"),
        ("mmdebstrap", "mmdebstrap", "makes the Debian image"),
        ("dpkg-deb", "dpkg", "unpacks the kernel package"),
        ("apt-get", "apt", "fetches the kernel package"),
    ];
    for (program, package, purpose) in tools {
        let name = format!("{program} ({purpose})");
        match in_path(program) {
            Some(path) => doctor.add(&name, CheckStatus::Ok, path.display().to_string(), None),
            None => {
                let remedy = format!("apt-get install {package}");
                doctor.add(&name, CheckStatus::Warning, "not found in PATH", Some(remedy));
            }
        }
    }
}

fn file_system(state: &Path, doctor: &mut Doctor) {
    // The folder that exists: the state folder or what it will be made in.
    let looked = state
        .ancestors()
        .find_map(|folder| Some((rustix::fs::statvfs(folder).ok()?, rustix::fs::statfs(folder).ok()?)));
    let Some((space, kind)) = looked else { return };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let detail = format!("{} GiB", free >> 30);
    let status = if free < LOW_SPACE_BYTES { CheckStatus::Warning } else { CheckStatus::Ok };
    let remedy =
        (free < LOW_SPACE_BYTES).then(|| "`agentiso prune` removes images that no workspace uses".into());
    doctor.add("free space", status, detail, remedy);
    if kind.f_type == TMPFS_MAGIC {
        doctor.add(
            "file system",
            CheckStatus::Warning,
            "the state folder is in memory (tmpfs): machines' memory takes up twice as much there, all of them end when it \
             is full, and a restart of the host removes it",
            Some("set AGENTISO_HOME to a folder on a disk".into()),
        );
    }
}

/// A program by its name; the administrator's folders count although an ordinary user's PATH leaves them out.
fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn doctor_names_what_is_missing_and_the_remedy_without_making_anything() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { qemu: Some("/no/such/qemu".into()), ..Config::at(folder.path().join("state")) };

        let doctor = doctor(&config).await;

        assert!(!doctor.usable);
        for name in ["state folder", "QEMU", "kernel, initramfs, agent"] {
            let check = doctor.checks.iter().find(|check| check.name == name).unwrap();
            assert_eq!(check.status, CheckStatus::Missing, "{check:?}");
            assert!(check.remedy.is_some(), "{check:?}");
        }
        assert!(!folder.path().join("state").exists());
    }

    #[test]
    fn state_folder_in_memory_is_told() {
        let told = |folder: &str| {
            let mut doctor = Doctor { usable: true, state_dir: folder.into(), checks: Vec::new() };
            file_system(&doctor.state_dir.clone(), &mut doctor);
            doctor
                .checks
                .iter()
                .any(|check| check.name == "file system" && check.status == CheckStatus::Warning)
        };

        // Every Linux mounts one there; /proc is none.
        assert!(told("/dev/shm/not-made-yet") && !told("/proc"));
    }
}
