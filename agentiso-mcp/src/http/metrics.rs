//! What Prometheus reads.

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Response, StatusCode,
    body::Bytes,
    header::{self, HeaderValue},
};
use tokio::net::TcpListener;

use super::{Answer, Stop, listen::serve_connections, refuse};
use crate::Service;

/// Serves the counters of a server at `/metrics` until it is told to stop. Names and ids of workspaces and sessions are
/// not among them.
pub async fn serve_metrics(service: Service, listener: TcpListener, stop: Stop) {
    serve_connections(listener, stop, move |request| {
        let service = service.clone();
        async move {
            if request.uri().path() != "/metrics" {
                return refuse(StatusCode::NOT_FOUND, "the metrics are at /metrics");
            }
            if request.method() != Method::GET {
                return refuse(StatusCode::METHOD_NOT_ALLOWED, "the metrics are read with GET");
            }
            text(&service).await
        }
    })
    .await;
}

async fn text(service: &Service) -> Answer {
    let workspaces = match service.sessions.host().list().await {
        Ok(workspaces) => workspaces,
        Err(error) => {
            tracing::warn!(error = error.report(), "could not count the workspaces");
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the workspaces could not be counted");
        }
    };
    let text = service.metrics.text(&workspaces);
    let mut answer = Response::new(Full::new(Bytes::from(text)).boxed());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}
