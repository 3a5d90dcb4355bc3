//! When a store's word that a lease is gone is believed. The same for every store.
//!
//! A store can lose what it knew: an etcd restored from nothing, a shared disk that is not mounted,
//! a hand that deletes too much. Then all nodes are gone from it and none is gone in truth, and who
//! believes it tears a working network down. We can tell, because our own lease is gone with the
//! others. So, of a peer's lease that is gone:
//!
//! - One that the store says was deleted, or has expired, is believed after [`SETTLE`]: by then we
//!   know whether our own went with it, or most of the others.
//! - If so, or if it is only missing in a later snapshot, it is believed [`GRACE`] after our own
//!   lease is (back) in the store. As long as we cannot get ours in, no peer can be expected to;
//!   afterwards each has had the time to put its own back, as twilld does at once and flanneld when
//!   its supervisor has restarted it.
//! - A daemon that starts has nothing to compare with but itself: if the lease that it remembers is
//!   not there, what the kernel has of peers that are not there either is kept for [`GRACE`], too
//!   ([`at_start`]).
//! - It is believed at once when its subnet, or a part of it, is claimed under another name.
//!
//! New and changed leases, and whatever concerns our own, pass at once. [`Doubt`] decides and does
//! nothing; [`watch`] stands between a store and whoever follows it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::{Held, LeaseEvent, Record, Store};
use crate::subnets::Subnets;

/// How long a deletion waits for others that belong to it.
pub const SETTLE: Duration = Duration::from_secs(1);
/// How long other nodes get to put their leases back.
pub const GRACE: Duration = Duration::from_secs(10 * 60);
/// Events between the store and us.
const EVENTS: usize = 256;

/// How long a node that starts keeps what it finds in the kernel of peers that are not in the
/// store. `before` are the subnets that it remembers to have held.
pub fn at_start(held: &Held, before: Option<Subnets>) -> Option<Duration> {
    (!held.found && before == Some(held.subnets)).then_some(GRACE)
}

/// What has been passed on, and what is gone from the store without having been.
#[derive(Debug)]
pub struct Doubt {
    own: Box<str>,
    own_is_there: bool,
    /// When our own lease came back last.
    own_back: Option<Instant>,
    /// A snapshot has been passed on.
    begun: bool,
    /// What the receiver believes to be there, our own left out.
    told: BTreeSet<Box<str>>,
    /// Of these, what is gone.
    gone: BTreeMap<Box<str>, Gone>,
}

#[derive(Debug, Clone, Copy)]
struct Gone {
    since: Instant,
    doubted: bool,
}

impl Doubt {
    /// For a node that holds these subnets.
    pub fn new(own: &Subnets) -> Self {
        Self {
            own: own.to_string().into(),
            own_is_there: true,
            own_back: None,
            begun: false,
            told: BTreeSet::new(),
            gone: BTreeMap::new(),
        }
    }

    /// How many leases that are gone from the store are kept, because that is not believed.
    pub fn kept(&self) -> usize {
        self.gone.values().filter(|gone| gone.doubted).count()
    }

    /// What to pass on, now that the store says this.
    pub fn take(&mut self, event: LeaseEvent, now: Instant) -> Vec<LeaseEvent> {
        match event {
            LeaseEvent::Snapshot(records) => self.snapshot(records, now),
            LeaseEvent::Put(record) => self.put(record, now),
            LeaseEvent::Removed(name) if name == self.own => {
                self.own_is_gone();
                vec![LeaseEvent::Removed(name)]
            }
            LeaseEvent::Removed(name) => {
                if self.told.contains(&name) {
                    let doubted = !self.own_is_there;
                    self.gone.entry(name).or_insert(Gone {
                        since: now,
                        doubted,
                    });
                }
                Vec::new()
            }
        }
    }

    fn snapshot(&mut self, records: Vec<Record>, now: Instant) -> Vec<LeaseEvent> {
        let names: BTreeSet<&str> = records.iter().map(|record| &*record.name).collect();
        let own_is_there = names.contains(&*self.own);
        let missing: Vec<Box<str>> = self
            .told
            .iter()
            .filter(|name| !names.contains(&***name))
            .cloned()
            .collect();
        if !self.begun || (missing.is_empty() && own_is_there == self.own_is_there) {
            self.begun = true;
            self.own_is_there = own_is_there;
            let others = names.into_iter().filter(|name| *name != &*self.own);
            self.told = others.map(Into::into).collect();
            self.gone.clear();
            return vec![LeaseEvent::Snapshot(records)];
        }
        let mut out = Vec::new();
        if self.own_is_there && !own_is_there {
            out.push(LeaseEvent::Removed(self.own.clone()));
            self.own_is_gone();
        }
        for name in missing {
            let since = self.gone.get(&name).map_or(now, |gone| gone.since);
            self.gone.insert(
                name,
                Gone {
                    since,
                    doubted: true,
                },
            );
        }
        for record in records {
            out.extend(self.put(record, now));
        }
        out
    }

