//! Neighbours: which MAC address has which IP address on a link.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use nix::errno::Errno;
use nix::libc;

use crate::attribute;
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
    socket.dump_bytes(RouteNetlinkMessage::GetNeighbour(all), parse)
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

/// The head of a message about a neighbour or a forwarding entry (`struct ndmsg`,
/// linux/neighbour.h).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) ifindex: u32,
    pub(crate) state: u16,
    pub(crate) flags: u8,
}

impl Head {
    /// With the attributes behind it.
    pub(crate) fn of(message: &[u8]) -> Option<(Self, &[u8])> {
        let (head, attributes) = message.split_at_checked(12)?;
        let head = Self {
            ifindex: attribute::number(&head[4..8])?,
            state: u16::from_ne_bytes([head[8], head[9]]),
            flags: head[10],
        };
        Some((head, attributes))
    }
}

/// Reads the bytes of a neighbour message.
pub(crate) fn parse(message: &[u8]) -> Option<Neighbour> {
    let (head, attributes) = Head::of(message)?;
    if head.state == libc::NUD_NOARP {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for (kind, value) in attribute::all(attributes) {
        match kind {
            libc::NDA_DST => ip = attribute::ip(value),
            libc::NDA_LLADDR => mac = Mac::from_slice(value),
            _ => {}
        }
    }
    Some(Neighbour {
        ifindex: head.ifindex,
        ip: ip?,
        mac,
        permanent: head.state == libc::NUD_PERMANENT,
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
        // A forwarding entry's family is the bridge's.
        NeighbourAddress::Other(bytes) => attribute::ip(bytes),
        _ => None,
    }
}
