//! Which leases are peers: everybody's but our own, less those that cannot be right. What is left
//! out is named with its reason, and never stops the others.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::family::{ByFamily, Family, number};
use crate::lease::Lease;
use crate::lease_table::LeaseTable;
use crate::subnets::Subnets;

/// Leases left out, by key, with the reason.
pub type Skipped = BTreeMap<String, String>;

/// This node, as far as peers are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The subnets it holds.
    pub subnets: Subnets,
    /// What it published.
    pub lease: Lease,
    /// The cluster's network, of the enabled families.
    pub networks: ByFamily<IpNet>,
}

/// The peers in the order of their subnets, and what was left out. The choice depends on the
/// leases alone: of two that overlap, the one that sorts first stays.
pub fn accept<'a>(table: &'a LeaseTable, node: &Node) -> (Vec<(&'a Subnets, &'a Lease)>, Skipped) {
    let mut skipped: Skipped = table
        .skipped()
        .map(|(name, reason)| (name.to_owned(), reason.to_owned()))
        .collect();
    let mut peers = Vec::new();
    let mut claimed: BTreeMap<Family, Claimed<'_>> = BTreeMap::new();
    for (subnets, lease) in table.leases() {
        // Ours, whatever it says: somebody else's word for it must not move our own pods.
        if *subnets == node.subnets {
            continue;
        }
        let fault = fault(subnets, lease, node).or_else(|| overlap(subnets, &claimed));
        if let Some(reason) = fault {
            skipped.insert(subnets.to_string(), reason);
            continue;
        }
        for (family, net) in subnets.iter() {
            claimed.entry(family).or_default().add(Claim {
                first: number(net.network()),
                last: number(net.broadcast()),
                holder: subnets,
            });
        }
        peers.push((subnets, lease));
    }
    (peers, skipped)
}

fn fault(subnets: &Subnets, lease: &Lease, node: &Node) -> Option<String> {
    if lease.backend_type != node.lease.backend_type {
        return Some(format!(
            "its backend is {:?}, ours {:?}",
            lease.backend_type, node.lease.backend_type
        ));
    }
    if subnets.overlaps(&node.subnets) {
        return Some(format!("it overlaps our own subnet, {}", node.subnets));
    }
    let mut of_use = false;
    for (family, network) in node.networks.iter() {
        let Some(subnet) = subnets.get(family) else {
            continue;
        };
        if !network.contains(&subnet) {
            return Some(format!("{subnet} is outside the network {network}"));
        }
        if let Some(reason) = address_fault(family, lease, node) {
            return Some(reason);
        }
        of_use = true;
    }
    (!of_use).then(|| "it has no subnet of a family that this node uses".to_owned())
}

fn address_fault(family: Family, lease: &Lease, node: &Node) -> Option<String> {
    let Some(ip) = lease.public_ips.get(family) else {
        return Some(format!("it has no public {family} address"));
    };
    if !is_a_hosts(*ip) {
        return Some(format!("its public address {ip} is no host's"));
    }
    (node.lease.public_ips.get(family) == Some(ip))
        .then(|| format!("its public address {ip} is our own"))
}

fn is_a_hosts(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast)
}

/// What the accepted ones cover in one family. They do not overlap, so the nearest one below an
/// address tells all.
#[derive(Default)]
struct Claimed<'a> {
    /// Each behind the one before it. Leases come in the order of their IPv4 subnets, and with very
    /// many of them a sorted map costs many times as much.
    rising: Vec<Claim<'a>>,
    /// The others, by first address.
    others: BTreeMap<u128, Claim<'a>>,
}

/// The addresses from `first` to `last`.
struct Claim<'a> {
    first: u128,
    last: u128,
    holder: &'a Subnets,
}

impl<'a> Claimed<'a> {
    fn add(&mut self, claim: Claim<'a>) {
        match self.rising.last() {
            Some(highest) if claim.first <= highest.last => {
                self.others.insert(claim.first, claim);
            }
            _ => self.rising.push(claim),
        }
    }

    /// Who has one of the addresses from `first` to `last`.
    fn holder(&self, first: u128, last: u128) -> Option<&'a Subnets> {
        let below = match self.rising.last() {
            Some(highest) if highest.first > last => {
                let above = self.rising.partition_point(|claim| claim.first <= last);
                above.checked_sub(1).map(|at| &self.rising[at])
            }
            highest => highest,
        };
        let other = self.others.range(..=last).next_back();
        let nearest = [below, other.map(|(_, claim)| claim)];
        let nearest = nearest.into_iter().flatten();
        nearest
            .filter(|claim| claim.last >= first)
            .map(|claim| claim.holder)
            .next()
    }
}

