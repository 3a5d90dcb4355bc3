//! The VLANs of a bridge's port. The bridge heeds them while it filters VLANs.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::socket::Request;

/// Every number that a VLAN may have (IEEE 802.1Q: 0 is none, 4095 is reserved).
pub const ALL: RangeInclusive<u16> = 1..=4094;

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
}
