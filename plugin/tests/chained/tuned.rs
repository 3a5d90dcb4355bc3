//! Tuning: what is changed is noticed when it changes again, and put back.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::namespaces::{available, in_a_node_of_its_own};
use crate::node::{bridge, call, inside, pod, tool};

const BACKUP: &str = "/run/cni/tuning/abc_eth0.json";

fn config(previous: &Value, keys: Value) -> Value {
    let mut config =
        json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "tuning", "prevResult": previous});
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn everything() -> Value {
    json!({"mac": "02:00:00:00:00:21", "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 77,
        "sysctl": {"net.core.somaxconn": "600", "net.ipv4.tcp_rmem": "4096 8192 16384"}})
}

fn eth0() -> Value {
    let text = inside("pod", || tool("ip -d -j link show eth0"));
    let link: Value = serde_json::from_str(&text).unwrap();
    let of = |key: &str| link[0][key].clone();
    json!([
        of("mtu"),
        of("address"),
        of("txqlen"),
        of("promiscuity"),
        of("allmulti")
    ])
}

fn somaxconn() -> String {
    inside("pod", || {
        fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap()
    })
}

#[test]
fn del_puts_back_what_add_changed() {
    if !available("del_puts_back_what_add_changed") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let previous = pod("pod", 2);
        let config = config(&previous, everything());
        let before = eth0();
        let answer = call("tuning", "ADD", "abc", "pod", &config).ok().json();
        assert_eq!(answer["interfaces"][2]["mac"], "02:00:00:00:00:21");
        assert_eq!(eth0(), json!([1300, "02:00:00:00:00:21", 77, 1, 1]));
        assert_eq!(somaxconn().trim(), "600");
        assert_eq!(
            fs::read_to_string("/proc/sys/net/core/somaxconn")
                .unwrap()
                .trim(),
            "4096",
            "the node's own"
        );
        call("tuning", "CHECK", "abc", "pod", &config).ok();
        call("tuning", "DEL", "abc", "pod", &config).ok();
        assert_eq!(eth0(), before);
        assert!(!Path::new(BACKUP).exists());
        call("tuning", "DEL", "abc", "pod", &config).ok();
    });
}

#[test]
fn check_notices_every_change() {
    if !available("check_notices_every_change") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let config = config(&pod("pod", 2), everything());
        for change in [
            "ip link set eth0 mtu 1301",
            "ip link set eth0 address 02:00:00:00:00:22",
            "ip link set eth0 promisc off",
            "ip link set eth0 allmulticast off",
            "ip link set eth0 txqueuelen 78",
            "sysctl -qw net.core.somaxconn=601",
        ] {
            call("tuning", "ADD", "abc", "pod", &config).ok();
            call("tuning", "CHECK", "abc", "pod", &config).ok();
            inside("pod", || tool(change));
            let answer = call("tuning", "CHECK", "abc", "pod", &config);
            assert_eq!(answer.json()["code"], 103, "{change}: {answer:?}");
        }
    });
}

#[test]
fn a_failed_add_puts_back_what_it_had_done() {
    if !available("a_failed_add_puts_back_what_it_had_done") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let previous = pod("pod", 2);
        let before = (eth0(), somaxconn());
        // A group address: the parser takes it, the kernel does not.
        let mut keys = everything();
        keys["mac"] = json!("01:00:00:00:00:21");
        let error = call("tuning", "ADD", "abc", "pod", &config(&previous, keys)).error();
        assert!(error.starts_with("tuning: set link"), "{error}");
        assert_eq!((eth0(), somaxconn()), before);
        assert!(!Path::new(BACKUP).exists());
        let mut keys = everything();
        keys["sysctl"]["net.nosuch"] = json!("1");
        let error = call("tuning", "ADD", "abc", "pod", &config(&previous, keys)).error();
        assert!(error.contains("net/nosuch"), "{error}");
        assert_eq!((eth0(), somaxconn()), before);
    });
}

#[test]
fn del_forgets_a_sandbox_that_is_gone_and_a_torn_backup() {
    if !available("del_forgets_a_sandbox_that_is_gone_and_a_torn_backup") {
        return;
    }
    in_a_node_of_its_own(&["pod"], || {
        bridge();
        let config = config(&pod("pod", 2), everything());
        for (netns, torn) in [("", false), ("gone", false), ("pod", true)] {
            call("tuning", "ADD", "abc", "pod", &config).ok();
            assert!(Path::new(BACKUP).exists());
            if torn {
                fs::write(BACKUP, "{").unwrap();
            }
            call("tuning", "DEL", "abc", netns, &config).ok();
            assert!(!Path::new(BACKUP).exists());
        }
    });
}