fn overlap(subnets: &Subnets, claimed: &BTreeMap<Family, Claimed<'_>>) -> Option<String> {
    subnets.iter().find_map(|(family, net)| {
        let (first, last) = (number(net.network()), number(net.broadcast()));
        let holder = claimed.get(&family)?.holder(first, last)?;
        Some(format!("it overlaps {holder}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{LeaseEvent, Record};

    fn node() -> Node {
        Node {
            subnets: "10.5.20.0-24".parse().unwrap(),
            lease: Lease::parse(br#"{"PublicIP":"192.168.50.1","BackendType":"vxlan"}"#).unwrap(),
            networks: [(Family::V4, "10.5.0.0/16".parse().unwrap())]
                .into_iter()
                .collect(),
        }
    }

    fn accepted(leases: &[(&str, &str)]) -> (Vec<String>, Skipped) {
        let records = leases.iter().map(|(name, ip)| {
            let value = format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan"}}"#);
            Record {
                name: (*name).into(),
                content: Ok((
                    name.parse().unwrap(),
                    Lease::parse(value.as_bytes()).unwrap(),
                )),
            }
        });
        let mut table = LeaseTable::default();
        table.fold(LeaseEvent::Snapshot(records.collect()));
        let (peers, skipped) = accept(&table, &node());
        let names = peers.iter().map(|(subnets, _)| subnets.to_string());
        (names.collect(), skipped)
    }

    #[test]
    fn our_own_subnet_is_never_a_peers_whoever_claims_it() {
        let (peers, skipped) = accepted(&[("10.5.20.0-24", "192.168.50.66")]);
        assert_eq!((peers.len(), skipped.len()), (0, 0));
    }

    #[test]
    fn what_cannot_be_right_is_left_out_and_named() {
        let bad = [
            ("10.9.45.0-24", "192.168.50.45", "outside the network"),
            ("10.5.20.128-25", "192.168.50.46", "our own subnet"),
            ("10.5.40.0-24", "192.168.50.1", "our own"),
            ("10.5.41.0-24", "127.0.0.1", "no host's"),
            ("10.5.42.0-24", "224.0.0.1", "no host's"),
            ("10.5.43.0-24", "255.255.255.255", "no host's"),
            ("10.5.48.0-24", "0.0.0.0", "no public IPv4 address"),
            (
                "0.0.0.0-0&fd00::-64",
                "192.168.50.49",
                "no subnet of a family",
            ),
        ];
        let mut leases: Vec<_> = bad.iter().map(|(key, ip, _)| (*key, *ip)).collect();
        leases.push(("10.5.30.0-24", "192.168.50.30"));
        let (peers, skipped) = accepted(&leases);
        assert_eq!(peers, ["10.5.30.0-24"]);
        for (key, _, words) in bad {
            assert!(skipped[key].contains(words), "{key}: {}", skipped[key]);
        }
    }

    #[test]
    fn of_overlapping_leases_one_is_taken_whatever_the_order() {
        let leases = [
            ("10.5.30.0-23", "192.168.50.30"),
            ("10.5.30.0-24", "192.168.50.31"),
            ("10.5.31.0-24", "192.168.50.32"),
            ("10.5.32.0-24", "192.168.50.33"),
        ];
        let (peers, skipped) = accepted(&leases);
        assert_eq!(peers, ["10.5.30.0-23", "10.5.32.0-24"]);
        assert_eq!(skipped.len(), 2);
    }

    #[test]
    fn what_is_claimed_out_of_order_is_found_as_well() {
        let leases = [
            ("10.5.30.0-24&fd00:5:0:30::-64", "192.168.50.30"),
            ("10.5.31.0-24&fd00:5:0:10::-64", "192.168.50.31"),
            ("10.5.32.0-24&fd00:5:0:20::-64", "192.168.50.32"),
            ("10.5.33.0-24&fd00:5:0:10::-60", "192.168.50.33"),
            ("10.5.34.0-24&fd00:5:0:30:8000::-65", "192.168.50.34"),
            ("10.5.35.0-24&fd00:5:0:21::-64", "192.168.50.35"),
            ("10.5.36.0-24&fd00:5:0:40::-64", "192.168.50.36"),
            ("10.5.37.0-24&fd00:5:0:3f::-64", "192.168.50.37"),
        ];
        let (peers, skipped) = accepted(&leases);
        let kept = [0, 1, 2, 5, 6, 7].map(|at: usize| leases[at].0);
        assert_eq!(peers, kept);
        for (at, holder) in [(3, 1), (4, 0)] {
            let reason = format!("it overlaps {}", leases[holder].0);
            assert_eq!(skipped[leases[at].0], reason);
        }
    }

    #[test]
    fn a_dual_stack_lease_is_a_peer_by_the_half_that_we_use() {
        let (peers, _) = accepted(&[("10.5.31.0-24&fd00:5:0:31::-64", "10.99.0.31")]);
        assert_eq!(peers, ["10.5.31.0-24&fd00:5:0:31::-64"]);
    }
}
