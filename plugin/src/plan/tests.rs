//! The plan's promises.

use super::addressing::conflicts;
use super::*;
use crate::cni_args::CniArgs;
use crate::error::Code;
use crate::version::Version;
use serde_json::{Value, json};

fn network(mut config: Value) -> BridgeNetwork {
    config["ipam"] = json!({"type":"host-local","ranges":[[{"subnet":"10.1.2.0/24"}]],
        "routes": config["routes"].take()});
    BridgeNetwork::parse(&config, Version::V1_0_0, &CniArgs::default()).unwrap()
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
        mtu: 1500,
        promiscuous: false,
        filters_vlans: false,
        peer: None,
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
        &found(present),
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
    assert_eq!(texts(&step.addressing.add), "10.1.2.1/24 fd00:1:2::1/64");
    let make = step.make.unwrap();
    assert!(make.mtu == Some(1450) && make.mac.is_unicast() && !make.filter_vlans);
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
        filter_vlans: false,
        addressing: Addressing::default(),
        unless_in_use: None,
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
        (texts(&step.addressing.drop), texts(&step.addressing.add)),
        ("10.9.0.1/16".into(), "10.1.2.1/24".into())
    );
    assert_eq!(step.addressing.pin, there.mac);
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
    let steps = add(
        &network,
        &attachment(),
        &ips(&[V4, V6]),
        &Found::default(),
        "",
    )
    .unwrap();
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
        &Found::default(),
        "",
    )
    .unwrap();
    let undone: Vec<Undo> = steps.iter().filter_map(Step::undo).collect();
    assert_eq!(
        undone,
        [Undo::Pair(attachment()), Undo::Masquerade(attachment())]
    );
}

fn steps(config: Value, pairs: &[(&str, &str)], found: &Found) -> Vec<Step> {
    add(&network(config), &attachment(), &ips(pairs), found, "seed").unwrap()
}

fn found(bridge: Option<&Present>) -> Found {
    Found {
        bridge: bridge.cloned(),
        vlan_gateway: None,
    }
}

#[test]
fn an_address_of_the_nodes_former_subnet_gives_way_while_no_pod_is_joined() {
    let found = found(Some(&present(&["10.9.0.1/24"])));
    let mut network = network(json!({"isGateway":true}));
    let plan = |network: &BridgeNetwork| add(network, &attachment(), &ips(&[V4]), &found, "seed");
    assert!(plan(&network).is_err());
    network.overlay = vec!["10.0.0.0/12".parse().unwrap()];
    let steps = plan(&network).unwrap();
    let Some(Step::Bridge(step)) = steps.first() else {
        panic!("{steps:?}")
    };
    assert_eq!(texts(&step.addressing.drop), "10.9.0.1/24");
    let words = step.unless_in_use.as_ref().unwrap();
    assert!(words.contains("10.1.2.1/24: 10.9.0.1/24"), "{words}");
}

#[test]
fn a_bridge_with_ports_is_not_made_to_filter_vlans() {
    let plain = present(&[]);
    let step = bridge_step(json!({"vlan":100}), &[V4], Some(&plain)).unwrap();
    assert!(step.filter_vlans);
    let words = step.unless_in_use.unwrap();
    assert!(words.contains("vlan_filtering 1"), "{words}");
    let filtering = Present {
        filters_vlans: true,
        ..plain
    };
    let step = bridge_step(json!({"vlanTrunk":[]}), &[V4], Some(&filtering)).unwrap();
    assert!(!step.filter_vlans && step.unless_in_use.is_none());
    let step = bridge_step(json!({"vlanTrunk":[]}), &[V4], None).unwrap();
    assert!(step.make.unwrap().filter_vlans);
}

