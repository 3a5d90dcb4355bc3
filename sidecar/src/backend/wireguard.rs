//! The `wireguard` backend: encrypted tunnels between all nodes, one device per family or one for
//! both.
//!
//! The whole network is routed into the device, and WireGuard itself finds the peer by what it may
//! carry (`allowed`). Peers are therefore no routes: `wanted` says which ones a device is to have,
//! and `changes` what to tell the kernel. A peer that has moved and was heard from since keeps its
//! endpoint.

mod key;
mod options;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use kernel::wireguard::{Change, Device as Found, Key, Peer};
use serde::Deserialize;

use crate::family::{ByFamily, Family, base_host};
use crate::lease::Lease;
use crate::net_conf::SubnetRange;
use crate::peers::{Node, Skipped};
use crate::subnets::Subnets;
use crate::tables::{Device, DeviceLink, DeviceName, Hop, Kind, RouteKey, Tables};
use crate::underlay::Underlay;

pub use self::key::PrivateKey;
pub use self::options::{Mode, Options};

/// `BackendType` in leases.
pub(super) const TYPE: &str = "wireguard";
/// Bytes around each packet, with the larger of the outer headers: what every node of a cluster
/// counts, so that the MTU is the same over either.
pub(super) const OVERHEAD: u32 = 80;
/// After so many seconds without a handshake the other end is not where it was
/// (`REJECT_AFTER_TIME`).
const SILENT: u64 = 180;

impl Options {
    /// The devices of these families.
    pub(super) fn devices(&self, families: impl Iterator<Item = Family>) -> Vec<DeviceName> {
        let names: BTreeSet<&str> = families.map(|family| self.device(family)).collect();
        names.into_iter().map(DeviceName::from).collect()
    }

    /// The device that a family's traffic goes through.
    fn device(&self, family: Family) -> &'static str {
        match (self.mode, family) {
            (Mode::Separate, Family::V6) => "flannel-wg-v6",
            _ => "flannel-wg",
        }
    }

    /// The port that a family's device listens on.
    pub(crate) fn port(&self, family: Family) -> u16 {
        match (self.mode, family) {
            (Mode::Separate, Family::V6) => self.listen_port_v6,
            _ => self.listen_port,
        }
    }

    /// The port that this device listens on.
    pub(crate) fn port_of(&self, device: &str, mut families: impl Iterator<Item = Family>) -> u16 {
        let family = families.find(|family| self.device(*family) == device);
        self.port(family.unwrap_or(Family::V4))
    }

    /// A mode that needs an address that the node does not publish.
    pub(super) fn check(&self, ranges: &ByFamily<SubnetRange>) -> Result<(), String> {
        let needed = match self.mode {
            Mode::Only(family) => family,
            Mode::Separate | Mode::Auto => return Ok(()),
        };
        match ranges.get(needed) {
            Some(_) => Ok(()),
            None => Err(format!(
                "field Backend.Mode: tunnels over {needed} need Enable{} to be true",
                match needed {
                    Family::V4 => "IPv4",
                    Family::V6 => "IPv6",
                }
            )),
        }
    }

    /// What this node publishes.
    pub(super) fn lease(
        &self,
        families: impl Iterator<Item = Family>,
        underlay: &Underlay,
        key: &PrivateKey,
    ) -> Lease {
        let public = BASE64.encode(key.public());
        let data = |family| {
            let port = self.port(family);
            let text = format!(r#"{{"PublicKey":"{public}","Port":{port}}}"#);
            (family, text.into())
        };
        Lease {
            public_ips: underlay.public_ips,
            backend_type: TYPE.into(),
            backend_data: families.map(data).collect(),
        }
    }

    /// Where a peer's tunnel ends.
    fn endpoint_family(&self, family: Family, lease: &Lease, own: &ByFamily<IpAddr>) -> Family {
        match self.mode {
            Mode::Separate => family,
            Mode::Only(family) => family,
            Mode::Auto => auto(&lease.public_ips, own),
        }
    }
}

/// flannel's choice: IPv4 where the peer has a public one, then IPv6 if both ends have a public one,
/// else whatever there is.
fn auto(peer: &ByFamily<IpAddr>, own: &ByFamily<IpAddr>) -> Family {
    let public = |ip: Option<&IpAddr>| ip.is_some_and(|ip| !is_private(*ip));
    let (v4, v6) = (peer.get(Family::V4), peer.get(Family::V6));
    let both = public(v6) && public(own.get(Family::V6));
    match (v4, v6) {
        (None, Some(_)) => Family::V6,
        (_, None) => Family::V4,
        _ if public(v4) && own.get(Family::V4).is_some() => Family::V4,
        _ if both => Family::V6,
        _ => Family::V4,
    }
}

/// RFC 1918 and RFC 4193.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// The devices with the routes of the networks; peers are not in the kernel's tables.
pub(super) fn tables(options: &Options, node: &Node, underlay: &Underlay) -> Tables {
    let mut tables = Tables::default();
    let mtu = options.mtu.unwrap_or(underlay.mtu).saturating_sub(OVERHEAD);
    for (family, network) in node.networks.iter() {
        let Some(subnet) = node.subnets.get(family) else {
            continue;
        };
        let name: DeviceName = options.device(family).into();
        let device = tables
            .devices
            .entry(name.clone())
            .or_insert_with(|| Device {
                link: DeviceLink {
                    kind: Kind::Wireguard,
                    mac: None,
                    mtu,
                    up: true,
                    asks: None,
                },
                addresses: BTreeSet::new(),
                neighbours: BTreeMap::new(),
                fdb: BTreeMap::new(),
            });
        device.addresses.insert(base_host(subnet));
        let hop = Hop {
            via: family.unspecified(),
            device: name,
            onlink: false,
        };
        // One route needs no metric of its own, and so has flannel's.
        tables.routes.insert(RouteKey::to(*network).before(), hop);
    }
    tables
}

