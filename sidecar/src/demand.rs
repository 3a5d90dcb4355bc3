//! vxlan on demand: which of the peers are in use, and what of the tables they need.
//!
//! One route leads the whole network to the device. What no peer's own route takes first becomes a
//! miss ([`kernel::miss`]): the kernel holds the packet and asks. The answer is the peer's three
//! entries, as they would always be there without `OnDemand`, and the packet goes out. From then on
//! that peer's pods need no answer, whichever they are, so that flows in use go on when this daemon
//! does not.
//!
//! A peer is in use until nothing was sent to it for a while, by the kernel's own account, which it
//! keeps of every forwarding entry. With as many in use as there may be, those that were not used
//! the longest make room. Pure: who calls asks the kernel and makes the plans.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use kernel::Mac;
use kernel::miss::Missing;

use crate::diff::{Op, Plan, diff};
use crate::tables::{Device, DeviceName, Hop, RouteKey, Tables};

/// How many peers may be in use, both families counted together.
pub const MOST: usize = 1024;
/// How many make room at a time, so that it is not looked for with every miss.
const ROOM: usize = MOST / 8;
/// Who was sent something so lately does not make room.
const LATELY: Duration = Duration::from_secs(1);

/// For how long nothing was sent to these.
pub type Idle = BTreeMap<DeviceName, BTreeMap<Mac, Duration>>;

/// What is asked for, and where.
pub type Asked = BTreeSet<(DeviceName, Missing)>;

/// How much may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Questions about peers.
    pub answers: usize,
    /// Questions about addresses that no peer has.
    pub refusals: usize,
}

/// What answers questions. Those that it leaves out the kernel asks again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The changes.
    pub plan: Plan,
    /// How many questions about peers were answered.
    pub answers: usize,
    /// How many were refused: the sender is told that there is no such host.
    pub refusals: usize,
    /// There was no room for another peer.
    pub crowded: bool,
}

/// The peers in use, by subnet, and their tables.
#[derive(Debug, Default)]
pub struct Demand {
    used: BTreeSet<IpNet>,
    tables: Tables,
    begun: bool,
}

impl Demand {
    /// The tables of the peers in use.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// How many peers are in use.
    pub fn count(&self) -> usize {
        self.used.len()
    }

    /// Whether there is no room for another peer.
    pub fn is_full(&self) -> bool {
        self.used.len() >= MOST
    }

    /// Whether it is known who was in use before this daemon began.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Takes those for in use that have entries in the kernel and were sent something within
    /// `timeout`, the last ones first.
    pub fn begin(&mut self, all: &Tables, have: &Tables, idle: &Idle, timeout: Duration) {
        self.begun = true;
        let mut found: Vec<(Duration, IpNet)> = Vec::new();
        for (key, hop) in all.routes.iter().filter(|(_, hop)| is_a_peers(hop)) {
            let device = have.devices.get(&hop.device);
            // A forwarding entry alone may be that of the node's other subnet.
            let neighbour = device.is_some_and(|device| device.neighbours.contains_key(&hop.via));
            if neighbour || have.routes.contains_key(key) {
                let mac = mac_of(all, hop);
                let since = mac.and_then(|mac| idle_of(idle, &hop.device, mac));
                // Without an entry nobody counts: it is put right and counted from then on.
                found.push((since.unwrap_or_default(), key.destination));
            }
        }
        found.retain(|(since, _)| *since < timeout);
        found.sort_unstable();
        self.used = found.into_iter().take(MOST).map(|(_, net)| net).collect();
        self.renew(all);
    }

    /// Everything was decided anew.
    pub fn renew(&mut self, all: &Tables) {
        self.used.retain(|subnet| {
            all.routes
                .get(&RouteKey::to(*subnet))
                .is_some_and(is_a_peers)
        });
        self.tables = of_peers(all, &self.used);
        let network = all.routes.iter().filter(|(_, hop)| !is_a_peers(hop));
        let network = network.map(|(key, hop)| (*key, hop.clone()));
        self.tables.routes.extend(network);
    }

