//! Host ports: which packets reach the pod, from where, and with which source.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};

use super::{SILENCE, ask, config, names, nft, serve_tcp, tcp, with};
use crate::node::{call, inside, pod, tool, with_a_bridge};
use serde_json::json;

#[test]
fn a_port_of_the_node_reaches_the_pod_from_everywhere() {
    with_a_bridge(
        "a_port_of_the_node_reaches_the_pod_from_everywhere",
        &["pod", "other", "client"],
        || {
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
        },
    );
}

#[test]
fn what_is_not_for_the_node_is_left_alone() {
    with_a_bridge(
        "what_is_not_for_the_node_is_left_alone",
        &["pod", "other", "client"],
        || {
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
        },
    );
}

#[test]
fn sources_are_masqueraded_as_the_config_says() {
    with_a_bridge(
        "sources_are_masqueraded_as_the_config_says",
        &["pod", "client"],
        || {
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
        },
    );
}

#[test]
fn a_host_address_is_the_only_one() {
    with_a_bridge(
        "a_host_address_is_the_only_one",
        &["pod", "other", "client"],
        || {
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
        },
    );
}

/// `route_localnet` alone would let pods reach what the node offers on 127.0.0.1 only.
#[test]
fn pods_cannot_reach_the_nodes_loopback() {
    with_a_bridge("pods_cannot_reach_the_nodes_loopback", &["pod"], || {
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
fn an_address_without_interface_counts_and_one_of_another_does_not() {
    with_a_bridge(
        "an_address_without_interface_counts_and_one_of_another_does_not",
        &["pod"],
        || {
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
        },
    );
}
