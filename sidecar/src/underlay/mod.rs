//! The underlay: the device and addresses by which this node reaches the others. Chosen by
//! flannel's rules out of what the kernel was seen to have; nothing is asked here.

mod select;

use std::cmp::Reverse;
use std::net::IpAddr;

use kernel::address::Address;
use kernel::link::Link;
use kernel::route::{Route, TABLE_MAIN};

use crate::family::{ByFamily, Family};
use crate::tables::{Facts, PROTOCOL_TWILL};

pub use self::select::{SelectError, Wish, select};

/// The chosen device and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The device's number.
    pub ifindex: u32,
    /// The device's name.
    pub name: String,
    /// The device's MTU, in bytes.
    pub mtu: u32,
    /// The device's address per family in use: where tunnels start.
    pub addresses: ByFamily<IpAddr>,
    /// What peers are told; differs from `addresses` behind NAT.
    pub public_ips: ByFamily<IpAddr>,
}

impl Underlay {
    /// The same choice with the device's facts of now; `None` if the device or one of its addresses
    /// is gone, so that a new choice is due.
    pub fn refreshed(&self, facts: &Facts) -> Option<Self> {
        let link = facts.link(&self.name)?;
        let usable = self.addresses.iter().all(|(family, address)| {
            usable_addresses(facts, link.ifindex, family).contains(address)
        });
        usable.then(|| Self {
            ifindex: link.ifindex,
            mtu: link.mtu,
            ..self.clone()
        })
    }
}

/// The device's addresses of a family that tunnels can start from, best first: global before
/// link-local, permanent before leased, lasting before temporary, else as the kernel has them.
pub(crate) fn usable_addresses(facts: &Facts, ifindex: u32, family: Family) -> Vec<IpAddr> {
    let mut usable: Vec<&Address> = facts
        .addresses
        .iter()
        .filter(|address| address.ifindex == ifindex && !address.deprecated)
        .filter(|address| Family::of(address.net.addr()) == family)
        .filter(|address| is_unicast(address.net.addr()))
        .collect();
    usable.sort_by_key(|address| {
        let local = is_link_local(address.net.addr());
        (local, Reverse(address.permanent), address.temporary)
    });
    usable.iter().map(|address| address.net.addr()).collect()
}

fn is_unicast(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast)
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_of_others(route: &Route) -> bool {
    route.table == TABLE_MAIN && route.protocol != PROTOCOL_TWILL && !route.onlink
}

/// The facts from which the next decisions are made: of a dump that is mostly ours, the rest.
pub(crate) fn without_ours(facts: Facts) -> Facts {
    // Collected anew, because a vector that shrinks keeps its room.
    let routes = facts.routes.into_iter().filter(is_of_others);
    let routes = routes.collect::<Vec<_>>();
    Facts {
        links: facts.links,
        addresses: facts.addresses,
        routes: routes.as_slice().to_vec(),
        neighbours: Vec::new(),
        fdb: Vec::new(),
        asking: Vec::new(),
    }
}

/// Which addresses are on our own links, over the main table without our own routes.
pub(crate) struct OwnLinks<'a> {
    links: &'a [Link],
    routes: Vec<&'a Route>,
}

impl<'a> OwnLinks<'a> {
    /// Picks the few routes of the underlay out of a dump that is mostly ours.
    pub(crate) fn of(facts: &'a Facts) -> Self {
        let routes = facts.routes.iter();
        Self {
            links: &facts.links,
            routes: routes.filter(|route| is_of_others(route)).collect(),
        }
    }

    /// The device on whose link an address is, by longest prefix, then lowest metric. `None` if a
    /// gateway stands between, or nothing leads there.
    pub(crate) fn device_to(&self, ip: IpAddr) -> Option<&'a str> {
        let candidates = self
            .routes
            .iter()
            .filter(|route| route.destination.contains(&ip));
        let best = candidates
            .min_by_key(|route| (Reverse(route.destination.prefix_len()), route.metric))?;
        let ifindex = best.ifindex.filter(|_| best.gateway.is_none())?;
        let link = self.links.iter().find(|link| link.ifindex == ifindex)?;
        Some(&link.name)
    }
}
