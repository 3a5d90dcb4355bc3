//! `/healthz` and `/readyz`, as flannel's probes ask for them. A port that is taken costs the
//! probes, not the network.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::sleep;
use tracing::{debug, error, info};

/// How long until a taken port is tried again, and how long a client may take for its request.
const RETRY: Duration = Duration::from_secs(30);
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// Whether the node can carry traffic and may have pods: whether `subnet.env` is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness(watch::Sender<bool>);

impl Readiness {
    /// From now on `/readyz` says 200, or 503.
    pub(crate) fn set(&self, ready: bool) {
        self.0.send_replace(ready);
    }

    /// Whether it is.
    pub(crate) fn get(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is.
    pub(crate) async fn wait(&self) {
        // The sender is our own: it is not gone.
        let _ = self.0.subscribe().wait_for(|ready| *ready).await;
    }
}

/// Serves for ever. Must run on a tokio `LocalSet`.
pub(crate) async fn serve(address: SocketAddr, ready: Readiness) {
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !told => {
                error!(%address, %error, "cannot serve health checks; choose another --healthz-port or free this one");
                told = true;
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    };
    info!(%address, "serving health checks");
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or a client that hung up already.
                debug!(%error, "accept a health check");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let ready = ready.clone();
        spawn_local(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let answer = answer(request.uri().path(), ready.get());
                async move { Ok::<_, Infallible>(answer) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(CLIENT_PATIENCE)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                debug!(%error, "serve a health check");
            }
        });
    }
}

fn answer(path: &str, ready: bool) -> Response<Full<Bytes>> {
    let (status, text) = match (path, ready) {
        ("/healthz", _) => (StatusCode::OK, "twilld is running\n"),
        ("/readyz", true) => (StatusCode::OK, "twilld is ready\n"),
        ("/readyz", false) => (StatusCode::SERVICE_UNAVAILABLE, "twilld is not ready yet\n"),
        _ => (StatusCode::NOT_FOUND, "not found\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let plain = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_shows_in_readyz_alone() {
        for (path, ready, status) in [
            ("/healthz", false, 200),
            ("/healthz", true, 200),
            ("/readyz", false, 503),
            ("/readyz", true, 200),
            ("/metrics", true, 404),
            ("/healthz/x", true, 404),
        ] {
            assert_eq!(answer(path, ready).status(), status, "{path}");
        }
    }
}
