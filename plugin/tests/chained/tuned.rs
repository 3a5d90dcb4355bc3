//! Tuning: what is changed is noticed when it changes again, and put back.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::calls::go;
use crate::node::{call, inside, pod, tool, with_a_bridge};

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
    with_a_bridge("del_puts_back_what_add_changed", &["pod"], || {
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
    with_a_bridge("check_notices_every_change", &["pod"], || {
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
    with_a_bridge("a_failed_add_puts_back_what_it_had_done", &["pod"], || {
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
    with_a_bridge(
        "del_forgets_a_sandbox_that_is_gone_and_a_torn_backup",
        &["pod"],
        || {
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
        },
    );
}

const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";

/// A list, and whether `net.core.somaxconn` may be set with it, by the Go plugin and by twill.
const LISTS: &[(&str, &[u8], bool, bool)] = &[
    ("one that names it", b"^net.core.somaxconn$\n", true, true),
    (
        "one of several lines",
        b"^net.ipv4\n\n  ^net\\.core \n",
        true,
        true,
    ),
    ("lines of DOS", b"^net.core\r\n", true, true),
    (
        "a class of letters",
        b"^net[.]core[.][[:lower:]]+$",
        true,
        true,
    ),
    ("a part of the name", b"somax", true, true),
    ("an empty one", b"", false, false),
    ("one of empty lines", b"\n \n", false, false),
    ("one that names others", b"^net.ipv4\n", false, false),
    ("the key as a path", b"^net/core/somaxconn$\n", false, false),
    ("no expression", b"(\n", false, false),
    ("no expression first", b"(\n^net.core\n", false, false),
    ("no text", b"\xff\n", false, false),
    // Theirs looks no further than the line that allows; twill takes no list that is not whole.
    ("no expression last", b"^net.core\n(\n", true, false),
    // A key has no letters but ASCII's, and so the engine knows no more.
    (
        "Unicode's classes",
        b"^net[.]core[.]\\p{L}+$\n",
        true,
        false,
    ),
];

#[test]
fn the_operators_list_allows_what_it_allows_the_go_plugin() {
    let test = "the_operators_list_allows_what_it_allows_the_go_plugin";
    with_a_bridge(test, &["pod"], || {
        if !go::install(&[("tuning", "tuning")]) {
            return;
        }
        // Nobody else's list, and nobody else sees this one.
        tool("mount -t tmpfs tmpfs /etc");
        let previous = pod("pod", 2);
        let asks = |keys: Value| config(&previous, json!({ "sysctl": keys }));
        let one = asks(json!({"net.core.somaxconn": "600"}));
        let theirs = |config: &Value| go::run("tuning", "ADD", &[], config).exit == 0;
        let before = somaxconn();
        let reset = || {
            inside("pod", || {
                fs::write("/proc/sys/net/core/somaxconn", &before).unwrap()
            })
        };

        assert!(theirs(&one), "without a list");
        reset();
        call("tuning", "ADD", "abc", "pod", &one).ok();
        assert_eq!(somaxconn().trim(), "600");
        call("tuning", "DEL", "abc", "pod", &one).ok();
        reset();

        fs::create_dir_all("/etc/cni/tuning").unwrap();
        for (what, list, by_theirs, by_twill) in LISTS {
            fs::write(ALLOW_LIST, list).unwrap();
            assert_eq!(theirs(&one), *by_theirs, "{what}: the Go plugin");
            reset();
            let answer = call("tuning", "ADD", "abc", "pod", &one);
            assert_eq!(answer.exit == 0, *by_twill, "{what}: {answer:?}");
            match by_twill {
                true => assert_eq!(somaxconn().trim(), "600", "{what}"),
                false => {
                    let msg = answer.error();
                    let named = ["net.core.somaxconn", ALLOW_LIST];
                    assert!(named.iter().any(|name| msg.contains(name)), "{what}: {msg}");
                    assert_eq!(somaxconn(), before, "{what}");
                    assert!(!Path::new(BACKUP).exists(), "{what}");
                }
            }
            // A list that changed since ADD, or that is none, holds up neither.
            fs::write(ALLOW_LIST, "(").unwrap();
            call("tuning", "DEL", "abc", "pod", &one).ok();
            go::run("tuning", "DEL", &[], &one).ok();
            reset();
        }

        // One setting that is not allowed, and none is made.
        fs::write(ALLOW_LIST, "^net.core.somaxconn$").unwrap();
        let two = asks(json!({"net.core.somaxconn": "600", "net.ipv4.ip_forward": "1"}));
        assert!(!theirs(&two));
        let error = call("tuning", "ADD", "abc", "pod", &two).error();
        assert!(error.contains("net.ipv4.ip_forward"), "{error}");
        assert_eq!(somaxconn(), before);

        // What is there and cannot be read is no permission.
        fs::remove_file(ALLOW_LIST).unwrap();
        fs::create_dir(ALLOW_LIST).unwrap();
        assert!(!theirs(&one));
        let error = call("tuning", "ADD", "abc", "pod", &one).error();
        assert!(error.contains(ALLOW_LIST), "{error}");
        assert_eq!(somaxconn(), before);
    });
}
