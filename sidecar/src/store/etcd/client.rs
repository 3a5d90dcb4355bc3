//! Calls to etcd: the next member when one fails, a new token when the old one is no longer taken,
//! and patience with what passes by itself. What the calls are for is the store's matter.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use prost::Message;
use tokio::time::{Instant, sleep, timeout};
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use super::connection::Connection;
use super::error::{CallError, chain};
use super::options::Options;
use super::proto::{AuthenticateRequest, AuthenticateResponse};
use crate::store::backoff::Backoff;

/// How long one call may take. etcd itself gives up after about 7 s.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a call that may be repeated is repeated: an election takes a second or two.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one answer. etcd's largest value is a third of it, so that one key always fits.
const LARGEST_ANSWER: usize = 4 * 1024 * 1024;
/// How often a token is renewed for one call.
const NEW_TOKENS: usize = 2;

const ANONYMOUS: &str =
    "if this etcd asks for a certificate, give --etcd-certfile and --etcd-keyfile";

/// Whether a call may be sent again when nobody knows what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It reads, or what it makes twice does no harm.
    Yes,
    /// It must be looked up first what became of it.
    No,
}

/// Calls to one cluster over one connection; clones share both.
#[derive(Debug, Clone)]
pub(super) struct Client(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    options: Rc<Options>,
    connection: RefCell<Option<Live>>,
    /// The member to try next, as an index of the endpoints.
    next: Cell<usize>,
    token: RefCell<Option<MetadataValue<Ascii>>>,
}

#[derive(Debug, Clone)]
struct Live {
    connection: Connection,
    endpoint: String,
    /// It has answered a call.
    proven: Rc<Cell<bool>>,
}

/// The pauses between attempts.
pub(super) fn pauses() -> Backoff {
    Backoff::between(Duration::from_millis(100), Duration::from_secs(5))
}

impl Client {
    pub(super) fn new(options: Rc<Options>) -> Self {
        Self(Rc::new(Inner {
            options,
            connection: RefCell::new(None),
            next: Cell::new(0),
            token: RefCell::new(None),
        }))
    }

