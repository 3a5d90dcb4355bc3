//! Which device: what the operator named, else where a named address is, else the default route's.

use std::net::IpAddr;

use kernel::link::Link;
use kernel::route::{Route, TABLE_MAIN};
use regex_lite::Regex;

use super::{Underlay, usable_addresses};
use crate::family::{ByFamily, Family};
use crate::tables::Facts;

/// What the operator asked for.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Names or addresses of devices, tried in order.
    pub ifaces: Vec<String>,
    /// Patterns for addresses, then names; tried in order when no name fits.
    pub patterns: Vec<Regex>,
    /// The address whose route's device is taken when nothing above fits.
    pub can_reach: Option<IpAddr>,
    /// What to tell peers instead of the device's address.
    pub public_ips: ByFamily<IpAddr>,
}

/// No device fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Nothing that was named is there.
    #[error("no interface fits what was asked for: {}", .0.join("; "))]
    NothingFits(Vec<String>),
    /// There is no default route to go by.
    #[error("no default {0} route to find the interface by: name it with --iface")]
    NoDefaultRoute(Family),
    /// The default route does not say which device.
    #[error("the default {0} route has several next hops: name the interface with --iface")]
    Multipath(Family),
    /// Two families lead to two devices.
    #[error("the default {1} route leads to {2}, the first one to {0}: name one with --iface")]
    TwoDevices(String, Family, String),
    /// The public address is nowhere.
    #[error("no interface has the public address {0}: behind NAT, name the interface with --iface")]
    NotLocal(IpAddr),
    /// A device without an address.
    #[error(
        "interface {0} has no usable {1} address: give it one, name another with --iface, or leave {1} out of the config"
    )]
    NoAddress(String, Family),
    /// A device that says nothing of its MTU.
    #[error("interface {0} has an MTU of 0")]
    NoMtu(String),
}

/// Chooses the underlay. `families` are those of the net-conf, IPv4 first; `towards` is the
/// kernel's route to `wish.can_reach`.
pub fn select(
    facts: &Facts,
    wish: &Wish,
    families: &[Family],
    towards: Option<&Route>,
) -> Result<Underlay, SelectError> {
    let chooser = Chooser {
        facts,
        wish,
        families,
    };
    let asked = !wish.ifaces.is_empty() || !wish.patterns.is_empty() || wish.can_reach.is_some();
    if !asked {
        let public = wish.public_ips.iter().next();
        return match public {
            Some((_, ip)) => chooser.by_address(*ip).ok_or(SelectError::NotLocal(*ip))?,
            None => chooser.by_default_route(),
        };
    }
    let mut reasons = Vec::new();
    let mut attempt = |tried: String, found: Result<Underlay, String>| match found {
        Ok(underlay) => Some(underlay),
        Err(reason) => {
            reasons.push(format!("{tried}: {reason}"));
            None
        }
    };
    let words = |e: SelectError| e.to_string();
    for iface in &wish.ifaces {
        let found = attempt(format!("--iface={iface}"), chooser.by_iface(iface));
        if let Some(underlay) = found {
            return Ok(underlay);
        }
    }
    for pattern in &wish.patterns {
        let tried = format!("--iface-regex={pattern}");
        if let Some(underlay) = attempt(tried, chooser.by_pattern(pattern)) {
            return Ok(underlay);
        }
    }
    if let Some(ip) = wish.can_reach {
        let found = match towards {
            Some(route) => chooser.by_route(route).map_err(words),
            None => Err("no route leads there".to_owned()),
        };
        if let Some(underlay) = attempt(format!("--iface-can-reach={ip}"), found) {
            return Ok(underlay);
        }
    }
    Err(SelectError::NothingFits(reasons))
}

struct Chooser<'a> {
    facts: &'a Facts,
    wish: &'a Wish,
    families: &'a [Family],
}

