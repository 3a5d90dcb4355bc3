//! Sets, maps and connection tracking, in a namespace of the test's own, looked at with `nft` and
//! `conntrack`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use kernel::conntrack::{UdpTo, forget_udp};
use kernel::nft;
use kernel::nft::{
    Chain, Change, Element, Family, Field, Hook, HookPoint, HookType, Rule, Set, Table, Value,
};
use nix::errno::Errno;

mod namespace;

use namespace::{in_a_namespace, run};

const TABLE: &str = "twill-test";
const KEY: [Field; 2] = [Field::Protocol, Field::Port];
const KEY6: [Field; 3] = [Field::Ipv6, Field::Protocol, Field::Port];

fn table(mark: u32) -> (Table, Vec<Set>) {
    let nat = |point, priority| {
        Some(Hook {
            kind: HookType::Nat,
            point,
            priority,
        })
    };
    let chain = |name: &str, hook, rules| Chain {
        name: name.to_owned(),
        hook,
        rules,
    };
    let why = || Rule::because("test");
    let table = Table {
        family: Family::Inet,
        name: TABLE.to_owned(),
        chains: vec![
            chain(
                "ports",
                None,
                vec![
                    why()
                        .family_of("::".parse().unwrap())
                        .destination_from(true, &KEY6, "six"),
                    why().destination_from(false, &KEY, "four"),
                ],
            ),
            chain(
                "prerouting",
                nat(HookPoint::Prerouting, -100),
                vec![
                    why()
                        .in_set(&[Field::Ifname, KEY[0], KEY[1]], "hairpin")
                        .set_mark(mark),
                    why().comes_in_by(false, "lo*").to_this_host().jump("ports"),
                ],
            ),
            chain(
                "postrouting",
                nat(HookPoint::Postrouting, 100),
                vec![
                    why()
                        .mark_has(mark)
                        .destination_was_changed()
                        .masquerade(false),
                ],
            ),
        ],
    };
    let set = |name: &str, key: &[Field], data: &[Field]| Set {
        name: name.to_owned(),
        key: key.to_vec(),
        data: data.to_vec(),
    };
    let sets = vec![
        set("four", &KEY, &[Field::Ipv4, Field::Port]),
        set("six", &KEY6, &[Field::Ipv6, Field::Port]),
        set("hairpin", &[Field::Ifname, KEY[0], KEY[1]], &[]),
    ];
    (table, sets)
}

fn key(port: u16) -> Value {
    Value::new().protocol(6).port(port)
}

fn entry(port: u16, to: &str, owner: &str) -> (String, Element) {
    let to: IpAddr = to.parse().unwrap();
    let element = Element {
        key: key(port),
        data: Value::new().ip(to).port(80),
        comment: owner.to_owned(),
    };
    ("four".to_owned(), element)
}

fn listed() -> String {
    run(&format!("nft -n list table inet {TABLE}"))
}

