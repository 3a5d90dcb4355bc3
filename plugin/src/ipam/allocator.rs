//! Which address comes next: host-local's round robin. Pure.

use std::net::IpAddr;

use super::range::{Range, RangeSet, next};

/// The addresses of a set in the order in which they are tried: the one after the last reserved
/// first, ascending over all ranges and around, the last reserved itself at the end; gateways are
/// left out. Without a last one, or where it is no longer in the set, from the start.
pub(crate) fn candidates(set: &RangeSet, last: Option<IpAddr>) -> Candidates<'_> {
    let last = last.and_then(|ip| {
        let range = set.ranges().iter().position(|range| range.contains(ip))?;
        Some(Position { range, ip })
    });
    let first = Position {
        range: 0,
        ip: set.ranges()[0].start,
    };
    let mut candidates = Candidates {
        set,
        at: first,
        until: first,
        done: false,
    };
    if let Some(last) = last {
        candidates.at = candidates.after(last);
        candidates.until = candidates.at;
    }
    candidates
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    range: usize,
    ip: IpAddr,
}

/// See [`candidates`].
#[derive(Debug)]
pub(crate) struct Candidates<'a> {
    set: &'a RangeSet,
    at: Position,
    until: Position,
    done: bool,
}

impl Candidates<'_> {
    fn after(&self, Position { range, ip }: Position) -> Position {
        let ranges = self.set.ranges();
        if ip < ranges[range].end {
            return Position {
                range,
                ip: next(ip),
            };
        }
        let range = (range + 1) % ranges.len();
        Position {
            range,
            ip: ranges[range].start,
        }
    }
}

impl<'a> Iterator for Candidates<'a> {
    type Item = (IpAddr, &'a Range);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            let Position { range, ip } = self.at;
            self.at = self.after(self.at);
            self.done = self.at == self.until;
            let range = &self.set.ranges()[range];
            if ip != range.gateway {
                return Some((ip, range));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::range::RawRange;
    use super::*;
    use crate::address::Cidr;

    fn set(subnets: &[&str]) -> RangeSet {
        let raw: Vec<RawRange> = (subnets.iter())
            .map(|subnet| RawRange {
                subnet: Some(Cidr(subnet.parse().unwrap())),
                ..RawRange::default()
            })
            .collect();
        RangeSet::validate(&raw).unwrap()
    }

    fn allocate(set: &RangeSet, last: &str, used: &[&str]) -> Option<String> {
        candidates(set, last.parse().ok())
            .map(|(ip, _)| ip.to_string())
            .find(|ip| !used.contains(&ip.as_str()))
    }

    #[test]
    fn addresses_are_taken_round_robin() {
        let one = set(&["10.0.0.0/29"]);
        for (last, used, want) in [
            ("", &[][..], "10.0.0.2"),
            ("", &["10.0.0.2"], "10.0.0.3"),
            ("10.0.0.5", &[], "10.0.0.6"),
            ("10.0.0.5", &["10.0.0.6"], "10.0.0.2"),
            ("10.0.0.128", &["10.0.0.2"], "10.0.0.3"),
            (
                "10.0.0.3",
                &["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"],
                "10.0.0.3",
            ),
        ] {
            assert_eq!(
                allocate(&one, last, used).as_deref(),
                Some(want),
                "last {last:?}"
            );
        }
    }

    #[test]
    fn a_set_of_several_subnets_is_one_ring() {
        let two = set(&["10.0.0.0/30", "10.0.1.0/30"]);
        assert_eq!(allocate(&two, "10.0.0.2", &[]).as_deref(), Some("10.0.1.2"));
        let three = set(&["10.0.0.0/30", "10.0.1.0/30", "10.0.2.0/30"]);
        assert_eq!(
            allocate(&three, "10.0.2.2", &[]).as_deref(),
            Some("10.0.0.2")
        );
    }

    #[test]
    fn every_address_comes_once_and_the_gateway_never() {
        let one = set(&["10.0.0.0/29"]);
        for last in ["", "10.0.0.1", "10.0.0.2", "10.0.0.6"] {
            let mut all: Vec<_> = candidates(&one, last.parse().ok()).map(|c| c.0).collect();
            all.sort();
            let texts: Vec<_> = all.iter().map(IpAddr::to_string).collect();
            assert_eq!(
                texts,
                ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"],
                "last {last:?}"
            );
        }
    }
}
