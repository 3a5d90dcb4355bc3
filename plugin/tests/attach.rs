//! What ADD, DEL, CHECK, STATUS and GC do to a node, looked at with `ip`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod namespaces;

use std::fs;
use std::process::Command;

use calls::{reserved, scratch_files, tool, write_subnet_env};
use serde_json::{Value, json};

/// The node of a test, with one sandbox.
struct Node;

fn on_a_node(test: &str, f: impl FnOnce(&Node) + Send) {
    if namespaces::available(test) {
        namespaces::in_a_node_of_its_own(&["pod", "pod2"], || {
            write_subnet_env();
            f(&Node);
        });
    }
}

fn conf() -> Value {
    json!({"cniVersion":"1.1.0","name":"cbr0","type":"twill"})
}

impl Node {
    fn run(&self, verb: &str, env: &[(&str, &str)], conf: &Value) -> (i32, Value) {
        let answer = calls::run("twill", verb, env, conf);
        (answer.exit, answer.json())
    }

    fn ok(&self, verb: &str, env: &[(&str, &str)], conf: &Value) -> Value {
        let (exit, document) = self.run(verb, env, conf);
        assert_eq!(exit, 0, "{verb}: {document}");
        document
    }

    fn code(&self, verb: &str, env: &[(&str, &str)], conf: &Value) -> u64 {
        let (exit, document) = self.run(verb, env, conf);
        assert_eq!(exit, 1, "{verb}: {document}");
        document["code"].as_u64().unwrap()
    }

    /// `ip ARGS`; in the sandbox with `-n pod` first.
    fn ip(&self, args: &str) -> String {
        tool(&format!("ip {args}"))
    }

    fn links(&self) -> Vec<Value> {
        serde_json::from_str(&self.ip("-d -j link show")).unwrap()
    }

    fn veths(&self) -> usize {
        let veth = |link: &&Value| link["linkinfo"]["info_kind"] == "veth";
        self.links().iter().filter(veth).count()
    }

    fn reserved(&self) -> Vec<String> {
        reserved("cbr0")
    }

    fn scratch(&self) -> usize {
        scratch_files()
    }

    fn assert_nothing_of_a_pod(&self) {
        assert_eq!(
            (self.veths(), self.reserved(), self.scratch()),
            (0, vec![], 0)
        );
        let inside = self.ip("-n pod -o link show");
        assert!(!inside.contains("eth0"), "{inside}");
    }
}

#[test]
fn add_makes_what_its_result_says_and_del_takes_it_away() {
    on_a_node(
        "add_makes_what_its_result_says_and_del_takes_it_away",
        |node| {
            let result = node.ok("ADD", &[], &conf());
            assert_eq!(
                result["ips"],
                json!([{"address":"10.244.1.2/24","gateway":"10.244.1.1","interface":2}])
            );
            let host = result["interfaces"][1]["name"].as_str().unwrap();
            let links = node.links();
            let find = |name: &str| links.iter().find(|link| link["ifname"] == name).unwrap();
            let (bridge, port) = (find("cni0"), find(host));
            assert_eq!(bridge["address"], result["interfaces"][0]["mac"]);
            assert_eq!(port["address"], result["interfaces"][1]["mac"]);
            assert_eq!(port["ifalias"], "twill:cbr0/abc/eth0");
            assert_eq!(
                (&port["master"], &port["mtu"]),
                (&json!("cni0"), &json!(1450))
            );
            assert_eq!(port["linkinfo"]["info_slave_data"]["hairpin"], true);
            assert!(
                node.ip("-4 -o addr show cni0")
                    .contains("10.244.1.1/24 brd 10.244.1.255")
            );
            let inside: Value = serde_json::from_str(&node.ip("-n pod -j addr show eth0")).unwrap();
            assert_eq!(inside[0]["address"], result["interfaces"][2]["mac"]);
            assert_eq!(
                (&inside[0]["operstate"], &inside[0]["mtu"]),
                (&json!("UP"), &json!(1450))
            );
            let routes = node.ip("-n pod -4 route");
            assert!(
                routes.contains("default via 10.244.1.1 dev eth0"),
                "{routes}"
            );
            assert!(
                routes.contains("10.244.0.0/16 via 10.244.1.1 dev eth0"),
                "{routes}"
            );
            assert_eq!(
                fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
                "1\n"
            );

            let mut checked = conf();
            checked["prevResult"] = result;
            node.ok("CHECK", &[], &checked);
            for _ in 0..2 {
                node.ok("DEL", &[], &conf());
                node.assert_nothing_of_a_pod();
            }
        },
    );
}