/// Which peers each device is to have.
pub(crate) type Wanted = BTreeMap<DeviceName, BTreeMap<Key, Peer>>;

/// A peer's half of `BackendData`.
#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Data {
    #[serde(rename = "PublicKey")]
    public_key: String,
    #[serde(rename = "Port")]
    port: u16,
}

/// The peers by device, and those that cannot be had, with the reason.
pub(crate) fn wanted(
    options: &Options,
    node: &Node,
    own_key: &Key,
    peers: &[(&Subnets, &Lease)],
) -> (Wanted, Skipped) {
    let mut wanted: Wanted = options
        .devices(node.networks.families())
        .into_iter()
        .map(|name| (name, BTreeMap::new()))
        .collect();
    let mut skipped = Skipped::new();
    for (subnets, lease) in peers {
        let placed = place(options, node, own_key, subnets, lease, &mut wanted);
        if let Err(reason) = placed {
            skipped.insert(subnets.to_string(), reason);
        }
    }
    (wanted, skipped)
}

fn place(
    options: &Options,
    node: &Node,
    own_key: &Key,
    subnets: &Subnets,
    lease: &Lease,
    wanted: &mut Wanted,
) -> Result<(), String> {
    let own = &node.lease.public_ips;
    let mut all: BTreeMap<&str, (Key, Peer)> = BTreeMap::new();
    for (family, subnet) in subnets.iter() {
        if node.networks.get(family).is_none() {
            continue;
        }
        let outer = options.endpoint_family(family, lease, own);
        let ip = lease.public_ips.get(outer);
        let ip = ip.ok_or_else(|| format!("it has no public {outer} address"))?;
        let (key, port) = data(options, family, lease)?;
        if key == *own_key {
            return Err("its public key is our own".to_owned());
        }
        let fresh = || {
            let peer = Peer {
                preshared_key: options.psk.as_ref().map(|psk| psk.0),
                endpoint: Some(SocketAddr::new(*ip, port)),
                keepalive: options.keepalive,
                ..Peer::default()
            };
            (key, peer)
        };
        let (_, peer) = all.entry(options.device(family)).or_insert_with(fresh);
        peer.allowed.insert(subnet);
    }
    for (device, (key, _)) in &all {
        if wanted
            .get(*device)
            .is_some_and(|peers| peers.contains_key(key))
        {
            return Err("its public key is another peer's too".to_owned());
        }
    }
    for (device, (key, peer)) in all {
        wanted.entry(device.into()).or_default().insert(key, peer);
    }
    Ok(())
}

/// A peer's key and port. With one device for both families flannel listens on the first port,
/// whatever it publishes for IPv6; so the IPv4 half is the one to believe.
fn data(options: &Options, family: Family, lease: &Lease) -> Result<(Key, u16), String> {
    let from = match options.mode {
        Mode::Separate => family,
        _ if lease.backend_data.get(Family::V4).is_some() => Family::V4,
        _ => Family::V6,
    };
    let name = match from {
        Family::V4 => "BackendData",
        Family::V6 => "BackendV6Data",
    };
    let text = lease.backend_data.get(from);
    let text = text.ok_or_else(|| format!("its value has no {name}"))?;
    let wrong = |reason: String| format!("its value: field {name}: {reason}");
    let data: Data = go_json::from_slice(text.as_bytes()).map_err(|e| wrong(e.to_string()))?;
    let key = key::parse(&data.public_key).map_err(|e| wrong(format!("PublicKey: {e}")))?;
    // Older nodes publish none.
    let port = match data.port {
        0 => options.port(family),
        port => port,
    };
    Ok((key, port))
}

/// What makes `found` what is wanted, at `now` (seconds since 1970). `said` is where the lease said
/// that a peer is when it was told last: only a new word moves a peer that we hear from.
pub(crate) fn changes(
    wanted: &BTreeMap<Key, Peer>,
    found: &Found,
    said: &BTreeMap<Key, SocketAddr>,
    now: u64,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for (key, want) in wanted {
        let Some(have) = found.peers.get(key) else {
            changes.push(Change::Put(*key, want.clone()));
            continue;
        };
        let moved = match (want.endpoint, said.get(key)) {
            (Some(endpoint), Some(said)) => endpoint != *said,
            _ => false,
        };
        let silent = now.saturating_sub(have.last_handshake) > SILENT;
        let lost = have.endpoint.is_none() || silent && have.endpoint != want.endpoint;
        let endpoint = want.endpoint.filter(|_| moved || lost);
        let same = have.preshared_key == want.preshared_key
            && have.keepalive == want.keepalive
            && have.allowed == want.allowed;
        if !same || endpoint.is_some() {
            let peer = Peer {
                endpoint,
                ..want.clone()
            };
            changes.push(Change::Put(*key, peer));
        }
    }
    let gone = found.peers.keys().filter(|key| !wanted.contains_key(*key));
    changes.extend(gone.map(|key| Change::Remove(*key)));
    changes
}

#[cfg(test)]
mod tests;
