//! The steps of ADD for a pod that is alone on its link with the node. Pure.
//!
//! ```text
//!  pod   eth0  IP/32            node  vethX  GATEWAY/32, the same one for every pod
//!        GATEWAY dev eth0             IP dev vethX
//!        default via GATEWAY          SUBNET unreachable, where no pod is
//! ```
//!
//! There is no other machine on the link: nobody whom a pod could speak for or listen to, and the
//! node answers for its own address only, so nothing proxies. Addresses and routes go with the
//! pair; only the last route is the node's, as a bridge is, and stays.

use std::net::IpAddr;

use ipnet::IpNet;

use super::routes::{self, with_gateways};
use super::{Pair, Sandbox, Step, pod_mac};
use crate::address::Cidr;
use crate::attachment::Attachment;
use crate::config::bridge::BridgeNetwork;
use crate::config::mode::Mode;
use crate::error::{Code, Error};
use crate::result::{IpConfig, Route};

/// `RT_SCOPE_LINK`: what is reached without a gateway.
const SCOPE_LINK: u8 = 253;

/// The node's end of the pair as the pod's router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostEnd {
    /// The gateways' addresses, each as a host's.
    pub(crate) gateways: Vec<IpNet>,
    /// The pod's addresses, each as a host's: they are routed to the pod.
    pub(crate) pod: Vec<IpNet>,
    /// The subnets that they are of. What is sent to an address that no pod has would otherwise
    /// follow the node's default route.
    pub(crate) subnets: Vec<IpNet>,
}

/// The steps, in order. The node's end comes after the pod's: only then has it a carrier, without
/// which its routes would be marked as dead at first.
pub(super) fn add(
    network: &BridgeNetwork,
    attachment: &Attachment,
    ips: &[IpConfig],
    addresses: &[IpNet],
) -> Result<Vec<Step>, Error> {
    let gateways = hosts(routes::gateways(ips).iter().map(IpNet::addr));
    let routes = with_gateways(&routes::routes(network, ips), ips);
    refuse_what_is_off_the_link(addresses, &gateways, &routes)?;
    let subnets = subnets(addresses);
    let mut steps: Vec<Step> = [false, true]
        .into_iter()
        .filter(|v6| gateways.iter().any(|g| g.addr().is_ipv6() == *v6))
        .map(|v6| Step::Forward { v6 })
        .collect();
    steps.push(Step::Pair(Pair {
        attachment: attachment.clone(),
        mtu: network.mtu,
        host_mac: attachment.host_mac(),
        pod_mac: network
            .mac
            .unwrap_or_else(|| pod_mac(attachment, addresses)),
        hairpin: false,
        isolated: false,
        vlans: None,
        forget: addresses.iter().map(IpNet::addr).collect(),
    }));
    steps.push(Step::Sandbox(Sandbox {
        ifname: attachment.ifname.clone(),
        addresses: hosts(addresses.iter().map(IpNet::addr)),
        routes: in_the_pod(&gateways, &subnets, ips, routes),
        raise: true,
        detect_duplicates: network.detect_duplicates,
    }));
    steps.push(Step::HostEnd(HostEnd {
        gateways,
        pod: hosts(addresses.iter().map(IpNet::addr)),
        subnets,
    }));
    if let Some(by) = network.masquerade {
        steps.push(Step::Masquerade {
            attachment: attachment.clone(),
            addresses: addresses.to_vec(),
            by,
        });
    }
    Ok(steps)
}

/// The addresses as the pod has them: routed, with nobody else on its link.
pub(crate) fn shown(network: &BridgeNetwork, ips: &[IpConfig]) -> Vec<IpConfig> {
    if network.mode == Mode::Bridge {
        return ips.to_vec();
    }
    let alone = |ip: &IpConfig| IpConfig {
        address: ip.address.map(|net| Cidr(IpNet::from(net.0.addr()))),
        ..ip.clone()
    };
    ips.iter().map(alone).collect()
}