#[test]
fn both_families_are_attached_without_waiting_for_duplicate_address_detection() {
    on_a_node(
        "both_families_are_attached_without_waiting_for_duplicate_address_detection",
        |node| {
            let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
            FLANNEL_IPV6_NETWORK=fd00:244::/56\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\n\
            FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
            fs::write("/run/flannel/subnet.env", env).unwrap();
            let result = node.ok("ADD", &[], &conf());
            assert_eq!(result["ips"][1]["address"], "fd00:244:0:1::2/64");
            for place in ["-n pod -6 -o addr show eth0", "-6 -o addr show cni0"] {
                let shown = node.ip(place);
                let ours = shown
                    .lines()
                    .find(|line| line.contains("fd00:244:0:1::"))
                    .unwrap();
                assert!(!ours.contains("tentative"), "{ours}");
            }
            assert!(
                node.ip("-n pod -6 route")
                    .contains("default via fd00:244:0:1::1 dev eth0")
            );
            let mut checked = conf();
            checked["prevResult"] = result;
            node.ok("CHECK", &[], &checked);
            node.ok("DEL", &[], &conf());
            node.assert_nothing_of_a_pod();
        },
    );
}

#[test]
fn the_nodes_own_namespace_is_refused_before_any_deed() {
    on_a_node(
        "the_nodes_own_namespace_is_refused_before_any_deed",
        |node| {
            let own = [("CNI_NETNS", "/proc/thread-self/ns/net")];
            assert_eq!(node.code("ADD", &own, &conf()), 8);
            assert!(!node.ip("-o link show").contains("cni0"));
            node.assert_nothing_of_a_pod();
            node.ip("link add eth0 type veth peer name other");
            assert_eq!(node.code("DEL", &own, &conf()), 8);
            assert!(
                node.ip("-o link show").contains("eth0"),
                "the node's own eth0 stays"
            );
        },
    );
}

#[test]
fn a_sandbox_that_is_not_there_needs_no_del() {
    on_a_node("a_sandbox_that_is_not_there_needs_no_del", |node| {
        let gone = [("CNI_NETNS", "/run/netns/gone")];
        assert_eq!(node.code("ADD", &gone, &conf()), 3);
        node.assert_nothing_of_a_pod();
        fs::write("/run/netns/gone", "").unwrap();
        assert_eq!(node.code("ADD", &gone, &conf()), 4);
        node.ok("DEL", &gone, &conf());
    });
}

#[test]
fn an_add_that_fails_undoes_itself() {
    on_a_node("an_add_that_fails_undoes_itself", |node| {
        let mut broken = conf();
        // The kernel refuses it, when everything else is done.
        broken["ipam"] = json!({"routes":[{"dst":"10.53.0.0/16","gw":"192.0.2.1"}]});
        assert_eq!(node.code("ADD", &[], &broken), 100);
        assert_eq!((node.veths(), node.reserved()), (0, vec![]));
        node.ok("DEL", &[], &broken);
        node.assert_nothing_of_a_pod();
    });
}

#[test]
fn a_second_add_is_refused_and_its_del_leaves_the_first_ones_interface() {
    on_a_node(
        "a_second_add_is_refused_and_its_del_leaves_the_first_ones_interface",
        |node| {
            node.ok("ADD", &[], &conf());
            let other = [("CNI_CONTAINERID", "def")];
            assert_eq!(node.code("ADD", &[], &conf()), 101);
            assert_eq!(node.code("ADD", &other, &conf()), 101);
            assert_eq!(node.reserved(), ["10.244.1.2"]);
            node.ok("DEL", &other, &conf());
            assert_eq!(node.veths(), 1);
            node.ok("DEL", &[], &conf());
            node.assert_nothing_of_a_pod();
        },
    );
}

#[test]
fn del_needs_neither_sandbox_nor_subnet_nor_valid_config() {
    on_a_node(
        "del_needs_neither_sandbox_nor_subnet_nor_valid_config",
        |node| {
            node.ok("ADD", &[], &conf());
            fs::remove_file("/run/flannel/subnet.env").unwrap();
            let mut broken = conf();
            broken["delegate"] = json!("x");
            node.ok("DEL", &[("CNI_NETNS", ""), ("CNI_ARGS", "x")], &broken);
            node.assert_nothing_of_a_pod();
        },
    );
}

