//! Host ports: CHECK, GC, and what the Go plugin left.

use super::{ask, config, names, nft, serve_tcp, tcp};
use crate::node::{call, pod, tool, try_tool, with_a_bridge};
use serde_json::{Value, json};

#[test]
fn check_notices_every_loss_and_add_repairs_the_rules() {
    with_a_bridge(
        "check_notices_every_loss_and_add_repairs_the_rules",
        &["pod"],
        || {
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
        },
    );
}

#[test]
fn gc_takes_away_what_no_valid_attachment_of_the_network_owns() {
    with_a_bridge(
        "gc_takes_away_what_no_valid_attachment_of_the_network_owns",
        &["pod"],
        || {
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
        },
    );
}

#[test]
fn the_go_plugins_rules_are_deleted_with_the_pod() {
    with_a_bridge(
        "the_go_plugins_rules_are_deleted_with_the_pod",
        &["pod"],
        || {
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
        },
    );
}
