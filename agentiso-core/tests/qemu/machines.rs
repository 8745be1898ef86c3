//! What a machine leaves, says and needs.

use std::{
    os::{
        fd::OwnedFd,
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    process::Command,
    time::Instant,
};

use agentiso_core::{
    channel::ChannelDevice,
    hypervisor::{Hypervisor, HypervisorError, LaunchSpec, MachineLog, MachineStatus},
    testkit::contract::eventually,
};

use crate::{
    fixture::{Fixture, PATIENCE, is_root, ordinary_group, set_mode},
    guest,
};

/// Evaluates to the fixture, or says why the test is skipped and ends it.
macro_rules! fixture {
    () => {
        match Fixture::new().await {
            Ok(fixture) => fixture,
            Err(reason) => return println!("skipped: {reason}"),
        }
    };
}
pub(crate) use fixture;

#[tokio::test(flavor = "multi_thread")]
async fn guest_prints_to_the_console_log() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let machine = qemu.launch(fixture.new_spec().await).await.unwrap();

    eventually("the greeting is in the log", async || {
        let log = qemu.log_tail(&machine.run_dir, MachineLog::Console, 1 << 20).await.unwrap();
        String::from_utf8_lossy(&log).contains(guest::GREETING)
    })
    .await;

    qemu.kill(&machine).await.unwrap();
    let log = std::fs::read_to_string(machine.run_dir.join("console.log")).unwrap();
    assert!(log.contains(guest::GREETING), "{log}");
}

/// Whoever wants something of a machine tries again and again while another process starts it.
#[tokio::test(flavor = "multi_thread")]
async fn machine_starts_although_others_connect_to_its_channel() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let spec = fixture.new_spec().await;
    let ChannelDevice::Serial(slots) = &spec.channel else { unreachable!("it has slots") };
    let connect = |slot: &OwnedFd| {
        let slot = UnixListener::from(slot.try_clone().unwrap());
        UnixStream::connect_addr(&slot.local_addr().unwrap()).unwrap()
    };
    let _impatient: Vec<_> = slots.iter().map(connect).collect();

    let machine = qemu.launch(spec).await.unwrap();

    qemu.kill(&machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_launch_shows_what_qemu_said() {
    let fixture = fixture!();
    let garbage = fixture.path().join("garbage");
    std::fs::write(&garbage, "this is no kernel").unwrap();
    set_mode(&garbage, 0o644);

    let result =
        fixture.qemu().await.launch(LaunchSpec { kernel: garbage, ..fixture.new_spec().await }).await;

    let text = result.unwrap_err().to_string();
    assert!(text.contains("QEMU ended") && text.contains("the end of its log:\nqemu"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_kernel_and_shim_name_the_command() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let missing = LaunchSpec { kernel: fixture.path().join("missing"), ..fixture.new_spec().await };

    let no_kernel = qemu.launch(missing).await.unwrap_err();
    std::fs::remove_file(fixture.path().join("agentiso-shim")).unwrap();
    let no_shim = qemu.launch(fixture.new_spec().await).await.unwrap_err();

    for error in [no_kernel, no_shim] {
        assert!(
            matches!(&error, HypervisorError::Missing { remedy, .. } if remedy.contains("init")),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_killed_while_it_starts_is_an_error_at_once() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let spec = fixture.new_spec().await;
    let (id, run_dir) = (spec.id, spec.run_dir.clone());
    let begin = Instant::now();

    let (launched, ()) = tokio::join!(qemu.launch(spec), async {
        eventually("its process is there", async || {
            let listed = qemu.processes().await.unwrap();
            // The log writer is there before the machine.
            let machine = listed.iter().filter(|(owner, _)| *owner == id).nth(1);
            let Some((_, process)) = machine else { return false };
            qemu.kill_process(process).await.unwrap();
            true
        })
        .await;
    });

    let error = launched.unwrap_err();
    assert!(matches!(error, HypervisorError::Launch { .. }), "{error}");
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    assert_eq!(std::fs::read_dir(run_dir).unwrap().count(), 0);
    assert!(qemu.processes().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn run_folder_may_have_a_path_of_any_length() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let spec = fixture.new_spec().await;
    let run_dir = spec.run_dir.join("d".repeat(200)).join("e".repeat(200));
    std::fs::create_dir_all(&run_dir).unwrap();

    let machine = qemu.launch(LaunchSpec { run_dir, ..spec }).await.unwrap();

    assert_eq!(qemu.status(&machine).await.unwrap(), MachineStatus::Running);
    qemu.kill(&machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_of_several_clients_take_turns() {
    let fixture = fixture!();
    let machine = fixture.qemu().await.launch(fixture.new_spec().await).await.unwrap();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (qemu, machine) = (fixture.qemu().await, machine.clone());
        clients.spawn(async move {
            qemu.pause(&machine).await.unwrap();
            qemu.resume(&machine).await.unwrap();
            qemu.active_layer(&machine).await.unwrap();
        });
    }

    let done = clients.join_all().await;

    assert_eq!(done.len(), 12);
    let qemu = fixture.qemu().await;
    assert_eq!(qemu.status(&machine).await.unwrap(), MachineStatus::Running);
    qemu.kill(&machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn power_button_is_pressed_without_effect_on_a_guest_that_ignores_it() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    let machine = qemu.launch(fixture.new_spec().await).await.unwrap();

    qemu.power_button(&machine).await.unwrap();

    assert_eq!(qemu.status(&machine).await.unwrap(), MachineStatus::Running);
    qemu.kill(&machine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn cold_start_times_are_printed() {
    let fixture = fixture!();
    let qemu = fixture.qemu().await;
    for _ in 0..5 {
        let spec = fixture.new_spec().await;
        let begin = Instant::now();
        let machine = qemu.launch(spec).await.unwrap();
        let launched = begin.elapsed();
        qemu.kill(&machine).await.unwrap();
        println!("launch {launched:?}, kill {:?}", begin.elapsed() - launched);
    }
}

/// All other tests once more, as an ordinary user.
#[test]
fn everything_holds_for_an_ordinary_user() {
    if !is_root() {
        return println!("skipped: not root, so all other tests show it already");
    }
    // Where everybody may enter, wherever this run keeps its temporary files.
    let folder = tempfile::Builder::new().prefix("agentiso-user-").tempdir_in("/tmp").unwrap();
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    set_mode(&temporary, 0o777);
    let program = folder.path().join("tests");
    let shim = folder.path().join("agentiso-shim");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_agentiso-shim"), &shim).unwrap();
    for path in [folder.path(), &program, &shim] {
        set_mode(path, 0o755);
    }

    let output = Command::new(&program)
        .args(["--skip", "everything_holds_for_an_ordinary_user", "--test-threads", "2"])
        .env_remove("HOME")
        .env("AGENTISO_TEST_SHIM", &shim)
        .env("TMPDIR", &temporary)
        .current_dir("/")
        .uid(65534)
        .gid(ordinary_group())
        .output()
        .unwrap();

    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("test result: ok."), "{printed}");
}