#[test]
fn del_clears_what_a_killed_add_left_without_an_alias() {
    on_a_node(
        "del_clears_what_a_killed_add_left_without_an_alias",
        |node| {
            let result = node.ok("ADD", &[], &conf());
            let host = result["interfaces"][1]["name"].as_str().unwrap();
            let out = Command::new("ip")
                .args(["link", "set", host, "alias", ""])
                .status()
                .unwrap();
            assert!(out.success());
            fs::remove_dir_all("/var/lib/cni/flannel").unwrap();
            node.ok("DEL", &[("CNI_NETNS", "")], &conf());
            node.assert_nothing_of_a_pod();
        },
    );
}

#[test]
fn a_device_that_only_has_the_computed_name_is_not_deleted() {
    on_a_node(
        "a_device_that_only_has_the_computed_name_is_not_deleted",
        |node| {
            let result = node.ok("ADD", &[], &conf());
            let host = result["interfaces"][1]["name"].as_str().unwrap();
            node.ok("DEL", &[], &conf());
            node.ip(&format!("link add {host} type veth peer name other"));
            node.ok("DEL", &[], &conf());
            assert_eq!(node.veths(), 2);
            // And ADD takes the next name.
            let result = node.ok("ADD", &[], &conf());
            assert_ne!(result["interfaces"][1]["name"], host);
            node.ok("DEL", &[("CNI_NETNS", "")], &conf());
            assert_eq!(node.veths(), 2);
        },
    );
}

#[test]
fn del_takes_away_what_the_go_plugins_made_and_nobody_elses() {
    on_a_node(
        "del_takes_away_what_the_go_plugins_made_and_nobody_elses",
        |node| {
            fs::create_dir_all("/var/lib/cni/networks/cbr0").unwrap();
            fs::create_dir_all("/var/lib/cni/flannel").unwrap();
            let reserve = |owner: &str| {
                fs::write(
                    "/var/lib/cni/networks/cbr0/10.244.1.9",
                    format!("{owner}\r\neth0"),
                )
                .unwrap();
                fs::write(
                    format!("/var/lib/cni/flannel/{owner}"),
                    r#"{"name":"cbr0"}"#,
                )
                .unwrap();
            };
            node.ip("link add veth12345678 type veth peer name eth0 netns pod");
            node.ip("-n pod addr add 10.244.1.9/24 dev eth0");
            reserve("def");
            node.ok("DEL", &[], &conf());
            assert_eq!(
                (node.veths(), node.reserved().len()),
                (1, 1),
                "it is another container's"
            );
            node.ok("DEL", &[("CNI_CONTAINERID", "def")], &conf());
            node.assert_nothing_of_a_pod();
        },
    );
}

#[test]
fn check_names_what_is_missing() {
    on_a_node("check_names_what_is_missing", |node| {
        let result = node.ok("ADD", &[], &conf());
        let host = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
        let mut checked = conf();
        checked["prevResult"] = result;
        let steps = [
            (
                "-n pod route del 10.244.0.0/16".to_owned(),
                "10.244.0.0/16",
                "-n pod route add 10.244.0.0/16 via 10.244.1.1".to_owned(),
            ),
            (
                "-n pod route del default".into(),
                "0.0.0.0/0",
                "-n pod route add default via 10.244.1.1".into(),
            ),
            (
                format!("link set {host} nomaster"),
                "cni0",
                format!("link set {host} master cni0"),
            ),
            (
                "-n pod addr del 10.244.1.2/24 dev eth0".into(),
                "10.244.1.2/24",
                String::new(),
            ),
        ];
        for (harm, word, repair) in steps {
            node.ip(&harm);
            let (exit, error) = node.run("CHECK", &[], &checked);
            assert_eq!((exit, &error["code"]), (1, &json!(103)), "{harm}: {error}");
            assert!(
                error["msg"].as_str().unwrap().contains(word),
                "{harm}: {error}"
            );
            if !repair.is_empty() {
                node.ip(&repair);
                node.ok("CHECK", &[], &checked);
            }
        }
        fs::remove_file("/var/lib/cni/networks/cbr0/10.244.1.2").unwrap();
        let (_, error) = node.run("CHECK", &[], &checked);
        assert!(
            error["msg"]
                .as_str()
                .unwrap()
                .contains("Failed to find address"),
            "{error}"
        );
    });
}

#[test]
fn status_says_50_without_a_subnet_and_without_a_free_address() {
    on_a_node(
        "status_says_50_without_a_subnet_and_without_a_free_address",
        |node| {
            node.ok("STATUS", &[], &conf());
            let small =
                include_str!("../../conf/subnet.env").replace("10.244.1.1/24", "10.244.1.1/30");
            fs::write("/run/flannel/subnet.env", small).unwrap();
            node.ok("ADD", &[], &conf());
            assert_eq!(node.code("STATUS", &[], &conf()), 50);
            let other = [("CNI_CONTAINERID", "def"), ("CNI_NETNS", "/run/netns/pod2")];
            assert_eq!(node.code("ADD", &other, &conf()), 11);
            fs::write("/run/flannel/subnet.env", "FLANNEL_NETWORK=10.24").unwrap();
            assert_eq!(node.code("STATUS", &[], &conf()), 50);
            fs::remove_file("/run/flannel/subnet.env").unwrap();
            assert_eq!(node.code("STATUS", &[], &conf()), 50);
            assert_eq!(node.code("ADD", &other, &conf()), 11);
        },
    );
}

