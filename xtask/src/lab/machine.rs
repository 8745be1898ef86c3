//! The machine that is the lab: QEMU's emulator, whatever this host's CPU can do, with a CPU that can run guests.

use std::{
    io::BufReader,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use super::disks::{Disks, tail};
use super::plan;
use super::protocol::{Message, Status};
use super::report::Report;
use crate::run::{self, Done, Failure};

/// MiB of memory: four machines of the usual size, ZFS's cache, and the tests.
const MEMORY_MIB: u32 = 6144;

/// One that can run guests, without what the emulator does not have and would warn of.
const CPU: &str = "EPYC,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec";

/// What the lab may take to end by itself when its tests have.
const POWER_OFF: Duration = Duration::from_secs(60);

/// Bytes of the console that are shown when something went wrong.
const SHOWN_CONSOLE: u64 = 8 * 1024;

/// What a machine is started from.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: PathBuf,
    pub(crate) disks: &'a Disks,
    /// Where its console goes.
    pub(crate) console: PathBuf,
    /// Where QEMU's own messages go.
    pub(crate) errors: PathBuf,
}

impl Machine<'_> {
    /// Runs the tests. `shown` gets each as it ends.
    pub(crate) fn run_tests(&self, limit: Duration, mut report: Report) -> Done<Report> {
        let mut command = self.command("tests")?;
        command.arg("-serial").arg(format!("file:{}", plain(&self.console)?));
        let errors = std::fs::File::create(&self.errors).map_err(run::at("write", &self.errors))?;
        // An input that stays open: the port's other side is there as long as it is.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut running = Running::start(&mut command)?;
        let stdout = running.child.stdout.take().ok_or_else(|| Failure::new("QEMU has no output"))?;
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            let mut from = BufReader::new(stdout);
            loop {
                let message = Message::read(&mut from);
                let is_last = !matches!(message, Ok(Some(_)));
                if send.send(message).is_err() || is_last {
                    return;
                }
            }
        });
        let deadline = Instant::now() + limit;
        let reason = loop {
            match receive.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Ok(Some(message))) => {
                    if let Some(test) = report.see(message) {
                        show(test);
                    }
                }
                Ok(Ok(None)) | Err(RecvTimeoutError::Disconnected) => break "its machine ended".to_owned(),
                Ok(Err(error)) => break format!("what it said makes no sense: {error}"),
                Err(RecvTimeoutError::Timeout) => break format!("the run took longer than {limit:?}"),
            }
        };
        report.close(&reason);
        if !report.is_complete() {
            println!("lab: {reason}; the end of its console ({}):", self.console.display());
            println!("{}", tail(&self.console, SHOWN_CONSOLE));
            println!("{}", tail(&self.errors, SHOWN_CONSOLE));
        }
        running.finish();
        Ok(report)
    }

    /// Gives the terminal to a shell in the lab.
    pub(crate) fn shell(&self) -> Done {
        let mut command = self.command("shell")?;
        command.args(["-serial", "mon:stdio"]);
        let mut running = Running::start(&mut command)?;
        running.child.wait().map_err(|error| Failure::new(format!("could not wait for QEMU: {error}")))?;
        Ok(())
    }

    fn command(&self, what: &str) -> Done<Command> {
        // QEMU goes when this program does, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config"]);
        // KVM within needs an emulated CPU that has it; two CPUs, as many as this project's machines have.
        command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2"]);
        command.args(["-m", &MEMORY_MIB.to_string(), "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(self.disks.initrd());
        command.args([
            "-append",
            &format!("console=ttyS0 quiet panic=-1 reboot=t mitigations=off lab.do={what}"),
        ]);
        let disks = [("root", self.disks.root(), "qcow2"), ("run", self.disks.run(), "raw")];
        for (id, path, format) in disks {
            let path = plain(&path)?.replace(',', ",,");
            let drive = format!("if=none,id={id},format={format},cache=unsafe,discard=unmap,file={path}");
            command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive={id}")]);
        }
        command.args(["-device", "virtio-rng-pci"]);
        if what == "tests" {
            command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=results,signal=off"]);
            command.args(["-device", &format!("virtserialport,chardev=results,name={}", plan::PORT)]);
        }
        Ok(command)
    }
}

fn plain(path: &Path) -> Done<&str> {
    path.to_str().ok_or_else(|| Failure::new(format!("{} is no text", path.display())))
}

fn show(test: &super::report::Test) {
    println!("lab: {} {} {:.1} s", test.name, test.status.word(), test.took.as_secs_f64());
    if test.status != Status::Passed {
        println!("--- output of {}", test.name);
        println!("{}---", String::from_utf8_lossy(&test.output));
    }
}

/// QEMU. Dropped, it is killed.
struct Running {
    child: Child,
}

impl Running {
    fn start(command: &mut Command) -> Done<Self> {
        let child = command
            .spawn()
            .map_err(|error| Failure::new(format!("could not run {}: {error}", run::shown(command))))?;
        Ok(Self { child })
    }

    /// Waits until it has ended by itself, for a while.
    fn finish(mut self) {
        let deadline = Instant::now() + POWER_OFF;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
