//! The golden cases `iface-*` of flanneld: its node has `eth0` and `eth1`, each with an address of
//! both families, and default routes by `eth0`.

use super::*;
use ipnet::IpNet;
use kernel::address::Address;

fn link(ifindex: u32, name: &str, mtu: u32) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        mtu,
        up: true,
        running: true,
        txqlen: 1000,
        ..Link::default()
    }
}

fn address(ifindex: u32, net: &str) -> Address {
    Address {
        ifindex,
        net: net.parse().unwrap(),
        link_scope: false,
        deprecated: false,
        permanent: true,
        temporary: false,
        tentative: false,
        dad_failed: false,
    }
}

fn route(net: &str, via: Option<&str>, ifindex: u32, metric: u32) -> Route {
    Route {
        gateway: via.map(|ip| ip.parse().unwrap()),
        ifindex: Some(ifindex),
        metric,
        ..Route::to(net.parse::<IpNet>().unwrap())
    }
}

fn node() -> Facts {
    Facts {
        links: vec![
            link(1, "lo", 65536),
            link(2, "eth0", 1500),
            link(3, "eth1", 1400),
        ],
        addresses: vec![
            address(1, "127.0.0.1/8"),
            address(2, "192.168.50.1/24"),
            address(3, "192.168.60.1/24"),
            address(2, "fd00:50::1/64"),
            address(2, "fe80::1/64"),
            address(3, "fd00:60::1/64"),
        ],
        routes: vec![
            route("0.0.0.0/0", Some("192.168.50.254"), 2, 0),
            route("192.168.50.0/24", None, 2, 0),
            route("192.168.60.0/24", None, 3, 0),
            route("::/0", Some("fd00:50::fe"), 2, 1024),
            route("fd00:50::/64", None, 2, 256),
        ],
        ..Facts::default()
    }
}

fn wish(flags: &[(&str, &str)]) -> Wish {
    let mut wish = Wish::default();
    for (flag, value) in flags {
        match *flag {
            "iface" => wish.ifaces.push((*value).to_owned()),
            "iface-regex" => wish.patterns.push(Regex::new(value).unwrap()),
            "iface-can-reach" => wish.can_reach = Some(value.parse().unwrap()),
            _ => {
                let ip: IpAddr = value.parse().unwrap();
                wish.public_ips.set(Family::of(ip), ip);
            }
        }
    }
    wish
}

fn v4(facts: &Facts, flags: &[(&str, &str)]) -> Result<String, SelectError> {
    let towards = route("192.168.60.0/24", None, 3, 0);
    let towards = Route {
        source: Some([192, 168, 60, 1].into()),
        ..towards
    };
    let got = select(facts, &wish(flags), &[Family::V4], Some(&towards))?;
    let [address, public] =
        [got.addresses, got.public_ips].map(|ips| *ips.get(Family::V4).unwrap());
    Ok(format!("{} {address} {public} {}", got.name, got.mtu))
}

const ETH0: &str = "eth0 192.168.50.1 192.168.50.1 1500";
const ETH1: &str = "eth1 192.168.60.1 192.168.60.1 1400";

#[test]
fn the_interface_is_the_one_that_flanneld_chose() {
    for (case, flags, want) in [
        ("vxlan-default", &[][..], ETH0),
        (
            "iface-name",
            &[("iface", "nosuch"), ("iface", "eth1")],
            ETH1,
        ),
        ("iface-ip", &[("iface", "192.168.60.1")], ETH1),
        ("iface-regex-ip", &[("iface-regex", r"168\.6")], ETH1),
        ("iface-regex-name", &[("iface-regex", "^eth1$")], ETH1),
        (
            "iface-can-reach",
            &[("iface-can-reach", "192.168.60.9")],
            ETH1,
        ),
        ("iface-public-ip", &[("public-ip", "192.168.60.1")], ETH1),
        (
            "vxlan-public-ip-flag",
            &[("iface", "eth0"), ("public-ip", "203.0.113.9")],
            "eth0 192.168.50.1 203.0.113.9 1500",
        ),
    ] {
        assert_eq!(v4(&node(), flags).as_deref(), Ok(want), "{case}");
    }
}

