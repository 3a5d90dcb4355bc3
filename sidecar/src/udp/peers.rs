//! Which peer has which subnet: an immutable table, made anew when leases change.

use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

/// The peers by their subnets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peers {
    /// By prefix length, the longest first; usually there is one length. Each sorted by address.
    lengths: Vec<(u8, Vec<(u32, SocketAddrV4)>)>,
}

impl Peers {
    /// Reads the whole table in. Of a subnet named twice the last one counts.
    pub fn new(peers: impl IntoIterator<Item = (Ipv4Net, SocketAddrV4)>) -> Self {
        let mut by_subnet: std::collections::BTreeMap<(u8, u32), SocketAddrV4> = peers
            .into_iter()
            .map(|(net, peer)| ((net.prefix_len(), u32::from(net.network())), peer))
            .collect();
        let mut lengths: Vec<(u8, Vec<(u32, SocketAddrV4)>)> = Vec::new();
        while let Some(((length, first), peer)) = by_subnet.pop_first() {
            match lengths.last_mut() {
                Some((last, subnets)) if *last == length => subnets.push((first, peer)),
                _ => lengths.push((length, vec![(first, peer)])),
            }
        }
        lengths.reverse();
        Self { lengths }
    }

    /// The peer whose subnet holds `ip`, by longest prefix.
    pub(crate) fn of(&self, ip: Ipv4Addr) -> Option<SocketAddrV4> {
        self.lengths.iter().find_map(|(length, subnets)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
            let first = u32::from(ip) & mask;
            let at = subnets.binary_search_by_key(&first, |(first, _)| *first);
            at.ok().map(|at| subnets[at].1)
        })
    }

    /// Whether a packet from inside address `inner` may come from the host `outer`. The port is not
    /// compared: a peer behind NAT has another one.
    pub(crate) fn is_from(&self, inner: Ipv4Addr, outer: Ipv4Addr) -> bool {
        self.of(inner).is_some_and(|peer| *peer.ip() == outer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(n: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(192, 168, 50, n), 8285)
    }

    fn table(subnets: &[(&str, u8)]) -> Peers {
        Peers::new(
            subnets
                .iter()
                .map(|(net, n)| (net.parse().unwrap(), peer(*n))),
        )
    }

    #[test]
    fn the_longest_prefix_wins() {
        let peers = table(&[("10.5.0.0/16", 1), ("10.5.30.0/24", 2), ("10.5.30.7/32", 3)]);
        let of = |ip: &str| peers.of(ip.parse().unwrap());
        assert_eq!(of("10.5.30.7"), Some(peer(3)));
        assert_eq!(of("10.5.30.8"), Some(peer(2)));
        assert_eq!(of("10.5.31.8"), Some(peer(1)));
        assert_eq!(of("10.6.0.0"), None);
        assert_eq!(Peers::default().of(Ipv4Addr::LOCALHOST), None);
    }

    #[test]
    fn a_source_belongs_to_one_peer_only() {
        let peers = table(&[("10.5.30.0/24", 30), ("10.5.40.0/24", 40)]);
        let inner: Ipv4Addr = "10.5.30.9".parse().unwrap();
        assert!(peers.is_from(inner, *peer(30).ip()));
        assert!(!peers.is_from(inner, *peer(40).ip()));
        assert!(!peers.is_from(Ipv4Addr::new(10, 9, 9, 9), *peer(40).ip()));
    }

    proptest! {
        #[test]
        fn the_answer_is_that_of_looking_at_every_subnet(
            subnets in proptest::collection::vec((any::<u32>(), 0u8..=32, any::<u8>()), 0..40),
            wanted: u32,
        ) {
            // Addresses close together, so that they meet.
            let near = |n: u32| Ipv4Addr::from(n & 0xc300_0303);
            let subnets: std::collections::BTreeMap<Ipv4Net, SocketAddrV4> = subnets
                .into_iter()
                .map(|(ip, length, n)| (Ipv4Net::new(near(ip), length).unwrap().trunc(), peer(n)))
                .collect();
            let expected = subnets
                .iter()
                .filter(|(net, _)| net.contains(&near(wanted)))
                .max_by_key(|(net, _)| net.prefix_len())
                .map(|(_, peer)| *peer);
            prop_assert_eq!(Peers::new(subnets).of(near(wanted)), expected);
        }
    }
}
