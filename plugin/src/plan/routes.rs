//! The routes of a pod, and the gateways that they go through. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::address::Ip;
use crate::config::bridge::{BridgeNetwork, Gateway};
use crate::result::{IpConfig, Route};

/// The routes of the network as a result shows them: IPAM's, and for a default gateway one default
/// route per family, unless IPAM has one with a gateway.
pub(crate) fn routes(network: &BridgeNetwork, ips: &[IpConfig]) -> Vec<Route> {
    let mut routes = network.routes.clone();
    if network.gateway != Gateway::Default {
        return routes;
    }
    for gateway in gateways(ips) {
        let v6 = gateway.addr().is_ipv6();
        let has_one = routes.iter().any(|route| {
            let dst = route.dst.map(|dst| dst.0);
            let default = dst.is_some_and(|d| d.prefix_len() == 0 && d.addr().is_ipv6() == v6);
            default && route.gw.0.is_some()
        });
        if !has_one {
            let any = match v6 {
                false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let any = IpNet::new(any, 0).expect("0 is a prefix length");
            routes.push(Route {
                gw: Ip(Some(gateway.addr())),
                ..Route::to(any)
            });
        }
    }
    routes
}

/// A route without a gateway goes through the first one of its family.
pub(super) fn with_gateways(routes: &[Route], ips: &[IpConfig]) -> Vec<Route> {
    let first = |v6: bool| {
        let mut gateways = ips.iter().filter_map(|ip| ip.gateway.0);
        gateways.find(|gateway| gateway.is_ipv6() == v6)
    };
    let filled = routes.iter().map(|route| {
        let mut route = route.clone();
        if let (None, Some(dst)) = (route.gw.0, route.dst) {
            route.gw.0 = first(dst.0.addr().is_ipv6());
        }
        route
    });
    filled.collect()
}

/// The gateways, with the lengths of their subnets, each once, IPv4 first.
pub(super) fn gateways(ips: &[IpConfig]) -> Vec<IpNet> {
    let mut gateways: Vec<IpNet> = vec![];
    for v6 in [false, true] {
        for ip in ips {
            let (Some(gateway), Some(address)) = (ip.gateway.0, ip.address) else {
                continue;
            };
            let gateway = IpNet::new(gateway, address.0.prefix_len()).ok();
            if let Some(gateway) = gateway.filter(|g| g.addr().is_ipv6() == v6)
                && !gateways.contains(&gateway)
            {
                gateways.push(gateway);
            }
        }
    }
    gateways
}
