use super::*;
use crate::backend::vxlan;

fn range(extra: &str) -> SubnetRange {
    let text = format!(r#"{{{extra},"Backend":{{"Type":"vxlan"}}}}"#);
    let conf = NetConf::parse(text.as_bytes()).unwrap();
    let (_, range) = conf.ranges.iter().next().unwrap();
    *range
}

fn shown(range: SubnetRange) -> String {
    let SubnetRange {
        network,
        subnet_len,
        min,
        max,
    } = range;
    format!("{network} {subnet_len} {min} {max}")
}

#[test]
fn the_subnets_follow_from_the_network() {
    for (keys, want) in [
        (
            r#""Network":"10.3.0.0/16""#,
            "10.3.0.0/16 24 10.3.1.0 10.3.255.0",
        ),
        (
            r#""Network":"10.3.7.9/16""#,
            "10.3.0.0/16 24 10.3.1.0 10.3.255.0",
        ),
        (
            r#""Network":"10.3.0.0/22""#,
            "10.3.0.0/22 24 10.3.1.0 10.3.3.0",
        ),
        (
            r#""Network":"10.3.0.0/23""#,
            "10.3.0.0/23 25 10.3.0.128 10.3.1.128",
        ),
        (
            r#""Network":"10.3.0.0/28""#,
            "10.3.0.0/28 30 10.3.0.4 10.3.0.12",
        ),
        (
            r#""Network":"10.3.0.0/16","SubnetLen":20,"SubnetMin":"10.3.16.0","SubnetMax":"10.3.32.0""#,
            "10.3.0.0/16 20 10.3.16.0 10.3.32.0",
        ),
        (
            r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48""#,
            "fc00::/48 64 fc00:0:0:1:: fc00:0:0:ffff::",
        ),
    ] {
        assert_eq!(shown(range(keys)), want);
    }
}

#[test]
fn null_and_zero_count_as_not_given() {
    let got = range(
        r#""Network":"10.3.0.0/16","SubnetLen":0,"SubnetMin":null,"SubnetMax":"0.0.0.0","EnableIPv4":null"#,
    );
    assert_eq!(got, range(r#""Network":"10.3.0.0/16""#));
}

#[test]
fn dual_stack_has_both_ranges() {
    let text = br#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    let conf = NetConf::parse(text).unwrap();
    assert_eq!(conf.ranges.families().collect::<Vec<_>>(), Family::ALL);
    assert_eq!(conf.backend, Backend::Vxlan(vxlan::Options::default()));
}

#[test]
fn a_configured_but_disabled_family_is_left_out() {
    let text = br#"{"Network":"10.5.0.0/16","IPv6Network":"nonsense","Backend":{"Type":"vxlan"}}"#;
    let conf = NetConf::parse(text).unwrap();
    assert_eq!(conf.ranges.families().collect::<Vec<_>>(), [Family::V4]);
}

#[test]
fn every_fault_names_its_field() {
    let net = r#""Network":"10.5.0.0/16""#;
    let v6 = r#""EnableIPv4":false,"EnableIPv6":true"#;
    for (keys, field) in [
        (r#""Network":"""#.into(), "Network"),
        (r#""Network":7"#.into(), "Network"),
        (r#""Network":"fd00::/48""#.into(), "Network"),
        (r#""Network":"10.0.0.0/33""#.into(), "Network"),
        (r#""Network":"10.5.0.0/29""#.into(), "Network"),
        (v6.into(), "IPv6Network"),
        (format!(r#"{v6},"IPv6Network":"fd00::/125""#), "IPv6Network"),
        (
            format!(r#"{v6},"IPv6Network":"fd00::/48","IPv6SubnetLen":127"#),
            "IPv6SubnetLen",
        ),
        (
            format!(r#"{v6},"IPv6Network":"fd00::/48","IPv6SubnetMin":"fd01::""#),
            "IPv6SubnetMin",
        ),
        (format!(r#"{net},"SubnetLen":31"#), "SubnetLen"),
        (format!(r#"{net},"SubnetLen":17"#), "SubnetLen"),
        (format!(r#"{net},"SubnetLen":-1"#), "SubnetLen"),
        (format!(r#"{net},"SubnetLen":24.5"#), "SubnetLen"),
        (format!(r#"{net},"SubnetLen":280"#), "SubnetLen"),
        (format!(r#"{net},"SubnetMin":"x""#), "SubnetMin"),
        (format!(r#"{net},"SubnetMax":"10.6.0.0""#), "SubnetMax"),
        (
            format!(r#"{net},"SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0""#),
            "SubnetMin",
        ),
        (format!(r#"{net},"EnableNFTables":"yes""#), "EnableNFTables"),
    ] {
        let text = format!(r#"{{{keys},"Backend":{{"Type":"vxlan"}}}}"#);
        let error = NetConf::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.field, field, "{text}: {error}");
        assert!(!error.fatal, "{text}");
    }
}

#[test]
fn where_subnets_are_given_only_the_network_is_looked_at() {
    for text in [
        r#"{"Network": "10.244.3.7/24", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}"#,
        r#"{"Network": "10.244.3.0/24", "SubnetLen": 8, "SubnetMin": "1.2.3.4", "Backend": {"Type": "vxlan"}}"#,
        r#"{"network": "10.244.3.0/24", "SubnetMax": "10.244.3.9", "Backend": {"Type": "VXLAN"}}"#,
    ] {
        assert!(NetConf::parse(text.as_bytes()).is_err(), "{text}");
        let conf = NetConf::parse_for_given_subnets(text.as_bytes()).unwrap();
        let network = conf.ranges.get(Family::V4).unwrap().network;
        assert_eq!(network.to_string(), "10.244.3.0/24", "{text}");
    }
    // What flannel ends with there is an error here, too: no network, and a value of a wrong type.
    for text in [
        r#"{"Backend": {"Type": "vxlan"}}"#,
        r#"{"Network": "10.244.0.0/16", "SubnetLen": "24", "Backend": {"Type": "vxlan"}}"#,
        r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "Backend": {"Type": "vxlan"}}"#,
        r#"{"Network": "10.244.0.0/16", "EnableIPv4": false, "Backend": {"Type": "vxlan"}}"#,
    ] {
        assert!(
            NetConf::parse_for_given_subnets(text.as_bytes()).is_err(),
            "{text}"
        );
    }
}
