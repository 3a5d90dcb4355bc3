//! The plan's promises.

use super::bridge::conflicts;
use super::*;
use crate::cni_args::CniArgs;
use crate::error::Code;
use crate::version::Version;
use serde_json::{Value, json};

fn network(mut config: Value) -> BridgeNetwork {
    config["ipam"] = json!({"type":"host-local","ranges":[[{"subnet":"10.1.2.0/24"}]],
        "routes": config["routes"].take()});
    BridgeNetwork::parse(config, Version::V1_0_0, &CniArgs::default()).unwrap()
}

fn ips(pairs: &[(&str, &str)]) -> Vec<IpConfig> {
    let one = |(address, gateway): &(&str, &str)| IpConfig {
        interface: None,
        address: Some(crate::address::Cidr(address.parse().unwrap())),
        gateway: crate::address::Ip(Some(gateway.parse().unwrap())),
    };
    pairs.iter().map(one).collect()
}

const V4: (&str, &str) = ("10.1.2.7/24", "10.1.2.1");
const V6: (&str, &str) = ("fd00:1:2::7/64", "fd00:1:2::1");

fn attachment() -> Attachment {
    Attachment::new("net", "abc", "eth0").unwrap()
}

fn present(addresses: &[&str]) -> Present {
    Present {
        ifindex: 7,
        kind: "bridge".into(),
        up: true,
        promiscuous: false,
        mac: Some(Mac([2, 0, 0, 0, 0, 9])),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    }
}

fn bridge_step(
    config: Value,
    pairs: &[(&str, &str)],
    present: Option<&Present>,
) -> Result<BridgeStep, Error> {
    let steps = add(
        &network(config),
        &attachment(),
        &ips(pairs),
        present,
        "seed",
    )?;
    match steps.into_iter().next() {
        Some(Step::Bridge(step)) => Ok(step),
        other => panic!("the bridge comes first: {other:?}"),
    }
}

fn texts(nets: &[IpNet]) -> String {
    nets.iter()
        .map(IpNet::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn a_missing_bridge_is_made_with_the_gateways_addresses_and_an_address_of_its_own() {
    let step = bridge_step(json!({"isGateway":true,"mtu":1450}), &[V6, V4], None).unwrap();
    assert_eq!(texts(&step.add), "10.1.2.1/24 fd00:1:2::1/64");
    let (mtu, mac) = step.make.unwrap();
    assert!(mtu == Some(1450) && mac.is_unicast());
}

#[test]
fn a_bridge_that_is_right_is_left_alone() {
    let step = bridge_step(
        json!({"isGateway":true}),
        &[V4],
        Some(&present(&["10.1.2.1/24"])),
    )
    .unwrap();
    let nothing = BridgeStep {
        name: "cni0".into(),
        ifindex: Some(7),
        make: None,
        raise: false,
        promiscuous: false,
        drop: vec![],
        add: vec![],
        pin: None,
    };
    assert_eq!(step, nothing);
}

#[test]
fn addresses_conflict_by_upstreams_rule() {
    let gateway: IpNet = "10.1.2.1/24".parse().unwrap();
    for (addresses, want) in [
        (&["10.1.2.1/24"][..], ""),
        (&["10.1.2.1/24", "10.9.0.1/16"], ""),
        (&["10.9.0.1/16", "10.1.2.1/24"], "10.9.0.1/16"),
        (&["10.1.2.1/16"], "10.1.2.1/16"),
        (&["10.1.2.9/24"], "10.1.2.9/24"),
        (&["fd00::1/64"], ""),
    ] {
        assert_eq!(
            texts(&conflicts(&present(addresses).addresses, gateway)),
            want
        );
    }
    let gateway: IpNet = "fd00:1:2::1/64".parse().unwrap();
    let addresses =
        present(&["fe80::1/64", "fd00:1::1/32", "fd00:9::1/64", "10.1.2.1/8"]).addresses;
    assert_eq!(texts(&conflicts(&addresses, gateway)), "fd00:1::1/32");
}

#[test]
fn a_conflicting_address_is_refused_by_name_and_replaced_only_when_forced() {
    let there = present(&["10.9.0.1/16"]);
    let error = bridge_step(json!({"isGateway":true}), &[V4], Some(&there)).unwrap_err();
    assert_eq!(
        error.msg,
        "failed to set bridge addr: \"cni0\" already has an IP address different from 10.1.2.1/24: 10.9.0.1/16"
    );
    let step = bridge_step(
        json!({"isGateway":true,"forceAddress":true}),
        &[V4],
        Some(&there),
    )
    .unwrap();
    assert_eq!(
        (texts(&step.drop), texts(&step.add)),
        ("10.9.0.1/16".into(), "10.1.2.1/24".into())
    );
    assert_eq!(step.pin, there.mac);
}

#[test]
fn a_device_that_is_no_bridge_is_not_touched() {
    let there = Present {
        kind: "dummy".into(),
        ..present(&[])
    };
    let error = bridge_step(json!({}), &[V4], Some(&there)).unwrap_err();
    assert_eq!(error.code, Code::Conflict);
}

#[test]
fn routes_without_a_gateway_go_through_the_first_of_their_family() {
    let network = network(json!({"isDefaultGateway":true,
        "routes":[{"dst":"10.96.0.0/12"},{"dst":"fd00:9::/48"},{"dst":"1.0.0.0/8","gw":"10.1.2.9"}]}));
    let steps = add(&network, &attachment(), &ips(&[V4, V6]), None, "").unwrap();
    let Some(Step::Sandbox(sandbox)) = steps.last() else {
        panic!("{steps:?}")
    };
    let via: Vec<String> = (sandbox.routes.iter())
        .map(|route| format!("{} {}", route.dst.unwrap().0, route.gw.0.unwrap()))
        .collect();
    assert_eq!(
        via,
        [
            "10.96.0.0/12 10.1.2.1",
            "fd00:9::/48 fd00:1:2::1",
            "1.0.0.0/8 10.1.2.9",
            "0.0.0.0/0 10.1.2.1",
            "::/0 fd00:1:2::1"
        ]
    );
    let shown = routes(&network, &ips(&[V4, V6]));
    assert_eq!(shown[0].gw.0, None, "the result shows what was configured");
}

#[test]
fn a_default_route_of_ipams_own_is_not_doubled() {
    let network =
        network(json!({"isDefaultGateway":true,"routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.9"}]}));
    assert_eq!(routes(&network, &ips(&[V4])).len(), 1);
}

#[test]
fn a_pods_mac_follows_from_its_address() {
    let address = |text: &str| vec![text.parse::<IpNet>().unwrap()];
    assert_eq!(
        pod_mac(&attachment(), &address("10.1.2.7/24")).to_string(),
        "0a:58:0a:01:02:07"
    );
    let v6 = pod_mac(&attachment(), &address("fd00::7/64"));
    assert_eq!(v6, pod_mac(&attachment(), &address("fd00::7/64")));
    assert_ne!(v6, pod_mac(&attachment(), &address("fd00::8/64")));
}

#[test]
fn only_what_is_the_pods_own_is_undone() {
    let steps = add(
        &network(json!({"isGateway":true,"ipMasq":true})),
        &attachment(),
        &ips(&[V4]),
        None,
        "",
    )
    .unwrap();
    let undone: Vec<Undo> = steps.iter().filter_map(Step::undo).collect();
    assert_eq!(
        undone,
        [
            Undo::DeletePair(attachment()),
            Undo::DeleteMasquerade(attachment())
        ]
    );
}
