//! Host ports under the name `portmap`, with traffic, on a node made by hand. The tables are
//! looked at with `nft`, flows with `conntrack`.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::namespaces::{available, in_a_node_of_its_own};
use crate::node::{bridge, call, inside, neighbour, pod, run_plugin, tool, try_tool};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(300);

fn tcp(host: u16, container: u16) -> Value {
    json!([{"hostPort": host, "containerPort": container, "protocol": "tcp"}])
}

fn config(previous: &Value, mappings: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap", "prevResult": previous,
        "runtimeConfig": {"portMappings": mappings}})
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

/// A server in a pod that answers each connection with its name and the client's address. It ends
/// with the test's process.
fn serve_tcp(pod: &str, port: u16) {
    let name = pod.to_owned();
    let listener = inside(pod, || TcpListener::bind(("::", port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_canonical());
            let peer = peer.map(|ip| ip.to_string()).unwrap_or_default();
            let _ = stream.write_all(format!("{name} {peer}").as_bytes());
        }
    });
}

fn serve_udp(pod: &str, port: u16) {
    let name = pod.to_owned();
    let socket = inside(pod, || UdpSocket::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), peer);
        }
    });
}

/// Who answers a connection from somewhere to somewhere: "name client's-address". None if nobody.
fn ask(from: &str, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    inside(from, || {
        let stream = TcpStream::connect_timeout(&to, DEADLINE);
        let mut stream = match stream {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return None,
            stream => stream.unwrap_or_else(|error| panic!("connect to {to}: {error}")),
        };
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        Some(answer)
    })
}

fn names(pod: &str, client: &str) -> Option<String> {
    Some(format!("{pod} {client}"))
}

fn nft() -> String {
    tool("nft -n list ruleset")
}

#[test]
fn a_port_of_the_node_reaches_the_pod_from_everywhere() {
    if !available("a_port_of_the_node_reaches_the_pod_from_everywhere") {
        return;
    }
    in_a_node_of_its_own(&["pod", "other", "client"], || {
        bridge();
        neighbour("client");
        let previous = pod("pod", 2);
        pod("other", 3);
        serve_tcp("pod", 80);
        let config = config(&previous, tcp(8080, 80));
        let answer = call("portmap", "ADD", "abc", "pod", &config).ok();
        assert_eq!(answer.json(), previous, "the result is passed on");

        // From the network: the pod sees who asks.
        assert_eq!(ask("client", "192.0.2.1:8080"), names("pod", "192.0.2.9"));
        assert_eq!(ask("client", "192.0.2.5:8080"), names("pod", "192.0.2.9"));
        assert_eq!(
            ask("client", "[2001:db8::1]:8080"),
            names("pod", "2001:db8::9")
        );
        // From the node, by its address and by localhost.
        assert!(ask("", "192.0.2.1:8080").unwrap().starts_with("pod "));
        assert!(ask("", "[2001:db8::1]:8080").unwrap().starts_with("pod "));
        assert_eq!(ask("", "127.0.0.1:8080"), names("pod", "10.1.2.1"));
        assert_eq!(ask("", "127.1.2.3:8080"), names("pod", "10.1.2.1"));
        // From the pod itself, and from one beside it.
        assert_eq!(ask("pod", "192.0.2.1:8080"), names("pod", "10.1.2.1"));
        assert_eq!(ask("other", "192.0.2.1:8080"), names("pod", "10.1.2.1"));
        assert!(
            ask("other", "[2001:db8::1]:8080")
                .unwrap()
                .starts_with("pod fd00:1:2::1")
        );
        call("portmap", "CHECK", "abc", "pod", &config).ok();

        call("portmap", "DEL", "abc", "pod", &config).ok();
        assert_eq!(ask("client", "192.0.2.1:8080"), None);
        assert_eq!(ask("", "127.0.0.1:8080"), None);
        assert!(!nft().contains("8080"), "{}", nft());
        call("portmap", "DEL", "abc", "pod", &config).ok();
    });
}

