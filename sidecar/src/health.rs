//! `/healthz` and `/readyz`, as flannel's probes ask for them. A port that is taken costs the
//! probes, not the network.
//!
//! They are answered by a thread of their own: the loop waits for the kernel, which may take seconds
//! where others hold its lock, and whoever gets no answer kills a daemon that is well.

use std::convert::Infallible;
use std::io;
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
use tokio::sync::{oneshot, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;
use tracing::{debug, error, info};

/// How long until a taken port is tried again, and how long a client may take for its request.
const RETRY: Duration = Duration::from_secs(30);
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// Whether the node can carry traffic and may have pods: whether `subnet.env` is there. And what it
/// does not do of what it was asked to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness {
    ready: watch::Sender<bool>,
    held_back: watch::Sender<String>,
}

impl Readiness {
    /// From now on `/readyz` says 200, or 503.
    pub(crate) fn set(&self, ready: bool) {
        self.ready.send_replace(ready);
    }

    /// Whether it is.
    pub(crate) fn get(&self) -> bool {
        *self.ready.borrow()
    }

    /// The leases on whose account IPv6 is held back; empty: it is not.
    pub(crate) fn hold_back(&self, leases: &str) {
        self.held_back.send_replace(leases.to_owned());
    }

    /// Returns when it is.
    pub(crate) async fn wait(&self) {
        // The sender is our own: it is not gone.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }
}

/// Serves until what is returned is dropped, in the network namespace of the calling thread.
pub(crate) fn start(address: SocketAddr, ready: Readiness) -> io::Result<oneshot::Sender<()>> {
    let (served, over) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let thread = std::thread::Builder::new().name("health".to_owned());
    thread.spawn(move || {
        LocalSet::new().block_on(&runtime, async {
            tokio::select! {
                () = serve(address, ready) => {}
                _ = over => {}
            }
        });
    })?;
    Ok(served)
}

/// Serves for ever. Must run on a tokio `LocalSet`.
async fn serve(address: SocketAddr, ready: Readiness) {
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
                let held_back = ready.held_back.borrow().clone();
                let answer = answer(request.uri().path(), ready.get(), &held_back);
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

fn answer(path: &str, ready: bool, held_back: &str) -> Response<Full<Bytes>> {
    let (status, text) = match (path, ready) {
        ("/healthz", _) => (StatusCode::OK, "twilld is running\n"),
        ("/readyz", true) => (StatusCode::OK, "twilld is ready\n"),
        ("/readyz", false) => (StatusCode::SERVICE_UNAVAILABLE, "twilld is not ready yet\n"),
        _ => (StatusCode::NOT_FOUND, "not found\n"),
    };
    let mut text = text.to_owned();
    if path == "/readyz" && !held_back.is_empty() {
        text += &format!("IPv6 is held back on account of the leases {held_back}\n");
    }
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let plain = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

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
            assert_eq!(answer(path, ready, "").status(), status, "{path}");
        }
    }

    #[tokio::test]
    async fn what_is_held_back_shows_in_readyz_alone() {
        for (path, shows) in [("/healthz", false), ("/readyz", true)] {
            let body = answer(path, true, "10.5.30.0-24").into_body();
            let body = body.collect().await.unwrap().to_bytes();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert_eq!(text.contains("10.5.30.0-24"), shows, "{text}");
        }
    }
}
