//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::libc;

use crate::attribute;
use crate::error::Result;
use crate::socket::{Request, Socket};

/// The size of `struct rtmsg`, in bytes.
const MESSAGE: usize = 12;
/// Kinds within `RTA_METRICS`.
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// The main table (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;
/// Set up by the operator or at boot (`RTPROT_BOOT`): what flannel's routes carry.
pub const PROTOCOL_BOOT: u8 = 3;

/// A unicast route with one next hop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination, without host bits; 0.0.0.0/0 or ::/0 for the default route.
    pub destination: IpNet,
    /// The next hop; None if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The outgoing device; None lets the kernel find it by the gateway.
    pub ifindex: Option<u32>,
    /// The source address for packets of the host's own.
    pub source: Option<IpAddr>,
    /// Take the gateway to be on the link, whatever the addresses say.
    pub onlink: bool,
    /// Who made it (`/etc/iproute2/rt_protos`).
    pub protocol: u8,
    /// The lower the better; 0 where none was given (IPv6 then says 1024).
    pub metric: u32,
    /// The table, [`TABLE_MAIN`] unless something else was asked for.
    pub table: u32,
    /// The distance, e.g. 0 universe, 253 link; None picks it as `ip route` does.
    pub scope: Option<u8>,
    /// `RTAX_MTU`, in bytes.
    pub mtu: Option<u32>,
    /// `RTAX_ADVMSS`, in bytes.
    pub advmss: Option<u32>,
}

impl Route {
    /// A route in the main table with nothing but a destination.
    pub fn to(destination: IpNet) -> Route {
        Route {
            destination,
            gateway: None,
            ifindex: None,
            source: None,
            onlink: false,
            protocol: PROTOCOL_BOOT,
            metric: 0,
            table: TABLE_MAIN,
            scope: None,
            mtu: None,
            advmss: None,
        }
    }
}

/// `ip route show table all`, unicast routes with one next hop, of one family. Multipath routes
/// come with no gateway and no device.
///
/// The kernel does not say when IPv4 routes went while they were dumped (`inet_dump_fib` knows no
/// `NLM_F_DUMP_INTR`): a part of them may be missing from a dump in which a device goes. Who keeps
/// to what a dump said listens to notifications from before it, as the daemon does.
pub fn dump(socket: &mut Socket, v6: bool) -> Result<Vec<Route>> {
    let mut all = RouteMessage::default();
    all.header.address_family = if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    socket.dump_bytes(RouteNetlinkMessage::GetRoute(all), |message| {
        parse(message).filter(|_| !is_cloned(message))
    })
}

/// `ip route get IP`: the route a packet would take. None if there is none.
pub fn towards(socket: &mut Socket, ip: IpAddr) -> Result<Option<Route>> {
    let mut query = RouteMessage::default();
    query.header.address_family = crate::link::family(ip);
    query.header.destination_prefix_length = if ip.is_ipv6() { 128 } else { 32 };
    query
        .attributes
        .push(RouteAttribute::Destination(to_attribute(ip)));
    let answer = match socket.get(RouteNetlinkMessage::GetRoute(query)) {
        Err(error) if error.errno() == Some(Errno::ENETUNREACH) => return Ok(None),
        answer => answer?,
    };
    Ok(match answer {
        Some(RouteNetlinkMessage::NewRoute(message)) => {
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            parse(&bytes)
        }
        _ => None,
    })
}

