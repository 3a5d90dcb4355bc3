//! The `host-gw` backend: each peer is the gateway of its own subnet. Nothing is put around
//! packets, so the nodes must share a link.
//!
//! Flannel takes the peer's word for that and has the kernel refuse a route every ten seconds; here
//! a peer behind a router is left out and named. A peer on the link of another device than the
//! chosen one is reached all the same.

use crate::lease::Lease;
use crate::peers::{Node, Skipped};
use crate::subnets::Subnets;
use crate::tables::{Facts, Hop, RouteKey, Tables};
use crate::underlay::{OwnLinks, Underlay};

/// `BackendType` in leases.
pub(super) const TYPE: &str = "host-gw";

/// Behind NAT no peer can route to us.
pub(super) fn check(underlay: &Underlay) -> Result<(), String> {
    let differs = underlay.addresses.iter().find_map(|(family, address)| {
        let public = underlay.public_ips.get(family)?;
        (public != address).then_some((public, address))
    });
    match differs {
        None => Ok(()),
        Some((public, address)) => Err(format!(
            "host-gw needs the public address to be {}'s own, and {public} is not {address}: \
             leave --public-ip away, or choose a backend that goes through NAT (vxlan, wireguard)",
            underlay.name
        )),
    }
}

/// One route per peer and family.
pub(super) fn tables(
    node: &Node,
    peers: &[(&Subnets, &Lease)],
    facts: &Facts,
) -> (Tables, Skipped) {
    let mut tables = Tables::default();
    let mut skipped = Skipped::new();
    let own_links = OwnLinks::of(facts);
    for (family, _) in node.networks.iter() {
        for (subnets, lease) in peers {
            let (Some(subnet), Some(via)) = (subnets.get(family), lease.public_ips.get(family))
            else {
                continue;
            };
            let Some(device) = own_links.device_to(*via) else {
                let reason = format!(
                    "host-gw reaches neighbours only, and {via} is on no link of this node"
                );
                skipped.insert(subnets.to_string(), reason);
                continue;
            };
            let hop = Hop {
                via: *via,
                device: device.into(),
                onlink: false,
            };
            tables.routes.insert(RouteKey::to(subnet), hop);
        }
    }
    (tables, skipped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{ByFamily, Family};
    use ipnet::IpNet;
    use kernel::route::Route;
    use std::net::IpAddr;

    fn underlay(public: &str) -> Underlay {
        let ips = |v4: &str| -> ByFamily<IpAddr> {
            let ips = [
                (Family::V4, v4.parse().unwrap()),
                (Family::V6, "fd00:50::1".parse().unwrap()),
            ];
            ips.into_iter().collect()
        };
        Underlay {
            ifindex: 2,
            name: "eth0".into(),
            mtu: 1500,
            addresses: ips("192.168.50.1"),
            public_ips: ips(public),
        }
    }

    #[test]
    fn nat_is_refused_by_name() {
        assert_eq!(check(&underlay("192.168.50.1")), Ok(()));
        let error = check(&underlay("203.0.113.9")).unwrap_err();
        assert!(
            error.contains("203.0.113.9") && error.contains("--public-ip"),
            "{error}"
        );
    }

    #[test]
    fn a_peer_behind_a_router_is_named_and_costs_no_other() {
        let lease = |v4: &str, v6: &str| {
            let value =
                format!(r#"{{"PublicIP":"{v4}","PublicIPv6":"{v6}","BackendType":"host-gw"}}"#);
            Lease::parse(value.as_bytes()).unwrap()
        };
        let node = Node {
            subnets: "10.5.20.0-24&fd00:5:0:20::-64".parse().unwrap(),
            lease: lease("192.168.50.1", "fd00:50::1"),
            networks: ["10.5.0.0/16", "fd00:5::/48"]
                .map(|net| net.parse::<IpNet>().unwrap())
                .into_iter()
                .map(|net| (crate::family::family_of(net), net))
                .collect(),
        };
        let near: Subnets = "10.5.30.0-24&fd00:5:0:30::-64".parse().unwrap();
        let far: Subnets = "10.5.31.0-24&fd00:5:0:31::-64".parse().unwrap();
        let leases = [
            lease("192.168.50.30", "fd00:50::30"),
            lease("10.99.0.31", "fd00:99::31"),
        ];
        let facts = Facts {
            links: vec![crate::tables::tests::plain_link(2, "eth0")],
            routes: ["192.168.50.0/24", "fd00:50::/64"]
                .map(|net| Route {
                    ifindex: Some(2),
                    ..Route::to(net.parse().unwrap())
                })
                .to_vec(),
            ..Facts::default()
        };
        let peers = [(&near, &leases[0]), (&far, &leases[1])];
        let (tables, skipped) = tables(&node, &peers, &facts);
        let routes: Vec<_> = tables
            .routes
            .iter()
            .map(|(key, hop)| format!("{} via {} dev {}", key.destination, hop.via, hop.device))
            .collect();
        assert_eq!(
            routes,
            [
                "10.5.30.0/24 via 192.168.50.30 dev eth0",
                "fd00:5:0:30::/64 via fd00:50::30 dev eth0"
            ]
        );
        assert!(tables.devices.is_empty());
        assert!(
            skipped[&far.to_string()].contains("on no link"),
            "{skipped:?}"
        );
        assert_eq!(skipped.len(), 1);
    }
}
