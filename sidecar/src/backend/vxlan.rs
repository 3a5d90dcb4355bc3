//! The `vxlan` backend, flannel's form of it: one device per family, and per peer one route, one
//! neighbour and one forwarding entry.
//!
//! The peer's subnet is routed to its base address on the device (`onlink`); the neighbour gives
//! that address the peer's VTEP MAC; the forwarding entry sends that MAC to the peer's public
//! address. With `DirectRouting` a peer on our own link gets a plain route instead.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use kernel::Mac;
use kernel::vxlan::{DEFAULT_PORT, Vxlan};
use serde::Deserialize;
use serde_json::Value;

use super::mtu;
use super::options::{decode, in_range};
use crate::family::{ByFamily, Family, base_host};
use crate::lease::Lease;
use crate::net_conf::NetConfError;
use crate::peers::{Node, Skipped};
use crate::subnets::Subnets;
use crate::tables::{Device, DeviceLink, DeviceName, Facts, Hop, Kind, Remote, RouteKey, Tables};
use crate::underlay::{OwnLinks, Underlay};

/// `BackendType` in leases.
pub const TYPE: &str = "vxlan";

/// For how long a peer is in use after the last packet to it, in seconds, if net-conf does not say.
const ON_DEMAND_TIMEOUT: i64 = 300;

/// The options in net-conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// The UDP port; `None` takes the kernel's, or what a device that is there has.
    pub port: Option<u16>,
    /// The MTU of the underlay, in bytes; `None` takes the underlay device's.
    pub mtu: Option<u32>,
    /// The Group Based Policy extension.
    pub gbp: bool,
    /// Learn inner MAC addresses from received packets.
    pub learning: bool,
    /// Plain routes to peers on our own link.
    pub direct_routing: bool,
    /// Entries for the peers in use only, which lose them when nothing was sent to them for this
    /// time; `None` gives every peer its entries.
    pub on_demand: Option<Duration>,
    /// Whether a peer whose value names no VNI is taken to have ours.
    pub any_without_vni: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vni: 1,
            port: None,
            mtu: None,
            gbp: false,
            learning: false,
            direct_routing: false,
            on_demand: None,
            any_without_vni: false,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(rename = "VNI")]
    vni: i64,
    #[serde(rename = "Port")]
    port: i64,
    #[serde(rename = "MTU")]
    mtu: i64,
    #[serde(rename = "GBP")]
    gbp: bool,
    #[serde(rename = "Learning")]
    learning: bool,
    #[serde(rename = "DirectRouting")]
    direct_routing: bool,
    #[serde(rename = "OnDemand")]
    on_demand: bool,
    #[serde(rename = "OnDemandTimeout")]
    on_demand_timeout: i64,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            vni: 1,
            port: 0,
            mtu: 0,
            gbp: false,
            learning: false,
            direct_routing: false,
            on_demand: false,
            on_demand_timeout: ON_DEMAND_TIMEOUT,
        }
    }
}

/// Bytes that the tunnel adds: inner Ethernet 14, VXLAN 8, UDP 8, and the outer IP header.
pub const fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

impl Options {
    /// Decodes and checks `Backend`.
    pub(crate) fn parse(backend: &Value) -> Result<Self, NetConfError> {
        let keys: Keys = decode(backend)?;
        if keys.on_demand && keys.direct_routing {
            let problem = "is not for DirectRouting, which gives every peer a route: leave one of the two away";
            return Err(NetConfError::fatal("Backend.OnDemand", problem.to_owned()));
        }
        let timeout = in_range("OnDemandTimeout", keys.on_demand_timeout, 1..=86_400)?;
        Ok(Self {
            vni: in_range("VNI", keys.vni, 0..=0xff_ffff)?,
            port: Some(in_range("Port", keys.port, 0..=65_535)?).filter(|port| *port != 0),
            // What is too small for a family is only known with the families.
            mtu: Some(in_range("MTU", keys.mtu, 0..=65_535)?).filter(|mtu| *mtu != 0),
            gbp: keys.gbp,
            learning: keys.learning,
            direct_routing: keys.direct_routing,
            on_demand: keys.on_demand.then_some(Duration::from_secs(timeout)),
            any_without_vni: false,
        })
    }

    /// The name of the device of a family.
    pub fn device(&self, family: Family) -> DeviceName {
        match family {
            Family::V4 => format!("flannel.{}", self.vni).into(),
            Family::V6 => format!("flannel-v6.{}", self.vni).into(),
        }
    }

