//! Who is asked for the MAC address of a neighbour: others on the link (ARP, neighbour discovery),
//! or user space (`miss`). A setting of each device in each family's neighbour table.

use netlink_packet_route::neighbour_table::{
    NeighbourTableAttribute, NeighbourTableMessage, NeighbourTableParameter as Parameter,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::Result;
use crate::socket::{Request, Socket};

/// How often user space is asked, one second apart, before packets are told that there is no such
/// host. As often as the kernel asks the link by default.
const TIMES: u32 = 3;

/// `ip ntable change name arp_cache dev DEV app_probes 3 mcast_probes 0` (`ndisc_cache` for IPv6):
/// user space is asked, and nobody on the link. It works where `/proc/sys` is read-only, too.
pub fn user_space(ifindex: u32, v6: bool) -> Request {
    let mut message = message(v6);
    let name = if v6 { "ndisc_cache" } else { "arp_cache" };
    message.attributes = vec![
        NeighbourTableAttribute::Name(name.to_owned()),
        NeighbourTableAttribute::Parms(vec![
            Parameter::Ifindex(ifindex),
            Parameter::AppProbes(TIMES),
            Parameter::McastProbes(0),
        ]),
    ];
    Request::new(RouteNetlinkMessage::SetNeighbourTable(message), 0)
}

/// `ip ntable show`: the devices for which user space is asked, as [`user_space`] makes them.
pub fn dump(socket: &mut Socket, v6: bool) -> Result<Vec<u32>> {
    let all = RouteNetlinkMessage::GetNeighbourTable(message(v6));
    let wanted = message(v6).header.family;
    socket.dump(all, |message| {
        let RouteNetlinkMessage::NewNeighbourTable(table) = message else {
            return None;
        };
        if table.header.family != wanted {
            return None;
        }
        table
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                NeighbourTableAttribute::Parms(parameters) => asks(parameters),
                _ => None,
            })
    })
}

/// The device, if user space is asked for it.
fn asks(parameters: &[Parameter]) -> Option<u32> {
    let (mut device, mut app, mut link) = (None, 0, 0);
    for parameter in parameters {
        match parameter {
            Parameter::Ifindex(ifindex) => device = Some(*ifindex),
            Parameter::AppProbes(times) => app = *times,
            Parameter::McastProbes(times) => link = *times,
            _ => {}
        }
    }
    device.filter(|_| (app, link) == (TIMES, 0))
}

fn message(v6: bool) -> NeighbourTableMessage {
    let mut message = NeighbourTableMessage::default();
    message.header.family = match v6 {
        true => AddressFamily::Inet6,
        false => AddressFamily::Inet,
    };
    message
}
