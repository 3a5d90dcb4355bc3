//! HTTP to the API server: one request on one connection, the answer piece by piece.
//!
//! A connection per request costs a handshake every few minutes (a watch lasts that long) and saves
//! a pool; nothing of an answer is kept but the piece in hand. It does not retry and knows no
//! Kubernetes object but `Status`, in which the API server says why it refused.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use flate2::write::GzDecoder;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, USER_AGENT,
};
use hyper::rt::{Read, Write as HyperWrite};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::debug;

use super::access::{Access, AccessError, Source};

/// Until a connection stands.
const CONNECT: Duration = Duration::from_secs(10);
/// Until an answer begins. A list of thousands may take an API server some seconds.
const ANSWER: Duration = Duration::from_secs(60);
/// Between two pieces of an answer that is not a watch.
const PIECE: Duration = Duration::from_secs(30);
/// The longest answer that is read whole: one object.
const LONGEST_OBJECT: usize = 4 << 20;
/// What is read at once, in bytes: more than a Node, so that most come in one piece.
const READ_BUFFER: usize = 32 << 10;
/// What our field manager is called, and how the API server's log knows us.
const AGENT: &str = concat!("twilld/", env!("CARGO_PKG_VERSION"));

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// It was not sent.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// No connection, or it broke.
    #[error("{what}: {problem}")]
    Broken {
        /// What was going on.
        what: &'static str,
        /// Why it failed.
        problem: String,
    },
    /// The API server refused.
    #[error("{code} {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// What the API server says about it.
        message: String,
    },
    /// The answer is not what was asked for.
    #[error("an answer that makes no sense: {0}")]
    Nonsense(String),
}

impl ApiError {
    pub(super) fn broken(what: &'static str, error: impl std::fmt::Display) -> Self {
        let problem = error.to_string();
        Self::Broken { what, problem }
    }

    /// Whether what was asked for is too old to be had: list anew.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { code: 410, .. })
    }

    /// Whether there is no such object.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }
}

/// `Status`, as far as it is read. Also the object of a watch's `ERROR`.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
}

/// Asks one API server.
#[derive(Debug, Clone)]
pub(super) struct Client {
    source: Source,
}

/// An answer that is still coming in.
pub(super) struct Body {
    incoming: Incoming,
    unzip: Option<GzDecoder<Vec<u8>>>,
    /// Until a piece must have come.
    patience: Duration,
}

impl Client {
    pub(super) fn new(source: Source) -> Self {
        Self { source }
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// `GET`, the answer in pieces with at most `patience` between them.
    pub(super) async fn stream(&self, path: &str, patience: Duration) -> Result<Body, ApiError> {
        let request = Request::get(path).header(ACCEPT_ENCODING, "gzip");
        let response = self.send(request, path, Bytes::new()).await?;
        let zipped = response
            .headers()
            .get(CONTENT_ENCODING)
            .is_some_and(|e| e == "gzip");
        let body = Body {
            incoming: response.into_body(),
            unzip: zipped.then(|| GzDecoder::new(Vec::new())),
            patience,
        };
        Ok(body)
    }

    /// `GET` of one object.
    pub(super) async fn get(&self, path: &str) -> Result<Vec<u8>, ApiError> {
        self.stream(path, PIECE).await?.whole().await
    }

    /// A strategic-merge `PATCH`; the object as it is then.
    pub(super) async fn patch(&self, path: &str, patch: String) -> Result<Vec<u8>, ApiError> {
        let request = Request::builder()
            .method(Method::PATCH)
            .header(CONTENT_TYPE, "application/strategic-merge-patch+json");
        let response = self.send(request, path, patch.into()).await?;
        Body::plain(response).whole().await
    }

    async fn send(
        &self,
        request: hyper::http::request::Builder,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ApiError> {
        let Access { server, token, tls } = self.source.load()?;
        let mut request = request
            .uri(format!("{}{path}", server.path))
            .header(HOST, server.authority())
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| ApiError::broken("make the request", error))?;
        let tcp = timeout(CONNECT, TcpStream::connect((&*server.host, server.port))).await;
        let connect = |problem: String| ApiError::Broken {
            what: "connect",
            problem: format!("{}: {problem}", server.authority()),
        };
        let tcp = tcp
            .map_err(|_| connect(format!("no answer within {CONNECT:?}")))?
            .map_err(|error| connect(error.to_string()))?;
        let _ = tcp.set_nodelay(true);
        let exchange = async {
            match tls {
                None => exchange(TokioIo::new(tcp), request).await,
                Some(tls) => {
                    let name: ServerName<'static> = tls.name;
                    let stream = TlsConnector::from(tls.config).connect(name, tcp).await;
                    let stream =
                        stream.map_err(|error| ApiError::broken("TLS handshake", error))?;
                    exchange(TokioIo::new(stream), request).await
                }
            }
        };
        let response = timeout(ANSWER, exchange).await.map_err(|_| {
            ApiError::broken("wait for the answer", format!("none within {ANSWER:?}"))
        })??;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }
}

async fn exchange<T>(io: T, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ApiError>
where
    T: Read + HyperWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(READ_BUFFER)
        .handshake(io)
        .await
        .map_err(|error| ApiError::broken("begin HTTP", error))?;
    // It ends with the answer's last piece, or when the answer is dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "connection to the API server ended");
        }
    });
    let sent = sender.send_request(request).await;
    sent.map_err(|error| ApiError::broken("send the request", error))
}

/// What the API server says about a request that it refused.
async fn refusal(response: Response<Incoming>) -> ApiError {
    let status = response.status();
    let body = Body::plain(response).whole().await.unwrap_or_default();
    let said: Status = serde_json::from_slice(&body).unwrap_or_default();
    let reason = status.canonical_reason().unwrap_or("without a reason");
    let mut message = match said.message.is_empty() {
        true => reason.to_owned(),
        false => format!("{reason}: {}", said.message),
    };
    if status == StatusCode::FORBIDDEN {
        message.push_str("; does its ClusterRole say what conf/kube-twill.yaml says?");
    }
    let code = status.as_u16();
    ApiError::Refused { code, message }
}

impl Body {
    fn plain(response: Response<Incoming>) -> Self {
        Self {
            incoming: response.into_body(),
            unzip: None,
            patience: PIECE,
        }
    }

    /// The next piece, unzipped; `None` at the proper end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let silent = |_| {
                ApiError::broken(
                    "read the answer",
                    format!("nothing for {:?}", self.patience),
                )
            };
            let frame = timeout(self.patience, self.incoming.frame())
                .await
                .map_err(silent)?;
            let Some(frame) = frame else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| ApiError::broken("read the answer", error))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let Some(unzip) = &mut self.unzip else {
                return Ok(Some(data));
            };
            unzip
                .write_all(&data)
                .and_then(|()| unzip.flush())
                .map_err(|error| ApiError::broken("unzip the answer", error))?;
            if !unzip.get_ref().is_empty() {
                return Ok(Some(std::mem::take(unzip.get_mut()).into()));
            }
        }
    }

    async fn whole(mut self) -> Result<Vec<u8>, ApiError> {
        let mut whole = Vec::new();
        while let Some(piece) = self.piece().await? {
            if whole.len() + piece.len() > LONGEST_OBJECT {
                return Err(ApiError::Nonsense(format!(
                    "more than {LONGEST_OBJECT} bytes for one object"
                )));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }
}

/// Makes a text safe in a query.
pub(super) fn query_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
