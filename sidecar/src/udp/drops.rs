//! What the data path drops that no healthy network brings, for the operator: which kind, how many,
//! and of packets from the wrong host the last one. Counting is the threads' (`counters`), saying so
//! the daemon's.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::counters::{Count, Tally};
use super::shared::Shared;

/// How often drops of one kind are told while they go on.
const TELL: Duration = Duration::from_secs(60);

/// What is told. No lease for a destination and a TTL that runs out are the senders' affairs: those
/// are counted, and the first is answered.
pub(crate) const TOLD: [Count; 4] = [
    Count::Spoofed,
    Count::NotIpv4,
    Count::SendFailed,
    Count::WriteFailed,
];

/// A packet that named a source in a subnet that its host does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forged {
    pub(crate) source: Ipv4Addr,
    pub(crate) host: Ipv4Addr,
}

/// One kind of drops since the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Which kind.
    pub count: Count,
    /// How many more there are.
    pub more: u64,
    /// How many there are since the data path was started.
    pub total: u64,
    /// Of [`Count::Spoofed`], the last one's inner source and the host that sent it.
    pub last: Option<(Ipv4Addr, Ipv4Addr)>,
}

/// The drops of one data path, also after its end. It is for one reader.
#[derive(Debug)]
pub struct Drops {
    shared: Arc<Shared>,
    kinds: [Kind; TOLD.len()],
}

#[derive(Debug, Clone, Copy)]
struct Kind {
    count: Count,
    /// The total that was told last.
    told: u64,
    /// When more may be told.
    next: Instant,
}

impl Drops {
    pub(crate) fn of(shared: Arc<Shared>) -> Self {
        let next = Instant::now();
        let kinds = TOLD.map(|count| Kind {
            count,
            told: shared.counters.get(count),
            next,
        });
        Self { shared, kinds }
    }

    /// Waits until there is something to tell; never returns none. The first drop of a kind is told
    /// at once and what follows it together after a minute, so that nobody fills the log by
    /// sending; a kind never waits for another, so that nobody hides one by sending the other.
    pub async fn more(&mut self) -> Vec<Dropped> {
        loop {
            let dropped = self.look(Instant::now());
            if !dropped.is_empty() {
                return dropped;
            }
            match self.waiting().map(|kind| kind.next).min() {
                Some(next) => tokio::select! {
                    () = self.shared.dropped() => {}
                    () = sleep_until(next) => {}
                },
                None => self.shared.dropped().await,
            }
        }
    }

    /// The kinds of which there are more than were told.
    fn waiting(&self) -> impl Iterator<Item = &Kind> {
        let counters = &self.shared.counters;
        let more = |kind: &&Kind| counters.get(kind.count) > kind.told;
        self.kinds.iter().filter(more)
    }

    fn look(&mut self, now: Instant) -> Vec<Dropped> {
        let mut dropped = Vec::new();
        for kind in self.kinds.iter_mut().filter(|kind| kind.next <= now) {
            let total = self.shared.counters.get(kind.count);
            let more = total - std::mem::replace(&mut kind.told, total);
            if more > 0 {
                kind.next = now + TELL;
                let forged = self.shared.forged();
                let forged = forged.filter(|_| kind.count == Count::Spoofed);
                dropped.push(Dropped {
                    count: kind.count,
                    more,
                    total,
                    last: forged.map(|forged| (forged.source, forged.host)),
                });
            }
        }
        dropped
    }
}

/// Whether a batch has something to tell.
pub(crate) fn has_any(tally: &Tally) -> bool {
    TOLD.into_iter().any(|count| tally.get(count) > 0)
}

#[cfg(test)]
mod tests {
    use super::super::peers::Peers;
    use super::*;

    fn drops() -> (Drops, Arc<Shared>) {
        let (stopped, _stop) = std::io::pipe().unwrap();
        let shared = Arc::new(Shared::new(Peers::default(), stopped));
        (Drops::of(Arc::clone(&shared)), shared)
    }

    fn lose(shared: &Shared, count: Count) {
        let mut tally = Tally::default();
        tally.one(count);
        shared.count(&mut tally);
    }

    #[test]
    fn what_was_dropped_is_told_once_with_the_last_forged_packet() {
        let (mut drops, shared) = drops();
        let mut tally = Tally::default();
        let [source, host] = [[10, 5, 77, 9], [192, 168, 50, 2]].map(Ipv4Addr::from);
        tally.forged(Ipv4Addr::new(10, 5, 1, 1), host);
        tally.forged(source, host);
        tally.one(Count::SendFailed);
        tally.one(Count::NoRoute);
        shared.count(&mut tally);
        let told = |count, more, last| Dropped {
            count,
            more,
            total: more,
            last,
        };
        let first = [
            told(Count::Spoofed, 2, Some((source, host))),
            told(Count::SendFailed, 1, None),
        ];
        let now = Instant::now();
        assert_eq!(drops.look(now), first);
        assert_eq!(drops.look(now), []);
        tally.forged(source, host);
        shared.count(&mut tally);
        assert_eq!(drops.look(now), []);
        let again = drops.look(now + TELL);
        assert_eq!((again[0].more, again[0].total), (1, 3));
    }

    #[test]
    fn no_kind_is_kept_back_by_another() {
        let (mut drops, shared) = drops();
        let now = Instant::now();
        lose(&shared, Count::SendFailed);
        assert_eq!(drops.look(now).len(), 1);
        for count in [Count::SendFailed, Count::NotIpv4] {
            lose(&shared, count);
        }
        let kinds: Vec<Count> = drops.look(now).iter().map(|told| told.count).collect();
        assert_eq!(kinds, [Count::NotIpv4]);
        let waiting: Vec<Count> = drops.waiting().map(|kind| kind.count).collect();
        assert_eq!(waiting, [Count::SendFailed]);
    }
}