    /// Calls `path`, e.g. `/etcdserverpb.KV/Range`.
    pub(super) async fn call<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        repeat: Repeat,
    ) -> Result<A, CallError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut pauses = pauses();
        loop {
            let failure = match self.authenticated(path, &request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let again = match failure {
                CallError::Unreachable(_) => true,
                CallError::Broken { .. } => repeat == Repeat::Yes,
                CallError::Refused { .. } => false,
            };
            let pause = pauses.next();
            if !again || Instant::now() + pause > deadline {
                return Err(failure);
            }
            sleep(pause).await;
        }
    }

    /// Opens a stream of answers to one request, with a member that has a leader.
    pub(super) async fn stream<Q, A>(
        &self,
        path: &'static str,
        request: Q,
    ) -> Result<Streaming<A>, CallError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.with_token(async |live: &Live, token| {
            // etcd ends a watch whose client has nothing more to say, so this side never ends.
            let requests = futures_util::StreamExt::chain(
                futures_util::stream::iter([request.clone()]),
                futures_util::stream::pending(),
            );
            let mut request = tonic::Request::new(requests);
            request
                .metadata_mut()
                .insert("hasleader", MetadataValue::from_static("true"));
            authorize(&mut request, token);
            let codec = ProstCodec::<Q, A>::default();
            let mut grpc = grpc(live).await?;
            let answer = grpc.streaming(request, PathAndQuery::from_static(path), codec);
            Ok(answer.await?.into_inner())
        })
        .await
    }

    /// A stream has failed: the next call goes to another member.
    pub(super) fn forget_connection(&self) {
        if self.0.connection.take().is_some() {
            self.0.next.set(self.0.next.get() + 1);
        }
    }

    /// Whom we are connected to, for messages.
    pub(super) fn endpoint(&self) -> String {
        let live = self.0.connection.borrow();
        live.as_ref()
            .map(|live| live.endpoint.clone())
            .unwrap_or_default()
    }

    async fn authenticated<Q, A>(&self, path: &'static str, request: &Q) -> Result<A, CallError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.with_token(async |live: &Live, token| once(live, path, request.clone(), token).await)
            .await
    }

    /// Makes a call with a token if there is a user, and with a new one if the old one is refused.
    async fn with_token<A>(
        &self,
        call: impl AsyncFn(&Live, Option<MetadataValue<Ascii>>) -> Result<A, Status>,
    ) -> Result<A, CallError> {
        let mut renewals = 0;
        loop {
            let live = self.connected().await?;
            let token = self.token(&live).await?;
            let failure = match self.in_time(&live, call(&live, token)).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let has_user = self.0.options.credentials.is_some();
            if !(has_user && failure.is_stale_token() && renewals < NEW_TOKENS) {
                return Err(failure);
            }
            self.0.token.take();
            renewals += 1;
        }
    }

    async fn token(&self, live: &Live) -> Result<Option<MetadataValue<Ascii>>, CallError> {
        let Some(credentials) = &self.0.options.credentials else {
            return Ok(None);
        };
        if let Some(token) = self.0.token.borrow().clone() {
            return Ok(Some(token));
        }
        let request = AuthenticateRequest {
            name: credentials.user.clone(),
            password: credentials.password.clone(),
        };
        let path = "/etcdserverpb.Auth/Authenticate";
        let answer: AuthenticateResponse =
            self.in_time(live, once(live, path, request, None)).await?;
        let mut token = MetadataValue::try_from(answer.token).map_err(|_| {
            let status = Status::internal("its token is no header");
            CallError::from_status(live.endpoint.clone(), status)
        })?;
        token.set_sensitive(true);
        self.0.token.replace(Some(token.clone()));
        Ok(Some(token))
    }

    /// A connection that fails is given up, and the next member's turn has come.
    async fn in_time<A>(
        &self,
        live: &Live,
        call: impl Future<Output = Result<A, Status>>,
    ) -> Result<A, CallError> {
        let endpoint = live.endpoint.clone();
        let failure = match timeout(ANSWER, call).await {
            Ok(Ok(answer)) => {
                live.proven.set(true);
                return Ok(answer);
            }
            Ok(Err(status)) => CallError::from_status(endpoint, status),
            Err(_) => CallError::Broken {
                endpoint,
                reason: format!("no answer within {} s", ANSWER.as_secs()),
            },
        };
        let CallError::Broken { endpoint, reason } = failure else {
            return Err(failure);
        };
        self.forget_connection();
        // A TLS 1.3 server looks at certificates after the client's part of the handshake is over,
        // and what it says about them is often lost with the connection.
        let anonymous = self.0.options.tls.identity.is_none();
        let reason = match anonymous && live.connection.is_tls() && !live.proven.get() {
            true => format!("{reason} ({ANONYMOUS})"),
            false => reason,
        };
        Err(CallError::Broken { endpoint, reason })
    }

    /// The connection, or a new one to the first member that answers.
    async fn connected(&self) -> Result<Live, CallError> {
        if let Some(live) = self.0.connection.borrow().clone()
            && !live.connection.is_dead()
        {
            return Ok(live);
        }
        let Options { endpoints, tls, .. } = &*self.0.options;
        let mut failures = Vec::new();
        for _ in endpoints {
            let turn = self.0.next.get() % endpoints.len();
            let endpoint = &endpoints[turn];
            match Connection::open(endpoint, tls).await {
                Ok(connection) => {
                    let live = Live {
                        connection,
                        endpoint: endpoint.to_string(),
                        proven: Rc::default(),
                    };
                    self.0.connection.replace(Some(live.clone()));
                    return Ok(live);
                }
                Err(error) => failures.push(format!("{endpoint}: {}", chain(&error))),
            }
            self.0.next.set(turn + 1);
        }
        Err(CallError::Unreachable(failures))
    }
}

async fn grpc(live: &Live) -> Result<Grpc<Connection>, Status> {
    let connection = live.connection.clone();
    let origin = connection.origin.clone();
    let mut grpc = Grpc::with_origin(connection, origin).max_decoding_message_size(LARGEST_ANSWER);
    grpc.ready()
        .await
        .map_err(|error| Status::from_error(Box::new(error)))?;
    Ok(grpc)
}

async fn once<Q, A>(
    live: &Live,
    path: &'static str,
    request: Q,
    token: Option<MetadataValue<Ascii>>,
) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut request = tonic::Request::new(request);
    authorize(&mut request, token);
    let codec = ProstCodec::<Q, A>::default();
    let mut grpc = grpc(live).await?;
    let answer = grpc
        .unary(request, PathAndQuery::from_static(path), codec)
        .await?;
    Ok(answer.into_inner())
}

fn authorize<T>(request: &mut tonic::Request<T>, token: Option<MetadataValue<Ascii>>) {
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
}
