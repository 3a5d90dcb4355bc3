//! VXLAN devices (RFC 7348).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::link::InfoVxlan;
use rtnetlink::LinkVxlan;

use crate::link;
use crate::mac::Mac;
use crate::socket::Request;

/// The port of Linux' VXLAN when none is configured (`ip -d link`: dstport 8472).
pub const DEFAULT_PORT: u16 = 8472;

/// What makes one VXLAN device unlike another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// The underlay device (`dev`); None if it is not bound to one.
    pub underlay: Option<u32>,
    /// The source address of outer packets.
    pub local: Option<IpAddr>,
    /// The remote address or multicast group for unknown destinations; flannel sets none.
    pub group: Option<IpAddr>,
    /// UDP destination port.
    pub port: u16,
    /// Learn inner MAC addresses from received packets.
    pub learning: bool,
    /// Group Based Policy extension.
    pub gbp: bool,
    /// Raise netlink events for unknown inner MACs.
    pub l2miss: bool,
    /// Raise netlink events for unknown neighbours.
    pub l3miss: bool,
}

impl Vxlan {
    /// `ip link add NAME address MAC mtu N txqueuelen 0 type vxlan id VNI dev UNDERLAY local IP
    /// dstport PORT nolearning …`, with every attribute that flannel sends. Left down: it comes
    /// up when it has its address.
    pub fn create(&self, name: &str, mac: Mac, mtu: u32) -> Request {
        let mut device = LinkVxlan::new(name, self.vni)
            .ttl(0)
            .tos(0)
            .learning(self.learning)
            .proxy(false)
            .rsc(false)
            .l2miss(self.l2miss)
            .l3miss(self.l3miss)
            .udp_zero_csum6_tx(false)
            .udp_zero_csum6_rx(false)
            .port(self.port)
            .mtu(mtu)
            .txqueuelen(0)
            .address(mac.0.to_vec());
        if let Some(underlay) = self.underlay {
            device = device.dev(underlay);
        }
        device = match self.local {
            Some(IpAddr::V4(ip)) => device.local(ip),
            Some(IpAddr::V6(ip)) => device.local6(ip),
            None => device,
        };
        if self.gbp {
            device = device.gbp();
        }
        link::create_from(device.build())
    }

    pub(crate) fn parse(data: &[InfoVxlan]) -> Vxlan {
        let mut vxlan = Vxlan {
            vni: 0,
            underlay: None,
            local: None,
            group: None,
            port: DEFAULT_PORT,
            learning: false,
            gbp: false,
            l2miss: false,
            l3miss: false,
        };
        for attribute in data {
            match attribute {
                InfoVxlan::Id(vni) => vxlan.vni = *vni,
                InfoVxlan::Link(index) => vxlan.underlay = Some(*index).filter(|i| *i != 0),
                InfoVxlan::Local(ip) => vxlan.local = specified(*ip),
                InfoVxlan::Local6(ip) => vxlan.local = specified6(*ip),
                InfoVxlan::Group(ip) => vxlan.group = specified(*ip),
                InfoVxlan::Group6(ip) => vxlan.group = specified6(*ip),
                InfoVxlan::Port(port) => vxlan.port = *port,
                InfoVxlan::Learning(on) => vxlan.learning = *on,
                InfoVxlan::L2Miss(on) => vxlan.l2miss = *on,
                InfoVxlan::L3Miss(on) => vxlan.l3miss = *on,
                InfoVxlan::Gbp => vxlan.gbp = true,
                _ => {}
            }
        }
        vxlan
    }
}

fn specified(ip: Ipv4Addr) -> Option<IpAddr> {
    (!ip.is_unspecified()).then_some(IpAddr::V4(ip))
}

fn specified6(ip: Ipv6Addr) -> Option<IpAddr> {
    (!ip.is_unspecified()).then_some(IpAddr::V6(ip))
}
