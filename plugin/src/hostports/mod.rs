//! Host ports: a port of the node that leads to a port of a pod.
//!
//! ```text
//!  config ──▶ HostPorts ──▶ entries ──▶ Entry per port, family ──▶ kernel: elements of our table
//!             (checked)     (pure)      (set, element)             one transaction, no process
//! ```
//!
//! The rules are the same for every pod ([`layout`]); what changes are elements of maps. The key is
//! (protocol, port), with the host address in front where one was asked for, so that a port has one
//! owner: the newest. An element says in its comment whose it is, so that DEL and GC need no store
//! and take away only what is still theirs.
//!
//! Used in two ways: within the ADD of a network whose config carries `portMappings`, and under the
//! name `portmap`, chained behind any other plugin.

mod conditions;
mod config;
mod entries;
mod layout;
mod legacy;
mod owner;

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel::conntrack::{UdpTo, forget_udp};
use kernel::nft::{Change, Element, Family};
use kernel::{Socket, link, nft, route, sysctl};
use nix::errno::Errno;

use crate::attachment::Attachment;
use crate::error::{Code, Error};
use crate::legacy_masquerade::is_without_nftables;
pub(crate) use config::HostPorts;
use entries::Entry;
use layout::{Layout, TABLE};
pub(crate) use legacy::delete as delete_legacy;

/// How often a change is made again because somebody else changed the ruleset meanwhile. Each time
/// is a fraction of a millisecond, and each failure means that somebody else got on.
const TRIES: usize = 50;

/// The pod's addresses that ports lead to: the first of each family.
pub(crate) fn targets(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut targets: Vec<IpAddr> = vec![];
    for ip in addresses {
        if !targets.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            targets.push(ip);
        }
    }
    targets
}

/// Leads the ports to the pod; undone as a whole if any part fails. `device` is the one behind which
/// the node finds the pod: what comes in by it and would go out by it again is masqueraded, or its
/// answers would not come this way.
pub(crate) fn add(
    ports: &HostPorts,
    attachment: &Attachment,
    targets: &[IpAddr],
    device: &str,
) -> Result<(), Error> {
    let layout = Layout::of(ports);
    let entries = entries::of(ports, targets, device);
    if entries.is_empty() {
        return Ok(());
    }
    let mut socket = nft::Socket::open().map_err(refused)?;
    ensure_layout(&mut socket, &layout)?;
    let mut displaced = vec![];
    take(&mut socket, &layout, &entries, attachment, &mut displaced)
        .and_then(|()| open_the_way(ports, &entries, targets, device))
        .inspect_err(|_| {
            let _ = del(attachment);
            give_back(&mut socket, displaced);
        })
}

/// What somebody else had: an element of a set of a table.
#[derive(Debug)]
struct Displaced {
    table: String,
    set: String,
    element: Element,
}

/// Gives ports back to those who had them before an ADD that failed. One that has a newer owner by
/// now stays that one's.
fn give_back(socket: &mut nft::Socket, displaced: Vec<Displaced>) {
    for Displaced {
        table,
        set,
        element,
    } in displaced
    {
        let change = Change {
            add: vec![(set, element)],
            ..Change::default()
        };
        // The failure that led here is the one to report.
        let _ = socket.change(Family::Inet, &table, &change);
    }
}

/// What the ports need besides their entries.
fn open_the_way(
    ports: &HostPorts,
    entries: &[Entry],
    targets: &[IpAddr],
    device: &str,
) -> Result<(), Error> {
    if ports.snat && targets.iter().any(IpAddr::is_ipv4) {
        // What comes from 127.0.0.1 is answered to it, over this device. The table drops what
        // others send to 127.0.0.0/8.
        let key = format!("net/ipv4/conf/{device}/route_localnet");
        sysctl::ensure(&key, "1")
            .map_err(|error| Error::new(Code::Kernel, format!("write {key} 1: {error}")))?;
    }
    forget(entries.iter().filter_map(Entry::udp))
}

