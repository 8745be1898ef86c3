use std::time::Duration;

use agentiso_guest::message::{Command, EntryKind, ErrorCode, Exit};

use super::Scene;
use crate::{
    channel::client::{CollectOptions, Configure, ExecEvent, ExecOutput, ExecSpec, GuestError, WriteOptions},
    testkit::{Fault, contract::eventually},
};

async fn run(scene: &Scene, spec: ExecSpec) -> ExecOutput {
    scene.client().exec_collect(spec, CollectOptions::default()).await.unwrap()
}

fn command(argv: &[&str]) -> Command {
    Command { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..Command::default() }
}

fn code_of<T>(result: Result<T, GuestError>) -> Option<ErrorCode> {
    match result {
        Err(GuestError::Refused { code, .. }) => Some(code),
        _ => None,
    }
}

#[tokio::test]
async fn shell_line_prints_on_both_streams_and_has_its_status() {
    let scene = Scene::new().await;

    let output = run(&scene, ExecSpec::shell("echo out; echo err >&2; exit 3; echo never")).await;

    assert_eq!(output.exit, Exit::Code(3));
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
}

#[tokio::test]
async fn unknown_programs_are_told_from_unknown_words_of_the_shell() {
    let scene = Scene::new().await;

    let program = scene.client().exec_collect(ExecSpec::program(["nosuch"]), CollectOptions::default()).await;
    let word = run(&scene, ExecSpec::shell("nosuch")).await;

    assert_eq!(code_of(program), Some(ErrorCode::NotFound));
    assert_eq!(word.exit, Exit::Code(127));
}

#[tokio::test]
async fn input_of_any_length_comes_back_from_cat() {
    let scene = Scene::new().await;
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let options = CollectOptions { max_output_bytes: input.len(), stdin: Some(input.clone()) };

    let output = scene.client().exec_collect(ExecSpec::program(["cat"]), options).await.unwrap();

    assert_eq!(output.exit, Exit::Code(0));
    assert!(output.stdout == input, "{} bytes", output.stdout_bytes);
}

#[tokio::test]
async fn endless_output_ends_with_the_timeout_and_is_kept_so_far() {
    let scene = Scene::new().await;

    let output = run(&scene, ExecSpec::program(["yes"]).timeout(Duration::from_millis(50))).await;

    assert_eq!(output.exit, Exit::TimedOut);
    assert!(output.stdout.starts_with(b"y\ny\n"));
}

#[tokio::test]
async fn signal_ends_the_command() {
    let scene = Scene::new().await;
    let mut stream = scene.client().exec(ExecSpec::program(["sleep", "1000"])).await.unwrap();
    stream.next().await.unwrap();

    stream.input().signal(15).await.unwrap();

    assert_eq!(stream.next().await.unwrap(), Some(ExecEvent::Exited(Exit::Signal(15))));
}

#[tokio::test]
async fn client_that_hangs_up_ends_the_command() {
    let scene = Scene::new().await;
    let guest = scene.guest();
    let mut stream = scene.client().exec(ExecSpec::program(["yes"])).await.unwrap();
    stream.next().await.unwrap();
    assert_eq!(guest.connections(), 1);

    drop(stream);

    eventually("the agent serves nobody", async || guest.connections() == 0).await;
}

#[tokio::test]
async fn environment_is_the_commands_on_top_of_the_machines() {
    let scene = Scene::new().await;
    let set = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
    let client = scene.client();
    client.env_set([set("A", Some("1")), set("B", Some("2")), set("C", Some("3"))].into()).await.unwrap();
    client.env_set([set("C", None)].into()).await.unwrap();

    let output = run(&scene, ExecSpec::program(["env"]).env("B", "own")).await;
    let refused = client.env_set([set("D", Some("4")), set("x=y", Some("5"))].into()).await;
    client.env_clear().await.unwrap();

    assert_eq!(output.stdout, b"A=1\nB=own\n");
    assert_eq!(code_of(refused), Some(ErrorCode::Invalid));
    assert_eq!(scene.guest().env(), [].into());
}

#[tokio::test]
async fn job_goes_on_without_its_client_and_is_found_again() {
    let scene = Scene::new().await;
    let client = scene.client();

    let job =
        client.job_start(command(&["sh", "-c", "echo begun; sleep 0.05; echo ended >&2"])).await.unwrap();
    let running = client.job_wait(job.id, Some(Duration::from_millis(1))).await.unwrap();
    let ended = client.job_wait(job.id, None).await.unwrap();

    assert_eq!(running.job.exit, None);
    assert_eq!(ended.job.exit, Some(Exit::Code(0)));
    assert_eq!((ended.stdout, ended.stderr), (b"begun\n".to_vec(), b"ended\n".to_vec()));
    assert_eq!(client.job_poll(job.id).await.unwrap().job, ended.job);
    assert_eq!(client.job_list().await.unwrap(), [ended.job]);
    assert_eq!(code_of(client.job_poll(job.id + 1).await), Some(ErrorCode::NotFound));
}

