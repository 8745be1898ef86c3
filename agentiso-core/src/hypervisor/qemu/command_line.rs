//! QEMU's command line: a pure function of numbers, ids and descriptors. Nothing that a user, a guest or an image
//! chose is in it, so there is nothing to quote.

use std::os::fd::RawFd;

use agentiso_guest::key::KEY_FILE;
use serde_json::{Value, json};

use super::cpu;
use crate::{
    hypervisor::AgentOption,
    network::MacAddress,
    storage::{LayerFormat, LayerId},
    types::{MemoryMib, VcpuCount},
};

/// Serial ports of a machine that has any, whether or not the host uses all of them: a machine that is restored must
/// look like the one that was saved.
pub(super) const SERIAL_PORTS: usize = 31;

/// MiB of translated code that the emulator keeps. QEMU's own default is a good part of the guest's memory.
const TRANSLATION_MIB: u32 = 64;

/// The set that holds /dev/kvm; those of the disk's layers come after it.
const KVM_SET: usize = 1;
/// The set that holds the device state that a machine begins with.
const INCOMING_SET: usize = 2;
const FIRST_LAYER_SET: usize = 3;

/// Where QEMU finds that device state.
pub(super) const INCOMING: &str = "/dev/fdset/2";

/// Everything that a machine's command line depends on. Descriptors by the numbers that QEMU will have them under.
#[derive(Clone, Debug)]
pub(super) struct CommandLine {
    /// `agentiso-STATE-WORKSPACE`.
    pub(super) name: String,
    pub(super) cpu: Cpu,
    pub(super) vcpus: VcpuCount,
    pub(super) memory: MemoryMib,
    /// The file that RAM is a private mapping of.
    pub(super) ram: RawFd,
    pub(super) kernel: RawFd,
    pub(super) initramfs: RawFd,
    /// The device state that the machine begins with, instead of booting.
    pub(super) incoming: Option<RawFd>,
    pub(super) agent_options: Vec<AgentOption>,
    /// Topmost first.
    pub(super) layers: Vec<Layer>,
    pub(super) nic: Option<(MacAddress, Card)>,
    pub(super) channel: Channel,
    /// One end of a connected socket.
    pub(super) console: RawFd,
    /// Listening sockets: operations, and the one kept for a watchdog.
    pub(super) monitors: [RawFd; 2],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Cpu {
    Kvm { device: RawFd },
    Tcg { tsc_khz: u64 },
}

/// One file of the disk.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) id: LayerId,
    pub(super) format: LayerFormat,
    pub(super) bytes_in: BytesIn,
    /// Opened read-only.
    pub(super) read: RawFd,
    /// Opened for reading and writing: the topmost layer only.
    pub(super) write: Option<RawFd>,
}

/// What holds a layer's bytes. QEMU wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BytesIn {
    File,
    BlockDevice,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Card {
    Stream(RawFd),
    Tap(RawFd),
}

#[derive(Clone, Debug)]
pub(super) enum Channel {
    Serial(Vec<RawFd>),
    Vsock {
        cid: u32,
        vhost: RawFd,
        /// A file in memory with the machine's key.
        key: RawFd,
    },
}