/// Says which port does not lead to the pod any more.
pub(crate) fn check(
    ports: &HostPorts,
    attachment: &Attachment,
    targets: &[IpAddr],
    device: &str,
) -> Result<(), Error> {
    let layout = Layout::of(ports);
    let entries = entries::of(ports, targets, device);
    if entries.is_empty() {
        return Ok(());
    }
    let mut socket = nft::Socket::open().map_err(refused)?;
    let missing = |what: &str| {
        let msg = format!("host ports of {attachment}: {what}");
        Err(Error::new(Code::CheckFailed, msg))
    };
    let present = socket
        .dump(Family::Inet, &layout.table.name)
        .map_err(refused)?;
    match present {
        None => return missing(&format!("there is no table inet {}", layout.table.name)),
        Some(present) if !present.is(&layout.table) => {
            let what = format!("the rules of table inet {} were changed", layout.table.name);
            return missing(&what);
        }
        Some(_) => {}
    }
    let owner = owner::comment(attachment);
    for set in &layout.sets {
        let wanted: Vec<&Entry> = entries.iter().filter(|e| e.set == set.name).collect();
        if wanted.is_empty() {
            continue;
        }
        let found = elements(&mut socket, &layout.table.name, &set.name)?;
        for entry in wanted {
            match found.iter().find(|element| element.key == entry.key) {
                None => return missing(&format!("{entry} is missing")),
                Some(element) if element.comment != owner => {
                    let owner = &element.comment;
                    return missing(&format!("{entry} is {owner}'s now"));
                }
                Some(element) if element.data != entry.data => {
                    return missing(&format!("{entry} leads elsewhere"));
                }
                Some(_) => {}
            }
        }
    }
    Ok(())
}

/// Takes away every port that is still this attachment's, at once.
///
/// The ports are gone when this returns. What is returned is to be dropped as late as possible: the
/// kernel frees what was deleted after an RCU grace period (some 10 ms) and lets nobody close a
/// netfilter socket before. Deleting the pair takes as long, and both can pass together.
pub(crate) fn del(attachment: &Attachment) -> Result<Lingering, Error> {
    remove(|owner| owner == attachment)
}

/// Sockets whose end is waited for.
#[must_use = "dropping it waits: do something else that takes time first"]
#[derive(Debug)]
pub(crate) struct Lingering {
    _socket: Option<nft::Socket>,
}

/// Takes away every port of a network's attachments that are not to be kept.
pub(crate) fn gc(network: &str, keep: &dyn Fn(&str, &str) -> bool) -> Result<(), Error> {
    remove(|owner| owner.network == network && !keep(&owner.container_id, &owner.ifname)).map(drop)
}

fn remove(is_stale: impl Fn(&Attachment) -> bool) -> Result<Lingering, Error> {
    let mut socket = nft::Socket::open().map_err(refused)?;
    let mut flows = BTreeSet::new();
    let tables = match socket.tables(Family::Inet) {
        // A kernel without nftables has no ports of ours.
        Err(error) if is_without_nftables(&error) => return Ok(Lingering { _socket: None }),
        tables => of_ours(tables.map_err(refused)?),
    };
    for table in tables {
        until_undisturbed(|| {
            let mut change = Change {
                seen: Some(socket.generation().map_err(refused)?),
                ..Change::default()
            };
            for set in layout::SETS {
                for element in elements(&mut socket, &table, set)? {
                    if owner::parse(&element.comment).is_some_and(|owner| is_stale(&owner)) {
                        flows.extend(entries::udp_of(set, &element.key));
                        change.remove.push((set.to_owned(), element.key));
                    }
                }
            }
            Ok(socket.change(Family::Inet, &table, &change))
        })?;
    }
    forget(flows)?;
    Ok(Lingering {
        _socket: Some(socket),
    })
}

/// Makes the table where it is missing, and its rules anew where they are not what they should be.
fn ensure_layout(socket: &mut nft::Socket, layout: &Layout) -> Result<(), Error> {
    let present = socket
        .dump(Family::Inet, &layout.table.name)
        .map_err(refused)?;
    match present.is_some_and(|present| present.is(&layout.table)) {
        true => Ok(()),
        false => socket.ensure(&layout.table, &layout.sets).map_err(refused),
    }
}