#[test]
fn gc_takes_away_what_is_not_listed_and_leaves_other_networks() {
    on_a_node(
        "gc_takes_away_what_is_not_listed_and_leaves_other_networks",
        |node| {
            node.ok("ADD", &[], &conf());
            let other = [("CNI_CONTAINERID", "def"), ("CNI_NETNS", "/run/netns/pod2")];
            node.ok("ADD", &other, &conf());
            let gc = |network: &str, valid: Value| {
                let mut gc = conf();
                gc["name"] = json!(network);
                gc["cni.dev/valid-attachments"] = valid;
                node.ok("GC", &[], &gc);
            };
            node.ok("GC", &[], &conf());
            gc("another", json!([]));
            assert_eq!(
                (node.veths(), node.scratch()),
                (2, 2),
                "no list, and another network"
            );
            gc("cbr0", json!([{"containerID":"def","ifname":"eth0"}]));
            assert_eq!(
                (node.veths(), node.reserved(), node.scratch()),
                (1, vec!["10.244.1.3".into()], 1)
            );
            gc("cbr0", Value::Null);
            node.assert_nothing_of_a_pod();
            assert!(
                node.ip("-o link show").contains("cni0"),
                "the bridge is everybody's"
            );
        },
    );
}

#[test]
fn a_bridge_with_another_address_is_refused_unless_forced() {
    on_a_node(
        "a_bridge_with_another_address_is_refused_unless_forced",
        |node| {
            node.ip("link add cni0 type bridge");
            node.ip("addr add 192.168.9.1/24 dev cni0");
            assert_eq!(node.code("ADD", &[], &conf()), 7);
            node.ok("DEL", &[], &conf());
            node.assert_nothing_of_a_pod();
            let mut forced = conf();
            forced["forceAddress"] = json!(true);
            node.ok("ADD", &[], &forced);
            let addresses = node.ip("-4 -o addr show cni0");
            assert!(
                addresses.contains("10.244.1.1/24") && !addresses.contains("192.168.9.1"),
                "{addresses}"
            );
        },
    );
}

#[test]
fn without_the_daemons_masquerading_the_pods_is_masqueraded_by_rules_of_its_own() {
    on_a_node(
        "without_the_daemons_masquerading_the_pods_is_masqueraded_by_rules_of_its_own",
        |node| {
            let nft = || {
                let out = Command::new("nft")
                    .args(["list", "ruleset"])
                    .output()
                    .unwrap();
                assert!(out.status.success(), "{out:?}");
                String::from_utf8(out.stdout).unwrap()
            };
            let env = include_str!("../../conf/subnet.env").replace("IPMASQ=true", "IPMASQ=false");
            fs::write("/run/flannel/subnet.env", env).unwrap();
            let other = [("CNI_CONTAINERID", "def"), ("CNI_NETNS", "/run/netns/pod2")];
            node.ok("ADD", &[], &conf());
            node.ok("ADD", &other, &conf());
            // As recorded of the Go plugins, but for the comments of the table and the chain.
            assert_eq!(
                nft(),
                r#"table inet cni_plugins_masquerade {
	chain masq_checks {
		ip saddr 10.244.1.2 ip daddr != 10.244.1.0/24 masquerade comment "cb6e746fae1a4d6c-e65086f8a75535c6, net: cbr0, if: eth0, id: abc"
		ip saddr 10.244.1.3 ip daddr != 10.244.1.0/24 masquerade comment "cb6e746fae1a4d6c-0c367c7c160914f7, net: cbr0, if: eth0, id: def"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip daddr 224.0.0.0/4 return
		ip6 daddr ff00::/8 return
		goto masq_checks
	}
}
"#
            );
            node.ok("DEL", &[("CNI_NETNS", "")], &conf());
            assert!(
                !nft().contains("id: abc") && nft().contains("id: def"),
                "{}",
                nft()
            );
            let mut gc = conf();
            gc["cni.dev/valid-attachments"] = json!([]);
            node.ok("GC", &[], &gc);
            assert!(!nft().contains("id: def"), "{}", nft());
        },
    );
}