#[test]
fn nft_reads_the_rules_and_elements_as_they_were_meant() {
    in_a_namespace(|| {
        let mut socket = nft::Socket::open().unwrap();
        let (table, sets) = table(0x2000);
        socket.ensure(&table, &sets).unwrap();
        let ip: IpAddr = "fd00::5".parse().unwrap();
        let pod: IpAddr = "fd00:1::2".parse().unwrap();
        let change = Change {
            add: vec![
                entry(8080, "10.1.2.2", "cbr0/abc/eth0"),
                (
                    "six".to_owned(),
                    Element {
                        key: Value::new().ip(ip).protocol(17).port(53),
                        data: Value::new().ip(pod).port(5353),
                        comment: "x".to_owned(),
                    },
                ),
                (
                    "hairpin".to_owned(),
                    Element {
                        key: Value::new().ifname("cni0").protocol(132).port(9),
                        data: Value::new(),
                        comment: "y".to_owned(),
                    },
                ),
            ],
            ..Change::default()
        };
        socket.change(Family::Inet, TABLE, &change).unwrap();
        let text = listed();
        for line in [
            "elements = { 6 . 8080 comment \"cbr0/abc/eth0\" : 10.1.2.2 . 80 }",
            "elements = { fd00::5 . 17 . 53 comment \"x\" : fd00:1::2 . 5353 }",
            "elements = { \"cni0\" . 132 . 9 comment \"y\" }",
            "dnat ip6 to ip6 daddr . meta l4proto . th dport map @six",
            "dnat ip to meta l4proto . th dport map @four",
            "iifname . meta l4proto . th dport @hairpin meta mark set meta mark | 0x00002000",
            "iifname != \"lo*\" fib daddr type 2 jump ports",
            "meta mark & 0x00002000 == 0x00002000 ct status",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let read = socket.elements(Family::Inet, TABLE, "four").unwrap();
        assert_eq!(read, vec![entry(8080, "10.1.2.2", "cbr0/abc/eth0").1]);
    });
}

#[test]
fn rules_are_made_anew_and_elements_stay() {
    in_a_namespace(|| {
        let mut socket = nft::Socket::open().unwrap();
        let (old, sets) = table(0x2000);
        socket.ensure(&old, &sets).unwrap();
        let change = Change {
            add: vec![entry(8080, "10.1.2.2", "a")],
            ..Change::default()
        };
        socket.change(Family::Inet, TABLE, &change).unwrap();
        let (new, _) = table(0x4000);
        let present = |socket: &mut nft::Socket| socket.dump(Family::Inet, TABLE).unwrap().unwrap();
        assert!(present(&mut socket).is(&old) && !present(&mut socket).is(&new));
        socket.ensure(&new, &sets).unwrap();
        socket.ensure(&new, &sets).unwrap();
        assert!(present(&mut socket).is(&new));
        let text = listed();
        assert!(
            text.contains("0x00004000") && !text.contains("0x00002000"),
            "{text}"
        );
        assert!(text.contains("6 . 8080"), "{text}");
        assert_eq!(socket.tables(Family::Inet).unwrap(), [TABLE]);
    });
}

#[test]
fn a_change_is_refused_when_somebody_was_faster() {
    in_a_namespace(|| {
        let mut socket = nft::Socket::open().unwrap();
        let (table, sets) = table(0x2000);
        socket.ensure(&table, &sets).unwrap();
        let add = |owner: &str| Change {
            add: vec![entry(8080, "10.1.2.2", owner)],
            ..Change::default()
        };
        let seen = socket.generation().unwrap();
        socket.change(Family::Inet, TABLE, &add("a")).unwrap();
        let late = Change {
            seen: Some(seen),
            remove: vec![("four".to_owned(), key(8080))],
            ..add("b")
        };
        let error = socket.change(Family::Inet, TABLE, &late).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ERESTART), "{error}");
        let error = socket.change(Family::Inet, TABLE, &add("b")).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EEXIST), "{error}");
        assert!(Change::was_overtaken(&error));
        assert!(listed().contains("comment \"a\""));
        let now = Change {
            seen: Some(socket.generation().unwrap()),
            ..late
        };
        socket.change(Family::Inet, TABLE, &now).unwrap();
        assert!(listed().contains("comment \"b\""));
        let gone = Change {
            remove: vec![("four".to_owned(), key(1))],
            ..Change::default()
        };
        let error = socket.change(Family::Inet, TABLE, &gone).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOENT), "{error}");
    });
}

#[test]
fn a_thousand_elements_are_written_and_read_whole() {
    in_a_namespace(|| {
        let mut socket = nft::Socket::open().unwrap();
        let (table, sets) = table(0x2000);
        socket.ensure(&table, &sets).unwrap();
        let add = (1..=1000).map(|port| entry(port, "10.1.2.2", "cbr0/abc/eth0"));
        let change = Change {
            add: add.collect(),
            ..Change::default()
        };
        socket.change(Family::Inet, TABLE, &change).unwrap();
        let read = socket.elements(Family::Inet, TABLE, "four").unwrap();
        assert_eq!(read.len(), 1000);
        let none = socket.elements(Family::Inet, "nosuch", "four").unwrap();
        assert_eq!(none, vec![]);
    });
}

