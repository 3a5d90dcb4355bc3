//! Devices on their way out. To delete one takes the kernel some 18 ms of waiting for RCU grace
//! periods, with rtnl held; to delete a hundred together takes hardly longer. So a pod's DEL only
//! quiesces its pair and says so, and the daemon deletes what has gathered.
//!
//! ```text
//! DEL      ip link set dev VETH group leaving nomaster down; ip link property add … altname ADDRESS
//!          a datagram to SOCKET, beside subnet.env; nobody there: ip link del VETH
//! twilld   ip link del group leaving
//! ADD      is ADDRESS the name of a device? then ip link del group leaving
//! ```

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, Prop};

use crate::link;
use crate::socket::Request;

/// The group of devices that are to be deleted (`twil` in ASCII, so that nobody else has it).
pub const GROUP: u32 = 0x7477_696c;
/// The socket of who deletes them, in the folder of `subnet.env`. What a datagram says is nothing.
pub const SOCKET: &str = "twilld.sock";

/// Takes a device out of use: from its bridge, down, and known by the addresses that are not free
/// as long as it is there. All of it fails on kernels without alternative names (before 5.5).
pub fn leave(ifindex: u32, addresses: &[IpAddr]) -> Vec<Request> {
    let down = link::change_index(ifindex).master(0).group(GROUP).down();
    let mut requests = vec![down.request()];
    if !addresses.is_empty() {
        let names = addresses.iter().map(|ip| Prop::AltIfName(name(*ip)));
        let mut link = link::message(&[LinkAttribute::PropList(names.collect())]);
        link.header.index = ifindex;
        let message = RouteNetlinkMessage::NewLinkProp(link);
        requests.push(Request::new(
            message,
            netlink_packet_core::NLM_F_CREATE | netlink_packet_core::NLM_F_EXCL,
        ));
    }
    requests
}

/// Deletes every device that is leaving; that there is none is fine.
pub fn delete_all() -> Request {
    link::delete_group(GROUP)
}

/// The name of a device that leaves with this address: short enough for `ifreq`, so a hash. Two
/// addresses that share one cost an ADD some waiting, now and then.
pub fn name(ip: IpAddr) -> String {
    let bytes = match ip {
        IpAddr::V4(ip) => return format!("gone{:08x}", ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    // Pods' addresses differ in their last bits.
    let folded = (bytes ^ (bytes >> 64)) as u64;
    format!("gone{:010x}", (folded ^ (folded >> 40)) & 0xff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_a_name_that_an_ifreq_holds() {
        let names: Vec<String> = ["10.244.1.5", "255.255.255.255", "fd00::5", "fd00::6"]
            .iter()
            .map(|ip| name(ip.parse().unwrap()))
            .collect();
        assert_eq!(names[0], "gone0af40105");
        assert!(names.iter().all(|name| name.len() < 16), "{names:?}");
        assert_ne!(names[2], names[3]);
    }
}
