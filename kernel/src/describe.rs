//! Words for a request that failed: operation and object, as `ip` would name them. Made only on
//! failure, from the message itself.

use std::fmt::Write as _;
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as M;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::tc::{TcAttribute, TcMessage};

use crate::mac::Mac;

/// `set link flannel.1`, `replace route 10.5.2.0/24 via 10.5.2.0 dev flannel.1`.
pub(crate) fn describe(message: &M) -> String {
    match message {
        M::NewLink(link) => format!("set link {}", link_words(link)),
        M::SetLink(link) => format!("set link {}", link_words(link)),
        M::DelLink(link) => format!("delete link {}", link_words(link)),
        M::GetLink(link) => format!("get link {}", link_words(link)),
        M::NewAddress(address) => format!("add address {}", address_words(address)),
        M::DelAddress(address) => format!("delete address {}", address_words(address)),
        M::GetAddress(_) => "get addresses".to_owned(),
        M::NewRoute(route) => format!("replace route {}", route_words(route)),
        M::DelRoute(route) => format!("delete route {}", route_words(route)),
        M::GetRoute(route) => format!("get route {}", route_words(route)),
        M::NewNeighbour(entry) => format!("replace {}", neighbour_words(entry)),
        M::DelNeighbour(entry) => format!("delete {}", neighbour_words(entry)),
        M::GetNeighbour(_) => "get neighbours".to_owned(),
        M::SetNeighbourTable(_) => "have misses told to user space".to_owned(),
        M::GetNeighbourTable(_) => "get neighbour tables' settings".to_owned(),
        M::NewQueueDiscipline(tc) => format!("replace qdisc {}", tc_words(tc)),
        M::DelQueueDiscipline(tc) => format!("delete qdisc {}", tc_words(tc)),
        M::GetQueueDiscipline(tc) => format!("get qdisc {}", tc_words(tc)),
        M::NewTrafficFilter(tc) => format!("add filter {}", tc_words(tc)),
        M::GetTrafficFilter(tc) => format!("get filters {}", tc_words(tc)),
        other => format!("netlink message {}", other.message_type()),
    }
}

fn link_words(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_else(|| device(link.header.index))
}

fn tc_words(tc: &TcMessage) -> String {
    let kind = tc.attributes.iter().find_map(|a| match a {
        TcAttribute::Kind(kind) => Some(format!("{kind} ")),
        _ => None,
    });
    let index = tc.header.index.unsigned_abs();
    format!("{}dev {}", kind.unwrap_or_default(), device(index))
}

fn address_words(address: &AddressMessage) -> String {
    let ip = address.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) | AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    let prefix = address.header.prefix_len;
    let dev = device(address.header.index);
    match ip {
        Some(ip) => format!("{ip}/{prefix} dev {dev}"),
        None => format!("dev {dev}"),
    }
}

fn route_words(route: &RouteMessage) -> String {
    let mut destination = "default".to_owned();
    let (mut via, mut dev) = (String::new(), String::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => {
                if let Some(ip) = crate::route::address_of(ip) {
                    destination = format!("{ip}/{}", route.header.destination_prefix_length);
                }
            }
            RouteAttribute::Gateway(ip) => {
                if let Some(ip) = crate::route::address_of(ip) {
                    via = format!(" via {ip}");
                }
            }
            RouteAttribute::Oif(index) => dev = format!(" dev {}", device(*index)),
            _ => {}
        }
    }
    destination + &via + &dev
}

fn neighbour_words(entry: &NeighbourMessage) -> String {
    let (mut ip, mut mac) = (None::<IpAddr>, None);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => {
                ip = crate::neighbour::address_of(address);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_slice(bytes),
            _ => {}
        }
    }
    let bridge = entry.header.family == AddressFamily::Bridge;
    let mut words = if bridge { "FDB entry" } else { "neighbour" }.to_owned();
    // Writing to a String cannot fail.
    let _ = match (bridge, ip, mac) {
        (true, Some(ip), Some(mac)) => write!(words, " {mac} dst {ip}"),
        (true, None, Some(mac)) => write!(words, " {mac}"),
        (false, Some(ip), Some(mac)) => write!(words, " {ip} lladdr {mac}"),
        (_, Some(ip), None) => write!(words, " {ip}"),
        _ => Ok(()),
    };
    let _ = write!(words, " dev {}", device(entry.header.ifindex));
    words
}

/// The device's name where it still has one in this thread's namespace, else its number.
fn device(ifindex: u32) -> String {
    nix::net::if_::if_indextoname(ifindex)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| format!("#{ifindex}"))
}
