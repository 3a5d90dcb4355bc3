//! Bridges and their ports.

use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute,
    LinkInfo,
};

use crate::link::{self, Change};
use crate::mac::Mac;
use crate::socket::Request;

/// `ip link add NAME mtu N address MAC up type bridge [vlan_filtering 1]`. With an address of its
/// own the bridge does not take over the lowest one of its ports, which would change as pods come
/// and go. A kernel without VLAN filtering refuses it with EOPNOTSUPP, and makes nothing.
pub fn create(name: &str, mtu: Option<u32>, mac: Option<Mac>, filter_vlans: bool) -> Request {
    let mut attributes = vec![LinkAttribute::IfName(name.to_owned())];
    attributes.extend(mtu.map(LinkAttribute::Mtu));
    attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    let data = filter_vlans.then(|| InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)]));
    link::create(InfoKind::Bridge, data, attributes, true)
}

impl Change {
    /// `ip link set dev BRIDGE type bridge vlan_filtering 1|0`.
    pub fn filter_vlans(self, on: bool) -> Change {
        self.attribute(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(on)])),
        ]))
    }

    /// `bridge link set dev PORT hairpin on|off isolated on|off`, for a device that is a bridge's
    /// port already.
    pub fn port(self, hairpin: bool, isolated: bool) -> Change {
        let settings = vec![
            InfoBridgePort::HairpinMode(hairpin),
            InfoBridgePort::Isolated(isolated),
        ];
        self.attribute(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(settings)),
        ]))
    }
}

pub(crate) fn hairpin_of(data: &InfoPortData) -> Option<bool> {
    let InfoPortData::BridgePort(settings) = data else {
        return None;
    };
    settings.iter().find_map(|setting| match setting {
        InfoBridgePort::HairpinMode(on) => Some(*on),
        _ => None,
    })
}

pub(crate) fn filters_vlans(data: &[InfoBridge]) -> bool {
    data.contains(&InfoBridge::VlanFiltering(true))
}
