//! Every kind of operation that a host has for a guest, each with its time limit.

use std::time::Duration;

use agentiso_core::channel::client::{
    CollectOptions, Configure, ExecSpec, FileRange, GuestClient, GuestError, RawPath, WriteOptions,
};
use tokio::task::JoinSet;

/// Longest time for one operation: a reply may take 30 s, and this host is busy.
const OPERATION_LIMIT: Duration = Duration::from_secs(60);

/// The name of an operation, and what came of it.
pub(crate) type Tried = (&'static str, Result<(), GuestError>);

/// One try of each kind of operation, all at once.
///
/// # Panics
/// One did not end in its time.
pub(crate) fn operations(client: &GuestClient, tries: &mut JoinSet<Tried>) {
    let mut add = |name: &'static str, operation: futures::Operation| {
        tries.spawn(async move {
            let ended = tokio::time::timeout(OPERATION_LIMIT, operation).await;
            (name, ended.unwrap_or_else(|_| panic!("{name} did not end within {OPERATION_LIMIT:?}")))
        });
    };
    let of = || client.clone();
    let (a, b, c, d) = (of(), of(), of(), of());
    add("ping", Box::pin(async move { a.ping().await }));
    add("info", Box::pin(async move { b.info().await.map(drop) }));
    add(
        "exec",
        Box::pin(async move {
            let spec = ExecSpec::shell("echo true; exit 7").timeout(Duration::from_secs(1));
            let options = CollectOptions { max_output_bytes: 1000, ..CollectOptions::default() };
            let output = c.exec_collect(spec, options).await?;
            assert!(output.stdout.len() <= 1100, "{} bytes of output", output.stdout.len());
            Ok(())
        }),
    );
    add("read", Box::pin(async move { d.read_file("/etc/passwd", 0, 1000).await.map(drop) }));
    let (a, b, c, d) = (of(), of(), of(), of());
    add("list", Box::pin(async move { a.list_files("/").await.map(drop) }));
    add("stat", Box::pin(async move { b.stat_file("/").await.map(drop) }));
    add(
        "walk",
        Box::pin(async move {
            let mut tree = c.walk(RawPath::new(&b"/etc"[..])).await?;
            while tree.next().await?.is_some() {}
            Ok(())
        }),
    );
    add(
        "archive",
        Box::pin(async move {
            let mut stream =
                d.open_file("/etc/passwd", FileRange { offset: 0, limit: Some(1 << 20) }).await?;
            while stream.chunk().await?.is_some() {}
            Ok(())
        }),
    );
    let (a, b, c, d) = (of(), of(), of(), of());
    add("jobs", Box::pin(async move { a.job_list().await.map(drop) }));
    add(
        "write",
        Box::pin(async move {
            let mut content = &[1; 100_000][..];
            b.write_file("/dev/null/x", WriteOptions::default(), &mut content).await.map(drop)
        }),
    );
    add(
        "configure",
        Box::pin(async move {
            let configure = Configure { set_clock: true, ..Configure::default() };
            c.configure(configure).await.map(drop)
        }),
    );
    add("environment", Box::pin(async move { d.env_set([("A".to_owned(), None)].into()).await }));
}

mod futures {
    use std::{future::Future, pin::Pin};

    use agentiso_core::channel::client::GuestError;

    pub(super) type Operation = Pin<Box<dyn Future<Output = Result<(), GuestError>> + Send>>;
}
