//! Everything that a machine uses, opened and passed to its process.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use super::{
    Qemu,
    command_line::{self, Card, Channel, CommandLine, Cpu, Layer, SERIAL_PORTS},
    files::{self, Folder, io_error},
    launch::{RAM, Restore, launch_error},
    memory::image::{Image, Images, Shape},
    monitor,
    verify::Identity,
};
use crate::{
    channel::ChannelDevice,
    hypervisor::{Accelerator, HypervisorError, LaunchSpec, Start},
    network::NicBackend,
    process::{self, Detached, FileRules, program_folders},
    types::{MachineUid, SnapshotId},
};

/// What the process inherits, and what it will look like from outside.
pub(super) struct Inheritance {
    pub(super) detached: Detached,
    pub(super) identities: HashSet<Identity>,
}

impl Inheritance {
    pub(super) fn new(program: &Path) -> Self {
        Self { detached: Detached::new(program), identities: HashSet::new() }
    }

    fn pass(&mut self, fd: impl Into<OwnedFd>) -> io::Result<RawFd> {
        let fd = fd.into();
        self.identities.insert(identity(&fd)?);
        Ok(self.detached.pass(fd))
    }
}

/// What a descriptor names.
pub(super) fn identity(fd: &impl AsFd) -> io::Result<Identity> {
    let metadata = File::from(fd.as_fd().try_clone_to_owned()?).metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A machine that has everything it needs but a process.
pub(super) struct Arranged {
    /// Its command line.
    pub(super) words: Vec<String>,
    /// What Landlock shall let it open.
    pub(super) rules: FileRules,
    pub(super) restore: Option<Restore>,
}

/// Opens and passes everything a machine uses.
pub(super) fn arrange(
    qemu: &Qemu,
    name: &str,
    spec: LaunchSpec,
    shape: &Shape,
    folder: &Folder,
    console: OwnedFd,
    machine: &mut Inheritance,
) -> Result<Arranged, HypervisorError> {
    let id = spec.id;
    let passing = |source| io_error("pass a descriptor to", &qemu.program.path, source);
    let kernel = boot_file("the guest kernel", &spec.kernel, spec.uid)?;
    let initramfs = boot_file("the initial RAM file system", &spec.initramfs, spec.uid)?;
    let image = match spec.start {
        Start::Boot => None,
        Start::Restore(image) => Some(usable_image(qemu, image, shape)?),
    };
    let base = match &image {
        None => files::zero_ram(&qemu.state_dir, spec.memory)?,
        Some(image) => image.base(),
    };
    folder.link(&base, RAM)?;
    let ram = folder.path(RAM);
    let ram = process::open_for(&ram, spec.uid).map_err(|error| io_error("open", &ram, error))?;
    let mut restore = None;
    let mut incoming = None;
    if let Some(image) = &image {
        let devices = image.devices()?;
        incoming = Some(machine.pass(devices).map_err(passing)?);
        restore = Some(Restore {
            ram: ram.try_clone().map_err(passing)?,
            difference: image.difference()?,
            devices: command_line::INCOMING.to_owned(),
        });
    }
    // QEMU opens these by name (/proc/self/fd/N), which asks for permission anew.
    let mut rules =
        program_folders(&qemu.program.path).into_iter().fold(FileRules::nothing(), FileRules::read_execute);
    rules = rules.read("/etc/ld.so.cache");
    for file in [&kernel, &initramfs, &ram] {
        rules = rules.read_open(file.try_clone().map_err(passing)?.into());
    }
    if spec.disk.layers.is_empty() {
        return Err(launch_error(id, "its disk has no layers"));
    }
    let mut layers = Vec::new();
    for (index, layer) in spec.disk.layers.iter().enumerate() {
        let (read, write) = if index == 0 {
            let (write, read) = monitor::open_layer(layer)?;
            (read, Some(write))
        } else {
            (monitor::open_file(&layer.path, false)?, None)
        };
        layers.push(Layer {
            id: layer.id.clone(),
            format: layer.format,
            bytes_in: monitor::bytes_in(&read, &layer.path)?,
            read: machine.pass(read).map_err(passing)?,
            write: write.map(|write| machine.pass(write)).transpose().map_err(passing)?,
        });
    }
    let nic = match spec.nic {
        None => None,
        Some(nic) => Some((
            nic.mac,
            match nic.backend {
                NicBackend::Stream(fd) => Card::Stream(machine.pass(fd).map_err(passing)?),
                NicBackend::Tap(fd) => Card::Tap(machine.pass(fd).map_err(passing)?),
            },
        )),
    };
    let channel = match spec.channel {
        ChannelDevice::Serial(slots) if (1..=SERIAL_PORTS).contains(&slots.len()) => {
            let slots = slots.into_iter().map(|fd| machine.pass(fd)).collect::<io::Result<_>>();
            Channel::Serial(slots.map_err(passing)?)
        }
        ChannelDevice::Serial(slots) => {
            let reason =
                format!("its channel has {} serial ports instead of 1 to {SERIAL_PORTS}", slots.len());
            return Err(launch_error(id, reason));
        }
        ChannelDevice::Vsock { cid, vhost, key } => {
            let key = files::in_memory("agentiso-key", key.as_bytes()).map_err(passing)?;
            Channel::Vsock {
                cid,
                vhost: machine.pass(vhost).map_err(passing)?,
                key: machine.pass(key).map_err(passing)?,
            }
        }
    };
    let cpu = match (qemu.accelerator, qemu.tsc_khz) {
        (Accelerator::Kvm, _) => {
            let device = files::open_kvm().map_err(|e| io_error("open", Path::new("/dev/kvm"), e))?;
            Cpu::Kvm { device: machine.pass(device).map_err(passing)? }
        }
        (_, tsc_khz) => Cpu::Tcg { tsc_khz },
    };
    let command_line = CommandLine {
        name: name.to_owned(),
        cpu,
        vcpus: spec.vcpus,
        memory: spec.memory,
        ram: machine.pass(ram).map_err(passing)?,
        kernel: machine.pass(kernel).map_err(passing)?,
        initramfs: machine.pass(initramfs).map_err(passing)?,
        incoming,
        agent_options: spec.agent_options,
        layers,
        nic,
        channel,
        console: machine.pass(console).map_err(passing)?,
        monitors: [
            machine.pass(folder.listen(monitor::SOCKET)?).map_err(passing)?,
            machine.pass(folder.listen(monitor::RESERVED_SOCKET)?).map_err(passing)?,
        ],
    };
    Ok(Arranged { words: command_line.words(), rules, restore })
}

/// An image that a machine of this shape can be started from.
fn usable_image(qemu: &Qemu, id: SnapshotId, shape: &Shape) -> Result<Image, HypervisorError> {
    let image = Images::of(&qemu.state_dir).open(id)?;
    match shape.obstacle(image.shape()) {
        None => Ok(image),
        Some(reason) => Err(HypervisorError::Incompatible { image: id, reason }),
    }
}

/// Opens a file that machines boot from. It holds nothing secret, and a machine's own user must be able to read it.
fn boot_file(what: &str, path: &Path, uid: Option<MachineUid>) -> Result<File, HypervisorError> {
    let remedy = "run `agentiso init`, which puts it there".to_owned();
    let file = match monitor::open_file(path, false) {
        Ok(file) => file,
        Err(HypervisorError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(HypervisorError::Missing { what: format!("{what} ({})", path.display()), remedy });
        }
        Err(error) => return Err(error),
    };
    let mode = file.metadata().map_err(|e| io_error("inspect", path, e))?.mode();
    if uid.is_some() && mode & 0o004 == 0 {
        let source = io::Error::other(
            "machines run under user ids of their own: it must be readable by all (chmod a+r)",
        );
        return Err(io_error("use", path, source));
    }
    Ok(file)
}