/// The only neighbours of a pod are its gateways.
fn refuse_what_is_off_the_link(
    addresses: &[IpNet],
    gateways: &[IpNet],
    routes: &[Route],
) -> Result<(), Error> {
    let invalid = |msg: String| Err(Error::new(Code::InvalidConfig, msg));
    for address in addresses {
        let same = |gateway: &IpNet| gateway.addr().is_ipv6() == address.addr().is_ipv6();
        if !gateways.iter().any(same) {
            return invalid(format!("mode routed: IPAM gives {address} no gateway"));
        }
    }
    let next_hops = routes.iter().filter_map(|route| route.gw.0);
    let mut others = next_hops.filter(|gw| !gateways.contains(&IpNet::from(*gw)));
    match others.next() {
        Some(gw) => invalid(format!(
            "ipam.routes: gw {gw} is not the pod's gateway: in mode routed nobody else is on its link"
        )),
        None => Ok(()),
    }
}

/// The way to the gateways first: the kernel takes no route through a gateway that it cannot reach.
fn in_the_pod(
    gateways: &[IpNet],
    subnets: &[IpNet],
    ips: &[IpConfig],
    routes: Vec<Route>,
) -> Vec<Route> {
    let to_gateway = |gateway: &IpNet| Route {
        scope: gateway.addr().is_ipv4().then_some(SCOPE_LINK),
        ..Route::to(*gateway)
    };
    let covered = |subnet: &IpNet| {
        let by = |route: &Route| {
            let main = route.table.is_none_or(|table| table == 0);
            main && route.dst.is_some_and(|dst| dst.0.contains(subnet))
        };
        routes.iter().any(by)
    };
    let open: Vec<Route> = subnets
        .iter()
        .filter(|subnet| !covered(subnet))
        .map(|subnet| Route::to(*subnet))
        .collect();
    let mut all: Vec<Route> = gateways.iter().map(to_gateway).collect();
    all.extend(with_gateways(&open, ips));
    all.extend(routes);
    all
}