    fn put(&mut self, record: Record, now: Instant) -> Vec<LeaseEvent> {
        if record.name == self.own {
            if !self.own_is_there {
                self.own_back = Some(now);
            }
            self.own_is_there = true;
            return vec![LeaseEvent::Put(record)];
        }
        self.gone.remove(&record.name);
        self.told.insert(record.name.clone());
        let replaced: Vec<Box<str>> = match &record.content {
            Ok((subnets, _)) => self
                .gone
                .keys()
                .filter(|n| overlap(n, subnets))
                .cloned()
                .collect(),
            Err(_) => Vec::new(),
        };
        let mut out: Vec<LeaseEvent> = replaced
            .into_iter()
            .map(|name| self.believe(name))
            .collect();
        out.push(LeaseEvent::Put(record));
        out
    }

    fn own_is_gone(&mut self) {
        self.own_is_there = false;
        for gone in self.gone.values_mut() {
            gone.doubted = true;
        }
    }

    fn believe(&mut self, name: Box<str>) -> LeaseEvent {
        self.gone.remove(&name);
        self.told.remove(&name);
        LeaseEvent::Removed(name)
    }

    /// What to pass on because it has been waited for long enough.
    pub fn due(&mut self, now: Instant) -> Vec<LeaseEvent> {
        let fresh = || self.gone.values().filter(|gone| !gone.doubted);
        let settled = fresh().any(|gone| gone.since + SETTLE <= now);
        let count = fresh().count();
        if settled && count > 1 && count * 2 > self.told.len() {
            for gone in self.gone.values_mut() {
                gone.doubted = true;
            }
        }
        let due: Vec<Box<str>> = self
            .gone
            .iter()
            .filter(|(_, gone)| self.deadline(gone).is_some_and(|deadline| deadline <= now))
            .map(|(name, _)| name.clone())
            .collect();
        due.into_iter().map(|name| self.believe(name)).collect()
    }

    /// When [`Self::due`] may have something.
    pub fn next(&self) -> Option<Instant> {
        self.gone
            .values()
            .filter_map(|gone| self.deadline(gone))
            .min()
    }

    fn deadline(&self, gone: &Gone) -> Option<Instant> {
        match (gone.doubted, self.own_is_there) {
            (false, _) => Some(gone.since + SETTLE),
            (true, true) => Some(self.own_back.map_or(gone.since, |at| at.max(gone.since)) + GRACE),
            (true, false) => None,
        }
    }
}

fn overlap(name: &str, subnets: &Subnets) -> bool {
    name.parse::<Subnets>()
        .is_ok_and(|other| other.overlaps(subnets))
}

/// As [`Store::watch`], for the node that holds `own`: what is gone is passed on when it is
/// believed.
pub async fn watch<S: Store>(store: S, own: Subnets, events: mpsc::Sender<LeaseEvent>) {
    let (to_us, mut from_store) = mpsc::channel(EVENTS);
    let watching = store.watch(to_us);
    let mut watching = std::pin::pin!(watching);
    let mut doubt = Doubt::new(&own);
    let mut kept = 0;
    loop {
        let next = doubt.next();
        let wait = async {
            match next {
                Some(next) => sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        let out = tokio::select! {
            () = events.closed() => return,
            () = &mut watching => return,
            event = from_store.recv() => match event {
                Some(event) => doubt.take(event, now()),
                None => return,
            },
            () = wait => doubt.due(now()),
        };
        for event in out {
            if events.send(event).await.is_err() {
                return;
            }
        }
        match (kept, doubt.kept()) {
            (0, 1..) => warn!(
                kept = doubt.kept(),
                "leases are gone from the store in a way that is not believed yet, peers stay"
            ),
            (1.., 0) => info!("no lease is in doubt any more"),
            _ => {}
        }
        kept = doubt.kept();
    }
}

/// The runtime's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
