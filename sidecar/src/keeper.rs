//! Keeps this node's lease: renews it in time, publishes a changed value, and finds out what
//! happened when the store says something else about it.
//!
//! A lease that somebody else took is reported loudly and asked after every minute; the running
//! pods keep their network meanwhile, for their addresses cannot be changed under them.

use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use crate::lease::Lease;
use crate::store::{Held, Renewal, Store};
use crate::subnet::Claim;

/// How long to wait after a failed or refused renewal.
const RETRY: Duration = Duration::from_secs(60);
/// The clock is looked at this often, because it may be set while we wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What the rest of the program asks of the keeper.
#[derive(Debug)]
pub(crate) enum Wish {
    /// The store says something else about our lease: look after it.
    Check,
    /// Our address or VTEP has changed: publish this instead.
    Publish(Lease),
}

/// The keeper of one lease.
#[derive(Debug)]
pub(crate) struct Keeper<S> {
    /// Where the lease is.
    pub(crate) store: S,
    /// What was claimed; its `previous` is what is held.
    pub(crate) claim: Claim,
    /// What the store granted.
    pub(crate) held: Held,
    /// How long before its end a lease is renewed.
    pub(crate) margin: Duration,
    /// How long a lease lives from its renewal.
    pub(crate) ttl: Duration,
}

impl<S: Store> Keeper<S> {
    /// Runs until the other side of `wishes` is gone.
    pub(crate) async fn run(mut self, mut wishes: mpsc::Receiver<Wish>) {
        let mut lost: Option<String> = None;
        let mut failed = false;
        loop {
            let wait = match (failed || lost.is_some(), self.held.expires) {
                (true, _) => self.retry(),
                (false, Some(expires)) => self.until_renewal(expires, SystemTime::now()),
                // A reservation does not end.
                (false, None) => LONGEST_WAIT,
            };
            tokio::select! {
                wish = wishes.recv() => match wish {
                    None => return,
                    Some(Wish::Check) => {}
                    Some(Wish::Publish(lease)) => self.claim.lease = lease,
                },
                () = sleep(wait.min(LONGEST_WAIT)) => {
                    if wait > LONGEST_WAIT || self.held.expires.is_none() {
                        continue;
                    }
                }
            }
            failed = !self.renew(&mut lost).await;
        }
    }

    /// Whether the store answered.
    async fn renew(&mut self, lost: &mut Option<String>) -> bool {
        let subnets = self.held.subnets;
        match self.store.renew(&self.claim).await {
            Ok(Renewal::Renewed(held)) => {
                debug!(%subnets, "lease renewed");
                self.hold(held, lost);
            }
            Ok(Renewal::TakenBack(held)) => {
                warn!(%subnets, "our lease was gone from the store and is taken back");
                self.hold(held, lost);
            }
            Ok(Renewal::Lost { holder }) => {
                if lost.as_ref() != Some(&holder) {
                    error!(
                        %subnets, holder,
                        "our lease is somebody else's now; running pods keep their network, but peers send their traffic elsewhere: drain this node or delete the other lease"
                    );
                }
                *lost = Some(holder);
            }
            Err(error) => {
                warn!(%subnets, %error, "cannot renew the lease, trying again");
                return false;
            }
        }
        true
    }

    fn hold(&mut self, held: Held, lost: &mut Option<String>) {
        if lost.take().is_some() {
            info!(subnets = %held.subnets, "the lease is ours again");
        }
        self.claim.previous = Some(held.subnets);
        self.held = held;
    }

    fn retry(&self) -> Duration {
        RETRY.min(self.ttl / 4)
    }

    fn until_renewal(&self, expires: SystemTime, now: SystemTime) -> Duration {
        // A margin as long as the lease would renew without end.
        let margin = if self.margin < self.ttl {
            self.margin
        } else {
            self.ttl / 2
        };
        expires
            .duration_since(now + margin)
            .unwrap_or_default()
            // Nor may a clock that was set back make us renew in a tight loop.
            .max(Duration::from_millis(100))
    }
}
