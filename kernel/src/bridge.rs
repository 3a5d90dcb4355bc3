//! Bridges and their ports.

use netlink_packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo,
};

use crate::link::{self, Change};
use crate::mac::Mac;
use crate::socket::Request;

/// `ip link add NAME mtu N address MAC up type bridge`. With an address of its own the bridge
/// does not take over the lowest one of its ports, which would change as pods come and go.
pub fn create(name: &str, mtu: Option<u32>, mac: Option<Mac>) -> Request {
    let mut attributes = vec![LinkAttribute::IfName(name.to_owned())];
    attributes.extend(mtu.map(LinkAttribute::Mtu));
    attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    link::create(InfoKind::Bridge, None, attributes, true)
}

impl Change {
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
