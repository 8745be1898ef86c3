//! A Debian root file system as a tar stream, from Debian's signed packages by mmdebstrap.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, ChildStdout, Command},
    task::JoinHandle,
};

use super::command::{self, APT_CONFIG, CommandError, MMDEBSTRAP};

/// What is in the image beyond Debian's essential packages and apt. No package that is only recommended is.
pub(super) const PACKAGES: [&str; 12] = [
    "bash",
    "ca-certificates",
    "coreutils",
    "curl",
    "e2fsprogs",
    "git",
    "iproute2",
    "kmod",
    "mount",
    "nftables",
    "procps",
    "python3",
];

/// What dpkg leaves out: documentation and translations, but not the licences.
const LEFT_OUT: [&str; 8] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/gnome/help/*",
];

/// What mmdebstrap copies of this host into the tree, or packages leave behind; the agent gives each machine its own.
const CLEAN_UP: &str = r#"rm -rf "$1/etc/hostname" "$1/etc/resolv.conf" "$1/etc/machine-id" "$1/var/log/apt" "$1/var/log/dpkg.log" "$1/var/log/bootstrap.log" "$1/var/log/alternatives.log" "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old && touch "$1/etc/machine-id""#;

/// The release that is built on a host that is not Debian.
const DEFAULT_SUITE: &str = "bookworm";

const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const DEFAULT_SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

/// How long mmdebstrap has to remove its files after it was asked to end.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of mmdebstrap's standard error that are kept.
const KEPT_STDERR_BYTES: usize = 64 * 1024;

/// Which Debian, from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Release {
    pub(super) suite: String,
    /// One-line sources: `deb URI SUITE main`.
    sources: Vec<String>,
}

impl Release {
    /// This host's own release and mirrors where it is Debian; main only.
    pub(super) fn of_this_host() -> Self {
        let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
        let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = folder.map(|entry| entry.path()).collect();
        files.sort();
        texts.extend(files.iter().filter_map(|file| fs::read_to_string(file).ok()));
        Self::from_configuration(&os_release, &texts)
    }

    fn from_configuration(os_release: &str, source_files: &[String]) -> Self {
        let field = |name: &str| {
            let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(value.trim_matches('"')).filter(|value| is_word(value))
        };
        let suite =
            field("VERSION_CODENAME").filter(|_| field("ID") == Some("debian")).unwrap_or(DEFAULT_SUITE);
        let wanted = [suite.to_owned(), format!("{suite}-updates"), format!("{suite}-security")];
        let mut found: BTreeSet<(String, String)> = BTreeSet::new();
        for text in source_files {
            let sources = one_line_sources(text).into_iter().chain(stanza_sources(text));
            found.extend(sources.filter(|(uri, suite)| wanted.contains(suite) && is_plain_uri(uri)));
        }
        if !found.iter().any(|(_, of)| of == suite) {
            found = wanted
                .iter()
                .map(|of| {
                    let mirror =
                        if of.ends_with("-security") { DEFAULT_SECURITY_MIRROR } else { DEFAULT_MIRROR };
                    (mirror.to_owned(), of.clone())
                })
                .collect();
        }
        let sources = found.iter().map(|(uri, of)| format!("deb {uri} {of} main")).collect();
        Self { suite: suite.to_owned(), sources }
    }
}

/// `deb [options] URI SUITE COMPONENT...`
fn one_line_sources(text: &str) -> Vec<(String, String)> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let rest = rest.trim();
        let rest =
            if rest.starts_with('[') { rest.split_once(']').map_or("", |(_, rest)| rest) } else { rest };
        if let [uri, suite, components @ ..] = &rest.split_whitespace().collect::<Vec<_>>()[..]
            && components.contains(&"main")
        {
            sources.push(((*uri).to_owned(), (*suite).to_owned()));
        }
    }
    sources
}

/// Stanzas of `Types:`, `URIs:`, `Suites:`, `Components:` (deb822).
fn stanza_sources(text: &str) -> Vec<(String, String)> {
    let mut sources = Vec::new();
    let without_comments = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    for stanza in without_comments.split("\n\n") {
        let words = |field: &str| -> Vec<&str> {
            let value = stanza.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(field).then_some(value)
            });
            value.unwrap_or_default().split_whitespace().collect()
        };
        let is_enabled = words("Enabled") != ["no"];
        if is_enabled && words("Types").contains(&"deb") && words("Components").contains(&"main") {
            for uri in words("URIs") {
                sources.extend(words("Suites").iter().map(|suite| (uri.to_owned(), (*suite).to_owned())));
            }
        }
    }
    sources
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether a guest can use it too: no file of this host, and no password, which would end up in the image.
fn is_plain_uri(uri: &str) -> bool {
    let rest = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://"));
    rest.is_some_and(|rest| {
        rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:/%+".contains(&byte))
            && !rest.is_empty()
    })
}

/// mmdebstrap at work. Its standard output is the tar stream, which begins when everything is installed.
#[derive(Debug)]
pub(super) struct Bootstrap {
    child: Child,
    stderr: Option<JoinHandle<String>>,
    /// Where its temporary files are; removed after it has ended.
    scratch: PathBuf,
}

impl Bootstrap {
    /// Starts it. As an ordinary user it works in a user namespace where this host allows that, else with fakechroot.
    pub(super) fn start(release: &Release) -> Result<(Self, ChildStdout), CommandError> {
        let io = |source| CommandError::Io { program: MMDEBSTRAP.name(), source };
        let scratch = scratch_folder().map_err(io)?;
        let mut command = Command::from(MMDEBSTRAP.command()?);
        command
            .env("TMPDIR", &scratch)
            .envs(apt_proxy())
            .args(arguments(release))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            // A terminal's Ctrl-C reaches us, and we end it in an orderly way.
            .process_group(0);
        let mut child = command.spawn().map_err(io)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let missing_pipe = || io(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        let bootstrap = Self { child, stderr: stderr.map(|pipe| tokio::spawn(keep_tail(pipe))), scratch };
        Ok((bootstrap, stdout.ok_or_else(missing_pipe)?))
    }

    /// Waits for its end, after its output was read. It removes what it made.
    pub(super) async fn finish(&mut self) -> Result<(), CommandError> {
        let io = |source| CommandError::Io { program: MMDEBSTRAP.name(), source };
        let status = self.child.wait().await.map_err(io)?;
        let stderr = match self.stderr.take() {
            Some(task) => task.await.unwrap_or_default(),
            None => String::new(),
        };
        if status.success() {
            Ok(())
        } else {
            Err(MMDEBSTRAP.failed("install Debian's packages", status, &stderr))
        }
    }

    /// Ends it if it has not ended, gives it time to unmount and remove what it made, and removes the rest.
    pub(super) async fn close(mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(CLEAN_UP_LIMIT, self.child.wait()).await.is_err() {
            tracing::warn!(folder = %self.scratch.display(), "mmdebstrap did not end when asked; killing it");
            self.signal(Signal::KILL);
            let _ = self.child.wait().await;
        }
        let scratch = self.scratch.clone();
        let removed = tokio::task::spawn_blocking(move || remove_scratch(&scratch)).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::warn!(folder = %self.scratch.display(), "mmdebstrap left files behind; remove them");
        }
    }

    fn signal(&self, signal: Signal) {
        // A child that was waited for has no id any more, so this can reach no other process.
        let group = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(group) = group {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Bootstrap {
    fn drop(&mut self) {
        // The last resort; `close` leaves nothing to do here.
        self.signal(Signal::TERM);
    }
}

fn arguments(release: &Release) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--mode=auto",
        "--variant=apt",
        "--architectures=amd64",
        "--format=tar",
        // The agent mounts its own /dev.
        "--skip=output/dev",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--include={}", PACKAGES.join(",")));
    arguments.extend(LEFT_OUT.iter().map(|option| format!("--dpkgopt={option}")));
    arguments.push(format!("--customize-hook={CLEAN_UP}"));
    arguments.push(release.suite.clone());
    arguments.push("-".to_owned());
    arguments.extend(release.sources.iter().cloned());
    arguments
}

/// A folder that other users may enter: in a user namespace mmdebstrap is one of them. The state folder is private,
/// so it is beside the host's other temporary files, on disk rather than in memory.
fn scratch_folder() -> std::io::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let given = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let parent = given.unwrap_or_else(|| Path::new("/var/tmp").to_owned());
    let scratch = tempfile::Builder::new()
        .prefix("agentiso-image-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(parent)?;
    // Removed by us when it is sure that nothing is mounted below it.
    Ok(scratch.keep())
}

/// Removes the folder. Usually it is empty; if mmdebstrap had to be killed it is not, and then its own mounts, which
/// would be emptied too, must be gone.
fn remove_scratch(scratch: &Path) -> std::io::Result<()> {
    if fs::remove_dir(scratch).is_ok() {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let below = scratch.to_string_lossy();
    if mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| point.starts_with(&*below))) {
        return Err(std::io::ErrorKind::ResourceBusy.into());
    }
    fs::remove_dir_all(scratch)
}

/// mmdebstrap does not read this host's apt configuration, but a proxy that is set there is needed.
fn apt_proxy() -> Option<(&'static str, String)> {
    if std::env::var_os("http_proxy").is_some() {
        return None;
    }
    let shown =
        APT_CONFIG.run("ask apt for its proxy", ["dump", "--format=%v%n", "Acquire::http::Proxy"]).ok()?;
    let proxy = shown.lines().next()?.trim().to_owned();
    proxy.starts_with("http").then_some(("http_proxy", proxy))
}

async fn keep_tail(mut pipe: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if kept.len() > 2 * KEPT_STDERR_BYTES {
            kept.drain(..kept.len() - KEPT_STDERR_BYTES);
        }
    }
    command::clean_tail(&String::from_utf8_lossy(&kept), command::SHOWN_ERROR_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str = "ID=debian\nVERSION_CODENAME=bookworm\n";

    fn sources(os_release: &str, files: &[&str]) -> Vec<String> {
        Release::from_configuration(os_release, &files.iter().map(ToString::to_string).collect::<Vec<_>>())
            .sources
    }

    #[test]
    fn sources_are_those_of_the_host_with_main_only() {
        let stanzas = "Types: deb\n# http://snapshot/\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main contrib\n\nTypes: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n";
        assert_eq!(
            sources(BOOKWORM, &[stanzas, "deb https://other.example/apt stable main"]),
            [
                "deb http://mirror.example/debian bookworm main",
                "deb http://mirror.example/debian bookworm-updates main",
                "deb http://mirror.example/security bookworm-security main",
            ]
        );
    }

    #[test]
    fn one_line_sources_are_read_with_their_options() {
        let list = "# deb http://no/ bookworm main\ndeb-src http://no/ bookworm main\ndeb [arch=amd64 signed-by=/x] http://a.example/debian bookworm main non-free\n";
        assert_eq!(sources(BOOKWORM, &[list]), ["deb http://a.example/debian bookworm main"]);
    }

    #[test]
    fn sources_that_a_guest_cannot_use_give_way_to_the_default() {
        for unusable in [
            "deb file:/srv/debian bookworm main",
            "deb http://user:secret@mirror.example/debian bookworm main",
            "Types: deb\nEnabled: no\nURIs: http://off.example/\nSuites: bookworm\nComponents: main\n",
            "deb http://mirror.example/debian trixie main",
        ] {
            let found = sources(BOOKWORM, &[unusable]);
            assert_eq!(found.len(), 3, "{unusable}: {found:?}");
            assert!(found.iter().all(|source| source.contains("deb.debian.org")), "{found:?}");
        }
    }

    #[test]
    fn host_that_is_not_debian_gets_the_default_release() {
        for os_release in ["", "ID=ubuntu\nVERSION_CODENAME=noble\n", "ID=debian\nVERSION_CODENAME=\"a b\"\n"]
        {
            let release =
                Release::from_configuration(os_release, &["deb http://u.example/ noble main".to_owned()]);
            assert_eq!(release.suite, DEFAULT_SUITE);
            assert_eq!(release.sources.len(), 3);
        }
    }

    #[test]
    fn arguments_are_fixed_but_for_release_and_sources() {
        let release = Release {
            suite: "bookworm".into(),
            sources: vec!["deb http://m.example/d bookworm main".into()],
        };
        let arguments = arguments(&release);
        assert_eq!(&arguments[..2], ["--mode=auto", "--variant=apt"]);
        assert_eq!(
            &arguments[arguments.len() - 3..],
            ["bookworm", "-", "deb http://m.example/d bookworm main"]
        );
        assert_eq!(arguments.iter().filter(|argument| !argument.starts_with("--")).count(), 3);
    }
}