    fn inner_mtu(&self, family: Family, underlay: &Underlay) -> u32 {
        let outer = self.mtu.unwrap_or(underlay.mtu);
        outer.saturating_sub(overhead(family))
    }

    /// The MTU of pods: what fits through the tunnel of every family. In bytes.
    pub fn pod_mtu(
        &self,
        families: impl Iterator<Item = Family>,
        underlay: &Underlay,
    ) -> Result<u32, String> {
        mtu::least(families, underlay, Some(self.mtu), overhead)
    }

    /// What this node publishes.
    pub fn lease(&self, underlay: &Underlay, macs: &ByFamily<Mac>) -> Lease {
        let data = |(family, mac): (Family, &Mac)| {
            let text = format!(r#"{{"VNI":{},"VtepMAC":"{mac}"}}"#, self.vni);
            (family, text.into())
        };
        Lease {
            public_ips: underlay.public_ips,
            backend_type: TYPE.into(),
            backend_data: macs.iter().map(data).collect(),
        }
    }

    /// The VTEP's address that peers know from a lease of ours.
    pub(crate) fn published_mac(lease: &Lease, family: Family) -> Option<Mac> {
        let text = lease.backend_data.get(family)?;
        let data: Data = go_json::from_slice(text.as_bytes()).ok()?;
        data.vtep_mac.parse().ok()
    }
}

/// The kernel tables that these peers need, and the peers that cannot be had, with the reason.
pub fn tables(
    options: &Options,
    node: &Node,
    macs: &ByFamily<Mac>,
    underlay: &Underlay,
    peers: &[(&Subnets, &Lease)],
    facts: &Facts,
) -> (Tables, Skipped) {
    let mut tables = Tables::default();
    let mut skipped = Skipped::new();
    let own_links = options.direct_routing.then(|| OwnLinks::of(facts));
    // Collected at once at the end, which costs a fraction of ten thousand insertions.
    let mut routes = Vec::with_capacity(peers.len());
    for (family, _) in node.networks.iter() {
        let (Some(mac), Some(subnet)) = (macs.get(family), node.subnets.get(family)) else {
            continue;
        };
        let name = options.device(family);
        let mut device = Device {
            link: link(options, family, *mac, underlay, facts, &name),
            addresses: BTreeSet::from([base_host(subnet)]),
            neighbours: BTreeMap::new(),
            fdb: BTreeMap::new(),
        };
        if let Some(key) = whole_network(options, node, family) {
            let hop = Hop {
                via: family.unspecified(),
                device: name.clone(),
                onlink: false,
            };
            routes.push((key, hop));
        }
        let mut neighbours = Vec::with_capacity(peers.len());
        for (subnets, lease) in peers {
            let placed = Peer::of(family, subnets, lease).and_then(|peer| match peer {
                Some(peer) if peer.vni.is_none() && !options.any_without_vni => {
                    Err("its value names no VNI".to_owned())
                }
                Some(peer) => {
                    let own_links = own_links.as_ref();
                    let direct = own_links.and_then(|own| own.device_to(peer.public_ip));
                    let hop = place(&peer, direct, &name, &mut device)?;
                    if hop.onlink {
                        neighbours.push((peer.subnet.network(), peer.mac));
                    }
                    routes.push((RouteKey::to(peer.subnet), hop));
                    Ok(())
                }
                None => Ok(()),
            });
            if let Err(reason) = placed {
                skipped.insert(subnets.to_string(), reason);
            }
        }
        device.neighbours = neighbours.into_iter().collect();
        tables.devices.insert(name, device);
    }
    tables.routes = routes.into_iter().collect();
    (tables, skipped)
}

/// The one route of `OnDemand`, which raises a miss for every peer that has no route of its own yet.
fn whole_network(options: &Options, node: &Node, family: Family) -> Option<RouteKey> {
    options.on_demand?;
    let network = *node.networks.get(family)?;
    // A network of one node is its own, and has a route already.
    let others = node.subnets.get(family) != Some(network);
    // One route needs no metric of its own.
    others.then(|| RouteKey::to(network).before())
}

fn link(
    options: &Options,
    family: Family,
    mac: Mac,
    underlay: &Underlay,
    facts: &Facts,
    name: &str,
) -> DeviceLink {
    let present = facts.link(name).and_then(|link| link.vxlan.as_ref());
    // Flannel asks for a port only where one is configured, and so keeps a device's.
    let kept = present.map_or(DEFAULT_PORT, |vxlan| vxlan.port);
    DeviceLink {
        kind: Kind::Vxlan(Vxlan {
            vni: options.vni,
            underlay: Some(underlay.ifindex),
            // Not the public address: behind NAT that one is not ours to send from.
            local: underlay.addresses.get(family).copied(),
            group: None,
            port: options.port.unwrap_or(kept),
            learning: options.learning,
            gbp: options.gbp,
            l2miss: options.on_demand.is_some(),
            // The neighbour table raises these; by itself the flag does so with `proxy` only.
            l3miss: options.on_demand.is_some(),
        }),
        mac: Some(mac),
        mtu: options.inner_mtu(family, underlay),
        up: true,
        asks: options.on_demand.map(|_| family),
    }
}

/// A peer in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    subnet: IpNet,
    public_ip: IpAddr,
    mac: Mac,
    vni: Option<u32>,
}

