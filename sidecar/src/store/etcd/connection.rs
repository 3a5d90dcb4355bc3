//! One HTTP/2 connection to one member of etcd, as a service that tonic's client can call.
//!
//! It dies when the member is silent for half a minute, although TCP would wait much longer; who
//! uses it then makes another. The windows are small: what is read is a page of leases at most.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tonic::body::Body;
use tower_service::Service;
use tracing::debug;

use super::error::chain;
use super::options::{Endpoint, TlsFiles};
use super::tls;

/// For the TCP, TLS and HTTP/2 handshakes together.
const CONNECT: Duration = Duration::from_secs(3);
/// etcd ends a connection that pings more often than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes in flight of one answer, and of all of them together.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// A live connection; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    sender: SendRequest<Body>,
    /// Scheme and authority of every request.
    pub(super) origin: Uri,
}

impl Connection {
    pub(super) async fn open(endpoint: &Endpoint, files: &TlsFiles) -> io::Result<Self> {
        timeout(CONNECT, Self::connect(endpoint, files))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn connect(endpoint: &Endpoint, files: &TlsFiles) -> io::Result<Self> {
        let Endpoint { tls, host, port } = endpoint;
        let stream = match host.parse::<IpAddr>() {
            Ok(ip) => TcpStream::connect((ip, *port)).await?,
            Err(_) => {
                let addresses: Vec<_> = lookup_host((host.as_str(), *port)).await?.collect();
                TcpStream::connect(&addresses[..]).await?
            }
        };
        stream.set_nodelay(true)?;
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let (scheme, sender) = if tls.unwrap_or(!files.is_empty()) {
            let stream = tls::handshake(stream, host, files).await?;
            ("https", Self::speak(stream).await?)
        } else {
            ("http", Self::speak(stream).await?)
        };
        let origin = Uri::builder()
            .scheme(scheme)
            .authority(authority)
            .path_and_query("/")
            .build()
            .map_err(io::Error::other)?;
        Ok(Self { sender, origin })
    }

    async fn speak<T>(stream: T) -> io::Result<SendRequest<Body>>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // Lives as long as the last clone of the sender, or until the other side ends it.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(reason = chain(&error), "a connection to etcd ended");
            }
        });
        Ok(sender)
    }

    pub(super) fn is_tls(&self) -> bool {
        self.origin.scheme_str() == Some("https")
    }

    pub(super) fn is_dead(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}
