//! What the data path drops that no healthy network brings, for the operator: which kind, how many,
//! and of packets from the wrong host the last one. Counting is the threads' (`counters`), saying so
//! the daemon's.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::counters::{Count, Tally};
use super::shared::Shared;

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
    told: [u64; TOLD.len()],
}

impl Drops {
    pub(crate) fn of(shared: Arc<Shared>) -> Self {
        let told = TOLD.map(|count| shared.counters.get(count));
        Self { shared, told }
    }

    /// Waits until there are more; never returns none.
    pub async fn more(&mut self) -> Vec<Dropped> {
        loop {
            let dropped = self.look();
            if !dropped.is_empty() {
                return dropped;
            }
            self.shared.dropped().await;
        }
    }

    fn look(&mut self) -> Vec<Dropped> {
        let mut dropped = Vec::new();
        for (count, told) in TOLD.into_iter().zip(&mut self.told) {
            let total = self.shared.counters.get(count);
            let more = total - std::mem::replace(told, total);
            if more > 0 {
                let forged = self.shared.forged().filter(|_| count == Count::Spoofed);
                dropped.push(Dropped {
                    count,
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

    #[test]
    fn what_was_dropped_is_told_once_with_the_last_forged_packet() {
        let (stopped, _stop) = std::io::pipe().unwrap();
        let shared = Arc::new(Shared::new(Peers::default(), stopped));
        let mut drops = Drops::of(Arc::clone(&shared));
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
        assert_eq!(drops.look(), first);
        assert_eq!(drops.look(), []);
        tally.forged(source, host);
        shared.count(&mut tally);
        let again = drops.look();
        assert_eq!((again[0].more, again[0].total), (1, 3));
    }
}
