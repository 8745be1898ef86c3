//! Finds QEMU, what version it is, and whether the CPU can run guests itself.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, process::Command};

use super::files::{self, io_error};
use crate::hypervisor::{Accelerator, HypervisorError};

/// The name of the program.
const PROGRAM: &str = "qemu-system-x86_64";

/// Where distributions put it when it is not on the PATH.
const USUAL_FOLDERS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/libexec"];

/// 8.2 is the first that lets a machine's RAM be a private mapping of a file it cannot write (`rom=off`).
const OLDEST: (u32, u32) = (8, 2);
const OLDEST_TEXT: &str = "QEMU 8.2";

const REMEDY: &str = "on Debian 13 or Ubuntu 24.04 and later: apt-get install --no-install-recommends qemu-system-x86. On \
    Debian 12: add the suite bookworm-backports to your apt sources, apt-get update, then apt-get install -t \
    bookworm-backports --no-install-recommends qemu-system-x86";

/// How long QEMU may take to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// Longest answer that is read, in bytes.
const MAX_VERSION_BYTES: u64 = 4096;

/// Where the answer is kept, in the state folder.
const CACHE: &str = "qemu.json";

/// A QEMU that will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// As in `10.0.2`.
    pub(super) version: String,
}

/// What the version of a file was, as long as it is the same file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    path: PathBuf,
    modified: (i64, i64),
    bytes: u64,
    version: String,
}

/// Finds QEMU at the given place or on the PATH, and its version, which is asked for once for each file.
///
/// # Errors
/// It is missing, cannot be run, or is too old: with the remedy.
pub(super) async fn find(state_dir: &Path, configured: Option<&Path>) -> Result<Program, HypervisorError> {
    let path = locate(configured, std::env::var_os("PATH").as_deref())?;
    let metadata = std::fs::metadata(&path).map_err(|e| io_error("inspect", &path, e))?;
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    let same =
        |known: &Known| known.path == path && known.modified == modified && known.bytes == metadata.len();
    let known: Option<Known> = files::read_json(&state_dir.join(CACHE)).filter(same);
    let version = match known {
        Some(known) => known.version,
        None => {
            let version = ask(&path).await?;
            let known =
                Known { path: path.clone(), modified, bytes: metadata.len(), version: version.clone() };
            files::remember(state_dir, CACHE, &known);
            version
        }
    };
    judge(&version)?;
    Ok(Program { path, version })
}

fn locate(configured: Option<&Path>, search: Option<&std::ffi::OsStr>) -> Result<PathBuf, HypervisorError> {
    let missing = |what: String| HypervisorError::Missing { what, remedy: REMEDY.to_owned() };
    if let Some(path) = configured {
        let absolute = std::path::absolute(path).map_err(|e| io_error("find", path, e))?;
        return if is_program(&absolute) {
            Ok(absolute)
        } else {
            Err(missing(format!("QEMU at {}", path.display())))
        };
    }
    let usual = USUAL_FOLDERS.map(PathBuf::from);
    let on_path =
        search.map(|folders| std::env::split_paths(folders).collect::<Vec<_>>()).unwrap_or_default();
    on_path
        .into_iter()
        .filter(|folder| folder.is_absolute())
        .chain(usual)
        .map(|folder| folder.join(PROGRAM))
        .find(|path| is_program(path))
        .ok_or_else(|| missing(format!("QEMU ({PROGRAM})")))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

async fn ask(path: &Path) -> Result<String, HypervisorError> {
    let failed = |source| io_error("ask the version of", path, source);
    let mut child = Command::new(path)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let read = async { stdout.take(MAX_VERSION_BYTES).read_to_end(&mut answer).await };
        tokio::time::timeout(VERSION_LIMIT, read)
            .await
            .map_err(|_| failed(std::io::Error::from(std::io::ErrorKind::TimedOut)))?
            .map_err(failed)?;
    }
    // Its output has ended; what it returns does not matter if there was a version in it.
    let _ = tokio::time::timeout(VERSION_LIMIT, child.wait()).await;
    parse_version(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| failed(std::io::Error::other("it did not answer --version like QEMU")))
}

/// The version in `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn parse_version(answer: &str) -> Option<String> {
    let rest = answer.lines().next()?.strip_prefix("QEMU emulator version ")?;
    let version = rest.split(' ').next()?;
    numbers(version).map(|_| version.to_owned())
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn judge(version: &str) -> Result<(), HypervisorError> {
    if numbers(version).is_some_and(|numbers| numbers >= OLDEST) {
        return Ok(());
    }
    Err(HypervisorError::TooOld {
        found: format!("QEMU {version}"),
        needed: OLDEST_TEXT,
        remedy: REMEDY.to_owned(),
    })
}