#[test]
fn foreign_rules_are_found_and_deleted_one_by_one() {
    in_a_namespace(|| {
        for words in [
            "add table ip nat",
            "add chain ip nat CNI-DN-1",
            "add chain ip nat entry",
            "add rule ip nat CNI-DN-1 tcp dport 80 accept",
            "add rule ip nat entry tcp dport 80 jump CNI-DN-1",
            "add rule ip nat entry tcp dport 81 accept comment \"keep\"",
        ] {
            run(&format!("nft {words}"));
        }
        let mut socket = nft::Socket::open().unwrap();
        assert!(socket.has_chain(Family::Ipv4, "nat", "CNI-DN-1").unwrap());
        assert!(!socket.has_chain(Family::Ipv4, "nat", "CNI-DN-2").unwrap());
        assert!(!socket.has_chain(Family::Ipv6, "nat", "CNI-DN-1").unwrap());
        let rules = socket.foreign_rules(Family::Ipv4, "nat", None).unwrap();
        assert_eq!(rules.len(), 3);
        assert_eq!(
            rules.iter().filter(|rule| rule.comment == "keep").count(),
            1
        );
        let jumps: Vec<_> = rules
            .into_iter()
            .filter(|rule| rule.target.as_deref() == Some("CNI-DN-1"))
            .collect();
        assert_eq!(jumps.len(), 1);
        let delete = |socket: &mut nft::Socket| {
            socket.delete_foreign(Family::Ipv4, "nat", &jumps, &["CNI-DN-1"])
        };
        delete(&mut socket).unwrap();
        delete(&mut socket).unwrap();
        let text = run("nft list ruleset");
        assert!(
            !text.contains("CNI-DN-1") && text.contains("keep"),
            "{text}"
        );
        assert_eq!(
            socket.foreign_rules(Family::Ipv6, "nat", None).unwrap(),
            vec![]
        );
    });
}

#[test]
fn udp_flows_to_a_port_are_forgotten_and_no_others() {
    in_a_namespace(|| {
        let flow = |protocol: &str, to: &str, port: u16| {
            let from = match to.contains(':') {
                true => "fd00::9",
                false => "192.0.2.9",
            };
            let state = if protocol == "tcp" {
                "--state ESTABLISHED"
            } else {
                ""
            };
            run(&format!(
                "conntrack -I -p {protocol} -s {from} -d {to} --sport 4000 --dport {port} -t 60 {state}"
            ));
        };
        let left = || {
            let mut lines = vec![];
            for family in ["ipv4", "ipv6"] {
                for line in run(&format!("conntrack -L -f {family}")).lines() {
                    let word = |key: &str| {
                        let word = line.split(' ').find_map(|w| w.strip_prefix(key));
                        word.unwrap_or_default().to_owned()
                    };
                    let protocol = line.split(' ').next().unwrap();
                    lines.push(format!("{protocol} {} {}", word("dst="), word("dport=")));
                }
            }
            lines.sort();
            lines
        };
        flow("udp", "192.0.2.1", 8053);
        flow("tcp", "192.0.2.1", 8053);
        flow("udp", "192.0.2.1", 8054);
        flow("udp", "192.0.2.2", 8053);
        flow("udp", "fd00::1", 8053);
        let to = |v6, ip: Option<&str>, port| UdpTo {
            v6,
            ip: ip.map(|ip| ip.parse().unwrap()),
            port,
        };
        assert_eq!(
            forget_udp(&[to(false, Some("192.0.2.2"), 8053)]).unwrap(),
            1
        );
        assert_eq!(
            left(),
            [
                "tcp 192.0.2.1 8053",
                "udp 192.0.2.1 8053",
                "udp 192.0.2.1 8054",
                "udp fd00::1 8053"
            ]
        );
        assert_eq!(
            forget_udp(&[to(false, None, 8053), to(false, None, 1)]).unwrap(),
            1
        );
        assert_eq!(
            left(),
            [
                "tcp 192.0.2.1 8053",
                "udp 192.0.2.1 8054",
                "udp fd00::1 8053"
            ]
        );
        assert_eq!(forget_udp(&[to(true, None, 8053)]).unwrap(), 1);
        assert_eq!(left(), ["tcp 192.0.2.1 8053", "udp 192.0.2.1 8054"]);
        assert_eq!(forget_udp(&[]).unwrap(), 0);
    });
}
