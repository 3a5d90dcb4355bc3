//! Addresses of devices.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use nix::errno::Errno;

use crate::error::Result;
use crate::socket::{Request, Socket};

/// An address on a device, with the length of its network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The device.
    pub ifindex: u32,
    /// The address itself, host bits included, e.g. 10.244.1.1/24.
    pub net: IpNet,
    /// Valid on this link only (169.254.0.0/16, fe80::/10 and what was declared so).
    pub link_scope: bool,
    /// Not to be used for new connections (its preferred lifetime is over).
    pub deprecated: bool,
    /// Without a lifetime: configured by hand rather than leased.
    pub permanent: bool,
    /// A privacy address (RFC 8981), or an IPv4 secondary.
    pub temporary: bool,
    /// Duplicate address detection is not over.
    pub tentative: bool,
    /// Another host has this address.
    pub dad_failed: bool,
}

/// `ip addr show`, of one device or of all. Filtered here too: older kernels send everything.
pub fn dump(socket: &mut Socket, ifindex: Option<u32>) -> Result<Vec<Address>> {
    let mut all = AddressMessage::default();
    all.header.index = ifindex.unwrap_or(0);
    socket.dump(RouteNetlinkMessage::GetAddress(all), |message| {
        parse(message).filter(|address| ifindex.is_none_or(|i| i == address.ifindex))
    })
}

/// `ip addr replace NET dev DEV`: the address alone, without broadcast or label, and for IPv6
/// without duplicate address detection. Idempotent.
pub fn replace(ifindex: u32, net: IpNet) -> Request {
    Request::new(
        RouteNetlinkMessage::NewAddress(message(ifindex, net, None)),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// `ip addr add NET brd + dev DEV [nodad]`: as a pod's or a bridge's address is added. An
/// address that is there already counts as added.
pub fn add(ifindex: u32, net: IpNet) -> Request {
    let broadcast = match net {
        IpNet::V4(v4) if v4.prefix_len() <= 30 => Some(v4.broadcast()),
        _ => None,
    };
    Request::new(
        RouteNetlinkMessage::NewAddress(message(ifindex, net, broadcast)),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .done_on(&[Errno::EEXIST])
}

/// `ip addr add NET dev DEV`, of IPv6: the kernel looks for another host that has it, which takes a
/// second or more; meanwhile the address is tentative.
pub fn add_with_detection(ifindex: u32, net: IpNet) -> Request {
    let mut address = message(ifindex, net, None);
    address.header.flags.remove(AddressHeaderFlags::Nodad);
    (address.attributes).retain(|attribute| !matches!(attribute, AddressAttribute::Flags(_)));
    Request::new(
        RouteNetlinkMessage::NewAddress(address),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .done_on(&[Errno::EEXIST])
}

/// `ip addr del NET dev DEV`. One that is gone already is deleted.
pub fn delete(ifindex: u32, net: IpNet) -> Request {
    Request::new(
        RouteNetlinkMessage::DelAddress(message(ifindex, net, None)),
        0,
    )
    .done_on(&[Errno::EADDRNOTAVAIL, Errno::ENODEV])
}

fn message(ifindex: u32, net: IpNet, broadcast: Option<std::net::Ipv4Addr>) -> AddressMessage {
    let mut address = AddressMessage::default();
    address.header.family = crate::link::family(net.addr());
    address.header.prefix_len = net.prefix_len();
    address.header.index = ifindex;
    address.header.scope = AddressScope::Universe;
    address.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
    ];
    address
        .attributes
        .extend(broadcast.map(AddressAttribute::Broadcast));
    if matches!(net, IpNet::V6(_)) {
        // Waiting for duplicate address detection costs seconds; these addresses are ours alone.
        address.header.flags |= AddressHeaderFlags::Nodad;
        address
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    address
}

fn parse(message: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the peer's address; IPv6 has no IFA_LOCAL there.
    let ip: IpAddr = local.or(address)?;
    Some(Address {
        ifindex: message.header.index,
        net: IpNet::new(ip, message.header.prefix_len).ok()?,
        link_scope: message.header.scope == AddressScope::Link,
        deprecated: flags.contains(AddressFlags::Deprecated),
        permanent: flags.contains(AddressFlags::Permanent),
        temporary: flags.contains(AddressFlags::Secondary),
        tentative: flags.contains(AddressFlags::Tentative),
        dad_failed: flags.contains(AddressFlags::Dadfailed),
    })
}