    /// Leases changed what is `before` into what is `after`: the changes of those in use.
    pub(crate) fn exchange(&mut self, before: &Tables, after: &Tables) -> Plan {
        let old = of_peers(before, &self.used);
        let gone = |key: &&RouteKey| !after.routes.contains_key(key);
        for key in before.routes.keys().filter(gone) {
            self.used.remove(&key.destination);
        }
        let new = of_peers(after, &self.used);
        let plan = diff(&new, &old);
        self.tables.exchange(old, new);
        plan
    }

    /// Answers what is asked, as far as that is allowed.
    pub(crate) fn answer(&mut self, all: &Tables, asked: &Asked, allowed: Allowance) -> Answer {
        let mut answer = Answer::default();
        let mut needed = BTreeSet::new();
        let mut waiting = Plan::new();
        for (device, missing) in asked {
            let subnets = match missing {
                Missing::MacOf(ip) => peer_of(all, device, *ip).into_iter().collect(),
                Missing::NodeOf(mac) => peers_with(all, device, *mac),
            };
            match missing {
                Missing::MacOf(ip) if subnets.is_empty() => {
                    if answer.refusals < allowed.refusals && self.leads_to(device, *ip) {
                        answer.refusals += 1;
                        waiting.push(Op::DeleteNeighbour(device.clone(), *ip));
                    }
                    continue;
                }
                _ if subnets.is_empty() || answer.answers >= allowed.answers => continue,
                _ => {}
            }
            let new = subnets.iter().filter(|subnet| !self.used.contains(subnet));
            if self.used.len() + new.count() > MOST {
                answer.crowded = true;
                continue;
            }
            answer.answers += 1;
            if let Missing::MacOf(ip) = missing {
                waiting.extend(
                    subnets
                        .iter()
                        .flat_map(|subnet| let_out(all, device, *subnet, *ip)),
                );
            }
            self.used.extend(&subnets);
            needed.extend(subnets);
        }
        // Those in use get theirs again: the kernel would not have asked if they were right.
        let entries = of_peers(all, &needed);
        answer.plan = diff(&entries, &of_peers(all, &BTreeSet::new()));
        answer.plan.append(&mut waiting);
        self.tables.exchange(Tables::default(), entries);
        answer
    }

    /// Gives up those that nothing was sent to for `timeout`.
    pub(crate) fn age(&mut self, all: &Tables, idle: &Idle, timeout: Duration) -> Plan {
        let mut unused = self.unused(idle, timeout);
        self.give_up(all, unused.drain(..))
    }

    /// Gives up those that were not used the longest, so that there is room for others.
    pub(crate) fn make_room(&mut self, all: &Tables, idle: &Idle) -> Plan {
        let mut unused = self.unused(idle, LATELY);
        unused.truncate(ROOM);
        self.give_up(all, unused.drain(..))
    }

    /// Those that nothing was sent to for `least`, the longest first.
    fn unused(&self, idle: &Idle, least: Duration) -> Vec<IpNet> {
        let since = |subnet: &IpNet| {
            let hop = self.tables.routes.get(&RouteKey::to(*subnet))?;
            let since = idle_of(idle, &hop.device, mac_of(&self.tables, hop)?)?;
            (since >= least).then_some((since, *subnet))
        };
        let mut unused: Vec<_> = self.used.iter().filter_map(since).collect();
        unused.sort_unstable_by(|a, b| b.cmp(a));
        unused.into_iter().map(|(_, subnet)| subnet).collect()
    }

    fn give_up(&mut self, all: &Tables, subnets: impl Iterator<Item = IpNet>) -> Plan {
        let mut any = false;
        for subnet in subnets {
            any |= self.used.remove(&subnet);
        }
        if !any {
            return Plan::new();
        }
        let before = std::mem::take(&mut self.tables);
        self.renew(all);
        diff(&self.tables, &before)
    }

