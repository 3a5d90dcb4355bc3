//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::error::Result;
use crate::socket::{Request, Socket};

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
    socket.dump(
        RouteNetlinkMessage::GetRoute(all),
        |message| match message {
            RouteNetlinkMessage::NewRoute(message) if !is_cloned(&message) => parse(message),
            _ => None,
        },
    )
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
        Some(RouteNetlinkMessage::NewRoute(message)) => parse(message),
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

/// An entry of the cache rather than of a table. The answer to [`towards`] is marked so as well.
pub(crate) fn is_cloned(message: &RouteMessage) -> bool {
    message.header.flags.contains(RouteFlags::Cloned)
}

pub(crate) fn parse(message: RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = Route {
        onlink: header.flags.contains(RouteFlags::Onlink),
        protocol: header.protocol.into(),
        table: u32::from(header.table),
        scope: Some(header.scope.into()),
        ..Route::to(unspecified(header)?)
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => {
                let ip = address_of(ip)?;
                route.destination = IpNet::new(ip, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Gateway(ip) => route.gateway = address_of(ip),
            RouteAttribute::Oif(index) => route.ifindex = Some(*index),
            RouteAttribute::PrefSource(ip) => route.source = address_of(ip),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                        RouteMetric::Advmss(advmss) => route.advmss = Some(*advmss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(route)
}

fn unspecified(header: &RouteHeader) -> Option<IpNet> {
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    IpNet::new(any, 0).ok()
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
