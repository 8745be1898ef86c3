//! Connections, and what each may cost.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::sleep};

use super::{Answer, Stop};
use crate::stall::{Limits, Stalling};

/// Connections that are served at once; more wait.
const MAX_CONNECTIONS: usize = 256;

/// How long a request's head may take.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long a client may leave what it is sent unread.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// How long nothing at all may happen on a connection: event streams are kept alive by the server.
const IDLE_LIMIT: Duration = Duration::from_secs(120);

/// How long connections may take to end when the server stops.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// How long to wait after a failure to accept, as when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests until it is told to stop.
pub(super) async fn serve_connections<A, F>(listener: TcpListener, mut stop: Stop, answer: A)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.stopped() => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let answer = answer.clone();
        let mut stop = stop.clone();
        connections.spawn(async move {
            let _place = place;
            let limits = Limits { write: WRITE_LIMIT, idle: Some(IDLE_LIMIT) };
            let stream = TokioIo::new(Stalling::new(stream, limits));
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
            let connection = builder.serve_connection(stream, service);
            tokio::select! {
                served = connection => if let Err(error) = served {
                    tracing::debug!(%peer, %error, "a connection ended badly");
                },
                () = async { stop.stopped().await; sleep(STOP_LIMIT).await } => {}
            }
        });
    }
    // Streams of events have no end of their own.
    connections.shutdown().await;
}
