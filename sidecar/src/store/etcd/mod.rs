//! The leases of a cluster in etcd v3, in flannel's keys and values: a node with flanneld and one
//! with twilld cannot tell each other apart.
//!
//! ```text
//!  acquire, renew ─▶ ours ─┐                     one list at start, which both of them use
//!                          ├─▶ client ─▶ connection ─▶ tls        gRPC over one HTTP/2 connection
//!  watch ─▶ watch ─────────┘      (a second connection, so that a full one holds up nothing)
//! ```
//!
//! A lease's key hangs on an etcd lease, which carries its time to live; etcd itself deletes it.
//! A key without one is a reservation: it is never given one, and never expires. Every write is a
//! transaction that says what must not have changed, so that nobody's claim is ever overwritten.

mod client;
mod config;
mod connection;
mod error;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod keys;
mod listing;
mod migrate;
mod options;
mod ours;
mod proto;
mod tls;
mod watch;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tracing::debug;

pub use self::options::{Credentials, Endpoint, Options, OptionsError, TlsFiles, parse_endpoints};

use self::client::{Client, Repeat};
use self::error::CallError;
use self::keys::Keys;
use self::listing::{Listing, RANGE};
use self::proto::{
    Compare, KeyValue, PutRequest, RangeRequest, RangeResponse, Request, TxnRequest, TxnResponse,
};
use crate::family::Family;
use crate::lease::Lease;
use crate::restraint;
use crate::store::claims::{held_by, overlapping, random_below};
use crate::store::{Held, Hurt, LeaseEvent, Renewal, Store, StoreError};
use crate::subnet::{Choice, Claim, choose};
use crate::subnets::Subnets;

/// How often other nodes may be quicker.
const TRIES: usize = 10;
const TXN: &str = "/etcdserverpb.KV/Txn";

/// The store.
#[derive(Debug, Clone)]
pub struct EtcdStore {
    options: Rc<Options>,
    keys: Keys,
    client: Client,
    /// The list that a lease was acquired by, for the watch to begin with.
    first: Rc<RefCell<Option<Listing>>>,
    clock: fn() -> SystemTime,
}

/// What came of one attempt to write.
enum Attempt<T> {
    Done(T),
    /// Something has changed since it was looked at: look again.
    Raced,
}

impl EtcdStore {
    /// A store below the prefix of these options. Nothing is connected yet.
    pub fn new(options: Options) -> Self {
        let keys = Keys::below(&options.prefix);
        let options = Rc::new(options);
        Self {
            client: Client::new(options.clone()),
            keys,
            options,
            first: Rc::default(),
            clock: SystemTime::now,
        }
    }

    /// The same with another clock. It is looked at only to say when a lease will end: etcd counts
    /// the time by itself, so that no node's clock, wrong or set, can end anybody's lease.
    pub fn with_clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    fn endpoints(&self) -> String {
        let endpoints: Vec<String> = self
            .options
            .endpoints
            .iter()
            .map(ToString::to_string)
            .collect();
        endpoints.join(",")
    }

    /// Where an operation was tried, for messages.
    fn at(&self, op: &str, key: &str) -> String {
        format!("{op} {key} in etcd at {}", self.endpoints())
    }

    async fn get(
        &self,
        key: impl Into<prost::bytes::Bytes>,
    ) -> Result<Option<KeyValue>, CallError> {
        let request = RangeRequest {
            key: key.into(),
            ..RangeRequest::default()
        };
        let answer: RangeResponse = self.client.call(RANGE, request, Repeat::Yes).await?;
        Ok(answer.kvs.into_iter().next())
    }

    /// Never repeated by itself: whether it was carried out must be looked up.
    async fn transact(&self, request: TxnRequest) -> Result<TxnResponse, CallError> {
        self.client.call(TXN, request, Repeat::No).await
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        Listing::read(&self.client, &self.keys)
            .await
            .map_err(|error| error.during(self.at("list", self.keys.subnets())))
    }

    async fn try_acquire(&self, claim: &Claim) -> Result<Attempt<Held>, StoreError> {
        // One that was made a moment ago will do: every write says what must not have changed.
        let listed = self.first.take();
        let mut listing = match listed {
            Some(listing) => listing,
            None => self.list().await?,
        };
        let decision = choose(claim, &listing.taken, random_below)?;
        let failed = |subnets: Subnets| {
            move |error: CallError| error.during(self.at("claim", &subnets.to_string()))
        };
        let mut leaving = Vec::new();
        for subnets in &decision.release {
            let present = self.still_ours(claim, subnets).await;
            leaving.extend(present.map_err(failed(*subnets))?);
            listing.replace(subnets, None);
        }
        let (subnets, attempt) = match decision.choice {
            Choice::Reuse(subnets) => {
                for present in &leaving {
                    self.release(present).await.map_err(failed(subnets))?;
                }
                (subnets, self.reuse(claim, subnets).await)
            }
            Choice::Previous(subnets) | Choice::Fresh(subnets) => {
                let since = listing.position.revision;
                let attempt = self.create(&claim.lease, subnets, since, &leaving).await;
                (subnets, attempt)
            }
        };
        let attempt = match attempt {
            // It may have been carried out: the next list tells.
            Err(error @ CallError::Broken { .. }) => {
                debug!(%subnets, %error, "what became of our claim is not known, looking again");
                return Ok(Attempt::Raced);
            }
            attempt => attempt.map_err(failed(subnets))?,
        };
        if matches!(attempt, Attempt::Done(_)) {
            listing.replace(&subnets, Some(&claim.lease));
            self.first.replace(Some(listing));
        }
        Ok(attempt)
    }