/// Whether guests run on the CPU itself: /dev/kvm opens *and* the CPU has the extensions. Some clouds have a /dev/kvm
/// that runs their own kernels only; an ordinary guest hangs on it without a word.
///
/// # Errors
/// KVM was asked for and is not usable: says why.
pub(super) fn accelerator(wanted: Option<Accelerator>) -> Result<Accelerator, HypervisorError> {
    let obstacle =
        || kvm_obstacle(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), files::open_kvm());
    match wanted {
        Some(Accelerator::Tcg) => Ok(Accelerator::Tcg),
        Some(Accelerator::Kvm) => match obstacle() {
            None => Ok(Accelerator::Kvm),
            Some(remedy) => Err(HypervisorError::Missing { what: "usable KVM".to_owned(), remedy }),
        },
        Some(Accelerator::Fake) => Err(HypervisorError::Missing {
            what: "a fake accelerator in QEMU".to_owned(),
            remedy: "choose kvm or tcg, or leave the choice to agentiso".to_owned(),
        }),
        None => Ok(if obstacle().is_none() { Accelerator::Kvm } else { Accelerator::Tcg }),
    }
}

/// Why KVM cannot be used, and what would help; `None` if it can.
fn kvm_obstacle<T>(cpuinfo: &str, device: std::io::Result<T>) -> Option<String> {
    if !has_virtualization(cpuinfo) {
        return Some(
            "the CPU shows neither vmx nor svm: enable virtualization in the firmware, or nested virtualization if \
             this is a virtual machine; guests are emulated (TCG) until then"
                .to_owned(),
        );
    }
    device.err().map(|error| {
        format!("/dev/kvm does not open ({error}): load kvm_intel or kvm_amd and join the group kvm; guests are emulated (TCG) until then")
    })
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .any(|(_, flags)| flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// Why guests are emulated, for `doctor`; `None` if KVM is used or would be usable.
pub(super) fn why_not_kvm(used: Accelerator) -> Option<String> {
    if used == Accelerator::Kvm {
        return None;
    }
    kvm_obstacle(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), files::open_kvm())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const PARAVIRTUAL: &str =
        "processor\t: 0\nmodel name\t: vmx svm\nflags\t\t: fpu vme vmxnet svmlock\nbugs\t\t: svm\n";
    const INTEL: &str = "processor\t: 0\nflags\t\t: fpu vme vmx ssse3\n";
    const AMD: &str = "processor\t: 0\nflags\t\t: fpu svm\n";

    #[test]
    fn kvm_needs_both_the_device_and_the_cpu() {
        let denied = || Err::<(), _>(io::Error::from(io::ErrorKind::PermissionDenied));

        assert_eq!(kvm_obstacle(INTEL, Ok(())), None);
        assert_eq!(kvm_obstacle(AMD, Ok(())), None);
        assert!(kvm_obstacle(PARAVIRTUAL, Ok(())).unwrap().contains("neither vmx nor svm"));
        assert!(kvm_obstacle(INTEL, denied()).unwrap().contains("/dev/kvm does not open"));
        assert!(kvm_obstacle("", Ok(())).is_some());
    }

    #[test]
    fn version_is_read_from_real_answers() {
        for (answer, version) in [
            (
                "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright",
                Some("10.0.2"),
            ),
            ("QEMU emulator version 8.2.2 (qemu-8.2.2-1.fc40)\n", Some("8.2.2")),
            ("QEMU emulator version 9.1.50 (v9.1.0-1-g1)", Some("9.1.50")),
            ("qemu-img version 8.2.2", None),
            ("QEMU emulator version unknown", None),
            ("", None),
        ] {
            assert_eq!(parse_version(answer).as_deref(), version, "{answer}");
        }
    }

    #[test]
    fn older_than_8_2_is_refused_with_the_remedy() {
        for old in ["7.2.17", "8.1.5", "2.12.0"] {
            let text = judge(old).unwrap_err().to_string();
            assert!(
                text.contains(old) && text.contains("8.2") && text.contains("bookworm-backports"),
                "{text}"
            );
        }
        for new in ["8.2.0", "9.0.0", "10.0.2", "11.1.0"] {
            assert!(judge(new).is_ok(), "{new}");
        }
    }

    #[test]
    fn missing_qemu_names_the_commands() {
        let text = locate(Some(Path::new("/nowhere/qemu")), None).unwrap_err().to_string();

        assert!(text.contains("/nowhere/qemu") && text.contains("bookworm-backports"), "{text}");
    }

    #[tokio::test]
    async fn version_is_asked_for_once_for_each_file() {
        let state = tempfile::tempdir().unwrap();
        let program = state.path().join("qemu");
        let script = "#!/bin/sh\necho asked >> \"$0.log\"\necho 'QEMU emulator version 9.9.9'\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

        let first = find(state.path(), Some(&program)).await.unwrap();
        let second = find(state.path(), Some(&program)).await.unwrap();
        std::fs::write(&program, format!("{script}\n")).unwrap();
        find(state.path(), Some(&program)).await.unwrap();

        assert_eq!(first, second);
        assert_eq!(first.version, "9.9.9");
        let log = std::fs::read_to_string(state.path().join("qemu.log")).unwrap();
        assert_eq!(log.lines().count(), 2);
    }
}
