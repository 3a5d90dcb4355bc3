//! What a routed attachment is beside a bridged one: the routes that join its two ends. Pure.

use ipnet::IpNet;
use kernel::link::Link;
use kernel::route::Route;

use super::Facts;
use crate::result::AddResult;

/// The first of an attachment's routes that is missing: the pod's to its gateways, the node's to
/// the pod.
pub(super) fn difference(
    previous: &AddResult,
    facts: &Facts,
    inside: &Link,
    host: &Link,
) -> Option<String> {
    let leads = |routes: &[Route], to: IpNet, by: &Link| {
        let there = |route: &Route| {
            let direct = route.gateway.is_none() && route.ifindex == Some(by.ifindex);
            direct && route.destination == to
        };
        routes.iter().any(there)
    };
    for ip in &previous.ips {
        let gateway = ip.gateway.0.map(IpNet::from);
        if let Some(gateway) = gateway.filter(|gw| !leads(&facts.routes, *gw, inside)) {
            let name = &inside.name;
            return Some(format!("the pod's route to {gateway} by {name} is missing"));
        }
        let pod = ip.address.map(|address| IpNet::from(address.0.addr()));
        if let Some(pod) = pod.filter(|pod| !leads(&facts.node_routes, *pod, host)) {
            let name = &host.name;
            return Some(format!("the node's route to {pod} by {name} is missing"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.into(),
            kind: "veth".into(),
            mtu: 1500,
            up: true,
            running: true,
            ..Link::default()
        }
    }

    fn route(to: &str, ifindex: u32) -> Route {
        Route {
            ifindex: Some(ifindex),
            ..Route::to(to.parse().unwrap())
        }
    }

    #[test]
    fn each_family_needs_both_ways() {
        let previous: AddResult = go_json::from_value(&json!({"ips": [
            {"address": "10.1.2.7/32", "gateway": "10.1.2.1"},
            {"address": "fd00::7/128", "gateway": "fd00::1"}]}))
        .unwrap();
        let (inside, host) = (link(2, "eth0"), link(9, "veth1"));
        let facts = Facts {
            routes: vec![route("10.1.2.1/32", 2), route("fd00::1/128", 2)],
            node_routes: vec![route("10.1.2.7/32", 9), route("fd00::7/128", 9)],
            ..Facts::default()
        };
        assert_eq!(difference(&previous, &facts, &inside, &host), None);
        for at in 0..2 {
            let mut less = facts.clone();
            less.routes.remove(at);
            let said = difference(&previous, &less, &inside, &host);
            assert!(said.is_some_and(|said| said.contains("pod's route")));
            let mut elsewhere = facts.clone();
            elsewhere.node_routes[at].ifindex = Some(8);
            let said = difference(&previous, &elsewhere, &inside, &host);
            assert!(said.is_some_and(|said| said.contains("node's route")));
        }
    }
}
