//! Every kernel object is made in a namespace of the test's own and looked at with `ip`, `bridge`
//! and `nft`, not with our decoder alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use kernel::fdb::FdbEntry;
use kernel::neighbour::Neighbour;
use kernel::nft::{Chain, Family, Hook, HookPoint, HookType, Rule, Table};
use kernel::route::Route;
use kernel::veth::Veth;
use kernel::vxlan::Vxlan;
use kernel::{Mac, Netns, Socket, address, bridge, fdb, link, neighbour, nft, route};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

mod namespace;

use namespace::{in_a_namespace, run};

fn json(command: &str) -> Value {
    serde_json::from_str(&run(command)).unwrap_or(Value::Null)
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A device to route over: one end of a veth pair whose other end is in another namespace, which
/// is handed over with its number: both ends go with it, and the routes with them.
fn underlay(socket: &mut Socket) -> (u32, Netns) {
    let home = Netns::current().unwrap();
    let other = other_namespace();
    let pair = Veth {
        host_name: "eth0",
        pod_name: "far",
        pod_netns: other.fd(),
        mtu: Some(1500),
        host_mac: None,
        pod_mac: None,
        master: None,
        host_txqlen: None,
    };
    socket.apply_all(&[pair.create()]).unwrap();
    let up = || Socket::open()?.apply_all(&[link::change("far").up().request()]);
    other.enter(&home, up).unwrap().unwrap();
    let index = link::by_name(socket, "eth0").unwrap().unwrap().ifindex;
    let address = address::add(index, net("192.168.50.1/24"));
    socket.apply_all(&[address]).unwrap();
    (index, other)
}

fn other_namespace() -> Netns {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Netns::current().unwrap()
    })
    .join()
    .unwrap()
}

fn vxlan(underlay: u32) -> Vxlan {
    Vxlan {
        vni: 1,
        underlay: Some(underlay),
        local: Some(ip("192.168.50.1")),
        group: None,
        port: 8472,
        learning: false,
        gbp: false,
        l2miss: false,
        l3miss: false,
    }
}

#[test]
fn a_vxlan_device_is_what_iproute2_says_flannels_is() {
    in_a_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let (underlay, _far) = underlay(&mut socket);
        let wanted = vxlan(underlay);
        let mac = Mac([0x0a, 0x58, 0x0a, 0xf4, 1, 2]);
        let create = wanted.create("flannel.1", mac, 1450);
        socket.apply_all(&[create]).unwrap();

        let shown = run("ip -d link show flannel.1");
        assert!(
            shown.contains(
                "vxlan id 1 local 192.168.50.1 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx"
            ),
            "{shown}"
        );
        assert!(shown.contains("mtu 1450"), "{shown}");
        assert!(shown.contains("link/ether 0a:58:0a:f4:01:02"), "{shown}");
        let found = link::by_name(&mut socket, "flannel.1").unwrap().unwrap();
        assert_eq!(found.vxlan, Some(wanted));
        assert_eq!((found.kind.as_str(), found.up), ("vxlan", false));
    });
}

#[test]
fn a_peers_three_entries_go_in_and_out_and_twice_is_once() {
    in_a_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let (underlay, _far) = underlay(&mut socket);
        let mac = Mac([0x0a, 0x58, 0x0a, 0xf4, 1, 2]);
        let device = vxlan(underlay).create("flannel.1", mac, 1450);
        let up = link::change("flannel.1").up().request();
        socket.apply_all(&[device, up]).unwrap();
        let index = link::by_name(&mut socket, "flannel.1")
            .unwrap()
            .unwrap()
            .ifindex;

        let peer = Mac([0x72, 0, 0, 0, 0, 1]);
        let to_peer = Route {
            gateway: Some(ip("10.244.2.0")),
            ifindex: Some(index),
            onlink: true,
            ..Route::to(net("10.244.2.0/24"))
        };
        let add = [
            neighbour::replace(index, ip("10.244.2.0"), peer),
            fdb::replace(index, peer, ip("192.168.50.2")),
            route::replace(&to_peer),
        ];
        socket.apply_all(&add).unwrap();
        socket.apply_all(&add).unwrap();
        assert_eq!(
            run("ip route show 10.244.2.0/24").trim(),
            "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"
        );
        assert!(
            run("ip neigh show dev flannel.1")
                .contains("10.244.2.0 lladdr 72:00:00:00:00:01 PERMANENT")
        );
        assert!(
            run("bridge fdb show dev flannel.1")
                .contains("72:00:00:00:00:01 dst 192.168.50.2 self permanent")
        );
        let routes = route::dump(&mut socket, false).unwrap();
        let found = routes
            .iter()
            .find(|r| r.destination == to_peer.destination)
            .unwrap();
        assert_eq!(
            *found,
            Route {
                scope: Some(0),
                ..to_peer.clone()
            }
        );
        let neighbours = neighbour::dump(&mut socket).unwrap();
        let neighbour = Neighbour {
            ifindex: index,
            ip: ip("10.244.2.0"),
            mac: Some(peer),
            permanent: true,
        };
        assert_eq!(neighbours, [neighbour]);
        let entries = fdb::dump(&mut socket, Some(index)).unwrap();
        let entry = FdbEntry {
            ifindex: index,
            mac: peer,
            destination: Some(ip("192.168.50.2")),
            permanent: true,
        };
        assert_eq!(entries, [entry]);

        let remove = [
            route::delete(&to_peer),
            fdb::delete(index, peer),
            neighbour::delete(index, ip("10.244.2.0")),
        ];
        socket.apply_all(&remove).unwrap();
        socket.apply_all(&remove).unwrap();
        assert_eq!(run("ip route show 10.244.2.0/24"), "");
        assert_eq!(fdb::dump(&mut socket, Some(index)).unwrap(), vec![]);
    });
}

