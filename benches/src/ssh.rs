//! An ssh server in a guest, and a connection to it that is kept.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agentiso_core::{
    Workspace,
    channel::client::{ExecEvent, ExecSpec, WriteOptions},
    types::GuestPort,
};
use tokio::io::AsyncWriteExt;

use crate::{Done, run::Bench, tools};

/// Where the server listens in the guest.
const PORT: u64 = 22;

/// Debian's packages of the server, with what it needs beyond the image.
const PACKAGES: [&str; 4] = ["dropbear-bin", "openssh-sftp-server", "libtomcrypt1", "libtommath1"];

/// Connects anew to nobody.
const QUIET: [&str; 10] = [
    "-F",
    "none",
    "-o",
    "BatchMode=yes",
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "LogLevel=ERROR",
];

/// A kept connection.
pub(crate) struct Ssh {
    folder: tempfile::TempDir,
    port: u16,
}

impl Ssh {
    pub(crate) fn guest_port() -> Done<GuestPort> {
        Ok(GuestPort::new(PORT)?)
    }

    /// Installs and starts a server in a machine that has its port forwarded, and connects to it.
    ///
    /// # Errors
    /// There is no ssh client here, or the server's packages cannot be had.
    pub(crate) async fn set_up(machine: &Workspace) -> Done<Self> {
        for program in ["ssh", "scp", "ssh-keygen"] {
            if tools::in_path(program).is_none() {
                return Err(Bench::error(format!("{program} is not installed")));
            }
        }
        let forwards = machine.forwards().await?;
        let forward = forwards.first().ok_or("the machine's port is not forwarded")?;
        let ssh = Self { folder: tempfile::tempdir()?, port: forward.host_port.get() };
        for package in tools::packages(&PACKAGES)? {
            unpack(machine, &package).await?;
        }
        let key = ssh.folder.path().join("key");
        succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
        let public = std::fs::read(key.with_extension("pub"))?;
        let options = WriteOptions { mode: Some(0o600), parents: true };
        let guest = machine.guest().await?;
        guest.write_file("/root/.ssh/authorized_keys", options, &mut public.as_slice()).await?;
        crate::groups::run(
            machine,
            "chmod 700 /root/.ssh && mkdir -p /etc/dropbear && \
             dropbearkey -t ed25519 -f /etc/dropbear/key >/dev/null 2>&1 && \
             dropbear -p 22 -r /etc/dropbear/key",
        )
        .await?;
        succeed(
            ssh.command("ssh").args(["-M", "-N", "-f", "-i"]).arg(&key).args(ssh.port_words("-p")).arg(TO),
        )?;
        Ok(ssh)
    }

    fn control(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    fn port_words(&self, option: &str) -> [String; 2] {
        [option.to_owned(), self.port.to_string()]
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = format!("ControlPath={}", self.control().display());
        command.args(QUIET).args(["-o", &path]).stdin(Stdio::null());
        command
    }

    /// How long a command takes over the kept connection.
    pub(crate) fn run_true(&self) -> Done<Duration> {
        let mut command = self.command("ssh");
        command.args(self.port_words("-p")).args([TO, "/bin/true"]);
        let begun = Instant::now();
        succeed(&mut command)?;
        Ok(begun.elapsed())
    }

    /// How long it takes to copy a file, over the kept connection. One side's path begins with `guest:`.
    pub(crate) fn copy(&self, from: &str, to: &str) -> Done<Duration> {
        let side = |path: &str| match path.strip_prefix("guest:") {
            Some(path) => format!("{TO}:{path}"),
            None => path.to_owned(),
        };
        let mut command = self.command("scp");
        command.arg("-q").args(self.port_words("-P")).args([side(from), side(to)]);
        let begun = Instant::now();
        succeed(&mut command)?;
        Ok(begun.elapsed())
    }

    pub(crate) fn close(self) {
        // It ends with its machine at the latest.
        let _ = succeed(self.command("ssh").args(["-O", "exit"]).args(self.port_words("-p")).arg(TO));
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        if self.control().exists() {
            let _ = succeed(self.command("ssh").args(["-O", "exit"]).args(self.port_words("-p")).arg(TO));
        }
    }
}

const TO: &str = "root@127.0.0.1";

/// Runs a program that must succeed. A client that stays takes no pipe of ours with it.
fn succeed(command: &mut Command) -> Done {
    let log = tempfile::tempfile()?;
    let status = command.stdout(Stdio::null()).stderr(log.try_clone()?).status()?;
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    let mut log = log;
    std::io::Seek::rewind(&mut log)?;
    std::io::Read::read_to_string(&mut log, &mut text)?;
    let program = command.get_program().to_string_lossy();
    Err(Bench::error(format!("{program} ended with {status}: {}", text.trim())))
}

/// Unpacks a Debian package's files into a machine.
async fn unpack(machine: &Workspace, package: &std::path::Path) -> Done {
    let files = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).output()?;
    if !files.status.success() {
        return Err(Bench::error(format!("dpkg-deb could not read {}", package.display())));
    }
    let spec = ExecSpec::shell("tar -x -C / --no-same-owner --keep-directory-symlink").stdin();
    let (mut input, mut events) = machine.guest().await?.exec(spec).await?.split();
    let sending = async {
        input.write_all(&files.stdout).await?;
        input.shutdown().await
    };
    let waiting = async {
        let mut last = None;
        while let Some(event) = events.next().await? {
            if let ExecEvent::Exited(exit) = event {
                last = Some(exit);
            }
        }
        Ok::<_, crate::BoxError>(last)
    };
    let (sent, exit) = tokio::join!(sending, waiting);
    sent?;
    match exit? {
        Some(agentiso_guest::message::Exit::Code(0)) => Ok(()),
        other => Err(Bench::error(format!("tar came to {other:?} in the guest"))),
    }
}
