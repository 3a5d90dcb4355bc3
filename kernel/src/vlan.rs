//! The VLANs of a bridge's port. The bridge heeds them while it filters VLANs.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::Result;
use crate::socket::{Request, Socket};

/// Every number that a VLAN may have (IEEE 802.1Q: 0 is none, 4095 is reserved).
pub const ALL: RangeInclusive<u16> = 1..=4094;

/// The VLANs that a port is in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// Where frames belong that come in without a tag.
    pub pvid: Option<u16>,
    /// Those whose frames go out without a tag.
    pub untagged: BTreeSet<u16>,
    /// Those whose frames keep their tags.
    pub tagged: BTreeSet<u16>,
}

impl Membership {
    /// Of no port, or of one in a kernel that knows no VLANs on bridges, it is in none.
    fn parse(attributes: Vec<LinkAttribute>) -> Membership {
        let mut membership = Membership::default();
        let mut begin = None;
        let specs = attributes
            .into_iter()
            .filter_map(|attribute| match attribute {
                LinkAttribute::AfSpecBridge(specs) => Some(specs),
                _ => None,
            });
        for spec in specs.flatten() {
            let AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid }) = spec else {
                continue;
            };
            if flags.contains(BridgeVlanInfoFlags::RangeBegin) {
                begin = Some(vid);
                continue;
            }
            let first = match flags.contains(BridgeVlanInfoFlags::RangeEnd) {
                true => begin.take().unwrap_or(vid),
                false => vid,
            };
            if flags.contains(BridgeVlanInfoFlags::Pvid) {
                membership.pvid = Some(vid);
            }
            match flags.contains(BridgeVlanInfoFlags::Untagged) {
                true => membership.untagged.extend(first..=vid),
                false => membership.tagged.extend(first..=vid),
            }
        }
        membership
    }
}

/// `bridge vlan show dev PORT`, the port found by number. The kernel has no filter for it, and sends
/// every port of the node's.
pub fn of_port(socket: &mut Socket, port: u32) -> Result<Membership> {
    let mut all = LinkMessage::default();
    all.header.interface_family = AddressFamily::Bridge;
    // Ranges, or a port with thousands would not fit into a message.
    all.attributes = vec![LinkAttribute::ExtMask(vec![
        LinkExtentMask::BrvlanCompressed,
    ])];
    let of_port = |message| match message {
        RouteNetlinkMessage::NewLink(link) if link.header.index == port => {
            Some(Membership::parse(link.attributes))
        }
        _ => None,
    };
    let mut found = socket.dump(RouteNetlinkMessage::GetLink(all), of_port)?;
    Ok(found.pop().unwrap_or_default())
}

/// `bridge vlan del dev PORT vid 1-4094`, the port found by number. Those that it is not in do not
/// matter.
pub fn leave_all(port: u32) -> Request {
    let message = message(port, range(ALL));
    Request::new(RouteNetlinkMessage::DelLink(message), 0)
}

/// `bridge vlan add dev PORT vid N pvid untagged` for one, then `bridge vlan add dev PORT vid N`
/// for each of the others.
pub fn join(port: u32, untagged: Option<u16>, tagged: &BTreeSet<u16>) -> Request {
    let mut infos = vec![];
    if let Some(vid) = untagged {
        let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        infos.push(BridgeVlanInfo { flags, vid });
    }
    infos.extend(ranges(tagged).into_iter().flat_map(range));
    Request::new(RouteNetlinkMessage::SetLink(message(port, infos)), 0)
}

fn message(port: u32, infos: Vec<BridgeVlanInfo>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.interface_family = AddressFamily::Bridge;
    link.header.index = port;
    let infos = infos.into_iter().map(AfSpecBridge::VlanInfo).collect();
    link.attributes = vec![LinkAttribute::AfSpecBridge(infos)];
    link
}

fn range(vids: RangeInclusive<u16>) -> Vec<BridgeVlanInfo> {
    let info = |flags, vid| BridgeVlanInfo { flags, vid };
    match (*vids.start(), *vids.end()) {
        (only, end) if only == end => vec![info(BridgeVlanInfoFlags::empty(), only)],
        (start, end) => vec![
            info(BridgeVlanInfoFlags::RangeBegin, start),
            info(BridgeVlanInfoFlags::RangeEnd, end),
        ],
    }
}

/// The same numbers as runs, so that a message with thousands stays small.
fn ranges(vids: &BTreeSet<u16>) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<RangeInclusive<u16>> = vec![];
    for vid in vids {
        match ranges.last_mut() {
            Some(last) if *last.end() + 1 == *vid => *last = *last.start()..=*vid,
            _ => ranges.push(*vid..=*vid),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_each_other_are_one_range() {
        assert_eq!(ranges(&BTreeSet::new()), []);
        let vids = BTreeSet::from([7, 200, 201, 202, 204, 4094]);
        assert_eq!(ranges(&vids), [7..=7, 200..=202, 204..=204, 4094..=4094]);
        let all: BTreeSet<u16> = ALL.collect();
        assert_eq!(ranges(&all), [ALL]);
    }

    #[test]
    fn a_port_is_in_what_the_kernel_lists_singly_and_in_ranges() {
        let info = |flags, vid| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
        let untagged = BridgeVlanInfoFlags::Untagged;
        let said = vec![
            info(BridgeVlanInfoFlags::Pvid | untagged, 100),
            info(BridgeVlanInfoFlags::empty(), 7),
            info(BridgeVlanInfoFlags::RangeBegin, 200),
            info(BridgeVlanInfoFlags::RangeEnd, 203),
            info(BridgeVlanInfoFlags::RangeBegin | untagged, 300),
            info(BridgeVlanInfoFlags::RangeEnd | untagged, 301),
        ];
        let expected = Membership {
            pvid: Some(100),
            untagged: BTreeSet::from([100, 300, 301]),
            tagged: BTreeSet::from([7, 200, 201, 202, 203]),
        };
        let said = vec![LinkAttribute::AfSpecBridge(said)];
        assert_eq!(Membership::parse(said), expected);
        assert_eq!(Membership::parse(vec![]), Membership::default());
    }
}
