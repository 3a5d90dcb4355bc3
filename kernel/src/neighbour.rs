//! Neighbours: which MAC address has which IP address on a link.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use nix::errno::Errno;

use crate::error::Result;
use crate::mac::Mac;
use crate::socket::{Request, Socket};

/// A neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The device it is behind.
    pub ifindex: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its link-layer address; None while unresolved.
    pub mac: Option<Mac>,
    /// Configured, never aged or probed (NUD_PERMANENT). It does not count against gc_thresh.
    pub permanent: bool,
}

/// `ip neigh show`, both families, without what the kernel keeps for multicast (NOARP).
pub fn dump(socket: &mut Socket) -> Result<Vec<Neighbour>> {
    let all = NeighbourMessage::default();
    socket.dump(
        RouteNetlinkMessage::GetNeighbour(all),
        |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => parse(message),
            _ => None,
        },
    )
}

/// `ip neigh replace IP lladdr MAC dev DEV nud permanent`. Idempotent.
pub fn replace(ifindex: u32, ip: IpAddr, mac: Mac) -> Request {
    lasting(ifindex, ip, mac, NeighbourState::Permanent)
}

fn lasting(ifindex: u32, ip: IpAddr, mac: Mac, state: NeighbourState) -> Request {
    let mut entry = message(ifindex, ip);
    entry.header.state = state;
    entry
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Request::new(
        RouteNetlinkMessage::NewNeighbour(entry),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// `ip neigh replace IP lladdr MAC dev DEV nud reachable`: what waits for this neighbour goes out. An
/// entry that the kernel ages.
pub fn resolve(ifindex: u32, ip: IpAddr, mac: Mac) -> Request {
    lasting(ifindex, ip, mac, NeighbourState::Reachable)
}

/// `ip neigh del IP dev DEV`. One that is gone already is deleted.
pub fn delete(ifindex: u32, ip: IpAddr) -> Request {
    Request::new(RouteNetlinkMessage::DelNeighbour(message(ifindex, ip)), 0).done_on(&[
        Errno::ENOENT,
        Errno::ENODEV,
        Errno::ENXIO,
    ])
}

fn message(ifindex: u32, ip: IpAddr) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = crate::link::family(ip);
    entry.header.ifindex = ifindex;
    entry.header.kind = RouteType::Unicast;
    entry
        .attributes
        .push(NeighbourAttribute::Destination(to_attribute(ip)));
    entry
}

pub(crate) fn parse(message: NeighbourMessage) -> Option<Neighbour> {
    if message.header.state == NeighbourState::Noarp {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => ip = address_of(address),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_slice(bytes),
            _ => {}
        }
    }
    Some(Neighbour {
        ifindex: message.header.ifindex,
        ip: ip?,
        mac,
        permanent: message.header.state == NeighbourState::Permanent,
    })
}

pub(crate) fn to_attribute(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}

pub(crate) fn address_of(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        NeighbourAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        // A forwarding entry's family is the bridge's: only the length tells the address's.
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}