#[test]
fn what_is_not_for_the_node_is_left_alone() {
    if !available("what_is_not_for_the_node_is_left_alone") {
        return;
    }
    in_a_node_of_its_own(&["pod", "other", "client"], || {
        bridge();
        neighbour("client");
        let previous = pod("pod", 2);
        pod("other", 3);
        serve_tcp("pod", 80);
        serve_tcp("client", 8080);
        call(
            "portmap",
            "ADD",
            "abc",
            "pod",
            &config(&previous, tcp(8080, 80)),
        )
        .ok();
        // Through the node, to the same port of somebody else.
        assert_eq!(ask("other", "192.0.2.9:8080"), names("client", "10.1.2.3"));
        assert_eq!(ask("", "192.0.2.9:8080"), names("client", "192.0.2.1"));
    });
}

#[test]
fn sources_are_masqueraded_as_the_config_says() {
    if !available("sources_are_masqueraded_as_the_config_says") {
        return;
    }
    in_a_node_of_its_own(&["pod", "client"], || {
        bridge();
        neighbour("client");
        let previous = pod("pod", 2);
        serve_tcp("pod", 80);
        let plain = config(&previous, tcp(8080, 80));
        let all = with(plain.clone(), "masqAll", json!(true));
        call("portmap", "ADD", "abc", "pod", &all).ok();
        assert_eq!(ask("client", "192.0.2.1:8080"), names("pod", "10.1.2.1"));
        assert_eq!(ask("", "127.0.0.1:8080"), names("pod", "10.1.2.1"));
        assert!(
            ask("client", "[2001:db8::1]:8080")
                .unwrap()
                .starts_with("pod fd00:1:2::1")
        );
        call("portmap", "DEL", "abc", "pod", &all).ok();

        std::fs::write("/proc/sys/net/ipv4/conf/cni0/route_localnet", "0").unwrap();
        let without = with(plain, "snat", json!(false));
        call("portmap", "ADD", "abc", "pod", &without).ok();
        assert_eq!(ask("client", "192.0.2.1:8080"), names("pod", "192.0.2.9"));
        let text = nft();
        assert!(text.contains("6 . 8080"), "{text}");
        assert_eq!(
            text.matches(". 8080").count(),
            2,
            "nothing to masquerade: {text}"
        );
        let localnet = tool("cat /proc/sys/net/ipv4/conf/cni0/route_localnet");
        assert_eq!(localnet.trim(), "0");
    });
}

#[test]
fn a_host_address_is_the_only_one() {
    if !available("a_host_address_is_the_only_one") {
        return;
    }
    in_a_node_of_its_own(&["pod", "other", "client"], || {
        bridge();
        neighbour("client");
        let previous = pod("pod", 2);
        let other = pod("other", 3);
        serve_tcp("pod", 80);
        serve_tcp("other", 80);
        let at = |ip: &str| json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ip}]);
        call(
            "portmap",
            "ADD",
            "abc",
            "pod",
            &config(&previous, at("192.0.2.5")),
        )
        .ok();
        assert_eq!(ask("client", "192.0.2.5:8080"), names("pod", "192.0.2.9"));
        assert_eq!(ask("client", "192.0.2.1:8080"), None);
        assert_eq!(ask("client", "[2001:db8::5]:8080"), None);
        // Another pod may have the same port elsewhere, and everywhere else.
        call(
            "portmap",
            "ADD",
            "def",
            "other",
            &config(&other, at("0.0.0.0")),
        )
        .ok();
        assert_eq!(ask("client", "192.0.2.5:8080"), names("pod", "192.0.2.9"));
        assert_eq!(ask("client", "192.0.2.1:8080"), names("other", "192.0.2.9"));
        assert_eq!(ask("client", "[2001:db8::1]:8080"), None);
        assert!(
            ask("other", "192.0.2.5:8080")
                .unwrap()
                .starts_with("pod 10.1.2.1")
        );
        call(
            "portmap",
            "CHECK",
            "abc",
            "pod",
            &config(&previous, at("192.0.2.5")),
        )
        .ok();
        call(
            "portmap",
            "DEL",
            "abc",
            "pod",
            &config(&previous, at("192.0.2.5")),
        )
        .ok();
        assert_eq!(ask("client", "192.0.2.5:8080"), names("other", "192.0.2.9"));
    });
}

