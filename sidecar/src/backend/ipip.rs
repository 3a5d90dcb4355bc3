//! The `ipip` backend: IPv4 packets in IPv4 packets, 20 bytes dearer and without a port. One
//! device whose routes say where the other end is. IPv4 only, as the mechanism is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kernel::ipip::Ipip;
use serde::Deserialize;
use serde_json::Value;

use super::options::decode;
use crate::family::{Family, base_host};
use crate::lease::Lease;
use crate::net_conf::NetConfError;
use crate::peers::Node;
use crate::subnets::Subnets;
use crate::tables::{Device, DeviceLink, DeviceName, Facts, Hop, Kind, RouteKey, Tables};
use crate::underlay::{OwnLinks, Underlay};

/// `BackendType` in leases.
pub(super) const TYPE: &str = "ipip";
/// The device's name.
pub const DEVICE: &str = "flannel.ipip";
/// Bytes of the outer header.
pub(super) const OVERHEAD: u32 = 20;

/// The options in net-conf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Plain routes to peers on our own link.
    #[serde(rename = "DirectRouting")]
    pub direct_routing: bool,
}

impl Options {
    pub(super) fn parse(backend: &Value) -> Result<Self, NetConfError> {
        decode(backend)
    }
}

/// The device, and one route per peer: through the tunnel to its public address, or straight to it.
pub(super) fn tables(
    options: &Options,
    node: &Node,
    underlay: &Underlay,
    peers: &[(&Subnets, &Lease)],
    facts: &Facts,
) -> Tables {
    let mut tables = Tables::default();
    let Some(subnet) = node.subnets.get(Family::V4) else {
        return tables;
    };
    let local = match underlay.addresses.get(Family::V4) {
        Some(IpAddr::V4(ip)) => Some(*ip),
        _ => None,
    };
    let name: DeviceName = DEVICE.into();
    let device = Device {
        link: DeviceLink {
            kind: Kind::Ipip(Ipip {
                local,
                remote: None,
            }),
            mac: None,
            mtu: underlay.mtu.saturating_sub(OVERHEAD),
            up: true,
            asks: None,
        },
        addresses: BTreeSet::from([base_host(subnet)]),
        neighbours: BTreeMap::new(),
        fdb: BTreeMap::new(),
    };
    tables.devices.insert(name.clone(), device);
    let own_links = options.direct_routing.then(|| OwnLinks::of(facts));
    for (subnets, lease) in peers {
        let (Some(subnet), Some(via)) = (
            subnets.get(Family::V4),
            lease.public_ips.get(Family::V4).copied(),
        ) else {
            continue;
        };
        let direct = own_links.as_ref().and_then(|own| own.device_to(via));
        let hop = Hop {
            via,
            device: direct.map_or_else(|| name.clone(), DeviceName::from),
            onlink: direct.is_none(),
        };
        tables.routes.insert(RouteKey::to(subnet), hop);
    }
    tables
}
