//! IPv4 in IPv4 (RFC 2003): tunnels without a header of their own.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::link::{InfoData, InfoIpTunnel, InfoKind, LinkAttribute};

use crate::link;
use crate::socket::Request;

/// What makes one such tunnel unlike another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ipip {
    /// The source address of outer packets.
    pub local: Option<Ipv4Addr>,
    /// The other end; None where each route says it.
    pub remote: Option<Ipv4Addr>,
}

impl Ipip {
    /// `ip link add NAME mtu N type ipip local IP nopmtudisc`, the TTL taken from inside. Left
    /// down.
    pub fn create(&self, name: &str, mtu: u32) -> Request {
        let mut data = vec![
            InfoIpTunnel::PMtuDisc(false),
            InfoIpTunnel::Ttl(0),
            InfoIpTunnel::Tos(0),
        ];
        data.extend(self.local.map(|ip| InfoIpTunnel::Local(ip.into())));
        data.extend(self.remote.map(|ip| InfoIpTunnel::Remote(ip.into())));
        let attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
        ];
        let data = InfoData::IpTunnel(data);
        link::create(InfoKind::IpIp, Some(data), attributes, false)
    }

    pub(crate) fn parse(data: &[InfoIpTunnel]) -> Ipip {
        let mut ipip = Ipip::default();
        for attribute in data {
            match attribute {
                InfoIpTunnel::Local(ip) => ipip.local = specified(*ip),
                InfoIpTunnel::Remote(ip) => ipip.remote = specified(*ip),
                _ => {}
            }
        }
        ipip
    }
}

fn specified(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip).filter(|ip| !ip.is_unspecified()),
        IpAddr::V6(_) => None,
    }
}
