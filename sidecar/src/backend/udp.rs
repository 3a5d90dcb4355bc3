//! The `udp` backend: one TUN device that the whole network is routed to, and a socket; which peer
//! a packet goes to is decided in user space (`crate::udp`). IPv4 only, as flannel's datagrams are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddrV4};

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use serde_json::Value;

use super::options::{decode, in_range};
use crate::family::{Family, base_host};
use crate::lease::Lease;
use crate::net_conf::NetConfError;
use crate::peers::Node;
use crate::subnets::Subnets;
use crate::tables::{Device, DeviceLink, DeviceName, Hop, Kind, RouteKey, Tables};
use crate::udp::{DEVICE, Ends, OVERHEAD, PORT, Peers};
use crate::underlay::Underlay;

/// The name in net-conf. Leases carry none.
pub(super) const TYPE: &str = "udp";

/// The options in net-conf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The UDP port of every node of the cluster: leases do not carry it.
    pub port: u16,
    /// Many packets for each system call, as far as the kernel can; else one, as flanneld does it.
    /// Ours: flanneld passes over it, and either kind of node understands the other.
    pub offload: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: PORT,
            offload: true,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(rename = "Port")]
    port: i64,
    #[serde(rename = "Offload")]
    offload: bool,
}

impl Default for Keys {
    fn default() -> Self {
        let Options { port, offload } = Options::default();
        Self {
            port: port.into(),
            offload,
        }
    }
}

impl Options {
    pub(super) fn parse(backend: &Value) -> Result<Self, NetConfError> {
        let keys: Keys = decode(backend)?;
        Ok(Self {
            port: in_range("Port", keys.port, 1..=65_535)?,
            offload: keys.offload,
        })
    }

    /// Where the data path's ends are; None without an IPv4 address.
    pub(crate) fn ends(&self, underlay: &Underlay) -> Option<Ends> {
        let Some(IpAddr::V4(address)) = underlay.addresses.get(Family::V4) else {
            return None;
        };
        Some(Ends {
            device: DEVICE.to_owned(),
            listen: SocketAddrV4::new(*address, self.port),
        })
    }

    /// Who has which subnet.
    pub(crate) fn peers(&self, peers: &[(&Subnets, &Lease)]) -> Peers {
        let peer = |(subnets, lease): &(&Subnets, &Lease)| {
            let Some(IpNet::V4(subnet)) = subnets.get(Family::V4) else {
                return None;
            };
            let Some(IpAddr::V4(ip)) = lease.public_ips.get(Family::V4) else {
                return None;
            };
            Some((subnet, SocketAddrV4::new(*ip, self.port)))
        };
        Peers::new(peers.iter().filter_map(peer))
    }
}

/// What the device is to be, once the data path has made it: its first address and network.
pub(crate) fn addresses(node: &Node) -> Option<(Ipv4Net, Ipv4Net)> {
    match (
        node.subnets.get(Family::V4)?,
        node.networks.get(Family::V4)?,
    ) {
        (IpNet::V4(subnet), IpNet::V4(network)) => Some((subnet, *network)),
        _ => None,
    }
}

/// The device and the one route, whoever the peers are.
pub(super) fn tables(node: &Node, underlay: &Underlay) -> Tables {
    let mut tables = Tables::default();
    let Some((subnet, network)) = addresses(node) else {
        return tables;
    };
    let name: DeviceName = DEVICE.into();
    let device = Device {
        link: DeviceLink {
            kind: Kind::Tun,
            mac: None,
            mtu: underlay.mtu.saturating_sub(OVERHEAD),
            up: true,
            asks: None,
        },
        addresses: BTreeSet::from([base_host(subnet.into())]),
        neighbours: BTreeMap::new(),
        fdb: BTreeMap::new(),
    };
    let hop = Hop {
        via: Family::V4.unspecified(),
        device: name.clone(),
        onlink: false,
    };
    tables.devices.insert(name, device);
    // One route needs no metric of its own, and so has flannel's.
    let key = RouteKey::to(network.into()).before();
    tables.routes.insert(key, hop);
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_port_is_flannels_and_zero_is_none() {
        let port = |json: Value| Options::parse(&json).map(|options| options.port);
        assert_eq!(port(json!({})), Ok(8285));
        assert_eq!(port(json!({"port": 8472})), Ok(8472));
        for bad in [json!(0), json!(65536), json!("8285")] {
            let error = port(json!({"Port": bad})).unwrap_err();
            assert!(error.fatal && error.field == "Backend.Port", "{error}");
        }
    }

    #[test]
    fn offload_is_on_unless_it_is_turned_off() {
        let offload = |json: Value| Options::parse(&json).map(|options| options.offload);
        assert_eq!(offload(json!({})), Ok(true));
        assert_eq!(offload(json!({"Offload": false})), Ok(false));
        let error = offload(json!({"Offload": "no"})).unwrap_err();
        assert!(error.fatal && error.field == "Backend.Offload", "{error}");
    }

    #[test]
    fn a_peer_is_reached_at_its_public_address_and_our_own_port() {
        let subnets: Subnets = "10.5.30.0-24&fd00:5:0:30::-64".parse().unwrap();
        let v6_only: Subnets = "0.0.0.0-0&fd00:5:0:31::-64".parse().unwrap();
        let lease = Lease::parse(br#"{"PublicIP":"192.168.50.30"}"#).unwrap();
        let options = Options {
            port: 9,
            ..Options::default()
        };
        let peers = options.peers(&[(&subnets, &lease), (&v6_only, &lease)]);
        let want = (
            "10.5.30.0/24".parse().unwrap(),
            "192.168.50.30:9".parse().unwrap(),
        );
        assert_eq!(peers, Peers::new([want]));
    }
}