    async fn reuse(&self, claim: &Claim, subnets: Subnets) -> Result<Attempt<Held>, CallError> {
        let Some(present) = self.get(self.keys.lease(&subnets)).await? else {
            return Ok(Attempt::Raced);
        };
        match self.owner(claim, &subnets, &present) {
            Owner::Us => self.extend(&claim.lease, subnets, &present).await,
            Owner::Nobody | Owner::Other(_) => Ok(Attempt::Raced),
        }
    }

    async fn try_renew(
        &self,
        claim: &Claim,
        subnets: Subnets,
    ) -> Result<Attempt<Renewal>, StoreError> {
        let failed = |error: CallError| error.during(self.at("renew", &subnets.to_string()));
        let present = self.get(self.keys.lease(&subnets)).await.map_err(failed)?;
        let attempt = match &present {
            Some(present) => match self.owner(claim, &subnets, present) {
                Owner::Other(lease) => {
                    let holder = held_by(&subnets, &lease);
                    return Ok(Attempt::Done(Renewal::Lost { holder }));
                }
                Owner::Us => {
                    let extended = self.extend(&claim.lease, subnets, present).await;
                    extended.map(|attempt| attempt.map(Renewal::Renewed))
                }
                Owner::Nobody => {
                    let extended = self.extend(&claim.lease, subnets, present).await;
                    extended.map(|attempt| attempt.map(Renewal::TakenBack))
                }
            },
            None => {
                let listing = self.list().await?;
                if let Some(holder) = overlapping(claim, &subnets, &listing.taken) {
                    return Ok(Attempt::Done(Renewal::Lost { holder }));
                }
                let since = listing.position.revision;
                let created = self.create(&claim.lease, subnets, since, &[]).await;
                created.map(|attempt| attempt.map(Renewal::TakenBack))
            }
        };
        match attempt {
            Err(CallError::Broken { .. }) => Ok(Attempt::Raced),
            attempt => attempt.map_err(failed),
        }
    }

    fn owner(&self, claim: &Claim, subnets: &Subnets, present: &KeyValue) -> Owner {
        match listing::record(&self.keys, present).content {
            Ok((_, lease)) if claim.owns(subnets, &lease) => Owner::Us,
            Ok((_, lease)) => Owner::Other(lease),
            Err(_) => Owner::Nobody,
        }
    }
}

/// Whose a key is.
enum Owner {
    Us,
    Other(Lease),
    /// Its value is damaged.
    Nobody,
}

impl<T> Attempt<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Attempt<U> {
        match self {
            Self::Done(value) => Attempt::Done(change(value)),
            Self::Raced => Attempt::Raced,
        }
    }
}

impl Store for EtcdStore {
    fn describe(&self) -> String {
        format!("etcd at {} below {}", self.endpoints(), self.options.prefix)
    }

    fn config_advice(&self) -> String {
        format!(
            "run etcdctl --endpoints={} put {} '{}', or start twilld with --network 10.244.0.0/16",
            self.endpoints(),
            self.keys.config(),
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#
        )
    }

    async fn config(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let present = self.get(self.keys.config().to_owned()).await;
        let present = present.map_err(|e| e.during(self.at("read", self.keys.config())))?;
        Ok(present.map(|kv| kv.value.to_vec()))
    }

    async fn config_changed(&self, known: Option<Vec<u8>>) -> Option<Vec<u8>> {
        config::changed(&self.client, self.keys.config(), known).await
    }

    async fn init_config(&self, config: &[u8]) -> Result<bool, StoreError> {
        let key = prost::bytes::Bytes::from(self.keys.config().to_owned());
        let put = Request::Put(PutRequest {
            key: key.clone(),
            value: config.to_vec().into(),
            lease: 0,
        });
        let answer = self
            .transact(TxnRequest::only_if([Compare::absent(key)], [put]))
            .await;
        let answer = answer.map_err(|e| e.during(self.at("write", self.keys.config())))?;
        Ok(answer.succeeded)
    }

    async fn hurt_by(&self, claim: &Claim) -> Result<Option<Hurt>, StoreError> {
        if claim.ranges.families().count() < 2 {
            return Ok(None);
        }
        let listing = self.list().await?;
        let leases = listing
            .taken
            .iter()
            .filter_map(|taken| Some((&taken.subnets, taken.lease.as_ref()?)));
        // A key of ours that has both families is there already, for all to see.
        let others = leases.filter(|(subnets, lease)| {
            subnets.get(Family::V6).is_some() || !claim.owns(subnets, lease)
        });
        let others = restraint::on_account_of(others);
        let hurt = others.first().map(|(subnets, lease)| Hurt {
            holder: held_by(subnets, lease),
            deletion: format!(
                "etcdctl --endpoints={} del '{}{subnets}'",
                self.endpoints(),
                self.keys.subnets()
            ),
            others: others.len() - 1,
        });
        self.first.replace(Some(listing));
        Ok(hurt)
    }

    async fn acquire(&self, claim: &Claim) -> Result<Held, StoreError> {
        for _ in 0..TRIES {
            if let Attempt::Done(held) = self.try_acquire(claim).await? {
                return Ok(held);
            }
        }
        Err(StoreError::Raced { tries: TRIES })
    }

    async fn renew(&self, claim: &Claim) -> Result<Renewal, StoreError> {
        let Some(subnets) = claim.previous else {
            return self.acquire(claim).await.map(Renewal::TakenBack);
        };
        for _ in 0..TRIES {
            if let Attempt::Done(renewal) = self.try_renew(claim, subnets).await? {
                return Ok(renewal);
            }
        }
        Err(StoreError::Raced { tries: TRIES })
    }

    async fn watch(self, events: mpsc::Sender<LeaseEvent>) {
        let first = self.first.take();
        // Events wait when the receiver is busy; renewals must not wait with them.
        let client = Client::new(self.options);
        watch::run(&client, &self.keys, first, &events).await;
    }
}
