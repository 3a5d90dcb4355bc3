//! What the data path did and what it dropped, for metrics and for people.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::drops::Forged;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Datagrams sent to peers.
    PacketsOut,
    /// Their bytes.
    BytesOut,
    /// System calls that sent them.
    SendsOut,
    /// Packets handed to this host.
    PacketsIn,
    /// Their bytes.
    BytesIn,
    /// System calls that handed them over.
    WritesIn,
    /// Dropped, from this host: no lease covers the destination.
    NoRoute,
    /// Dropped, either way: the TTL ran out.
    TimeOver,
    /// Dropped, either way: no sound IPv4 packet.
    NotIpv4,
    /// Dropped, from the network: the inner source is not in the subnet of the host it came from.
    Spoofed,
    /// Lost: the kernel did not take a datagram.
    SendFailed,
    /// Lost: the kernel did not take a packet.
    WriteFailed,
}

impl Count {
    /// All of them, in the order of the declaration.
    pub const ALL: [Self; 12] = [
        Self::PacketsOut,
        Self::BytesOut,
        Self::SendsOut,
        Self::PacketsIn,
        Self::BytesIn,
        Self::WritesIn,
        Self::NoRoute,
        Self::TimeOver,
        Self::NotIpv4,
        Self::Spoofed,
        Self::SendFailed,
        Self::WriteFailed,
    ];

    /// Its name in metrics, without prefix and suffix.
    pub fn name(self) -> &'static str {
        match self {
            Self::PacketsOut => "packets_out",
            Self::BytesOut => "bytes_out",
            Self::SendsOut => "sends_out",
            Self::PacketsIn => "packets_in",
            Self::BytesIn => "bytes_in",
            Self::WritesIn => "writes_in",
            Self::NoRoute => "dropped_no_route",
            Self::TimeOver => "dropped_time_over",
            Self::NotIpv4 => "dropped_not_ipv4",
            Self::Spoofed => "dropped_spoofed",
            Self::SendFailed => "failed_sends",
            Self::WriteFailed => "failed_writes",
        }
    }
}

/// The counters that all threads of a data path share.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; Count::ALL.len()]);

impl Counters {
    /// A counter's value.
    pub fn get(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }

    /// Adds a batch, and empties its tally.
    pub(crate) fn take(&self, tally: &mut Tally) {
        for (counter, n) in self.0.iter().zip(&mut tally.counts) {
            if *n > 0 {
                counter.fetch_add(std::mem::take(n), Ordering::Relaxed);
            }
        }
    }
}

/// What one thread counted in one batch: plain numbers, so that a packet costs no shared memory.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: [u64; Count::ALL.len()],
    /// The last packet from the wrong host.
    pub(crate) forged: Option<Forged>,
}

impl Tally {
    pub(crate) fn one(&mut self, count: Count) {
        self.add(count, 1);
    }

    pub(crate) fn add(&mut self, count: Count, n: usize) {
        self.counts[count as usize] += n as u64;
    }

    /// A packet from `host` whose source is not there.
    pub(crate) fn forged(&mut self, source: Ipv4Addr, host: Ipv4Addr) {
        self.one(Count::Spoofed);
        self.forged = Some(Forged { source, host });
    }

    pub(crate) fn get(&self, count: Count) -> u64 {
        self.counts[count as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_a_place_and_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Count::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Count::ALL.len());
        for (at, count) in Count::ALL.into_iter().enumerate() {
            assert_eq!(count as usize, at);
        }
    }

    #[test]
    fn a_tally_is_added_once() {
        let (counters, mut tally) = (Counters::default(), Tally::default());
        tally.add(Count::BytesOut, 7);
        counters.take(&mut tally);
        counters.take(&mut tally);
        assert_eq!(counters.get(Count::BytesOut), 7);
        assert_eq!(counters.get(Count::BytesIn), 0);
    }
}
