//! Ranges of addresses, validated by host-local's rules. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::IpamError;
use crate::address::{Cidr, Ip};

/// A range as it stands in a config.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RawRange {
    /// The subnet that addresses are of.
    pub(crate) subnet: Option<Cidr>,
    /// First address to hand out.
    pub(crate) range_start: Ip,
    /// Last address to hand out.
    pub(crate) range_end: Ip,
    /// The gateway, which is not handed out.
    pub(crate) gateway: Ip,
}

/// Addresses of one subnet, from `start` to `end` inclusive, without the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    /// The subnet, without host bits.
    pub(crate) subnet: IpNet,
    /// First address.
    pub(crate) start: IpAddr,
    /// Last address.
    pub(crate) end: IpAddr,
    /// The gateway.
    pub(crate) gateway: IpAddr,
}

/// Ranges of one family that one address is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RangeSet(Vec<Range>);

impl Range {
    /// Fills in what is not given: the gateway and the start are the subnet's first address, the
    /// end its last one (for IPv4 the one before broadcast).
    fn validate(raw: &RawRange) -> Result<Range, IpamError> {
        let invalid = |reason: String| Err(IpamError::Config(reason));
        let Some(Cidr(subnet)) = raw.subnet else {
            return invalid("IP <nil> not v4 nor v6".into());
        };
        if subnet.prefix_len() > subnet.max_prefix_len() - 2 {
            return invalid(format!("Network {subnet} too small to allocate from"));
        }
        if subnet.addr() != subnet.network() {
            return invalid(format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix_len(),
                subnet.network()
            ));
        }
        let first = next(subnet.network());
        let last = match subnet {
            IpNet::V4(_) => previous(subnet.broadcast()),
            IpNet::V6(_) => subnet.broadcast(),
        };
        let range = Range {
            subnet,
            start: raw.range_start.0.unwrap_or(first),
            end: raw.range_end.0.unwrap_or(last),
            gateway: raw.gateway.0.unwrap_or(first),
        };
        if !subnet.contains(&range.start) || range.start > range.end {
            return invalid(format!(
                "RangeStart {} not in network {subnet}",
                range.start
            ));
        }
        if !subnet.contains(&range.end) {
            return invalid(format!("RangeEnd {} not in network {subnet}", range.end));
        }
        Ok(range)
    }

    /// Whether the address lies between the range's ends.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4() && (self.start..=self.end).contains(&ip)
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.start) || self.contains(other.end) || other.contains(self.start)
    }
}

impl std::fmt::Display for Range {
    /// As host-local words it: `end` inclusive.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl RangeSet {
    /// At least one range, all of one family, none overlapping another.
    pub(crate) fn validate(raw: &[RawRange]) -> Result<RangeSet, IpamError> {
        let ranges = raw
            .iter()
            .map(Range::validate)
            .collect::<Result<Vec<_>, _>>()?;
        let Some(first) = ranges.first() else {
            return Err(IpamError::Config("empty range set".into()));
        };
        if ranges
            .iter()
            .any(|r| r.start.is_ipv4() != first.start.is_ipv4())
        {
            return Err(IpamError::Config("mixed address families".into()));
        }
        for (at, one) in ranges.iter().enumerate() {
            if let Some(other) = ranges[at + 1..].iter().find(|other| one.overlaps(other)) {
                return Err(IpamError::Config(format!(
                    "subnets {one} and {other} overlap"
                )));
            }
        }
        Ok(RangeSet(ranges))
    }

    /// The ranges, in the config's order.
    pub(crate) fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// The range that the address lies in.
    pub(crate) fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Whether the set is of IPv6 addresses.
    pub(crate) fn is_v6(&self) -> bool {
        self.0[0].start.is_ipv6()
    }

    /// Whether an address could be taken from either.
    pub(crate) fn overlaps(&self, other: &RangeSet) -> bool {
        let overlaps = |one: &Range| other.0.iter().any(|range| one.overlaps(range));
        self.0.iter().any(overlaps)
    }
}

impl std::fmt::Display for RangeSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

/// The address after this one; wraps at the family's last.
pub(super) fn next(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().wrapping_add(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().wrapping_add(1).into()),
    }
}

fn previous(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().wrapping_sub(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().wrapping_sub(1).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_filled_in() {
        for (subnet, text, gateway) in [
            ("10.1.2.0/24", "10.1.2.1-10.1.2.254", "10.1.2.1"),
            ("10.1.2.0/30", "10.1.2.1-10.1.2.2", "10.1.2.1"),
            ("fd00::/126", "fd00::1-fd00::3", "fd00::1"),
        ] {
            let raw = RawRange {
                subnet: Some(Cidr(subnet.parse().unwrap())),
                ..RawRange::default()
            };
            let set = RangeSet::validate(&[raw]).unwrap();
            assert_eq!(set.to_string(), text);
            assert_eq!(set.ranges()[0].gateway.to_string(), gateway);
        }
    }
}