impl Chooser<'_> {
    /// The underlay on this device; `given` are addresses that are already decided.
    fn on(&self, link: &Link, given: ByFamily<IpAddr>) -> Result<Underlay, SelectError> {
        if link.mtu == 0 {
            return Err(SelectError::NoMtu(link.name.clone()));
        }
        let mut addresses = ByFamily::default();
        let mut public_ips = ByFamily::default();
        for family in self.families {
            let usable = usable_addresses(self.facts, link.ifindex, *family);
            let address = given
                .get(*family)
                .or(usable.first())
                .ok_or_else(|| SelectError::NoAddress(link.name.clone(), *family))?;
            addresses.set(*family, *address);
            let public = self.wish.public_ips.get(*family).unwrap_or(address);
            public_ips.set(*family, *public);
        }
        Ok(Underlay {
            ifindex: link.ifindex,
            name: link.name.clone(),
            mtu: link.mtu,
            addresses,
            public_ips,
        })
    }

    fn by_iface(&self, iface: &str) -> Result<Underlay, String> {
        let found = match iface.parse::<IpAddr>() {
            Ok(ip) => self.by_address(ip).ok_or("no interface has this address")?,
            Err(_) => {
                let link = self.facts.link(iface).ok_or("there is no such interface")?;
                self.on(link, ByFamily::default())
            }
        };
        found.map_err(|e| e.to_string())
    }

    fn by_address(&self, ip: IpAddr) -> Option<Result<Underlay, SelectError>> {
        let addresses = &self.facts.addresses;
        let owner = addresses.iter().find(|address| address.net.addr() == ip)?;
        let link = self.link(owner.ifindex)?;
        let given = [(Family::of(ip), ip)].into_iter().collect();
        Some(self.on(link, given))
    }

    fn by_pattern(&self, pattern: &Regex) -> Result<Underlay, String> {
        let by_address = self.facts.links.iter().find_map(|link| {
            let matching = |family: &Family| {
                let usable = usable_addresses(self.facts, link.ifindex, *family);
                let ip = usable
                    .into_iter()
                    .find(|ip| pattern.is_match(&ip.to_string()))?;
                Some((*family, ip))
            };
            // Every family needs a match of its own.
            let given: Option<ByFamily<IpAddr>> = self.families.iter().map(matching).collect();
            Some((link, given?))
        });
        let by_name = || {
            let mut links = self.facts.links.iter();
            let link = links.find(|link| pattern.is_match(&link.name))?;
            Some((link, ByFamily::default()))
        };
        let (link, given) = by_address
            .or_else(by_name)
            .ok_or("it matches no usable address and no name")?;
        self.on(link, given).map_err(|e| e.to_string())
    }

    fn by_default_route(&self) -> Result<Underlay, SelectError> {
        let mut chosen: Option<&Link> = None;
        for family in self.families {
            let routes = self.facts.routes.iter().filter(|route| {
                route.table == TABLE_MAIN
                    && route.destination.prefix_len() == 0
                    && Family::of(route.destination.addr()) == *family
            });
            // The kernel's order is by metric already, and the first of equals counts.
            let route = routes
                .min_by_key(|route| route.metric)
                .ok_or(SelectError::NoDefaultRoute(*family))?;
            let link = route.ifindex.and_then(|ifindex| self.link(ifindex));
            let link = link.ok_or(SelectError::Multipath(*family))?;
            match chosen {
                Some(first) if first.ifindex != link.ifindex => {
                    let (first, second) = (first.name.clone(), link.name.clone());
                    return Err(SelectError::TwoDevices(first, *family, second));
                }
                _ => chosen = Some(link),
            }
        }
        let link = chosen.ok_or(SelectError::NoDefaultRoute(Family::V4))?;
        self.on(link, ByFamily::default())
    }

    fn by_route(&self, route: &Route) -> Result<Underlay, SelectError> {
        let family = Family::of(route.destination.addr());
        let link = route.ifindex.and_then(|ifindex| self.link(ifindex));
        let link = link.ok_or(SelectError::Multipath(family))?;
        let source = route.source.map(|ip| (family, ip));
        self.on(link, source.into_iter().collect())
    }

    fn link(&self, ifindex: u32) -> Option<&Link> {
        self.facts.links.iter().find(|link| link.ifindex == ifindex)
    }
}

#[cfg(test)]
mod tests;