#[test]
fn the_newest_owner_has_the_port_and_an_older_one_takes_nothing_with_it() {
    if !available("the_newest_owner_has_the_port_and_an_older_one_takes_nothing_with_it") {
        return;
    }
    in_a_node_of_its_own(&["pod", "other", "client"], || {
        bridge();
        neighbour("client");
        let first = config(&pod("pod", 2), tcp(8080, 80));
        let second = config(&pod("other", 3), tcp(8080, 80));
        serve_tcp("pod", 80);
        serve_tcp("other", 80);
        call("portmap", "ADD", "abc", "pod", &first).ok();
        call("portmap", "ADD", "def", "other", &second).ok();
        assert_eq!(ask("client", "192.0.2.1:8080"), names("other", "192.0.2.9"));
        let error = call("portmap", "CHECK", "abc", "pod", &first).error();
        assert!(error.contains("cbr0/def/eth0"), "{error}");
        call("portmap", "DEL", "abc", "pod", &first).ok();
        assert_eq!(ask("client", "192.0.2.1:8080"), names("other", "192.0.2.9"));
        assert_eq!(ask("", "127.0.0.1:8080"), names("other", "10.1.2.1"));
        call("portmap", "CHECK", "def", "other", &second).ok();
        // Without ports, a previous result, and a sandbox.
        let nothing = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap"});
        call("portmap", "DEL", "def", "", &nothing).ok();
        assert_eq!(ask("client", "192.0.2.1:8080"), None);
    });
}

#[test]
fn a_port_changes_hands_between_configs_with_rules_of_their_own() {
    if !available("a_port_changes_hands_between_configs_with_rules_of_their_own") {
        return;
    }
    in_a_node_of_its_own(&["pod", "other", "client"], || {
        bridge();
        neighbour("client");
        let first = config(&pod("pod", 2), tcp(8080, 80));
        let second = config(&pod("other", 3), tcp(8080, 80));
        let second = with(second, "conditionsV4", json!(["!", "-d", "192.0.2.5/32"]));
        let second = with(second, "markMasqBit", json!(5));
        serve_tcp("pod", 80);
        serve_tcp("other", 80);
        call("portmap", "ADD", "abc", "pod", &first).ok();
        call("portmap", "ADD", "def", "other", &second).ok();
        assert_eq!(ask("client", "192.0.2.1:8080"), names("other", "192.0.2.9"));
        assert_eq!(
            ask("client", "192.0.2.5:8080"),
            None,
            "excepted by the condition"
        );
        assert_eq!(ask("", "127.0.0.1:8080"), names("other", "10.1.2.1"));
        assert!(
            ask("client", "[2001:db8::5]:8080")
                .unwrap()
                .starts_with("other")
        );
        call("portmap", "ADD", "abc", "pod", &first).ok();
        assert_eq!(ask("client", "192.0.2.1:8080"), names("pod", "192.0.2.9"));
        assert_eq!(ask("client", "192.0.2.5:8080"), names("pod", "192.0.2.9"));
        call("portmap", "DEL", "def", "other", &second).ok();
        call("portmap", "CHECK", "abc", "pod", &first).ok();
        let unknown = with(first, "conditionsV4", json!(["-m", "owner"]));
        let answer = call("portmap", "ADD", "ghi", "pod", &unknown);
        assert_eq!(answer.json()["code"], 2, "{answer:?}");
    });
}

