//! Forwarding entries: of a VXLAN device (inner MAC → underlay address) or of a bridge's port.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::libc;

use crate::attribute;
use crate::error::Result;
use crate::mac::Mac;
use crate::neighbour::{Head, to_attribute};
use crate::socket::{Request, Socket};

/// What the kernel counts time in for user space (`USER_HZ` is 100 everywhere), in milliseconds.
const USER_TICK: u64 = 10;

/// A forwarding entry of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// The device.
    pub ifindex: u32,
    /// The inner destination.
    pub mac: Mac,
    /// Where to: the underlay address of a VXLAN entry.
    pub destination: Option<IpAddr>,
    /// Never aged (NUD_PERMANENT).
    pub permanent: bool,
}

/// `bridge fdb show`, of one device or of all, the entries that a device keeps itself (`self`).
/// The filter of the kernel is by header (`ndm_ifindex`), since Linux 5.0 with strict checks.
pub fn dump(socket: &mut Socket, ifindex: Option<u32>) -> Result<Vec<FdbEntry>> {
    let mut all = NeighbourMessage::default();
    all.header.family = AddressFamily::Bridge;
    all.header.ifindex = ifindex.unwrap_or(0);
    socket.dump_bytes(RouteNetlinkMessage::GetNeighbour(all), |message| {
        parse(message).filter(|entry| ifindex.is_none_or(|i| i == entry.ifindex))
    })
}

/// `bridge -s fdb show dev DEV`: for how long nothing was sent to each MAC of a VXLAN device, to the
/// hundredth of a second. What was just made counts as used.
pub fn idle(socket: &mut Socket, ifindex: u32) -> Result<Vec<(Mac, Duration)>> {
    let mut all = NeighbourMessage::default();
    all.header.family = AddressFamily::Bridge;
    all.header.ifindex = ifindex;
    socket.dump_bytes(RouteNetlinkMessage::GetNeighbour(all), |message| {
        let entry = parse(message).filter(|entry| entry.ifindex == ifindex)?;
        let (_, attributes) = Head::of(message)?;
        // `struct nda_cacheinfo`: confirmed, used, updated, references.
        let times = attribute::find(attributes, libc::NDA_CACHEINFO)?;
        let used = attribute::number(times.get(4..8)?)?;
        Some((
            entry.mac,
            Duration::from_millis(u64::from(used) * USER_TICK),
        ))
    })
}

/// `bridge fdb replace MAC dev DEV dst IP self permanent`. Idempotent; a MAC has one destination.
pub fn replace(ifindex: u32, mac: Mac, destination: IpAddr) -> Request {
    let mut entry = message(ifindex, mac);
    entry.header.state = NeighbourState::Permanent;
    entry
        .attributes
        .push(NeighbourAttribute::Destination(to_attribute(destination)));
    Request::new(
        RouteNetlinkMessage::NewNeighbour(entry),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// `bridge fdb del MAC dev DEV self`. One that is gone already is deleted.
pub fn delete(ifindex: u32, mac: Mac) -> Request {
    Request::new(RouteNetlinkMessage::DelNeighbour(message(ifindex, mac)), 0)
        .done_on(&[Errno::ENOENT, Errno::ENODEV])
}

fn message(ifindex: u32, mac: Mac) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = ifindex;
    entry.header.flags = NeighbourFlags::Own;
    entry.header.kind = RouteType::Unspec;
    entry
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    entry
}

/// Reads the bytes of a message about a forwarding entry.
pub(crate) fn parse(message: &[u8]) -> Option<FdbEntry> {
    let (head, attributes) = Head::of(message)?;
    if head.flags & libc::NTF_SELF == 0 {
        return None;
    }
    let (mut mac, mut destination) = (None, None);
    for (kind, value) in attribute::all(attributes) {
        match kind {
            libc::NDA_LLADDR => mac = Mac::from_slice(value),
            libc::NDA_DST => destination = attribute::ip(value),
            _ => {}
        }
    }
    Some(FdbEntry {
        ifindex: head.ifindex,
        mac: mac?,
        destination,
        // `bridge fdb add` sets NOARP beside it.
        permanent: head.state & libc::NUD_PERMANENT != 0,
    })
}
