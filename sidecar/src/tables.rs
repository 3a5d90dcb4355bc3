//! The kernel tables that are ours, as one value: what is wanted and what was found have the same
//! form, so that they can be compared.
//!
//! [`observe`] picks out of a dump what belongs to us, by the rules of ownership: everything on our
//! devices that stays (permanent neighbours and forwarding entries, addresses inside the network,
//! routes out of the device), routes elsewhere with our protocol number, and what would go before a
//! route of ours (`RouteKey::before`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kernel::Mac;
use kernel::address::Address;
use kernel::fdb::FdbEntry;
use kernel::ipip::Ipip;
use kernel::link::Link;
use kernel::neighbour::Neighbour;
use kernel::route::{Route, TABLE_MAIN};
use kernel::vxlan::Vxlan;

use crate::family::Family;

/// Routes through the underlay carry this number (`/etc/iproute2/rt_protos`); those out of our own
/// devices need no mark, and have flannel's, `boot`.
pub const PROTOCOL_TWILL: u8 = 116;
/// The kernel's own routes, for addresses and link-local networks.
const PROTOCOL_KERNEL: u8 = 2;
/// What the kernel gives an IPv6 route without a metric.
const IP6_RT_PRIO_USER: u32 = 1024;

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
    /// The family in which user space is asked for its neighbours, and nobody on the link.
    pub asks: Option<Family>,
}

/// What kind of device it is, with the attributes that are fixed when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `type vxlan`.
    Vxlan(Vxlan),
    /// `type ipip`.
    Ipip(Ipip),
    /// `type wireguard`; its keys and peers are not in these tables.
    Wireguard,
    /// A TUN device, which only the process that reads it can make.
    Tun,
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
    /// The devices, by number, for which user space is asked, where ours raise misses.
    pub asking: Vec<(u32, Family)>,
}

impl Facts {
    /// The link of this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }
}

/// What of the dump is ours, of which `want` is to be there. `networks` are the cluster's.
pub fn observe(facts: &Facts, want: &Tables, networks: &[IpNet]) -> Tables {
    let mut tables = Tables::default();
    let mut by_index = BTreeMap::new();
    for (name, wanted) in &want.devices {
        let Some((link, mut found)) = device_link(facts, name) else {
            continue;
        };
        let asks = |family: &Family| facts.asking.contains(&(link.ifindex, *family));
        found.asks = wanted.link.asks.filter(asks);
        by_index.insert(link.ifindex, name.clone());
        let device = Device {
            link: found,
            addresses: addresses_inside(facts, link.ifindex, networks),
            neighbours: BTreeMap::new(),
            fdb: BTreeMap::new(),
        };
        tables.devices.insert(name.clone(), device);
    }
    for (ifindex, name) in &by_index {
        let Some(device) = tables.devices.get_mut(name) else {
            continue;
        };
        let neighbours = facts.neighbours.iter();
        let neighbours = neighbours.filter(|entry| entry.ifindex == *ifindex && entry.permanent);
        device.neighbours = neighbours
            .filter_map(|entry| Some((entry.ip, entry.mac?)))
            .collect();
        device.fdb = forwarding(facts, *ifindex);
    }
    tables.routes = our_routes(facts, &by_index, want);
    tables
}

/// The peers' entries of one device, several of one address as what they are.
fn forwarding(facts: &Facts, ifindex: u32) -> BTreeMap<Mac, Remote> {
    let entries = facts.fdb.iter();
    let entries = entries.filter(|entry| entry.ifindex == ifindex && is_a_peers(entry));
    let remote = |entry: &FdbEntry| entry.destination.map_or(Remote::Odd, Remote::One);
    let mut entries: Vec<_> = entries.map(|entry| (entry.mac, remote(entry))).collect();
    entries.sort_unstable_by_key(|(mac, _)| *mac);
    entries.dedup_by(|(next, _), (mac, remote)| {
        let same = next == mac;
        if same {
            *remote = Remote::Odd;
        }
        same
    });
    entries.into_iter().collect()
}

/// Not learned, and not the all-zero entry, which is a device's flood list.
pub(crate) fn is_a_peers(entry: &FdbEntry) -> bool {
    entry.permanent && entry.mac.is_unicast() && entry.mac != Mac([0; 6])
}

fn device_link<'a>(facts: &'a Facts, name: &str) -> Option<(&'a Link, DeviceLink)> {
    let link = facts.link(name)?;
    let found = DeviceLink {
        kind: Kind::of(link)?,
        mac: link.mac,
        mtu: link.mtu,
        up: link.up,
        asks: None,
    };
    Some((link, found))
}