#[test]
fn one_failure_in_a_batch_is_that_requests_alone_and_says_what_and_why() {
    in_a_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let (index, _far) = underlay(&mut socket);
        let good = |n: u8| Route {
            ifindex: Some(index),
            ..Route::to(net(&format!("10.244.{n}.0/24")))
        };
        let host_bits = Route {
            ifindex: Some(index),
            ..Route::to(net("10.244.9.7/24"))
        };
        let up = link::change("eth0").up().request();
        socket.apply_all(&[up]).unwrap();
        let answers = socket.apply(&[
            route::replace(&good(1)),
            route::replace(&host_bits),
            route::replace(&good(2)),
        ]);
        assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
        let error = answers[1].as_ref().unwrap_err().to_string();
        assert!(
            error.starts_with("replace route 10.244.9.7/24 dev eth0: invalid argument"),
            "{error}"
        );
        assert!(error.ends_with("(EINVAL)"), "{error}");
        assert!(
            error.contains("Invalid prefix for given prefix length"),
            "{error}"
        );
    });
}

#[test]
fn three_thousand_requests_are_all_answered() {
    in_a_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let (index, _far) = underlay(&mut socket);
        socket
            .apply_all(&[link::change("eth0").up().request()])
            .unwrap();
        // Every tenth one is refused.
        let requests: Vec<_> = (0..3000u32)
            .map(|n| {
                let bits = if n % 10 == 0 { 1 } else { 0 };
                let text = format!("10.{}.{}.{bits}/24", n / 256, n % 256);
                route::replace(&Route {
                    ifindex: Some(index),
                    ..Route::to(net(&text))
                })
            })
            .collect();
        let answers = socket.apply(&requests);
        assert_eq!(answers.len(), 3000);
        for (n, answer) in answers.iter().enumerate() {
            assert_eq!(answer.is_err(), n % 10 == 0, "{n}: {answer:?}");
        }
        let there = route::dump(&mut socket, false).unwrap();
        assert_eq!(
            there
                .iter()
                .filter(|r| r.destination.prefix_len() == 24)
                .count(),
            2701
        );
    });
}

#[test]
fn a_pods_veth_is_made_in_place_and_its_port_set_in_one_batch() {
    in_a_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let home = Netns::current().unwrap();
        let pod = other_namespace();
        let mac = Mac([0x0a, 0x58, 0x0a, 0xf4, 1, 1]);
        socket
            .apply_all(&[bridge::create("cni0", Some(1450), Some(mac), false)])
            .unwrap();
        let master = link::by_name(&mut socket, "cni0").unwrap().unwrap().ifindex;
        let pair = Veth {
            host_name: "veth01234567",
            pod_name: "eth0",
            pod_netns: pod.fd(),
            mtu: Some(1450),
            host_mac: None,
            pod_mac: Some(Mac([2, 0, 0, 0, 0, 5])),
            master: Some(master),
            host_txqlen: Some(0),
        };
        let port = link::change("veth01234567")
            .alias("cbr0/abc/eth0")
            .port(true, false);
        socket.apply_all(&[pair.create(), port.request()]).unwrap();

        let shown = json("ip -j -d link show veth01234567");
        assert_eq!(shown[0]["master"], "cni0");
        assert_eq!(shown[0]["mtu"], 1450);
        assert_eq!(shown[0]["ifalias"], "cbr0/abc/eth0");
        assert_eq!(shown[0]["linkinfo"]["info_slave_data"]["hairpin"], true);
        assert_eq!(
            json("ip -j link show cni0")[0]["address"],
            "0a:58:0a:f4:01:01"
        );
        let found = link::by_name(&mut socket, "veth01234567").unwrap().unwrap();
        assert_eq!(found.hairpin, Some(true));
        assert_eq!(found.alias.as_deref(), Some("cbr0/abc/eth0"));
        let eth0 = pod
            .enter(&home, || link::by_name(&mut Socket::open()?, "eth0"))
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(eth0.mac, Some(Mac([2, 0, 0, 0, 0, 5])));
        assert_eq!(eth0.lower, Some(found.ifindex));

        socket
            .apply_all(&[link::delete("veth01234567"), link::delete("veth01234567")])
            .unwrap();
        assert_eq!(link::by_name(&mut socket, "veth01234567").unwrap(), None);
    });
}

