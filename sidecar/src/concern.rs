//! Which of the kernel's notifications concern us: those that contradict what should be there.
//! What other programs do with routes, neighbours, devices and rules of their own is passed over.

use std::collections::BTreeMap;

use kernel::fdb::FdbEntry;
use kernel::monitor::Change;
use kernel::neighbour::Neighbour;
use kernel::route::{Route, TABLE_MAIN};

use crate::masquerade;
use crate::tables::{
    Device, DeviceName, Hop, PROTOCOL_TWILL, Remote, Tables, is_a_peers, main_route,
};

/// What has to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Concern {
    /// Everything.
    pub(crate) all: bool,
    /// The nftables rules.
    pub(crate) rules: bool,
}

/// What we have to do with.
#[derive(Debug)]
pub(crate) struct Interest<'a> {
    /// The tables wanted.
    pub(crate) want: &'a Tables,
    /// Our devices by number.
    pub(crate) devices: &'a BTreeMap<u32, DeviceName>,
    /// Names of devices to look out for.
    pub(crate) names: &'a [DeviceName],
    /// The underlay's device.
    pub(crate) underlay: (u32, &'a str),
    /// We are looking for an underlay: any device, address or route may be the one.
    pub(crate) adrift: bool,
    /// What is wanted depends on other people's routes.
    pub(crate) follows_routes: bool,
    /// We look for other people's chains that drop forwarded traffic.
    pub(crate) follows_chains: bool,
}

impl Concern {
    const NOTHING: Self = Self {
        all: false,
        rules: false,
    };
    const ALL: Self = Self {
        all: true,
        rules: true,
    };

    /// Both concerns.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            all: self.all || other.all,
            rules: self.rules || other.rules,
        }
    }
}

impl Interest<'_> {
    /// What a change means to us.
    pub(crate) fn in_change(&self, change: &Change) -> Concern {
        let all = match change {
            Change::Lost => true,
            Change::Link { ifindex, name } => self.in_link(*ifindex, name),
            Change::Address(ifindex) => self.adrift || self.is_known(*ifindex),
            Change::Route { gone, route } => self.in_route(*gone, route.as_ref()),
            Change::Neighbour { gone, entry } => self
                .device(entry.ifindex)
                .is_some_and(|device| in_neighbour(device, *gone, entry)),
            Change::Fdb { gone, entry } => self
                .device(entry.ifindex)
                .is_some_and(|device| in_fdb(device, *gone, entry)),
            Change::Nftables { table, chain } => {
                let rules = table == masquerade::TABLE || (*chain && self.follows_chains);
                return Concern {
                    rules,
                    ..Concern::NOTHING
                };
            }
        };
        if all { Concern::ALL } else { Concern::NOTHING }
    }

    fn is_known(&self, ifindex: u32) -> bool {
        ifindex == self.underlay.0 || self.devices.contains_key(&ifindex)
    }

    fn in_link(&self, ifindex: u32, name: &str) -> bool {
        let ours = name == self.underlay.1 || self.names.iter().any(|ours| **ours == *name);
        self.adrift || ours || self.is_known(ifindex)
    }

    fn device(&self, ifindex: u32) -> Option<&Device> {
        self.want.devices.get(self.devices.get(&ifindex)?)
    }

    fn in_route(&self, gone: bool, route: Option<&Route>) -> bool {
        if self.adrift {
            return true;
        }
        let Some(route) = route else {
            return self.follows_routes;
        };
        let device = route.ifindex.and_then(|index| self.devices.get(&index));
        let ours = device.is_some() || route.protocol == PROTOCOL_TWILL;
        let foreign = self.follows_routes && route.table == TABLE_MAIN && !ours;
        let Some((key, ifindex)) = main_route(route) else {
            return foreign;
        };
        let wanted = self.want.routes.get(&key);
        let is_wanted = wanted.is_some_and(|wanted| {
            let same_device = match device {
                Some(name) => *name == wanted.device,
                None => ifindex == self.underlay.0 && *wanted.device == *self.underlay.1,
            };
            same_device && *wanted == Hop::of(route, wanted.device.clone())
        });
        let ours = match gone {
            true => is_wanted,
            // The kernel does not say what a new route has taken the place of.
            false => !is_wanted && (ours || wanted.is_some() || self.want.goes_before(&key)),
        };
        ours || foreign
    }
}

fn in_neighbour(device: &Device, gone: bool, entry: &Neighbour) -> bool {
    match (device.neighbours.get(&entry.ip), gone) {
        (Some(_), true) => true,
        (Some(mac), false) => !entry.permanent || entry.mac != Some(*mac),
        (None, gone) => !gone && entry.permanent,
    }
}

fn in_fdb(device: &Device, gone: bool, entry: &FdbEntry) -> bool {
    let wanted = device.fdb.get(&entry.mac);
    let is_wanted = wanted.is_some_and(|wanted| {
        entry.permanent && entry.destination.map(Remote::One) == Some(*wanted)
    });
    match gone {
        true => is_wanted,
        false => !is_wanted && (wanted.is_some() || is_a_peers(entry)),
    }
}

#[cfg(test)]
mod tests;