    /// Whether the whole network's route is what leads to this address.
    fn leads_to(&self, device: &DeviceName, ip: IpAddr) -> bool {
        let mut routes = self.tables.routes.iter();
        routes.any(|(key, hop)| {
            !is_a_peers(hop) && hop.device == *device && key.destination.contains(&ip)
        })
    }
}

/// Not the whole network's.
fn is_a_peers(hop: &Hop) -> bool {
    hop.onlink
}

fn mac_of(all: &Tables, hop: &Hop) -> Option<Mac> {
    let device = all.devices.get(&hop.device)?;
    device.neighbours.get(&hop.via).copied()
}

fn idle_of(idle: &Idle, device: &DeviceName, mac: Mac) -> Option<Duration> {
    idle.get(device)?.get(&mac).copied()
}

/// The subnet of the peer that has this address. Peers do not overlap, so that the nearest one below
/// tells all.
fn peer_of(all: &Tables, device: &DeviceName, ip: IpAddr) -> Option<IpNet> {
    let last = RouteKey {
        destination: ip.into(),
        metric: u32::MAX,
    };
    let (key, hop) = all.routes.range(..=last).next_back()?;
    let is_it = is_a_peers(hop) && hop.device == *device && key.destination.contains(&ip);
    is_it.then_some(key.destination)
}

/// The subnets of the node whose VTEP has this address.
fn peers_with(all: &Tables, device: &DeviceName, mac: Mac) -> BTreeSet<IpNet> {
    let known = all
        .devices
        .get(device)
        .is_some_and(|device| device.fdb.contains_key(&mac));
    if !known {
        return BTreeSet::new();
    }
    let peers = all.routes.iter().filter(|(_, hop)| {
        is_a_peers(hop) && hop.device == *device && mac_of(all, hop) == Some(mac)
    });
    peers.map(|(key, _)| key.destination).collect()
}

/// Lets out what waits for `ip`, behind the peer's entries, and forgets the address: the peer's route
/// takes what comes next. The peer's own base address has an entry that stays.
fn let_out(all: &Tables, device: &DeviceName, subnet: IpNet, ip: IpAddr) -> Plan {
    let hop = all.routes.get(&RouteKey::to(subnet));
    let Some((hop, mac)) = hop.and_then(|hop| Some((hop, mac_of(all, hop)?))) else {
        return Plan::new();
    };
    if hop.via == ip {
        return Plan::new();
    }
    vec![
        Op::Resolve(device.clone(), ip, mac),
        Op::DeleteNeighbour(device.clone(), ip),
    ]
}

/// The devices, and what these peers need.
fn of_peers(all: &Tables, subnets: &BTreeSet<IpNet>) -> Tables {
    let bare = |(name, device): (&DeviceName, &Device)| {
        let bare = Device {
            link: device.link.clone(),
            addresses: device.addresses.clone(),
            neighbours: BTreeMap::new(),
            fdb: BTreeMap::new(),
        };
        (name.clone(), bare)
    };
    let mut tables = Tables {
        devices: all.devices.iter().map(bare).collect(),
        routes: BTreeMap::new(),
    };
    for subnet in subnets {
        let key = RouteKey::to(*subnet);
        let Some(hop) = all.routes.get(&key).filter(|hop| is_a_peers(hop)) else {
            continue;
        };
        let known = all.devices.get(&hop.device);
        if let (Some(known), Some(device)) = (known, tables.devices.get_mut(&hop.device)) {
            if let Some(mac) = known.neighbours.get(&hop.via) {
                device.neighbours.insert(hop.via, *mac);
                device.fdb.extend(known.fdb.get_key_value(mac));
            }
            tables.routes.insert(key, hop.clone());
        }
    }
    tables
}

#[cfg(test)]
mod tests;
