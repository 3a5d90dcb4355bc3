//! The kernel tables that are ours, as one value: what is wanted and what was found have the same
//! form, so that they can be compared.
//!
//! [`observe`] picks out of a dump what belongs to us, by the rules of ownership: everything on our
//! devices that stays (permanent neighbours and forwarding entries, addresses inside the network,
//! routes out of the device), and routes elsewhere with our protocol number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kernel::Mac;
use kernel::address::Address;
use kernel::fdb::FdbEntry;
use kernel::link::Link;
use kernel::neighbour::Neighbour;
use kernel::route::{Route, TABLE_MAIN};
use kernel::vxlan::Vxlan;

/// Routes through the underlay carry this number (`/etc/iproute2/rt_protos`); those out of our own
/// devices need no mark, and have flannel's, `boot`.
pub const PROTOCOL_TWILL: u8 = 116;
/// The kernel's own routes, for addresses and link-local networks.
const PROTOCOL_KERNEL: u8 = 2;

/// A device's name; shared, because every route has one.
pub type DeviceName = Arc<str>;

/// Our part of the kernel's tables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    /// Our devices, with what is on them.
    pub devices: BTreeMap<DeviceName, Device>,
    /// Our routes in the main table.
    pub routes: BTreeMap<RouteKey, Hop>,
}

/// A device and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device.
    pub link: DeviceLink,
    /// Addresses inside the cluster's network.
    pub addresses: BTreeSet<IpNet>,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Permanent forwarding entries.
    pub fdb: BTreeMap<Mac, Remote>,
}

/// A device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLink {
    /// What can only be changed by making the device anew.
    pub kind: Kind,
    /// Its address; None for kinds without Ethernet addresses.
    pub mac: Option<Mac>,
    /// What fits into one inner packet, in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// What kind of device it is, with the attributes that are fixed when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `type vxlan`.
    Vxlan(Vxlan),
}

/// Where a forwarding entry sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// This node.
    One(IpAddr),
    /// Several, or none: somebody appended to it. Never wanted.
    Odd,
}

/// What makes a route a route of its own: a second one with the same key replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// The destination.
    pub destination: IpNet,
    /// The metric, as the kernel reports it.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The next hop.
    pub via: IpAddr,
    /// The device.
    pub device: DeviceName,
    /// Whether the next hop is taken to be on the link.
    pub onlink: bool,
}

/// One dump of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// All links.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// All routes, IPv4 first, in the kernel's order.
    pub routes: Vec<Route>,
    /// All neighbours.
    pub neighbours: Vec<Neighbour>,
    /// The forwarding entries of our devices.
    pub fdb: Vec<FdbEntry>,
}

impl Facts {
    /// The link of this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }
}

/// What of the dump is ours. `names` are our devices, `networks` the cluster's.
pub fn observe<'a>(
    facts: &Facts,
    names: impl IntoIterator<Item = &'a DeviceName>,
    networks: &[IpNet],
) -> Tables {
    let mut tables = Tables::default();
    let mut by_index = BTreeMap::new();
    for name in names {
        let Some((link, found)) = device_link(facts, name) else {
            continue;
        };
        by_index.insert(link.ifindex, name.clone());
        let device = Device {
            link: found,
            addresses: addresses_inside(facts, link.ifindex, networks),
            neighbours: BTreeMap::new(),
            fdb: BTreeMap::new(),
        };
        tables.devices.insert(name.clone(), device);
    }
    let devices = &mut tables.devices;
    for entry in facts.neighbours.iter().filter(|entry| entry.permanent) {
        let device = by_index.get(&entry.ifindex);
        if let Some(device) = device.and_then(|name| devices.get_mut(name))
            && let Some(mac) = entry.mac
        {
            device.neighbours.insert(entry.ip, mac);
        }
    }
    for entry in facts.fdb.iter().filter(|entry| is_a_peers(entry)) {
        let device = by_index.get(&entry.ifindex);
        if let Some(device) = device.and_then(|name| devices.get_mut(name)) {
            let remote = entry.destination.map_or(Remote::Odd, Remote::One);
            device
                .fdb
                .entry(entry.mac)
                .and_modify(|present| *present = Remote::Odd)
                .or_insert(remote);
        }
    }
    tables.routes = our_routes(facts, &by_index);
    tables
}

/// Not learned, and not the all-zero entry, which is a device's flood list.
fn is_a_peers(entry: &FdbEntry) -> bool {
    entry.permanent && entry.mac.is_unicast() && entry.mac != Mac([0; 6])
}

fn device_link<'a>(facts: &'a Facts, name: &str) -> Option<(&'a Link, DeviceLink)> {
    let link = facts.link(name)?;
    let found = DeviceLink {
        kind: Kind::of(link)?,
        mac: link.mac,
        mtu: link.mtu,
        up: link.up,
    };
    Some((link, found))
}

impl Kind {
    /// None for kinds that we never make: such a device is somebody else's, whatever its name.
    fn of(link: &Link) -> Option<Self> {
        link.vxlan.clone().map(Self::Vxlan)
    }
}

fn addresses_inside(facts: &Facts, ifindex: u32, networks: &[IpNet]) -> BTreeSet<IpNet> {
    let inside = |address: &&Address| {
        let ip = address.net.addr();
        address.ifindex == ifindex && networks.iter().any(|network| network.contains(&ip))
    };
    let inside = facts.addresses.iter().filter(inside);
    inside.map(|address| address.net).collect()
}

fn our_routes(facts: &Facts, devices: &BTreeMap<u32, DeviceName>) -> BTreeMap<RouteKey, Hop> {
    let mut routes = BTreeMap::new();
    let mut names: BTreeMap<u32, DeviceName> = devices.clone();
    for route in &facts.routes {
        let Some(ifindex) = route.ifindex else {
            continue;
        };
        let ours = devices.contains_key(&ifindex) && route.protocol != PROTOCOL_KERNEL
            || route.protocol == PROTOCOL_TWILL;
        if route.table != TABLE_MAIN || !ours {
            continue;
        }
        let name = names.entry(ifindex).or_insert_with(|| {
            let link = facts.links.iter().find(|link| link.ifindex == ifindex);
            link.map_or_else(|| "?".into(), |link| link.name.as_str().into())
        });
        let key = RouteKey {
            destination: route.destination,
            metric: route.metric,
        };
        let unspecified = crate::family::family_of(route.destination).unspecified();
        let hop = Hop {
            via: route.gateway.unwrap_or(unspecified),
            device: name.clone(),
            onlink: route.onlink,
        };
        routes.insert(key, hop);
    }
    routes
}

impl RouteKey {
    /// A route without a metric of its own; IPv6 then has the kernel's.
    pub fn to(destination: IpNet) -> Self {
        let metric = match destination {
            IpNet::V4(_) => 0,
            // IP6_RT_PRIO_USER
            IpNet::V6(_) => 1024,
        };
        Self {
            destination,
            metric,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A device that is up and no more.
    pub(crate) fn plain_link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.into(),
            kind: String::new(),
            mtu: 1500,
            mac: None,
            up: true,
            running: true,
            promiscuous: false,
            all_multicast: false,
            loopback: false,
            master: None,
            lower: None,
            lower_netnsid: None,
            group: 0,
            alias: None,
            txqlen: 1000,
            vxlan: None,
            hairpin: None,
        }
    }
}