#[test]
fn check_notices_every_loss_and_add_repairs_the_rules() {
    if !available("check_notices_every_loss_and_add_repairs_the_rules") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let config = config(&pod("pod", 2), tcp(8080, 80));
        serve_tcp("pod", 80);
        let add = || call("portmap", "ADD", "abc", "pod", &config).ok();
        let check = || call("portmap", "CHECK", "abc", "pod", &config);
        let table = "inet twill-hostports";
        add();
        check().ok();
        for loss in [
            format!("nft delete element {table} ports4 {{ tcp . 8080 }}"),
            format!("nft delete element {table} from-localhost4 {{ tcp . 8080 }}"),
            format!("nft flush chain {table} postrouting"),
            format!("nft add rule {table} ports accept"),
            format!("nft delete table {table}"),
            "nft flush ruleset".to_owned(),
        ] {
            tool(&loss);
            let error = check().error();
            assert!(
                error.contains("host ports of eth0 of container abc"),
                "{error}"
            );
            add();
            check().ok();
            assert_eq!(
                ask("", "127.0.0.1:8080"),
                names("pod", "10.1.2.1"),
                "{loss}"
            );
        }
        tool(&format!(
            "nft delete element {table} ports4 {{ tcp . 8080 }}"
        ));
        tool(&format!(
            "nft add element {table} ports4 {{ tcp . 8080 : 10.1.2.9 . 80 }}"
        ));
        assert!(check().error().contains("8080"));
    });
}

#[test]
fn gc_takes_away_what_no_valid_attachment_of_the_network_owns() {
    if !available("gc_takes_away_what_no_valid_attachment_of_the_network_owns") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let previous = pod("pod", 2);
        let add = |network: &str, container: &str, port: u16| {
            let mut config = config(&previous, tcp(port, 80));
            config["name"] = json!(network);
            call("portmap", "ADD", container, "pod", &config).ok();
        };
        add("cbr0", "abc", 8001);
        add("cbr0", "def", 8002);
        add("other", "abc", 8003);
        let gc = |valid: Option<Value>| {
            let mut config = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap"});
            if let Some(valid) = valid {
                config["cni.dev/valid-attachments"] = valid;
            }
            call("portmap", "GC", "", "", &config).ok();
            let text = nft();
            [8001, 8002, 8003].map(|port| text.contains(&format!(". {port}")))
        };
        assert_eq!(gc(None), [true, true, true]);
        let valid = json!([{"containerID": "abc", "ifname": "eth0"}]);
        assert_eq!(gc(Some(valid)), [true, false, true]);
        assert_eq!(gc(Some(Value::Null)), [false, false, true]);
    });
}

#[test]
fn udp_flows_meet_the_new_mapping_and_do_not_outlive_it() {
    if !available("udp_flows_meet_the_new_mapping_and_do_not_outlive_it") {
        return;
    }
    in_a_node_of_its_own(&["pod", "other", "client"], || {
        bridge();
        neighbour("client");
        let udp = json!([{"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]);
        let first = config(&pod("pod", 2), udp.clone());
        let second = config(&pod("other", 3), udp);
        serve_udp("pod", 53);
        serve_udp("other", 53);
        let client = inside("client", || {
            let socket = UdpSocket::bind("192.0.2.9:4000").unwrap();
            socket.connect("192.0.2.1:8053").unwrap();
            socket
        });
        let ask = |wait: Duration| {
            client.set_read_timeout(Some(wait)).unwrap();
            let mut buffer = [0; 16];
            client.send(b"?").ok()?;
            let count = client.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..count]).into_owned())
        };
        // The same flow, going on all the time.
        assert_eq!(ask(SILENCE), None);
        call("portmap", "ADD", "abc", "pod", &first).ok();
        assert_eq!(ask(DEADLINE).as_deref(), Some("pod"));
        call("portmap", "ADD", "def", "other", &second).ok();
        assert_eq!(ask(DEADLINE).as_deref(), Some("other"));
        call("portmap", "DEL", "def", "other", &second).ok();
        assert_eq!(ask(SILENCE), None);
    });
}