#[test]
fn a_table_is_written_whole_recognised_and_told_from_a_changed_one() {
    in_a_namespace(|| {
        let network = net("10.244.0.0/16");
        let table = Table {
            family: Family::Inet,
            name: "twill-test".to_owned(),
            chains: vec![
                Chain {
                    name: "pods".to_owned(),
                    hook: None,
                    rules: vec![
                        Rule::because("marked by kube-proxy")
                            .mark_has(0x4000)
                            .back(),
                        Rule::because("pods out")
                            .source(true, network)
                            .destination(false, net("224.0.0.0/4"))
                            .masquerade(true),
                    ],
                },
                Chain {
                    name: "postrouting".to_owned(),
                    hook: Some(Hook {
                        kind: HookType::Nat,
                        point: HookPoint::Postrouting,
                        priority: 100,
                    }),
                    rules: vec![Rule::because("ours").jump("pods")],
                },
            ],
        };
        let mut socket = nft::Socket::open().unwrap();
        assert_eq!(socket.dump(Family::Inet, "twill-test").unwrap(), None);
        socket.replace(&table).unwrap();
        socket.replace(&table).unwrap();
        let shown = run("nft list ruleset");
        for line in [
            "type nat hook postrouting priority srcnat; policy accept;",
            "meta mark & 0x00004000 == 0x00004000 return",
            "ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
            "jump pods comment \"ours #",
        ] {
            assert!(shown.contains(line), "{line} in {shown}");
        }
        let is_right = |socket: &mut nft::Socket| {
            let present = socket.dump(Family::Inet, "twill-test").unwrap();
            present.is_some_and(|present| present.is(&table))
        };
        assert!(is_right(&mut socket));
        for change in [
            "nft flush chain inet twill-test pods",
            "nft add rule inet twill-test pods drop",
            "nft insert rule inet twill-test postrouting accept",
            "nft add chain inet twill-test other",
            "nft delete table inet twill-test",
        ] {
            run(change);
            assert!(!is_right(&mut socket), "{change}");
            socket.replace(&table).unwrap();
            assert!(is_right(&mut socket), "{change}");
        }
        socket.delete(Family::Inet, "twill-test").unwrap();
        socket.delete(Family::Inet, "twill-test").unwrap();
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn a_refused_transaction_changes_nothing_and_answers_at_once() {
    in_a_namespace(|| {
        let table = Table {
            family: Family::Inet,
            name: "twill-test".to_owned(),
            chains: vec![Chain {
                name: "pods".to_owned(),
                hook: None,
                rules: vec![Rule::because("nowhere").jump("missing")],
            }],
        };
        let mut socket = nft::Socket::open().unwrap();
        let error = socket.replace(&table).unwrap_err().to_string();
        assert!(
            error.starts_with("write nftables table inet twill-test: "),
            "{error}"
        );
        assert_eq!(run("nft list ruleset"), "");
        assert_eq!(socket.dump(Family::Inet, "twill-test").unwrap(), None);
    });
}

#[test]
fn a_path_that_is_no_namespace_is_told_from_one_that_is_gone() {
    use kernel::netns::NetnsError;
    let here = Netns::current().unwrap();
    assert!(here.is(&Netns::open("/proc/self/ns/net").unwrap()).unwrap());
    assert!(matches!(
        Netns::open("/run/netns/never"),
        Err(NetnsError::Missing { .. })
    ));
    assert!(matches!(
        Netns::open("/proc/1/environ/x"),
        Err(NetnsError::Missing { .. })
    ));
    assert!(matches!(
        Netns::open("/etc/hostname"),
        Err(NetnsError::NotANamespace { .. })
    ));
    assert!(!other_namespace().is(&here).unwrap());
    let _ = here.fd().as_fd();
}

#[test]
fn the_route_towards_an_address_names_the_device_and_the_gateway() {
    in_a_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let (underlay, _far) = underlay(&mut socket);
        let to = |socket: &mut Socket, text: &str| {
            let route = route::towards(socket, ip(text)).unwrap();
            route.map(|route| (route.ifindex, route.gateway))
        };
        assert_eq!(
            to(&mut socket, "192.168.50.7"),
            Some((Some(underlay), None))
        );
        assert_eq!(to(&mut socket, "10.9.9.9"), None);
        run("ip route add 10.9.0.0/16 via 192.168.50.254");
        assert_eq!(
            to(&mut socket, "10.9.9.9"),
            Some((Some(underlay), Some(ip("192.168.50.254"))))
        );
    });
}
