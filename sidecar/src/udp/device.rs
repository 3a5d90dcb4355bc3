//! What makes a fresh TUN device the node's: flannel's address, MTU and route, as requests.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use kernel::Request;
use kernel::route::{PROTOCOL_BOOT, Route};
use kernel::{address, link, route};

/// `RT_SCOPE_UNIVERSE`: flannel's route says so, although nothing stands between.
const SCOPE_GLOBAL: u8 = 0;

/// The requests in their order: `mtu` bytes fit into a packet (the underlay's less
/// [`super::OVERHEAD`]), `own` is the subnet's first address, and the whole `network` leads into
/// the device. Idempotent.
pub fn setup(ifindex: u32, mtu: u32, own: Ipv4Addr, network: Ipv4Net) -> [Request; 4] {
    let to_network = Route {
        ifindex: Some(ifindex),
        protocol: PROTOCOL_BOOT,
        scope: Some(SCOPE_GLOBAL),
        ..Route::to(IpNet::V4(network.trunc()))
    };
    [
        link::change_index(ifindex).mtu(mtu).request(),
        address::replace(ifindex, IpNet::V4(own.into())),
        // The route needs it up.
        link::change_index(ifindex).up().request(),
        route::replace(&to_network),
    ]
}