#[test]
fn the_gateway_of_a_vlan_has_the_addresses_in_the_bridges_place() {
    let config = json!({"isGateway":true,"vlan":100,"mtu":1400});
    let made = steps(config.clone(), &[V4], &Found::default());
    let [Step::Bridge(bridge), Step::VlanGateway(gateway), ..] = made.as_slice() else {
        panic!("{made:?}")
    };
    assert_eq!(bridge.addressing, Addressing::default());
    assert_eq!(gateway.gateway.name, "cni0.100");
    assert_eq!(texts(&gateway.addressing.add), "10.1.2.1/24");
    assert_eq!((gateway.ifindex, gateway.mtu), (None, Some(1400)));

    let there = |up| Present {
        kind: "veth".into(),
        up,
        peer: Some(8),
        ..present(&["10.1.2.1/24"])
    };
    let unfinished = |there: &Present| {
        let found = Found {
            bridge: None,
            vlan_gateway: Some(there.clone()),
        };
        match &steps(config.clone(), &[V4], &found)[1] {
            Step::VlanGateway(step) => (step.unfinished_port, step.addressing.add.len()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(unfinished(&there(true)), (None, 0));
    assert_eq!(unfinished(&there(false)), (Some(8), 0), "an ADD was killed");

    let trunk = steps(
        json!({"isGateway":true,"vlanTrunk":[{"id":7}]}),
        &[V4],
        &Found::default(),
    );
    let on_bridge = |step: &Step| matches!(step, Step::VlanGateway(_));
    assert!(
        !trunk.iter().any(on_bridge),
        "a trunk's is the bridge's own"
    );
}

#[test]
fn a_bridge_takes_what_its_smallest_port_takes() {
    assert_eq!(fitting_mtu(1400, 1500, [1400].into_iter()), Some(1400));
    assert_eq!(
        fitting_mtu(1400, 1500, [1400, 1300].into_iter()),
        Some(1300)
    );
    assert_eq!(
        fitting_mtu(1450, 1400, [1450, 1450].into_iter()),
        Some(1450)
    );
    assert_eq!(fitting_mtu(1450, 1400, [1400, 1450].into_iter()), None);

    let fits = |config, found: &Found| {
        let steps = steps(config, &[V4], found);
        steps.iter().any(|step| matches!(step, Step::FitMtu { .. }))
    };
    let there = present(&[]);
    let found = found(Some(&there));
    assert!(fits(json!({"mtu":1400}), &found));
    assert!(!fits(json!({"mtu":1500}), &found));
    assert!(!fits(json!({}), &found));
    assert!(!fits(json!({"mtu":1400}), &Found::default()));
}

#[test]
fn an_mtu_that_would_take_the_addresses_of_ipv6_away_is_refused() {
    let plan = |pairs: &[(&str, &str)], there: Option<&Present>| {
        bridge_step(json!({"isGateway":true,"mtu":1279}), pairs, there).map(drop)
    };
    assert!(plan(&[V4], None).is_ok());
    assert!(plan(&[V4], Some(&present(&["fe80::1/64"]))).is_ok());
    for (pairs, there) in [(&[V6][..], None), (&[V4], Some(present(&["fd00:9::1/64"])))] {
        let error = plan(pairs, there.as_ref()).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.msg.contains("mtu 1279"), "{error}");
    }
}

#[test]
fn spoofing_is_checked_before_the_pod_can_send() {
    let made = steps(json!({"macspoofchk":true}), &[V4], &Found::default());
    let at = |wanted: &dyn Fn(&Step) -> bool| made.iter().position(wanted).unwrap();
    let check = at(&|step| matches!(step, Step::CheckSpoofing(_)));
    assert!(at(&|step| matches!(step, Step::Pair(_))) < check);
    assert!(check < at(&|step| matches!(step, Step::Sandbox(_))));
    assert_eq!(made[check].undo(), Some(Undo::SpoofCheck(attachment())));
}

#[test]
fn the_two_halves_around_another_plugins_ipam_are_the_whole() {
    let network = network(json!({"isGateway":true,"ipMasq":true}));
    let (ips, found) = (ips(&[V4]), found(None));
    let whole = add(&network, &attachment(), &ips, &found, "seed").unwrap();
    let port = add_port(&network, &attachment(), &found, "seed").unwrap();
    let [Step::Bridge(bridge), Step::Pair(pair)] = port.as_slice() else {
        panic!("{port:?}");
    };
    assert!(bridge.addressing.add.is_empty() && pair.forget.is_empty());
    let rest = add_addresses(&network, &attachment(), &ips, &found, "seed").unwrap();
    assert_eq!(rest.len(), whole.len());
    for (rest, whole) in rest.iter().zip(&whole) {
        match whole {
            Step::Pair(pair) => assert_eq!(*rest, Step::Forget(pair.forget.clone())),
            whole => assert_eq!(rest, whole),
        }
    }
}
