//! The difference between the tables wanted and the tables found, as an ordered [`Plan`].
//!
//! Make before break: devices, addresses, forwarding entries, neighbours, then the routes that need
//! them; deletes in the opposite order behind all of that. Applying a plan to what was found gives
//! what is wanted.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use kernel::Mac;
use kernel::ipip::Ipip;
use kernel::vxlan::Vxlan;

use crate::family::Family;
use crate::tables::{Device, DeviceLink, DeviceName, Hop, Kind, Remote, RouteKey, Tables};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Delete a device that cannot be made right, and all that is on it.
    DeleteDevice {
        /// Its name.
        device: DeviceName,
        /// What is wrong with it.
        why: String,
    },
    /// Make a device, still down.
    CreateDevice(DeviceName, DeviceLink),
    /// Set its MTU.
    SetMtu(DeviceName, u32),
    /// Set its MAC address.
    SetMac(DeviceName, Mac),
    /// Add an address.
    AddAddress(DeviceName, IpNet),
    /// Set a device up.
    SetUp(DeviceName),
    /// Have user space asked for its neighbours of this family.
    Ask(DeviceName, Family),
    /// Add or replace a forwarding entry.
    PutFdb(DeviceName, Mac, IpAddr),
    /// Add or replace a neighbour.
    PutNeighbour(DeviceName, IpAddr, Mac),
    /// Let out what waits for a neighbour. Not in the tables: the entry is the kernel's to age.
    Resolve(DeviceName, IpAddr, Mac),
    /// Add or replace a route.
    PutRoute(RouteKey, Hop),
    /// Delete a route.
    DeleteRoute(RouteKey, Hop),
    /// Delete a neighbour.
    DeleteNeighbour(DeviceName, IpAddr),
    /// Delete a forwarding entry with all its destinations.
    DeleteFdb(DeviceName, Mac),
    /// Delete an address.
    DeleteAddress(DeviceName, IpNet),
}

/// Changes in the order in which they must be made.
pub type Plan = Vec<Op>;

/// The same without what takes a peer's entries away: for as long as it is not certain that those
/// who are gone from the store are gone.
pub fn without_departures(mut plan: Plan) -> Plan {
    plan.retain(|op| {
        !matches!(
            op,
            Op::DeleteRoute(..) | Op::DeleteNeighbour(..) | Op::DeleteFdb(..)
        )
    });
    plan
}

/// What changes what was found into what is wanted.
pub fn diff(want: &Tables, have: &Tables) -> Plan {
    let mut plan = Plan::new();
    let mut lost = BTreeSet::new();
    let mut undo = Plan::new();
    for (name, wanted) in &want.devices {
        let found = have.devices.get(name);
        if found == Some(wanted) {
            // The usual case, and one pass over both.
            continue;
        }
        let found = found.filter(|found| {
            // Another kind is somebody else's, whatever its name: making ours will say so.
            std::mem::discriminant(&wanted.link.kind) == std::mem::discriminant(&found.link.kind)
        });
        let misfit = found.and_then(|found| misfit(&wanted.link, &found.link));
        // With the device goes all that is on it.
        let found = found.filter(|_| misfit.is_none());
        if let Some(why) = misfit {
            let device = name.clone();
            plan.push(Op::DeleteDevice { device, why });
        }
        if found.is_none() {
            lost.insert(name);
            if wanted.link.kind == Kind::Tun {
                continue;
            }
            plan.push(Op::CreateDevice(name.clone(), wanted.link.clone()));
        }
        device_changes(name, wanted, found, &mut plan, &mut undo);
    }
    if !lost.is_empty() || want.routes != have.routes {
        route_changes(want, have, &lost, &mut plan);
    }
    for (name, wanted) in &want.devices {
        let kept = have.devices.get(name).filter(|_| !lost.contains(name));
        let kept = kept.filter(|found| *found != wanted);
        let neighbours = kept.into_iter().flat_map(|found| found.neighbours.keys());
        for ip in neighbours.filter(|ip| !wanted.neighbours.contains_key(ip)) {
            plan.push(Op::DeleteNeighbour(name.clone(), *ip));
        }
    }
    plan.append(&mut undo);
    plan
}

