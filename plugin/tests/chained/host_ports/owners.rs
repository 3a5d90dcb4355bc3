//! Host ports: who has a port: the newest, and nobody who failed.

use super::{ask, config, names, nft, serve_tcp, tcp, with};
use crate::node::{call, pod, run_plugin, tool, with_a_bridge};
use serde_json::{Value, json};

#[test]
fn the_newest_owner_has_the_port_and_an_older_one_takes_nothing_with_it() {
    with_a_bridge(
        "the_newest_owner_has_the_port_and_an_older_one_takes_nothing_with_it",
        &["pod", "other", "client"],
        || {
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
        },
    );
}

#[test]
fn a_port_changes_hands_between_configs_with_rules_of_their_own() {
    with_a_bridge(
        "a_port_changes_hands_between_configs_with_rules_of_their_own",
        &["pod", "other", "client"],
        || {
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
        },
    );
}

#[test]
fn many_ports_of_every_protocol_are_one_transaction() {
    with_a_bridge(
        "many_ports_of_every_protocol_are_one_transaction",
        &["pod"],
        || {
            let mut mappings = vec![];
            for (protocol, first) in [("tcp", 9000), ("udp", 9000), ("sctp", 9000)] {
                for port in first..first + 100 {
                    mappings.push(
                        json!({"hostPort": port, "containerPort": port, "protocol": protocol}),
                    );
                }
            }
            let config = config(&pod("pod", 2), json!(mappings));
            call("portmap", "ADD", "abc", "pod", &config).ok();
            call("portmap", "CHECK", "abc", "pod", &config).ok();
            let map = tool("nft -n list map inet twill-hostports ports6");
            for number in [6, 17, 132] {
                let wanted =
                    format!("{number} . 9099 comment \"cbr0/abc/eth0\" : fd00:1:2::2 . 9099");
                assert!(map.contains(&wanted), "{map}");
            }
            call("portmap", "DEL", "abc", "pod", &config).ok();
            assert!(!nft().contains("elements"), "{}", nft());
        },
    );
}

#[test]
fn many_pods_at_once_do_not_disturb_each_other() {
    with_a_bridge(
        "many_pods_at_once_do_not_disturb_each_other",
        &["pod"],
        || {
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
        },
    );
}

#[test]
fn what_fails_changes_nothing() {
    with_a_bridge("what_fails_changes_nothing", &["pod"], || {
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
fn a_port_that_a_failing_add_took_is_given_back() {
    with_a_bridge(
        "a_port_that_a_failing_add_took_is_given_back",
        &["pod", "other", "client"],
        || {
            let first = config(&pod("pod", 2), tcp(8080, 80));
            let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}]);
            let second = config(&pod("other", 3), ports);
            let elsewhere = with(second.clone(), "markMasqBit", json!(5));
            serve_tcp("pod", 80);
            call("portmap", "ADD", "abc", "pod", &first).ok();
            // What comes after the port was taken cannot be done.
            tool("mount -t tmpfs -o ro none /proc/sys/net/ipv4/conf/cni0");
            for second in [second, elsewhere] {
                let error = call("portmap", "ADD", "def", "other", &second).error();
                assert!(error.contains("route_localnet"), "{error}");
                assert_eq!(ask("client", "192.0.2.1:8080"), names("pod", "192.0.2.9"));
                assert!(!nft().contains("8081"), "{}", nft());
            }
            tool("umount /proc/sys/net/ipv4/conf/cni0");
            call("portmap", "CHECK", "abc", "pod", &first).ok();
        },
    );
}
