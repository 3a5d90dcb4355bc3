//! Fuzz targets for what peers say to a backend, and what it noted of them: a lease's value with
//! its `BackendData`, under every backend; what an extension's programs were told, from disk.

use serde_json::json;

use super::{Backend, Identity, extension, wireguard};
use crate::family::{ByFamily, Family};
use crate::lease::Lease;
use crate::lease_table::LeaseTable;
use crate::peers::{self, Node};
use crate::store::{LeaseEvent, Record};
use crate::tables::Facts;
use crate::underlay::Underlay;

const OWN: &str = "10.5.20.0-24&fd00:5:0:20::-64";
/// Two that say the same: a node that is there twice, or a copied value.
const PEERS: [&str; 2] = [
    "10.5.30.0-24&fd00:5:0:30::-64",
    "10.5.31.0-24&fd00:5:0:31::-64",
];

/// A peer's lease. It becomes tables, or is left out with a reason; it never takes our own place.
pub(crate) fn data(bytes: &[u8]) {
    let Ok(lease) = Lease::parse(bytes) else {
        return;
    };
    let record = |name: &str| Record {
        name: name.into(),
        content: Ok((name.parse().expect("a lease's name"), lease.clone())),
    };
    let mut table = LeaseTable::default();
    table.fold(LeaseEvent::Snapshot(PEERS.map(record).into()));
    let (node, underlay, facts) = (node(), underlay(), Facts::default());
    for backend in backends() {
        let identity = identity();
        let (peers, mut skipped) = peers::accept(&table, &node);
        let (tables, more) = backend.tables(&node, &identity, &underlay, &peers, &facts);
        skipped.extend(more);
        match &backend {
            Backend::Udp(options) => drop(options.peers(&peers)),
            Backend::Extension(_) => {
                let (told, more) = extension::told(&peers);
                skipped.extend(more);
                for told in told.values() {
                    let back = extension::Told::parse(&told.render());
                    assert_eq!(back.as_ref(), Ok(told));
                }
            }
            Backend::Wireguard(options) => {
                let own = identity.key.as_ref().expect("a key").public();
                let (wanted, _) = wireguard::wanted(options, &node, &own, &peers);
                let mut keys = wanted.values().flat_map(|peers| peers.keys());
                assert!(keys.all(|key| *key != own), "we are no peer of ours");
            }
            _ => {}
        }
        let ours: [ipnet::IpNet; 2] =
            node.subnets.iter().map(|(_, net)| net).collect::<Vec<_>>()[..]
                .try_into()
                .expect("two families");
        for route in tables.routes.keys() {
            assert!(!ours.contains(&route.destination), "{route:?}");
        }
        assert!(skipped.values().all(|reason| !reason.is_empty()));
    }
}

/// What is kept on disk of what programs were told.
pub(crate) fn told(bytes: &[u8]) {
    let Ok(told) = extension::Told::parse(&String::from_utf8_lossy(bytes)) else {
        return;
    };
    assert_eq!(extension::Told::parse(&told.render()), Ok(told));
}

fn backends() -> Vec<Backend> {
    let all = [
        json!({"Type": "vxlan", "DirectRouting": true}),
        json!({"Type": "host-gw"}),
        json!({"Type": "alloc"}),
        json!({"Type": "udp"}),
        json!({"Type": "ipip", "DirectRouting": true}),
        json!({"Type": "wireguard", "Mode": "auto"}),
        json!({"Type": "wireguard", "Mode": "separate"}),
        json!({"Type": "extension", "SubnetAddCommand": "true"}),
    ];
    let parse = |backend| super::parse(Some(backend)).expect("a right backend");
    all.iter().map(parse).collect()
}

fn identity() -> Identity {
    let macs = [(Family::V4, 1), (Family::V6, 2)];
    Identity {
        macs: (macs.into_iter())
            .map(|(family, n)| (family, kernel::Mac([2, 0, 0, 0, 0, n])))
            .collect(),
        key: Some(wireguard::PrivateKey::new([1; 32])),
        said: None,
    }
}

fn node() -> Node {
    let networks = [(Family::V4, "10.5.0.0/16"), (Family::V6, "fd00:5::/48")];
    Node {
        subnets: OWN.parse().expect("a lease's name"),
        lease: Lease {
            public_ips: addresses(),
            backend_type: "vxlan".into(),
            backend_data: ByFamily::default(),
        },
        networks: (networks.into_iter())
            .map(|(family, net)| (family, net.parse().expect("a network")))
            .collect(),
    }
}

fn addresses() -> ByFamily<std::net::IpAddr> {
    let all = [(Family::V4, "192.168.50.1"), (Family::V6, "fd00:50::1")];
    (all.into_iter())
        .map(|(family, ip)| (family, ip.parse().expect("an address")))
        .collect()
}

fn underlay() -> Underlay {
    Underlay {
        ifindex: 2,
        name: "eth0".into(),
        mtu: 1500,
        addresses: addresses(),
        public_ips: addresses(),
    }
}
