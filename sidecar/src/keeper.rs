//! Keeps this node's lease: renews it in time, publishes a changed value, and finds out what
//! happened when the store says something else about it.
//!
//! A lease that somebody else took is reported loudly and asked after every minute; the running
//! pods keep their network meanwhile, for their addresses cannot be changed under them.

use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use crate::lease::Lease;
use crate::store::{Held, Renewal, Store, StoreError};
use crate::subnet::Claim;
use crate::subnet_file::SubnetFile;

/// How long to wait after a failed or refused renewal.
const RETRY: Duration = Duration::from_secs(60);
/// The same where the store waits for something that others are about to do.
const STORE_WAITS: Duration = Duration::from_secs(3);
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
    /// Whether to end when the lease is lost.
    pub(crate) until_lost: bool,
    /// Gone while nothing is given to this node.
    pub(crate) subnet_file: SubnetFile,
    /// What the store waits for, as it was said last.
    pub(crate) told: Option<String>,
}

/// When a lease ends, by both clocks: the wall's can be set, the other one stops while the machine
/// is suspended. Whichever comes first counts.
#[derive(Debug, Clone, Copy)]
struct End {
    wall: SystemTime,
    steady: Instant,
}

impl End {
    /// The end that the store has just told; `None` for a reservation.
    fn of(held: &Held) -> Option<Self> {
        let wall = held.expires?;
        let left = wall.duration_since(SystemTime::now()).unwrap_or_default();
        let steady = Instant::now().checked_add(left)?;
        Some(Self { wall, steady })
    }

    fn left(&self, wall: SystemTime, steady: Instant) -> Duration {
        let by_wall = self.wall.duration_since(wall).unwrap_or_default();
        by_wall.min(self.steady.duration_since(steady))
    }
}

impl<S: Store> Keeper<S> {
    /// Runs until the other side of `wishes` is gone, or the lease is lost and that is to be the
    /// end: then it says who has it.
    pub(crate) async fn run(mut self, mut wishes: mpsc::Receiver<Wish>) -> Option<String> {
        let mut lost: Option<String> = None;
        // When to try again what has failed.
        let mut failed: Option<Duration> = None;
        let mut end = End::of(&self.held);
        let store = self.store.clone();
        loop {
            let again = failed.or_else(|| lost.is_some().then(|| self.retry()));
            let wait = match (again, end) {
                (Some(again), _) => again,
                (None, Some(end)) => {
                    self.until_renewal(end.left(SystemTime::now(), Instant::now()))
                }
                // A reservation does not end.
                (None, None) => LONGEST_WAIT,
            };
            tokio::select! {
                wish = wishes.recv() => match wish {
                    None => return None,
                    Some(Wish::Check) => {}
                    Some(Wish::Publish(lease)) => self.claim.lease = lease,
                },
                () = store.given_another() => {}
                () = sleep(wait.min(LONGEST_WAIT)) => {
                    if wait > LONGEST_WAIT || (again.is_none() && end.is_none()) {
                        continue;
                    }
                }
            }
            failed = self.renew(&mut lost).await.err();
            if self.until_lost && lost.is_some() {
                return lost;
            }
            if failed.is_none() && lost.is_none() {
                end = End::of(&self.held);
            }
        }
    }

    /// An error is for how long to wait before it is tried again.
    async fn renew(&mut self, lost: &mut Option<String>) -> Result<(), Duration> {
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
            Err(StoreError::Ungiven(reason)) => {
                let wait = self.waiting(reason);
                self.subnet_file.withdraw();
                return Err(wait);
            }
            Err(StoreError::Waiting(reason)) => return Err(self.waiting(reason)),
            Err(error) => {
                warn!(%subnets, %error, "cannot renew the lease, trying again");
                return Err(self.retry());
            }
        }
        self.told = None;
        Ok(())
    }

    /// Says once what is waited for; how long to wait.
    fn waiting(&mut self, reason: String) -> Duration {
        if self.told.as_ref() != Some(&reason) {
            warn!(subnets = %self.held.subnets, reason, "cannot renew the lease yet, waiting");
            self.told = Some(reason);
        }
        STORE_WAITS.min(self.retry())
    }

    fn hold(&mut self, held: Held, lost: &mut Option<String>) {
        if lost.take().is_some() {
            info!(subnets = %held.subnets, "the lease is ours again");
        }
        self.subnet_file.hold(held.subnets);
        self.claim.previous = Some(held.subnets);
        self.held = held;
    }

    fn retry(&self) -> Duration {
        RETRY.min(self.ttl / 4)
    }

    fn until_renewal(&self, left: Duration) -> Duration {
        // A margin as long as the lease would renew without end.
        let margin = if self.margin < self.ttl {
            self.margin
        } else {
            self.ttl / 2
        };
        left.saturating_sub(margin)
            // Nor may a clock that was set make us renew in a tight loop.
            .max(Duration::from_millis(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_delays_no_renewal() {
        const HOUR: Duration = Duration::from_secs(3600);
        let (wall, steady) = (SystemTime::now(), Instant::now());
        let end = End {
            wall: wall + 24 * HOUR,
            steady: steady + 24 * HOUR,
        };
        assert_eq!(end.left(wall, steady), 24 * HOUR);
        let set_back = wall - 100 * HOUR;
        assert_eq!(end.left(set_back, steady + 23 * HOUR), HOUR);
        // Suspended for a day, or set forward.
        assert_eq!(end.left(wall + 30 * HOUR, steady), Duration::ZERO);
        assert_eq!(end.left(set_back, steady + 30 * HOUR), Duration::ZERO);
    }
}