/// Makes the attachment the owner of the entries, whoever had them: `displaced` is what others had.
fn take(
    socket: &mut nft::Socket,
    layout: &Layout,
    entries: &[Entry],
    attachment: &Attachment,
    displaced: &mut Vec<Displaced>,
) -> Result<(), Error> {
    let owner = owner::comment(attachment);
    let add: Vec<(String, Element)> = entries
        .iter()
        .map(|entry| (entry.set.to_owned(), entry.element(&owner)))
        .collect();
    let others: Vec<String> = tables(socket)?
        .into_iter()
        .filter(|table| *table != layout.table.name)
        .collect();
    let mut replace = |socket: &mut nft::Socket, table: &str, add: &[(String, Element)]| {
        let mut removed = vec![];
        until_undisturbed(|| {
            let seen = socket.generation().map_err(refused)?;
            removed = taken(socket, table, entries)?;
            let keys = removed.iter();
            let change = Change {
                seen: Some(seen),
                remove: keys.map(|(set, e)| (set.clone(), e.key.clone())).collect(),
                add: add.to_vec(),
            };
            Ok(socket.change(Family::Inet, table, &change))
        })?;
        let others = removed.into_iter().filter(|(_, e)| e.comment != owner);
        displaced.extend(others.map(|(set, element)| Displaced {
            table: table.to_owned(),
            set,
            element,
        }));
        Ok(())
    };
    for table in &others {
        replace(socket, table, &[])?;
    }
    // Most ports are nobody's: only when one is somebody's is it worth reading what there is.
    let optimistic = Change {
        add: add.clone(),
        ..Change::default()
    };
    match socket.change(Family::Inet, &layout.table.name, &optimistic) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {}
        Err(error) => return Err(refused(error)),
        Ok(()) => return Ok(()),
    }
    replace(socket, &layout.table.name, &add)
}

/// What a table has already under the entries' keys.
fn taken(
    socket: &mut nft::Socket,
    table: &str,
    entries: &[Entry],
) -> Result<Vec<(String, Element)>, Error> {
    let mut taken = vec![];
    for set in layout::SETS {
        let keys: BTreeSet<_> = entries
            .iter()
            .filter(|entry| entry.set == set)
            .map(|entry| &entry.key)
            .collect();
        if keys.is_empty() {
            continue;
        }
        for element in elements(socket, table, set)? {
            if keys.contains(&element.key) {
                taken.push((set.to_owned(), element));
            }
        }
    }
    Ok(taken)
}

/// Repeats an attempt whose change was overtaken by somebody else's.
fn until_undisturbed(
    mut attempt: impl FnMut() -> Result<kernel::Result<()>, Error>,
) -> Result<(), Error> {
    let mut last = None;
    for _ in 0..TRIES {
        match attempt()? {
            Ok(()) => return Ok(()),
            Err(error) if Change::was_overtaken(&error) => last = Some(error),
            Err(error) => return Err(refused(error)),
        }
    }
    let reason = last.map(|error| error.to_string()).unwrap_or_default();
    Err(Error::new(
        Code::TryAgain,
        format!("the nftables ruleset kept changing while host ports were changed: {reason}"),
    ))
}

/// The tables of ours: one for each set of conditions that a config has had.
fn tables(socket: &mut nft::Socket) -> Result<Vec<String>, Error> {
    socket.tables(Family::Inet).map(of_ours).map_err(refused)
}

fn of_ours(mut tables: Vec<String>) -> Vec<String> {
    tables.retain(|table| table.starts_with(TABLE));
    tables
}

fn elements(socket: &mut nft::Socket, table: &str, set: &str) -> Result<Vec<Element>, Error> {
    socket.elements(Family::Inet, table, set).map_err(refused)
}

fn forget(flows: impl IntoIterator<Item = UdpTo>) -> Result<(), Error> {
    let flows: Vec<UdpTo> = flows.into_iter().collect();
    match flows.is_empty() {
        true => Ok(()),
        false => forget_udp(&flows).map(|_| ()).map_err(refused),
    }
}

/// The device behind which the node finds a pod, by its routes.
pub(crate) fn device_towards(socket: &mut Socket, pod: IpAddr) -> Result<String, Error> {
    let route = route::towards(socket, pod).map_err(refused)?;
    let device = match route.and_then(|route| route.ifindex) {
        Some(ifindex) => link::by_index(socket, ifindex).map_err(refused)?,
        None => None,
    };
    device.map(|device| device.name).ok_or_else(|| {
        let msg = format!("host ports: the node has no route to the pod's address {pod}");
        Error::new(Code::Kernel, msg)
    })
}

fn refused(error: kernel::Error) -> Error {
    Error::new(Code::Kernel, format!("host ports: {error}"))
}