#[tokio::test]
async fn attached_client_sees_a_job_from_its_beginning_to_its_signal() {
    let scene = Scene::new().await;
    let client = scene.client();
    let job = client.job_start(command(&["sh", "-c", "echo begun; sleep 1000"])).await.unwrap();

    let mut stream = client.job_attach(job.id).await.unwrap();
    let first = stream.next().await.unwrap();
    client.job_signal(job.id, 9).await.unwrap();
    let last = stream.next().await.unwrap();

    assert_eq!(first, Some(ExecEvent::Stdout(b"begun\n".to_vec())));
    assert_eq!(last, Some(ExecEvent::Exited(Exit::Signal(9))));
}

#[tokio::test]
async fn files_are_written_read_edited_listed_and_described() {
    let scene = Scene::new().await;
    let client = scene.client();
    let content = vec![7; 600_000];
    let options = |parents| WriteOptions { mode: Some(0o600), parents };

    let orphan = client.write_file("/no/such/file", options(false), &mut &content[..]).await;
    client.write_file("/a/b/big", options(true), &mut &content[..]).await.unwrap();
    client.write_file("/a/text", options(true), &mut &b"one two one"[..]).await.unwrap();
    client.edit_file("/a/text", "one", "1").await.unwrap();

    assert_eq!(code_of(orphan), Some(ErrorCode::NotFound));
    assert!(client.read_file("/a/b/big", 0, 1 << 20).await.unwrap() == content);
    assert_eq!(client.read_file("/a/text", 2, 3).await.unwrap(), b"two");
    assert_eq!(client.read_file("/a/text", 0, 100).await.unwrap(), b"1 two one");
    assert_eq!(code_of(client.edit_file("/a/text", "absent", "x").await), Some(ErrorCode::NotFound));
    assert_eq!(code_of(client.read_file("/a/none", 0, 1).await), Some(ErrorCode::NotFound));
    let mut entries = client.list_files("/a").await.unwrap();
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    let seen: Vec<_> = entries.iter().map(|entry| (&*entry.name, entry.kind, entry.size)).collect();
    assert_eq!(seen, [("b", EntryKind::Directory, 0), ("text", EntryKind::File, 9)]);
    assert_eq!(client.stat_file("/a/b/big").await.unwrap().mode, 0o600);
}

#[tokio::test]
async fn configuration_adds_up() {
    let scene = Scene::new().await;
    let hostname = Configure { hostname: Some("one".to_owned()), ..Configure::default() };
    let time = Configure { set_clock: true, clone: true, ..Configure::default() };

    scene.client().configure(hostname).await.unwrap();
    let report = scene.client().configure(time).await.unwrap();

    let configuration = scene.guest().configuration();
    assert_eq!(configuration.hostname.as_deref(), Some("one"));
    assert!(configuration.time_ns.is_some_and(|time| time > 0) && configuration.clone);
    assert_eq!(scene.guest().clone_configurations(), 1);
    assert!(report.offset_ns.unsigned_abs() < 100_000_000, "{report:?}");
    assert_eq!(run(&scene, ExecSpec::program(["hostname"])).await.stdout, b"one\n");
    assert_eq!(scene.client().info().await.unwrap().hostname, "one");
}

#[tokio::test]
async fn frozen_processes_print_nothing_while_the_agent_answers() {
    let scene = Scene::new().await;
    let client = scene.client();
    client.freeze(uuid::Uuid::from_u128(1), Duration::from_secs(1)).await.unwrap();

    let mut stream = client.exec(ExecSpec::program(["echo", "x"])).await.unwrap();
    stream.next().await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(50), stream.next()).await;
    client.ping().await.unwrap();
    client.thaw(uuid::Uuid::from_u128(1)).await.unwrap();

    assert!(early.is_err());
    assert_eq!(stream.next().await.unwrap(), Some(ExecEvent::Stdout(b"x\n".to_vec())));
}

#[tokio::test]
async fn archive_comes_back_as_it_went_in() {
    let scene = Scene::new().await;
    let client = scene.client();

    let mut sink = client.write_archive("/", Default::default(), true).await.unwrap();
    sink.write(b"not even a tar").await.unwrap();
    sink.finish().await.unwrap();

    let mut copy = Vec::new();
    client.read_archive("/", false).await.unwrap().copy_to(&mut copy).await.unwrap();
    assert_eq!(copy, b"not even a tar");
}

/// A connection kept by the client may end just when its next request is on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_that_was_not_begun_is_begun_on_another_connection() {
    let scene = Scene::new().await;

    for _ in 0..100 {
        let client = scene.client();
        client.ping().await.unwrap();
        // Elsewhere the agent ends the connection at this moment.
        let report = client.configure(Configure { clone: true, ..Configure::default() }).await;
        report.unwrap();
    }

    assert_eq!(scene.guest().clone_configurations(), 100);
}

#[tokio::test]
async fn armed_fault_of_the_agent_reaches_the_client() {
    let scene = Scene::new().await;
    scene.host.faults().arm("agent.sync", 1, Fault::Fail);
    scene.host.faults().arm("agent.ping", 1, Fault::Hang);

    let sync = scene.client().sync().await;
    let ping = tokio::time::timeout(Duration::from_millis(50), scene.client().ping()).await;

    assert_eq!(code_of(sync), Some(ErrorCode::Failed));
    assert!(ping.is_err());
    scene.client().sync().await.unwrap();
}