fn hosts(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpNet> {
    addresses.map(IpNet::from).collect()
}

fn subnets(addresses: &[IpNet]) -> Vec<IpNet> {
    let mut subnets: Vec<IpNet> = addresses.iter().map(IpNet::trunc).collect();
    subnets.dedup();
    subnets
}

#[cfg(test)]
mod tests {
    use super::super::Found;
    use super::*;
    use crate::address::Ip;
    use crate::cni_args::CniArgs;
    use crate::version::Version;
    use serde_json::{Value, json};

    const V4: (&str, &str) = ("10.1.2.7/24", "10.1.2.1");
    const V6: (&str, &str) = ("fd00:1:2::7/64", "fd00:1:2::1");

    fn ips(pairs: &[(&str, &str)]) -> Vec<IpConfig> {
        let one = |(address, gateway): &(&str, &str)| IpConfig {
            interface: None,
            address: Some(Cidr(address.parse().unwrap())),
            gateway: Ip(gateway.parse().ok()),
        };
        pairs.iter().map(one).collect()
    }

    fn plan(mut config: Value, ips: &[IpConfig]) -> Result<Vec<Step>, Error> {
        config["ipam"] = json!({"type":"host-local","ranges":[[{"subnet":"10.1.2.0/24"}]],
            "routes": config["routes"].take()});
        let attachment = Attachment::new("net", "abc", "eth0").unwrap();
        super::super::add(&network(config), &attachment, ips, &Found::default(), "")
    }

    fn network(config: Value) -> BridgeNetwork {
        BridgeNetwork {
            mode: Mode::Routed,
            ..BridgeNetwork::parse(&config, Version::V1_0_0, &CniArgs::default()).unwrap()
        }
    }

    fn sandbox(steps: &[Step]) -> &Sandbox {
        let found = steps.iter().find_map(|step| match step {
            Step::Sandbox(sandbox) => Some(sandbox),
            _ => None,
        });
        found.unwrap()
    }

    /// As `ip route` would have it.
    fn routes(steps: &[Step]) -> Vec<String> {
        let text = |route: &Route| match route.gw.0 {
            Some(gw) => format!("{} via {gw}", route.dst.unwrap().0),
            None => route.dst.unwrap().0.to_string(),
        };
        sandbox(steps).routes.iter().map(text).collect()
    }

    fn texts(nets: &[IpNet]) -> Vec<String> {
        nets.iter().map(IpNet::to_string).collect()
    }

    #[test]
    fn both_families_are_alone_on_the_link_and_go_through_their_gateway() {
        let config = json!({"isDefaultGateway": true, "routes": [{"dst": "10.1.0.0/16"}]});
        let steps = plan(config, &ips(&[V4, V6])).unwrap();
        assert_eq!(
            texts(&sandbox(&steps).addresses),
            ["10.1.2.7/32", "fd00:1:2::7/128"]
        );
        assert_eq!(
            routes(&steps),
            [
                "10.1.2.1/32",
                "fd00:1:2::1/128",
                "10.1.0.0/16 via 10.1.2.1",
                "0.0.0.0/0 via 10.1.2.1",
                "::/0 via fd00:1:2::1"
            ]
        );
        let Some(Step::HostEnd(end)) = steps.last() else {
            panic!("the node's end comes last: {steps:?}")
        };
        assert_eq!(texts(&end.gateways), ["10.1.2.1/32", "fd00:1:2::1/128"]);
        assert_eq!(texts(&end.pod), ["10.1.2.7/32", "fd00:1:2::7/128"]);
        assert_eq!(texts(&end.subnets), ["10.1.2.0/24", "fd00:1:2::/64"]);
    }

    #[test]
    fn without_a_default_route_the_own_subnet_is_still_reached() {
        let steps = plan(json!({}), &ips(&[V4])).unwrap();
        assert_eq!(routes(&steps), ["10.1.2.1/32", "10.1.2.0/24 via 10.1.2.1"]);
        let elsewhere = json!({"routes": [{"dst": "10.0.0.0/8", "table": 7}]});
        assert_eq!(
            routes(&plan(elsewhere, &ips(&[V4])).unwrap())[1],
            "10.1.2.0/24 via 10.1.2.1"
        );
    }

    #[test]
    fn masquerading_spares_the_whole_subnet() {
        let steps = plan(json!({"ipMasq": true}), &ips(&[V4])).unwrap();
        let Some(Step::Masquerade { addresses, .. }) = steps.last() else {
            panic!("{steps:?}")
        };
        assert_eq!(texts(addresses), ["10.1.2.7/24"]);
    }

    #[test]
    fn what_cannot_be_routed_is_refused() {
        for (config, ips, word) in [
            (json!({}), ips(&[("10.1.2.7/24", "")]), "no gateway"),
            (
                json!({}),
                ips(&[V4, ("fd00::7/64", "")]),
                "fd00::7/64 no gateway",
            ),
            (
                json!({"routes": [{"dst": "10.9.0.0/16", "gw": "10.1.2.9"}]}),
                ips(&[V4]),
                "10.1.2.9 is not the pod's gateway",
            ),
        ] {
            let error = plan(config, &ips).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.msg.contains(word), "{error}");
        }
    }

    #[test]
    fn the_result_says_what_the_pod_has() {
        let shown = shown(&network(json!({})), &ips(&[V4, V6]));
        let text = |ip: &IpConfig| ip.address.unwrap().0.to_string();
        assert_eq!(text(&shown[0]), "10.1.2.7/32");
        assert_eq!(text(&shown[1]), "fd00:1:2::7/128");
        assert_eq!(shown[0].gateway, ips(&[V4])[0].gateway);
    }
}