/// `ip route replace …`: idempotent; replaces a route to the same destination with the same
/// metric in the same table.
pub fn replace(route: &Route) -> Request {
    Request::new(
        RouteNetlinkMessage::NewRoute(message(route)),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// `ip route append …`: beside others to the same destination. Fails with EEXIST for an
/// identical one.
pub fn append(route: &Route) -> Request {
    Request::new(RouteNetlinkMessage::NewRoute(message(route)), NLM_F_CREATE)
}

/// `ip route add unreachable NET metric 4294967295`: whoever sends there is told so, where no better
/// route leads there. One that is there already counts as added.
pub fn unreachable(destination: IpNet) -> Request {
    let mut route = message(&Route {
        scope: Some(RouteScope::Universe.into()),
        metric: u32::MAX,
        ..Route::to(destination)
    });
    route.header.kind = RouteType::Unreachable;
    Request::new(
        RouteNetlinkMessage::NewRoute(route),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .done_on(&[Errno::EEXIST])
}

/// `ip route del …`, exactly this one. One that is gone already is deleted.
pub fn delete(route: &Route) -> Request {
    Request::new(RouteNetlinkMessage::DelRoute(message(route)), 0)
        .done_on(&[Errno::ESRCH, Errno::ENODEV])
}

fn message(route: &Route) -> RouteMessage {
    let mut out = RouteMessage::default();
    out.header.address_family = crate::link::family(route.destination.addr());
    out.header.destination_prefix_length = route.destination.prefix_len();
    out.header.protocol = RouteProtocol::from(route.protocol);
    out.header.kind = RouteType::Unicast;
    out.header.scope = match route.scope {
        Some(scope) => RouteScope::from(scope),
        // As `ip route` does: what is reached directly is on the link. IPv6 has no scopes.
        None if route.gateway.is_none() && route.destination.addr().is_ipv4() => RouteScope::Link,
        None => RouteScope::Universe,
    };
    if route.onlink {
        out.header.flags |= RouteFlags::Onlink;
    }
    match u8::try_from(route.table) {
        Ok(table) => out.header.table = table,
        Err(_) => out.attributes.push(RouteAttribute::Table(route.table)),
    }
    if route.destination.prefix_len() > 0 {
        let destination = to_attribute(route.destination.addr());
        out.attributes
            .push(RouteAttribute::Destination(destination));
    }
    let attributes = [
        route
            .gateway
            .map(|ip| RouteAttribute::Gateway(to_attribute(ip))),
        route.ifindex.map(RouteAttribute::Oif),
        route
            .source
            .map(|ip| RouteAttribute::PrefSource(to_attribute(ip))),
        (route.metric != 0).then_some(RouteAttribute::Priority(route.metric)),
    ];
    out.attributes.extend(attributes.into_iter().flatten());
    let metrics = [
        route.mtu.map(RouteMetric::Mtu),
        route.advmss.map(RouteMetric::Advmss),
    ];
    let metrics: Vec<_> = metrics.into_iter().flatten().collect();
    if !metrics.is_empty() {
        out.attributes.push(RouteAttribute::Metrics(metrics));
    }
    out
}

/// An entry of the cache rather than of a table (`RTM_F_CLONED`). The answer to [`towards`] is
/// marked so as well.
pub(crate) fn is_cloned(message: &[u8]) -> bool {
    flags(message).is_some_and(|flags| flags & RouteFlags::Cloned.bits() != 0)
}

fn flags(message: &[u8]) -> Option<u32> {
    attribute::number(message.get(8..MESSAGE)?)
}

/// Reads the bytes of a route message (`struct rtmsg` and attributes, linux/rtnetlink.h).
pub(crate) fn parse(message: &[u8]) -> Option<Route> {
    let &[family, length, _, _, table, protocol, scope, kind, ..] = message.get(..MESSAGE)? else {
        return None;
    };
    if kind != libc::RTN_UNICAST {
        return None;
    }
    let any: IpAddr = match i32::from(family) {
        libc::AF_INET => std::net::Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut route = Route {
        onlink: flags(message)? & RouteFlags::Onlink.bits() != 0,
        protocol,
        table: u32::from(table),
        scope: Some(scope),
        ..Route::to(IpNet::new(any, 0).ok()?)
    };
    for (kind, value) in attribute::all(message.get(MESSAGE..)?) {
        match kind {
            libc::RTA_DST => route.destination = IpNet::new(attribute::ip(value)?, length).ok()?,
            libc::RTA_GATEWAY => route.gateway = attribute::ip(value),
            libc::RTA_OIF => route.ifindex = attribute::number(value),
            libc::RTA_PREFSRC => route.source = attribute::ip(value),
            libc::RTA_PRIORITY => route.metric = attribute::number(value)?,
            libc::RTA_TABLE => route.table = attribute::number(value)?,
            libc::RTA_METRICS => {
                for (kind, value) in attribute::all(value) {
                    match kind {
                        RTAX_MTU => route.mtu = attribute::number(value),
                        RTAX_ADVMSS => route.advmss = attribute::number(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(route)
}

fn to_attribute(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

pub(crate) fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