impl Kind {
    /// None for kinds that we never make: such a device is somebody else's, whatever its name.
    fn of(link: &Link) -> Option<Self> {
        match link.kind.as_str() {
            "tun" => Some(Self::Tun),
            "wireguard" => Some(Self::Wireguard),
            "ipip" => link.ipip.map(Self::Ipip),
            _ => link.vxlan.clone().map(Self::Vxlan),
        }
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

fn our_routes(
    facts: &Facts,
    devices: &BTreeMap<u32, DeviceName>,
    want: &Tables,
) -> BTreeMap<RouteKey, Hop> {
    let mut names: BTreeMap<u32, DeviceName> = devices.clone();
    let routes = facts.routes.iter().filter_map(|route| {
        let (key, ifindex) = main_route(route)?;
        let ours = devices.contains_key(&ifindex) || route.protocol == PROTOCOL_TWILL;
        if !ours && !want.goes_before(&key) {
            return None;
        }
        let name = names.entry(ifindex).or_insert_with(|| {
            let link = facts.links.iter().find(|link| link.ifindex == ifindex);
            link.map_or_else(|| "?".into(), |link| link.name.as_str().into())
        });
        Some((key, Hop::of(route, name.clone())))
    });
    // Collected at once, which costs a fraction of ten thousand insertions.
    routes.collect()
}

/// The key and the device of a route in the main table that the kernel did not make by itself.
pub(crate) fn main_route(route: &Route) -> Option<(RouteKey, u32)> {
    let ifindex = route.ifindex?;
    let key = RouteKey {
        destination: route.destination,
        metric: route.metric,
    };
    let by_somebody = route.table == TABLE_MAIN && route.protocol != PROTOCOL_KERNEL;
    by_somebody.then_some((key, ifindex))
}

impl Hop {
    /// Where this route leads, which goes out of `device`.
    pub(crate) fn of(route: &Route, device: DeviceName) -> Self {
        let unspecified = crate::family::family_of(route.destination).unspecified();
        Self {
            via: route.gateway.unwrap_or(unspecified),
            device,
            onlink: route.onlink,
        }
    }
}

impl Tables {
    /// Takes out what is in `old` and puts in what is in `new`, which have the same devices as
    /// these tables.
    pub(crate) fn exchange(&mut self, old: Self, new: Self) {
        for (name, device) in &mut self.devices {
            let (old, new) = (old.devices.get(name), new.devices.get(name));
            for old in old.into_iter() {
                old.neighbours.keys().for_each(|ip| {
                    device.neighbours.remove(ip);
                });
                old.fdb.keys().for_each(|mac| {
                    device.fdb.remove(mac);
                });
            }
            for new in new.into_iter() {
                device.neighbours.extend(&new.neighbours);
                device.fdb.extend(&new.fdb);
            }
        }
        for key in old.routes.keys() {
            self.routes.remove(key);
        }
        self.routes.extend(new.routes);
    }

    /// Whether a route with this key would carry the packets of one that is wanted.
    pub(crate) fn goes_before(&self, key: &RouteKey) -> bool {
        let wanted = RouteKey::to(key.destination);
        *key == wanted.before() && *key != wanted && self.routes.contains_key(&wanted)
    }
}

impl RouteKey {
    /// Our route to a destination.
    ///
    /// An IPv4 subnet's has a metric of its own, the number that the subnet has among those of its
    /// size (10.5.3.0/24 is the 0x0a0503rd). The kernel looks for an equal one among the next hops
    /// it has (`fib_info`) by device, protocol and metric, not by gateway: with one metric for all
    /// it compares each new route with every other, and 20,000 peers take seconds. IPv6 has no such
    /// table, and there the metric is the kernel's own.
    pub fn to(destination: IpNet) -> Self {
        let metric = match destination {
            IpNet::V4(net) => net.network().to_bits() >> (32 - u32::from(net.prefix_len()).max(1)),
            IpNet::V6(_) => IP6_RT_PRIO_USER,
        };
        Self {
            destination,
            metric,
        }
    }

    /// The route that flanneld makes to the same destination, and a plain `ip route add`: it would
    /// go before ours.
    pub(crate) fn before(self) -> Self {
        let metric = match self.destination {
            IpNet::V4(_) => 0,
            IpNet::V6(_) => IP6_RT_PRIO_USER,
        };
        Self { metric, ..self }
    }
}

#[cfg(test)]
pub(crate) mod tests;