/// As the Go plugin's own run with the same entries, but for what it leaves behind at DEL.
#[test]
fn of_the_flows_that_were_there_only_those_of_the_port_are_forgotten() {
    if !available("of_the_flows_that_were_there_only_those_of_the_port_are_forgotten") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let udp = json!([{"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]);
        let config = config(&pod("pod", 2), udp);
        let insert = |protocol: &str, port: u16, more: &str| {
            tool(&format!(
                "conntrack -I -p {protocol} -s 192.0.2.9 -d 192.0.2.1 --sport 4000 --dport {port} -t 60 {more}"
            ));
        };
        let flows = || {
            let text = tool("conntrack -L -s 192.0.2.9");
            let mut flows: Vec<String> = text
                .lines()
                .map(|line| {
                    let port = line.split(' ').find_map(|word| word.strip_prefix("dport="));
                    format!("{} {}", line.split(' ').next().unwrap(), port.unwrap())
                })
                .collect();
            flows.sort();
            flows
        };
        insert("tcp", 8053, "--state ESTABLISHED");
        insert("udp", 8053, "");
        insert("udp", 8054, "");
        call("portmap", "ADD", "abc", "pod", &config).ok();
        assert_eq!(flows(), ["tcp 8053", "udp 8054"]);
        insert("udp", 8053, "");
        call("portmap", "DEL", "abc", "pod", &config).ok();
        assert_eq!(
            flows(),
            ["tcp 8053", "udp 8054"],
            "theirs keeps udp 8053 here"
        );
    });
}

#[test]
fn many_ports_of_every_protocol_are_one_transaction() {
    if !available("many_ports_of_every_protocol_are_one_transaction") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let mut mappings = vec![];
        for (protocol, first) in [("tcp", 9000), ("udp", 9000), ("sctp", 9000)] {
            for port in first..first + 100 {
                mappings
                    .push(json!({"hostPort": port, "containerPort": port, "protocol": protocol}));
            }
        }
        let config = config(&pod("pod", 2), json!(mappings));
        call("portmap", "ADD", "abc", "pod", &config).ok();
        call("portmap", "CHECK", "abc", "pod", &config).ok();
        let map = tool("nft -n list map inet twill-hostports ports6");
        for number in [6, 17, 132] {
            let wanted = format!("{number} . 9099 comment \"cbr0/abc/eth0\" : fd00:1:2::2 . 9099");
            assert!(map.contains(&wanted), "{map}");
        }
        call("portmap", "DEL", "abc", "pod", &config).ok();
        assert!(!nft().contains("elements"), "{}", nft());
    });
}

#[test]
fn many_pods_at_once_do_not_disturb_each_other() {
    if !available("many_pods_at_once_do_not_disturb_each_other") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let previous = pod("pod", 2);
        let at_once = |verb: &'static str| {
            std::thread::scope(|scope| {
                for number in 0..32u16 {
                    let config = config(&previous, tcp(8000 + number % 16, 80));
                    let container = format!("c{number}");
                    scope.spawn(move || call("portmap", verb, &container, "pod", &config).ok());
                }
            });
        };
        at_once("ADD");
        let map = tool("nft -n list map inet twill-hostports ports4");
        for port in 8000..8016 {
            assert_eq!(
                map.matches(&format!("6 . {port} comment")).count(),
                1,
                "{map}"
            );
        }
        let rules = tool("nft list chain inet twill-hostports postrouting");
        assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");
        at_once("DEL");
        assert!(!nft().contains("elements"), "{}", nft());
    });
}

/// `route_localnet` alone would let pods reach what the node offers on 127.0.0.1 only.
#[test]
fn pods_cannot_reach_the_nodes_loopback() {
    if !available("pods_cannot_reach_the_nodes_loopback") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let config = config(&pod("pod", 2), tcp(8080, 80));
        call("portmap", "ADD", "abc", "pod", &config).ok();
        let secret = TcpListener::bind("127.0.0.1:9999").unwrap();
        secret.set_nonblocking(true).unwrap();
        inside("pod", || {
            tool("ip addr del 127.0.0.1/8 dev lo");
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            tool("ip route add 127.0.0.1/32 via 10.1.2.1 src 10.1.2.2");
        });
        let try_it = || {
            inside("pod", || {
                let to = "127.0.0.1:9999".parse().unwrap();
                TcpStream::connect_timeout(&to, SILENCE).map(|_| ())
            })
        };
        let error = try_it().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        // And it is the guard that keeps them out.
        tool("nft flush chain inet twill-hostports guard");
        try_it().unwrap();
    });
}

