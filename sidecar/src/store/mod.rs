//! Lease stores: where the nodes of a cluster leave word of their subnets for each other.
//!
//! A store hands out the configuration, takes and keeps this node's lease, and streams everybody's
//! leases as [`LeaseEvent`]s. What a store cannot read is never "no leases": it is retried, and the
//! stream stays silent. What a store does with expiry, races and reservations is its own matter;
//! which subnet to take is decided by [`crate::subnet::choose`].

pub(crate) mod backoff;
mod claims;
pub mod doubt;
pub mod etcd;
pub mod file;
pub mod kube;
pub mod migrate;

use std::future::Future;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::debug;

use crate::family::ByFamily;
use crate::lease::Lease;
use crate::subnet::{Claim, OutOfSubnets};
use crate::subnets::Subnets;

/// Between looks at a configuration whose changes nobody tells us: it is one small file.
const CONFIG_LOOKS: Duration = Duration::from_secs(2);

/// One entry of a store: its name there, and the lease or why it is not one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key as the store has it.
    pub name: Box<str>,
    /// The lease, or the reason for which it is skipped.
    pub content: Result<(Subnets, Lease), String>,
}

/// A change in the store, in the order in which it happened there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEvent {
    /// Everything that is there: what is not in it is gone.
    Snapshot(Vec<Record>),
    /// An entry is new or has changed.
    Put(Record),
    /// The entry of this name is gone or has expired.
    Removed(Box<str>),
}

/// This node's lease as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The subnets.
    pub subnets: Subnets,
    /// When it ends if it is not renewed; `None` for a reservation.
    pub expires: Option<SystemTime>,
    /// Whether it was there already when it was taken: a store in which it was not has lost it, or
    /// never had it.
    pub found: bool,
}

/// What came of a renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// It was ours and is.
    Renewed(Held),
    /// It was gone, nobody had taken it, and it is ours again.
    TakenBack(Held),
    /// Somebody else holds it, or something that overlaps it.
    Lost {
        /// Who, in words.
        holder: String,
    },
}

/// Why a store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An operation on it failed; trying again may help.
    #[error("{op}: {source}")]
    Io {
        /// What was tried on what.
        op: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Somebody keeps it locked.
    #[error("lock {path}: another process has held it for {seconds} s; see `lsof {path}`")]
    Locked {
        /// The lock's file.
        path: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Other nodes were quicker every time.
    #[error("acquire a subnet: lost the race against other nodes {tries} times")]
    Raced {
        /// How often it was tried.
        tries: usize,
    },
    /// Something must happen first that others see to; the text says what.
    #[error("waiting: {0}")]
    Waiting(String),
    /// The same, and what this node held until now is not its own any more.
    #[error("waiting: {0}")]
    Ungiven(String),
    /// There is nothing left to take.
    #[error(transparent)]
    OutOfSubnets(#[from] OutOfSubnets),
}

/// Nodes that a claim would hurt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hurt {
    /// One of them, in words.
    pub holder: String,
    /// The command that deletes its lease, for when it is gone.
    pub deletion: String,
    /// How many more there are.
    pub others: usize,
}

/// What a store knows about this node beside its lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Public addresses that an operator has written down for it there: they go before flags.
    pub public_ips: ByFamily<IpAddr>,
    /// What it published last, with the MAC addresses by which peers know its VTEPs.
    pub published: Option<Lease>,
}

/// A lease store. Futures are polled on one thread.
///
/// A store says what is there, as far as it can be read: an error is never an event, and a store
/// that has lost its leases says honestly that they are gone. That this is not believed at once,
/// whatever the store, is decided in one place for all of them: follow a store by [`doubt::watch`].
pub trait Store: Clone + 'static {
    /// What and where it is, for people.
    fn describe(&self) -> String;

    /// Whether nodes are given their subnets, so that the configuration need not say which they
    /// may take.
    fn gives_subnets(&self) -> bool {
        false
    }

    /// What an operator must do so that there is a configuration.
    fn config_advice(&self) -> String;

    /// The bytes of the configuration; `None` if nobody has written one.
    fn config(&self) -> impl Future<Output = Result<Option<Vec<u8>>, StoreError>>;

    /// Waits until the configuration is another than `known`; what it is then, `None` if there is
    /// none any more. Faults of the store are retried inside.
    fn config_changed(&self, known: Option<Vec<u8>>) -> impl Future<Output = Option<Vec<u8>>> {
        async move {
            loop {
                sleep(CONFIG_LOOKS).await;
                match self.config().await {
                    Ok(now) if now != known => return now,
                    Ok(_) => {}
                    Err(error) => debug!(%error, "the configuration cannot be looked at"),
                }
            }
        }
    }

    /// Writes a configuration if there is none. Whether it did.
    fn init_config(&self, config: &[u8]) -> impl Future<Output = Result<bool, StoreError>>;

    /// Who would be hurt if this node took subnets of all the families that it claims; the module
    /// `restraint` says when.
    fn hurt_by(&self, claim: &Claim) -> impl Future<Output = Result<Option<Hurt>, StoreError>> {
        let _ = claim;
        async { Ok(None) }
    }

    /// Takes a lease for this node by the rules of [`crate::subnet::choose`].
    fn acquire(&self, claim: &Claim) -> impl Future<Output = Result<Held, StoreError>>;

    /// Extends the lease that the claim names as its `previous`, and publishes the claim's value
    /// if it has changed. Never touches somebody else's.
    fn renew(&self, claim: &Claim) -> impl Future<Output = Result<Renewal, StoreError>>;

    /// Returns when the store has seen that this node is given another subnet than it holds. One
    /// that does not see that by itself never returns.
    fn given_another(&self) -> impl Future<Output = ()> {
        std::future::pending()
    }

    /// Sends a snapshot, then changes (or snapshots) until the receiver is gone. Faults of the
    /// store are retried inside.
    fn watch(self, events: mpsc::Sender<LeaseEvent>) -> impl Future<Output = ()>;

    /// What the store knows about this node; asked once, before its lease is taken.
    fn facts(&self) -> impl Future<Output = Result<NodeFacts, StoreError>> {
        async { Ok(NodeFacts::default()) }
    }

    /// Tells whoever waits for it that pods of this node can be reached. Returns when that is known
    /// there; called once, when the node is in sync.
    fn announce(&self) -> impl Future<Output = ()> {
        async {}
    }
}