/// A peer's half of `BackendData`.
#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Data {
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    #[serde(rename = "VtepMAC")]
    vtep_mac: String,
}

impl Peer {
    /// `None` if the peer has nothing in this family.
    fn of(family: Family, subnets: &Subnets, lease: &Lease) -> Result<Option<Self>, String> {
        let (Some(subnet), Some(public_ip)) = (subnets.get(family), lease.public_ips.get(family))
        else {
            return Ok(None);
        };
        let key = match family {
            Family::V4 => "BackendData",
            Family::V6 => "BackendV6Data",
        };
        let data = lease
            .backend_data
            .get(family)
            .ok_or_else(|| format!("its value has no {key}"))?;
        let wrong = |reason: String| format!("its value: field {key}: {reason}");
        // The usual spelling costs a small part of what the general one does.
        let (vni, mac) = match usual(data) {
            Some((vni, vtep_mac)) => (Some(vni), vtep_mac.parse()),
            None => {
                let data: Data =
                    go_json::from_slice(data.as_bytes()).map_err(|e| wrong(e.to_string()))?;
                (data.vni, data.vtep_mac.parse())
            }
        };
        let mac: Mac = mac.map_err(|e| wrong(format!("VtepMAC: {e}")))?;
        if !mac.is_unicast() || mac == Mac([0; 6]) {
            return Err(wrong(format!("VtepMAC: {mac} is no device's own address")));
        }
        Ok(Some(Self {
            subnet,
            public_ip: *public_ip,
            mac,
            vni,
        }))
    }
}

/// VNI and VTEP of what flannel and we write, letter by letter.
fn usual(data: &str) -> Option<(u32, &str)> {
    let (vni, mac) = data
        .strip_prefix(r#"{"VNI":"#)?
        .strip_suffix(r#""}"#)?
        .split_once(r#","VtepMAC":""#)?;
    // JSON knows no sign and no leading zeros.
    let is_number = vni.bytes().all(|digit| digit.is_ascii_digit()) && !vni.starts_with('0');
    let is_plain = !mac.contains(['"', '\\']);
    (is_number && is_plain).then_some((vni.parse().ok()?, mac))
}

/// Where a peer's route leads, by a plain one out of the device `direct` or else by the tunnel, which
/// then has its forwarding entry and wants its neighbour; or why it cannot be entered.
fn place(
    peer: &Peer,
    direct: Option<&str>,
    name: &DeviceName,
    device: &mut Device,
) -> Result<Hop, String> {
    if let Some(underlay) = direct {
        return Ok(Hop {
            via: peer.public_ip,
            device: underlay.into(),
            onlink: false,
        });
    }
    enter_tunnel(peer, device)?;
    Ok(Hop {
        via: peer.subnet.network(),
        device: name.clone(),
        onlink: true,
    })
}

fn enter_tunnel(peer: &Peer, device: &mut Device) -> Result<(), String> {
    // Its device would drop every packet of ours.
    if let (Some(theirs), Kind::Vxlan(Vxlan { vni: ours, .. })) = (peer.vni, &device.link.kind)
        && theirs != *ours
    {
        return Err(format!("its VNI is {theirs}, ours {ours}"));
    }
    if Some(peer.mac) == device.link.mac {
        return Err(format!("its VTEP MAC {} is our own", peer.mac));
    }
    let remote = Remote::One(peer.public_ip);
    // One node with two subnets is fine; two nodes with one MAC cannot both be reached.
    match *device.fdb.entry(peer.mac).or_insert(remote) == remote {
        true => Ok(()),
        false => Err(format!("its VTEP MAC {} is another peer's too", peer.mac)),
    }
}

#[cfg(test)]
mod tests;
