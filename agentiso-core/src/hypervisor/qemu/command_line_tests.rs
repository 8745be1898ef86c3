use super::*;

fn layer(digit: char, format: LayerFormat, read: RawFd, write: Option<RawFd>) -> Layer {
    let id = LayerId::parse(&digit.to_string().repeat(24)).unwrap();
    Layer { id, format, bytes_in: BytesIn::File, read, write }
}

fn machine() -> CommandLine {
    CommandLine {
        name: "agentiso-0123-11111111-2222-4333-8444-555555555555".to_owned(),
        cpu: Cpu::Tcg { tsc_khz: 2_400_007 },
        vcpus: VcpuCount::new(2).unwrap(),
        memory: MemoryMib::new(512).unwrap(),
        ram: 3,
        kernel: 4,
        initramfs: 5,
        incoming: None,
        agent_options: Vec::new(),
        layers: vec![layer('b', LayerFormat::Qcow2, 6, Some(7)), layer('a', LayerFormat::Raw, 8, None)],
        nic: Some((MacAddress([2, 0, 0, 0xab, 0, 1]), Card::Stream(9))),
        channel: Channel::Serial(vec![10, 11]),
        console: 12,
        monitors: [13, 14],
    }
}

#[test]
fn emulated_machine_has_exactly_this_command_line() {
    let expected = "\
-name agentiso-0123-11111111-2222-4333-8444-555555555555
-nodefaults
-no-user-config
-no-reboot
-S
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine microvm,memory-backend=ram,suppress-vmdesc=on
-global migration.send-configuration=off
-accel tcg,thread=multi,tb-size=64
-cpu max
-smp 2
-m 512M
-object memory-backend-file,id=ram,size=512M,share=off,readonly=on,rom=off,mem-path=/proc/self/fd/3
-bios qboot.rom
-kernel /proc/self/fd/4
-initrd /proc/self/fd/5
-append console=ttyS0 reboot=t panic=-1 quiet no_timer_check tsc_early_khz=2400007 tsc=reliable
-chardev socket,id=console,fd=12
-serial chardev:console
-chardev socket,id=qmp,fd=13,server=on,wait=off
-mon chardev=qmp,mode=control
-chardev socket,id=qmp2,fd=14,server=on,wait=off
-mon chardev=qmp2,mode=control
-add-fd fd=6,set=3,opaque=read-bbbbbbbbbbbbbbbbbbbbbbbb
-add-fd fd=7,set=3,opaque=write-bbbbbbbbbbbbbbbbbbbbbbbb
-add-fd fd=8,set=4,opaque=read-aaaaaaaaaaaaaaaaaaaaaaaa
-blockdev {\"discard\":\"unmap\",\"driver\":\"raw\",\"file\":{\"discard\":\"unmap\",\"driver\":\"file\",\
\"filename\":\"/dev/fdset/4\",\"locking\":\"off\"},\"node-name\":\"laaaaaaaaaaaaaaaaaaaaaaaa\",\"read-only\":true}
-blockdev {\"backing\":\"laaaaaaaaaaaaaaaaaaaaaaaa\",\"discard\":\"unmap\",\"driver\":\"qcow2\",\"file\":{\
\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"/dev/fdset/3\",\"locking\":\"off\"},\
\"node-name\":\"lbbbbbbbbbbbbbbbbbbbbbbbb\",\"read-only\":false}
-device virtio-blk-device,id=disk,drive=lbbbbbbbbbbbbbbbbbbbbbbbb
-netdev stream,id=net,server=off,addr.type=fd,addr.str=9
-device virtio-net-device,netdev=net,mac=02:00:00:ab:00:01
-device virtio-serial-device,max_ports=32
-chardev socket,id=slot0,fd=10,server=on,wait=off
-device virtserialport,chardev=slot0,nr=1,name=agentiso.0
-chardev socket,id=slot1,fd=11,server=on,wait=off
-device virtserialport,chardev=slot1,nr=2,name=agentiso.1";

    let words = machine().words();

    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(last) if !word.starts_with('-') => *last = format!("{last} {word}"),
            _ => lines.push(word),
        }
    }
    assert_eq!(lines.join("\n"), expected);
}

#[test]
fn layer_on_a_block_device_is_opened_as_one() {
    let mut top = layer('b', LayerFormat::Raw, 20, Some(21));
    top.bytes_in = BytesIn::BlockDevice;
    let line = CommandLine { layers: vec![top], ..machine() }.words().join(" ");

    assert!(line.contains(r#""driver":"host_device","filename":"/dev/fdset/3","locking":"off""#), "{line}");
    assert!(!line.contains(r#""driver":"file""#), "{line}");
}

#[test]
fn kvm_machine_gets_the_device_by_descriptor_and_no_counter_rate() {
    let line = CommandLine { cpu: Cpu::Kvm { device: 20 }, ..machine() }.words().join(" ");

    assert!(line.contains("-add-fd fd=20,set=1 -accel kvm,device=/dev/fdset/1 -cpu host"), "{line}");
    for word in ["tsc", "no_timer_check", "mitigations"] {
        assert!(!line.contains(word), "{line}");
    }
}

#[test]
fn single_vcpu_keeps_its_counter_checked() {
    let line = CommandLine { vcpus: VcpuCount::MIN, ..machine() }.words().join(" ");

    assert!(line.contains("tsc_early_khz") && !line.contains("tsc=reliable"), "{line}");
}

#[test]
fn empty_root_is_said_to_the_agent() {
    let line = CommandLine { agent_options: vec![AgentOption::EmptyRoot], ..machine() }.words().join(" ");

    assert!(line.contains(" agentiso.root=empty "), "{line}");
}

#[test]
fn tap_and_vsock_are_passed_by_descriptor() {
    let line = CommandLine {
        nic: Some((MacAddress([2, 0, 0, 0, 0, 1]), Card::Tap(30))),
        channel: Channel::Vsock { cid: 77, vhost: 31, key: 32 },
        ..machine()
    }
    .words()
    .join(" ");

    assert!(line.contains("-netdev tap,id=net,fd=30 "), "{line}");
    assert!(line.contains("-fw_cfg name=opt/org.agentiso/key,file=/proc/self/fd/32 "), "{line}");
    assert!(line.ends_with("-device vhost-vsock-device,guest-cid=77,vhostfd=31"), "{line}");
}

#[test]
fn machine_without_a_card_has_none() {
    let line = CommandLine { nic: None, ..machine() }.words().join(" ");

    assert!(!line.contains("net"), "{line}");
}

#[test]
fn node_names_lead_back_to_layers() {
    let id = LayerId::random();

    assert_eq!(layer_of_node(&node_name(&id)), Some(id.clone()));
    assert!(node_name(&id).len() <= 31);
    assert_eq!(layer_of_node("#block123"), None);
    assert_eq!(layer_of_node(&format!("l{id}x")), None);
}