#[test]
fn the_go_plugins_rules_are_deleted_with_the_pod() {
    if !available("the_go_plugins_rules_are_deleted_with_the_pod") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let config = config(&pod("pod", 2), tcp(8080, 80));
        for line in [
            "add table ip cni_hostport",
            "add chain ip cni_hostport hostports",
            "add chain ip cni_hostport masquerading",
            "add rule ip cni_hostport hostports tcp dport 8080 dnat to 10.1.2.2:80 comment \"abc\"",
            "add rule ip cni_hostport hostports tcp dport 8081 dnat to 10.1.2.3:80 comment \"def\"",
            "add rule ip cni_hostport masquerading ip saddr 10.1.2.2 accept comment \"abc\"",
        ] {
            tool(&format!("nft {line}"));
        }
        for program in ["iptables-nft", "ip6tables-nft"] {
            if !try_tool(&format!("{program} -t nat -N CNI-HOSTPORT-DNAT")).0 {
                eprintln!("{program} is not here: its rules are not tested");
                continue;
            }
            for chain in [
                "CNI-DN-64e75f641d11615844d68",
                "CNI-DN-56a6b8be880ae7b8cb301",
            ] {
                tool(&format!("{program} -t nat -N {chain}"));
                tool(&format!(
                    "{program} -t nat -A {chain} -p tcp --dport 8080 -j ACCEPT"
                ));
                tool(&format!(
                    "{program} -t nat -A CNI-HOSTPORT-DNAT -p tcp -m multiport --destination-ports 8080 -j {chain}"
                ));
            }
        }
        call("portmap", "DEL", "abc", "pod", &config).ok();
        let text = tool("nft list ruleset");
        assert!(!text.contains("\"abc\""), "{text}");
        assert!(text.contains("\"def\""), "{text}");
        assert!(!text.contains("CNI-DN-64e75f641d11615844d68"), "{text}");
        if text.contains("CNI-HOSTPORT-DNAT") {
            assert!(text.contains("jump CNI-DN-56a6b8be880ae7b8cb301"), "{text}");
        }
        call("portmap", "DEL", "abc", "pod", &config).ok();
    });
}

#[test]
fn what_fails_changes_nothing() {
    if !available("what_fails_changes_nothing") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let previous = pod("pod", 2);
        let bad = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "icmp"}]);
        let error = call("portmap", "ADD", "abc", "pod", &config(&previous, bad)).error();
        assert!(error.contains("portMappings[1].protocol"), "{error}");
        let mut unreachable = previous.clone();
        unreachable["ips"] = json!([{"address": "203.0.113.7/24"}]);
        let error = call(
            "portmap",
            "ADD",
            "abc",
            "pod",
            &config(&unreachable, tcp(8080, 80)),
        )
        .error();
        assert!(error.contains("203.0.113.7"), "{error}");
        let error = call(
            "portmap",
            "ADD",
            "abc",
            "gone",
            &config(&previous, tcp(8080, 80)),
        );
        assert_eq!(error.json()["code"], 3);
        let mut alone = config(&previous, tcp(8080, 80));
        alone["prevResult"] = Value::Null;
        let error = call("portmap", "ADD", "abc", "pod", &alone).error();
        assert_eq!(error, "must be called as chained plugin");
        assert_eq!(nft(), "");
        let own = "/proc/self/ns/net";
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", own),
        ];
        // The process's own namespace is not this thread's: a link to the thread's is.
        let thread = "/proc/thread-self/ns/net";
        let env = env.map(|(key, value)| (key, if value == own { thread } else { value }));
        let stdin = config(&previous, tcp(8080, 80)).to_string();
        let answer = run_plugin("portmap", &env, &stdin);
        assert_eq!(answer.json()["code"], 8, "{answer:?}");
        assert_eq!(nft(), "");
    });
}

#[test]
fn an_address_without_interface_counts_and_one_of_another_does_not() {
    if !available("an_address_without_interface_counts_and_one_of_another_does_not") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let mut previous = pod("pod", 2);
        previous["ips"] =
            json!([{"address": "10.1.2.1/24", "interface": 0}, {"address": "10.1.2.2/24"}]);
        call(
            "portmap",
            "ADD",
            "abc",
            "pod",
            &config(&previous, tcp(8080, 80)),
        )
        .ok();
        let text = nft();
        assert!(
            text.contains("10.1.2.2 . 80") && !text.contains("10.1.2.1 . 80"),
            "{text}"
        );
    });
}
