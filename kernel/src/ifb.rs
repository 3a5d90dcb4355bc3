//! Intermediate functional blocks: devices that packets are sent through on their way in, so that
//! they can be queued there.

use netlink_packet_route::link::{InfoKind, LinkAttribute};

use crate::link;
use crate::socket::Request;

/// `ip link add NAME mtu N txqueuelen 0 up type ifb`, then `ip link set NAME alias TEXT`: the
/// kernel takes no alias with the first. Sent together, both are done or none: a process is
/// killed before a send or after it. Fails if the name is taken.
pub fn create(name: &str, mtu: u32, alias: &str) -> [Request; 2] {
    let attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::TxQueueLen(0),
    ];
    [
        link::create(InfoKind::Ifb, None, attributes, true),
        link::change(name).alias(alias).request(),
    ]
}