impl CommandLine {
    /// The arguments, without the program's name. QEMU waits for `cont` before it runs the guest.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words = Words(Vec::new());
        // First, so that the process is found by it at a fixed place.
        words.option("-name", &self.name);
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot", "-S"] {
            words.0.push(flag.to_owned());
        }
        words.option("-display", "none");
        if let Some(fd) = self.incoming {
            words.option("-add-fd", &format!("fd={fd},set={INCOMING_SET}"));
            // Loaded on command, when the memory is in place.
            words.option("-incoming", "defer");
        }
        words.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        // A stream of device states alone has neither a configuration section nor a description.
        words.option("-machine", "microvm,memory-backend=ram,suppress-vmdesc=on");
        words.option("-global", "migration.send-configuration=off");
        self.cpu(&mut words);
        words.option("-smp", &self.vcpus.to_string());
        let memory = self.memory;
        words.option("-m", &format!("{memory}M"));
        let ram = self.ram;
        words.option(
            "-object",
            &format!(
                "memory-backend-file,id=ram,size={memory}M,share=off,readonly=on,rom=off,mem-path=/proc/self/fd/{ram}"
            ),
        );
        // The default firmware puts its tables where the initramfs goes.
        words.option("-bios", "qboot.rom");
        words.option("-kernel", &format!("/proc/self/fd/{}", self.kernel));
        words.option("-initrd", &format!("/proc/self/fd/{}", self.initramfs));
        words.option("-append", &self.kernel_command_line());
        words.option("-chardev", &format!("socket,id=console,fd={}", self.console));
        words.option("-serial", "chardev:console");
        for (id, fd) in ["qmp", "qmp2"].into_iter().zip(self.monitors) {
            words.option("-chardev", &format!("socket,id={id},fd={fd},server=on,wait=off"));
            words.option("-mon", &format!("chardev={id},mode=control"));
        }
        self.disk(&mut words);
        self.network(&mut words);
        self.channel(&mut words);
        words.0
    }

    fn cpu(&self, words: &mut Words) {
        match self.cpu {
            Cpu::Kvm { device } => {
                words.option("-add-fd", &format!("fd={device},set={KVM_SET}"));
                words.option("-accel", &format!("kvm,device=/dev/fdset/{KVM_SET}"));
                words.option("-cpu", "host");
            }
            Cpu::Tcg { .. } => {
                words.option("-accel", &format!("tcg,thread=multi,tb-size={TRANSLATION_MIB}"));
                words.option("-cpu", cpu::EMULATED);
            }
        }
    }

    fn kernel_command_line(&self) -> String {
        // A panic or a reboot ends the machine: reboot=t with -no-reboot.
        let mut line = "console=ttyS0 reboot=t panic=-1 quiet".to_owned();
        if let Cpu::Tcg { tsc_khz } = self.cpu {
            line.push_str(&format!(" no_timer_check tsc_early_khz={tsc_khz}"));
            if self.vcpus.get() > 1 {
                line.push_str(" tsc=reliable");
            }
        }
        for option in &self.agent_options {
            line.push_str(match option {
                AgentOption::EmptyRoot => " agentiso.root=empty",
            });
        }
        line
    }

    fn disk(&self, words: &mut Words) {
        for (index, layer) in self.layers.iter().enumerate() {
            let set = FIRST_LAYER_SET + index;
            for (fd, role) in [(Some(layer.read), Role::Read), (layer.write, Role::Write)] {
                if let Some(fd) = fd {
                    words.option(
                        "-add-fd",
                        &format!("fd={fd},set={set},opaque={}", descriptor_label(&layer.id, role)),
                    );
                }
            }
        }
        // A node must exist before another names it as its backing: the bottom first.
        let mut backing: Option<&LayerId> = None;
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let below = backing.map_or(Value::Null, |id| Value::from(node_name(id)));
            let set = FIRST_LAYER_SET + index;
            let read_only = layer.write.is_none();
            let node = block_node(&layer.id, layer.format, layer.bytes_in, set, read_only, below);
            words.option("-blockdev", &node.to_string());
            backing = Some(&layer.id);
        }
        if let Some(top) = self.layers.first() {
            words.option("-device", &format!("virtio-blk-device,id=disk,drive={}", node_name(&top.id)));
        }
    }

    fn network(&self, words: &mut Words) {
        let Some((mac, card)) = &self.nic else { return };
        words.option(
            "-netdev",
            &match card {
                Card::Stream(fd) => format!("stream,id=net,server=off,addr.type=fd,addr.str={fd}"),
                Card::Tap(fd) => format!("tap,id=net,fd={fd}"),
            },
        );
        words.option("-device", &format!("virtio-net-device,netdev=net,mac={mac}"));
    }

    fn channel(&self, words: &mut Words) {
        match &self.channel {
            Channel::Serial(slots) => {
                // Port 0 is reserved for a console.
                words.option("-device", &format!("virtio-serial-device,max_ports={}", SERIAL_PORTS + 1));
                for (slot, fd) in slots.iter().enumerate() {
                    words.option("-chardev", &format!("socket,id=slot{slot},fd={fd},server=on,wait=off"));
                    words.option(
                        "-device",
                        &format!("virtserialport,chardev=slot{slot},nr={},name=agentiso.{slot}", slot + 1),
                    );
                }
            }
            Channel::Vsock { cid, vhost, key } => {
                words.option("-fw_cfg", &format!("name={KEY_FILE},file=/proc/self/fd/{key}"));
                words.option("-device", &format!("vhost-vsock-device,guest-cid={cid},vhostfd={vhost}"));
            }
        }
    }
}

struct Words(Vec<String>);

impl Words {
    fn option(&mut self, name: &str, value: &str) {
        self.0.push(name.to_owned());
        self.0.push(value.to_owned());
    }
}

/// What a descriptor of a layer is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    Read,
    Write,
}

/// What a descriptor of a layer is labelled with in QEMU, so that it can be found and closed there.
pub(super) fn descriptor_label(layer: &LayerId, role: Role) -> String {
    match role {
        Role::Read => format!("read-{layer}"),
        Role::Write => format!("write-{layer}"),
    }
}

/// A layer's name in QEMU, where names are at most 31 characters and begin with a letter.
pub(super) fn node_name(layer: &LayerId) -> String {
    format!("l{layer}")
}

/// The layer that a node name of ours stands for.
pub(super) fn layer_of_node(name: &str) -> Option<LayerId> {
    LayerId::parse(name.strip_prefix('l')?)
}

/// A layer as QEMU's block layer takes it: its format said and not found out, its backing file said and not read
/// from its header, its bytes by descriptor.
pub(super) fn block_node(
    layer: &LayerId,
    format: LayerFormat,
    bytes_in: BytesIn,
    set: usize,
    read_only: bool,
    backing: Value,
) -> Value {
    let mut node = json!({
        "node-name": node_name(layer),
        "driver": match format { LayerFormat::Raw => "raw", LayerFormat::Qcow2 => "qcow2" },
        "read-only": read_only,
        "discard": "unmap",
        "file": {
            "driver": match bytes_in { BytesIn::File => "file", BytesIn::BlockDevice => "host_device" },
            "filename": format!("/dev/fdset/{set}"),
            // The storage's records say who uses what. QEMU's locks would need a second writable descriptor.
            "locking": "off",
            "discard": "unmap",
        },
    });
    if format == LayerFormat::Qcow2 {
        // A header that was written by whoever broke into a QEMU can still name a file to keep the data in: that file
        // is opened under this QEMU's own confinement, which has nothing to offer.
        node["backing"] = backing;
    }
    node
}

#[cfg(test)]
#[path = "command_line_tests.rs"]
mod tests;
