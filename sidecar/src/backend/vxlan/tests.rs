use super::*;
use crate::backend::Backend;
use crate::net_conf::NetConf;
use crate::peers::Skipped;
use serde_json::json;

fn options(json: Value) -> Result<Options, NetConfError> {
    Options::parse(&json)
}

#[test]
fn options_have_flannels_names_and_defaults() {
    assert_eq!(options(json!({})), Ok(Options::default()));
    let all = json!({"vni": 7, "PORT": 4789, "Mtu": 1400, "GBP": true, "Learning": true, "directrouting": true});
    let want = Options {
        vni: 7,
        port: Some(4789),
        mtu: Some(1400),
        gbp: true,
        learning: true,
        direct_routing: true,
        on_demand: None,
        any_without_vni: false,
    };
    assert_eq!(options(all), Ok(want));
    assert_eq!(
        options(json!({"Port": 0, "MTU": null})),
        Ok(Options::default())
    );
}

#[test]
fn a_wrong_option_is_fatal_and_named() {
    for (json, field) in [
        (json!({"Port": "8472"}), "Backend.Port"),
        (json!({"Port": 65536}), "Backend.Port"),
        (json!({"VNI": -1}), "Backend.VNI"),
        (json!({"VNI": 16_777_216}), "Backend.VNI"),
        (json!({"MTU": 1.5}), "Backend.MTU"),
        (json!({"GBP": "yes"}), "Backend.GBP"),
        (json!({"DirectRouting": 1}), "Backend.DirectRouting"),
        (json!({"OnDemand": "true"}), "Backend.OnDemand"),
        (
            json!({"OnDemand": true, "DirectRouting": true}),
            "Backend.OnDemand",
        ),
        (
            json!({"OnDemand": true, "OnDemandTimeout": 0}),
            "Backend.OnDemandTimeout",
        ),
        (
            json!({"OnDemandTimeout": 86_401}),
            "Backend.OnDemandTimeout",
        ),
    ] {
        let error = options(json).unwrap_err();
        assert!(error.fatal);
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn on_demand_has_a_timeout() {
    let timeout = |json: Value| options(json).map(|options| options.on_demand);
    assert_eq!(
        timeout(json!({"OnDemand": false, "OnDemandTimeout": 9})),
        Ok(None)
    );
    let seconds = |n| Ok(Some(Duration::from_secs(n)));
    assert_eq!(timeout(json!({"ondemand": true})), seconds(300));
    let given = json!({"OnDemand": true, "OnDemandTimeout": 9});
    assert_eq!(timeout(given), seconds(9));
}

#[test]
fn on_demand_the_device_asks_and_the_whole_network_leads_to_it() {
    let networks = [
        (Family::V4, "10.5.0.0/16".parse().unwrap()),
        (Family::V6, "fd00:5::/48".parse().unwrap()),
    ];
    let node = Node {
        subnets: "10.5.20.0-24&fd00:5:0:20::-64".parse().unwrap(),
        lease: Lease::default(),
        networks: networks.into_iter().collect(),
    };
    let macs = Family::ALL.map(|family| (family, Mac([2, 0, 0, 0, 0, 1])));
    let macs = macs.into_iter().collect();
    let options = options(json!({"OnDemand": true})).unwrap();
    let (facts, underlay) = (Facts::default(), underlay(1500));
    let (tables, _) = tables(&options, &node, &macs, &underlay, &[], &facts);
    let routes = tables.routes.iter();
    let routes: Vec<String> = routes
        .map(|(key, hop)| format!("{} {} {}", key.destination, hop.device, key.metric))
        .collect();
    assert_eq!(
        routes,
        ["10.5.0.0/16 flannel.1 0", "fd00:5::/48 flannel-v6.1 1024"]
    );
    for (family, device) in Family::ALL.iter().zip(tables.devices.values().rev()) {
        assert_eq!(device.link.asks, Some(*family));
        let Kind::Vxlan(vxlan) = &device.link.kind else {
            panic!("a VXLAN device")
        };
        assert!(vxlan.l2miss && vxlan.l3miss);
    }
}

fn underlay(mtu: u32) -> Underlay {
    let ips: ByFamily<IpAddr> = [
        (Family::V4, "192.168.50.1".parse().unwrap()),
        (Family::V6, "fd00:50::1".parse().unwrap()),
    ]
    .into_iter()
    .collect();
    Underlay {
        ifindex: 2,
        name: "eth0".into(),
        mtu,
        addresses: ips,
        public_ips: ips,
    }
}

#[test]
fn pods_get_what_fits_into_the_tunnel_of_every_family() {
    let plain = Options::default();
    let of = |options: &Options, families: &[Family], mtu| {
        options.pod_mtu(families.iter().copied(), &underlay(mtu))
    };
    assert_eq!(of(&plain, &[Family::V4], 1500), Ok(1450));
    assert_eq!(of(&plain, &Family::ALL, 1500), Ok(1430));
    let given = Options {
        mtu: Some(1400),
        ..Options::default()
    };
    assert_eq!(of(&given, &[Family::V4], 1500), Ok(1350));
    let error = of(&plain, &Family::ALL, 1300).unwrap_err();
    assert!(error.contains("eth0") && error.contains("1350"), "{error}");
    assert!(of(&plain, &[Family::V4], 40).is_err());
}

fn peer_tables(values: &[(&str, &str)]) -> (Tables, Skipped) {
    peer_tables_by(&Options::default(), values)
}

fn peer_tables_by(options: &Options, values: &[(&str, &str)]) -> (Tables, Skipped) {
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    let macs = [(Family::V4, mac)].into_iter().collect();
    let node = Node {
        subnets: "10.5.20.0-24".parse().unwrap(),
        lease: Lease::default(),
        networks: [(Family::V4, "10.5.0.0/16".parse().unwrap())]
            .into_iter()
            .collect(),
    };
    let leases: Vec<(Subnets, Lease)> = values
        .iter()
        .map(|(key, data)| {
            let value = format!(r#"{{"PublicIP":"192.168.50.{}"{data}}}"#, &key[5..7]);
            (
                key.parse().unwrap(),
                Lease::parse(value.as_bytes()).unwrap(),
            )
        })
        .collect();
    let peers: Vec<(&Subnets, &Lease)> = leases.iter().map(|(s, l)| (s, l)).collect();
    let facts = Facts::default();
    tables(options, &node, &macs, &underlay(1500), &peers, &facts)
}

const WITHOUT_VNI: &str = r#","BackendData":{"VtepMAC":"02:00:00:00:00:30"}"#;

#[test]
fn a_peer_whose_data_is_of_no_use_is_skipped_with_its_field() {
    let cases = [
        ("10.5.34.0-24", "", "BackendData"),
        (
            "10.5.37.0-24",
            r#","BackendData":{"VNI":1,"VtepMAC":"nonsense"}"#,
            "VtepMAC",
        ),
        (
            "10.5.39.0-24",
            r#","BackendData":{"VNI":"1","VtepMAC":"02:00:00:00:00:39"}"#,
            "VNI",
        ),
        (
            "10.5.44.0-24",
            r#","BackendData":{"VNI":9,"VtepMAC":"02:00:00:00:00:43"}"#,
            "its VNI is 9, ours 1",
        ),
        ("10.5.40.0-24", r#","BackendData":5"#, "BackendData"),
        ("10.5.41.0-24", r#","BackendData":{}"#, "VtepMAC"),
        (
            "10.5.42.0-24",
            r#","BackendData":{"VNI":1,"VtepMAC":"01:00:00:00:00:42"}"#,
            "no device's own",
        ),
        (
            "10.5.43.0-24",
            r#","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#,
            "our own",
        ),
        ("10.5.30.0-24", WITHOUT_VNI, "names no VNI"),
    ];
    let mut values: Vec<_> = cases.iter().map(|(key, data, _)| (*key, *data)).collect();
    values.push((
        "10.5.36.0-24",
        r#","backenddata":{"vtepmac":"02:00:00:00:00:36","vni":1}"#,
    ));
    let (tables, skipped) = peer_tables(&values);
    assert_eq!(tables.routes.len(), 1);
    for (key, _, words) in cases {
        assert!(skipped[key].contains(words), "{key}: {:?}", skipped[key]);
    }
}

#[test]
fn among_nodes_that_others_make_a_vni_may_be_missing() {
    let text = br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let net_conf = NetConf::parse_for_given_subnets(text).unwrap();
    let Backend::Vxlan(options) = net_conf.backend else {
        panic!("{net_conf:?}");
    };
    let (tables, skipped) = peer_tables_by(&options, &[("10.5.30.0-24", WITHOUT_VNI)]);
    assert_eq!((tables.routes.len(), skipped), (1, Skipped::new()));
}

#[test]
fn two_nodes_with_one_vtep_mac_cannot_both_be_peers() {
    let data = r#","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:30"}"#;
    let (tables, skipped) = peer_tables(&[("10.5.30.0-24", data), ("10.5.31.0-24", data)]);
    assert_eq!(tables.routes.len(), 1);
    assert!(skipped["10.5.31.0-24"].contains("another peer's"));
}