#[test]
fn iface_default_lower_metric() {
    let mut facts = node();
    facts.routes[0].metric = 200;
    let by_eth1 = route("0.0.0.0/0", Some("192.168.60.254"), 3, 100);
    facts.routes.insert(1, by_eth1);
    assert_eq!(v4(&facts, &[]).as_deref(), Ok(ETH1));
}

#[test]
fn the_address_is_the_one_that_flanneld_chose() {
    let first = |change: fn(&mut Address)| {
        let mut facts = node();
        change(&mut facts.addresses[2]);
        facts.addresses.push(address(3, "192.168.61.1/24"));
        v4(&facts, &[("iface", "eth1")]).unwrap()
    };
    let second = "eth1 192.168.61.1 192.168.61.1 1400";
    assert_eq!(first(|_| {}), ETH1, "iface-two-addresses");
    assert_eq!(
        first(|a| a.deprecated = true),
        second,
        "iface-first-address-deprecated"
    );
    assert_eq!(
        first(|a| a.permanent = false),
        second,
        "iface-dynamic-first"
    );
    assert_eq!(
        first(|a| a.net = "169.254.7.7/16".parse().unwrap()),
        second,
        "iface-link-local-first"
    );
}

#[test]
fn what_flanneld_refuses_is_refused_with_what_to_do() {
    let without_default =
        |facts: &mut Facts| facts.routes.retain(|r| r.destination.prefix_len() > 0);
    let multipath = |facts: &mut Facts| facts.routes[0].ifindex = None;
    let nothing = |_: &mut Facts| {};
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], fn(&mut Facts), &'a str);
    let cases: [Case<'_>; 5] = [
        (
            "bad-no-default-route",
            &[],
            without_default,
            "no default IPv4 route",
        ),
        (
            "iface-multipath-default",
            &[],
            multipath,
            "several next hops",
        ),
        (
            "bad-public-ip-not-local",
            &[("public-ip", "203.0.113.9")],
            nothing,
            "203.0.113.9",
        ),
        (
            "bad-iface",
            &[("iface", "nosuch"), ("iface-regex", r"^10\.9")],
            nothing,
            "--iface=nosuch: there is no such interface; --iface-regex=^10\\.9: it matches",
        ),
        (
            "address missing",
            &[("iface", "lo")],
            nothing,
            "no usable IPv4 address",
        ),
    ];
    for (case, flags, change, words) in cases {
        let mut facts = node();
        change(&mut facts);
        let error = v4(&facts, flags).unwrap_err().to_string();
        assert!(error.contains(words), "{case}: {error}");
    }
}

#[test]
fn both_families_must_meet_on_one_interface() {
    let dual = |facts: &Facts, flags: &[(&str, &str)]| {
        let got = select(facts, &wish(flags), &Family::ALL, None)?;
        let ips: Vec<String> = got.addresses.iter().map(|(_, ip)| ip.to_string()).collect();
        Ok::<_, SelectError>(ips.join(" "))
    };
    assert_eq!(dual(&node(), &[]).as_deref(), Ok("192.168.50.1 fd00:50::1"));
    let eth1 = Ok("192.168.60.1 fd00:60::1");
    assert_eq!(dual(&node(), &[("iface", "eth1")]).as_deref(), eth1);
    // flanneld crashes on this one.
    assert_eq!(dual(&node(), &[("iface", "fd00:60::1")]).as_deref(), eth1);
    let mut elsewhere = node();
    elsewhere.routes[3].ifindex = Some(3);
    let error = dual(&elsewhere, &[]).unwrap_err();
    assert!(matches!(error, SelectError::TwoDevices(..)), "{error}");
}

#[test]
fn a_choice_is_kept_until_its_address_is_gone() {
    let mut facts = node();
    let chosen = select(&facts, &Wish::default(), &[Family::V4], None).unwrap();
    facts.routes.clear();
    facts.links[1].mtu = 9000;
    assert_eq!(chosen.refreshed(&facts).unwrap().mtu, 9000);
    facts.addresses.retain(|a| a.ifindex != 2);
    assert_eq!(chosen.refreshed(&facts), None);
}