/// What becomes of routes; those out of a device in `lost` went with it.
fn route_changes(want: &Tables, have: &Tables, lost: &BTreeSet<&DeviceName>, plan: &mut Plan) {
    let left = |hop: &&Hop| !lost.contains(&hop.device);
    for (key, hop) in &want.routes {
        if have.routes.get(key).filter(left) != Some(hop) {
            plan.push(Op::PutRoute(*key, hop.clone()));
        }
    }
    let left = have.routes.iter().filter(|(_, hop)| left(hop));
    for (key, hop) in left.filter(|(key, _)| !want.routes.contains_key(key)) {
        plan.push(Op::DeleteRoute(*key, hop.clone()));
    }
}

/// What is on one device, all but the deletes of neighbours; `undo` gets the other deletes.
fn device_changes(
    name: &DeviceName,
    wanted: &Device,
    found: Option<&Device>,
    plan: &mut Plan,
    undo: &mut Plan,
) {
    if let Some(found) = found {
        if found.link.mtu != wanted.link.mtu {
            plan.push(Op::SetMtu(name.clone(), wanted.link.mtu));
        }
        if let Some(mac) = wanted.link.mac.filter(|mac| found.link.mac != Some(*mac)) {
            plan.push(Op::SetMac(name.clone(), mac));
        }
    }
    let has_address = |net: &IpNet| found.is_some_and(|found| found.addresses.contains(net));
    for net in wanted.addresses.iter().filter(|net| !has_address(net)) {
        plan.push(Op::AddAddress(name.clone(), *net));
    }
    if wanted.link.up && !found.is_some_and(|found| found.link.up) {
        plan.push(Op::SetUp(name.clone()));
    }
    let asks = found.and_then(|found| found.link.asks);
    if let Some(family) = wanted.link.asks.filter(|family| asks != Some(*family)) {
        plan.push(Op::Ask(name.clone(), family));
    }
    for (mac, remote) in &wanted.fdb {
        let present = found.and_then(|found| found.fdb.get(mac));
        let Remote::One(ip) = remote else { continue };
        if present == Some(&Remote::Odd) {
            // Replacing would change one of its destinations only.
            plan.push(Op::DeleteFdb(name.clone(), *mac));
        }
        if present != Some(remote) {
            plan.push(Op::PutFdb(name.clone(), *mac, *ip));
        }
    }
    for (ip, mac) in &wanted.neighbours {
        if found.and_then(|found| found.neighbours.get(ip)) != Some(mac) {
            plan.push(Op::PutNeighbour(name.clone(), *ip, *mac));
        }
    }
    let Some(found) = found else { return };
    for mac in found.fdb.keys().filter(|mac| !wanted.fdb.contains_key(mac)) {
        undo.push(Op::DeleteFdb(name.clone(), *mac));
    }
    for net in found.addresses.difference(&wanted.addresses) {
        undo.push(Op::DeleteAddress(name.clone(), *net));
    }
}

/// Why a device must be made anew, if it must.
fn misfit(wanted: &DeviceLink, found: &DeviceLink) -> Option<String> {
    if wanted.kind == found.kind {
        return None;
    }
    match (&wanted.kind, &found.kind) {
        (Kind::Vxlan(want), Kind::Vxlan(have)) => Some(vxlan_misfit(want, have)),
        (Kind::Ipip(want), Kind::Ipip(have)) => Some(ipip_misfit(want, have)),
        // Another kind was not taken for ours.
        _ => None,
    }
}

fn vxlan_misfit(want: &Vxlan, have: &Vxlan) -> String {
    let mut differences = Vec::new();
    let mut compare = |what: &str, have: String, want: String| {
        if have != want {
            differences.push(format!("{what} is {have}, wanted {want}"));
        }
    };
    compare("vni", have.vni.to_string(), want.vni.to_string());
    compare("port", have.port.to_string(), want.port.to_string());
    compare("local address", shown(have.local), shown(want.local));
    compare(
        "underlay device",
        shown(have.underlay),
        shown(want.underlay),
    );
    compare("group", shown(have.group), shown(want.group));
    compare(
        "learning",
        have.learning.to_string(),
        want.learning.to_string(),
    );
    compare("gbp", have.gbp.to_string(), want.gbp.to_string());
    compare("l2miss", have.l2miss.to_string(), want.l2miss.to_string());
    compare("l3miss", have.l3miss.to_string(), want.l3miss.to_string());
    differences.join(", ")
}

fn ipip_misfit(want: &Ipip, have: &Ipip) -> String {
    let (remote, local) = (shown(have.remote), shown(have.local));
    format!(
        "it goes from {local} to {remote}, wanted {} to {}",
        shown(want.local),
        shown(want.remote)
    )
}

fn shown<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

#[cfg(test)]
pub(crate) mod tests;
