//! What a bridge's own options do to a node, looked at with `ip`, `bridge` and `nft`; as type
//! `bridge` and through `delegate`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod namespaces;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

/// The node of a test, with two sandboxes: `pod` of container `abc`, `pod2` of `def`.
struct Node {
    /// The program's name, and so the plugin that it is.
    plugin: &'static str,
}

const FIRST: &str = "abc";
const SECOND: &str = "def";

fn on_a_node(test: &str, f: impl Fn(&Node) + Sync) {
    if namespaces::available(test) {
        namespaces::in_a_node_of_its_own(&["pod", "pod2"], || {
            fs::create_dir("/run/flannel").unwrap();
            fs::write(
                "/run/flannel/subnet.env",
                include_str!("../../conf/subnet.env"),
            )
            .unwrap();
            f(&Node { plugin: "bridge" });
        });
    }
}

/// Does the same for a network of type `bridge` and for one of type `flannel` that delegates. Both
/// have the subnet of `conf/subnet.env`.
fn as_bridge_and_through_delegate(test: &str, f: impl Fn(&Node) + Sync) {
    on_a_node(test, |node| {
        f(node);
        let out = Command::new("ip").args(["link", "del", "cni0"]).output();
        out.unwrap();
        fs::remove_dir_all("/var/lib/cni").unwrap();
        f(&Node { plugin: "flannel" });
    });
}

impl Node {
    /// A network with these options of the bridge's.
    fn conf(&self, options: Value) -> Value {
        let mut conf = json!({"cniVersion": "1.0.0", "name": "net", "type": self.plugin});
        match self.plugin {
            "flannel" => conf["delegate"] = options,
            _ => {
                conf["ipam"] = json!({"type":"host-local","ranges":[[{"subnet":"10.244.1.0/24"}]]});
                for (key, value) in options.as_object().unwrap() {
                    conf[key] = value.clone();
                }
            }
        }
        conf
    }

    fn run(&self, verb: &str, container: &str, conf: &Value) -> (i32, Value) {
        let sandbox = match container {
            SECOND => "/run/netns/pod2",
            _ => "/run/netns/pod",
        };
        let vars = BTreeMap::from([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", sandbox),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ]);
        let (mut stdout, mut stderr) = (vec![], vec![]);
        let exit = twill::run(twill::Process {
            program: &OsString::from(format!("/opt/cni/bin/{}", self.plugin)),
            env: &|name| vars.get(name).map(OsString::from),
            stdin: &mut conf.to_string().as_bytes(),
            stdout: &mut stdout,
            stderr: &mut stderr,
        });
        let document = match stdout.as_slice() {
            [] => Value::Null,
            bytes => serde_json::from_slice(bytes).expect("one JSON document"),
        };
        (exit, document)
    }

    fn ok(&self, verb: &str, container: &str, conf: &Value) -> Value {
        let (exit, document) = self.run(verb, container, conf);
        assert_eq!(exit, 0, "{verb} {conf}: {document}");
        document
    }

    /// The code and the text of a refusal.
    fn refused(&self, verb: &str, container: &str, conf: &Value) -> (u64, String) {
        let (exit, document) = self.run(verb, container, conf);
        assert_eq!(exit, 1, "{verb} {conf}: {document}");
        let text = document["msg"].as_str().unwrap().to_owned();
        (document["code"].as_u64().unwrap(), text)
    }

    /// CHECK with what ADD said.
    fn check(&self, container: &str, conf: &Value, result: &Value) -> (i32, Value) {
        let mut conf = conf.clone();
        conf["prevResult"] = result.clone();
        self.run("CHECK", container, &conf)
    }
}

/// What a command prints; a child of this thread is in this thread's namespace.
fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let out = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(out.status.success(), "{command}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn json_of(command: &str) -> Value {
    serde_json::from_str(&run(command)).unwrap()
}

fn link(command: &str, name: &str) -> Value {
    let links = json_of(command);
    let found = links.as_array().unwrap().iter();
    let mut found = found.filter(|link| link["ifname"] == name);
    found
        .next()
        .unwrap_or_else(|| panic!("{name} in {links}"))
        .clone()
}

fn succeeds(command: &str) -> bool {
    let mut words = command.split(' ');
    let out = Command::new(words.next().unwrap()).args(words).output();
    out.unwrap().status.success()
}

fn mtu(name: &str) -> u64 {
    link("ip -j link show", name)["mtu"].as_u64().unwrap()
}

fn addresses(name: &str) -> String {
    run(&format!("ip -o addr show dev {name} scope global"))
}

#[test]
fn every_option_of_the_port_and_the_bridge_is_what_the_tools_show() {
    as_bridge_and_through_delegate(
        "every_option_of_the_port_and_the_bridge_is_what_the_tools_show",
        |node| {
            let conf = node.conf(
                json!({"isGateway":true,"hairpinMode":true,"portIsolation":true,
                "mtu":1400}),
            );
            let result = node.ok("ADD", FIRST, &conf);
            let host = result["interfaces"][1]["name"].as_str().unwrap();
            let port = link("ip -j -d link show", host);
            let settings = &port["linkinfo"]["info_slave_data"];
            assert_eq!(
                (&settings["hairpin"], &settings["isolated"]),
                (&json!(true), &json!(true))
            );
            assert_eq!(
                (&port["mtu"], &port["master"]),
                (&json!(1400), &json!("cni0"))
            );
            assert_eq!(link("ip -j -n pod link show", "eth0")["mtu"], 1400);
            assert_eq!(mtu("cni0"), 1400);
            assert!(addresses("cni0").contains("10.244.1.1/24"));
            node.ok("DEL", FIRST, &conf);

            let conf = node.conf(json!({"promiscMode":true}));
            let result = node.ok("ADD", FIRST, &conf);
            let flags = link("ip -j link show", "cni0")["flags"].to_string();
            assert!(flags.contains("PROMISC"), "{flags}");
            let host = result["interfaces"][1]["name"].as_str().unwrap();
            let port = link("ip -j -d link show", host);
            let settings = &port["linkinfo"]["info_slave_data"];
            assert_eq!(
                (&settings["hairpin"], &settings["isolated"]),
                (&json!(false), &json!(false))
            );
            node.ok("DEL", FIRST, &conf);
        },
    );
}

#[test]
fn a_pods_mac_comes_from_the_runtime_and_its_dns_from_the_config() {
    as_bridge_and_through_delegate(
        "a_pods_mac_comes_from_the_runtime_and_its_dns_from_the_config",
        |node| {
            let dns = json!({"nameservers":["10.96.0.10"],"search":["cluster.local"]});
            let mut conf = node.conf(json!({"dns": dns}));
            conf["runtimeConfig"] = json!({"mac":"02:00:00:00:00:03"});
            let result = node.ok("ADD", FIRST, &conf);
            assert_eq!(result["dns"], dns);
            let pod = link("ip -j -n pod link show", "eth0");
            assert_eq!(pod["address"], "02:00:00:00:00:03");
            assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:03");
            node.ok("DEL", FIRST, &conf);
        },
    );
}

#[test]
fn a_pod_that_is_to_be_left_down_is() {
    on_a_node("a_pod_that_is_to_be_left_down_is", |node| {
        let mut conf = node.conf(json!({"disableContainerInterface":true}));
        let (code, text) = node.refused("ADD", FIRST, &conf);
        assert_eq!(code, 7, "{text}");
        conf["ipam"] = json!({});
        node.ok("ADD", FIRST, &conf);
        let flags = link("ip -j -n pod link show", "eth0")["flags"].to_string();
        assert!(!flags.contains("UP"), "{flags}");
        node.ok("DEL", FIRST, &conf);
    });
}

#[test]
fn duplicates_are_looked_for_where_that_is_asked() {
    on_a_node("duplicates_are_looked_for_where_that_is_asked", |node| {
        let mut conf = node.conf(json!({"enabledad":true}));
        conf["ipam"]["ranges"] = json!([[{"subnet":"fd00:1:2::/64"}]]);
        node.ok("ADD", FIRST, &conf);
        let show = |key: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/eth0/{key}");
            run(&format!("ip netns exec pod cat {path}"))
                .trim()
                .to_owned()
        };
        assert_eq!(
            (show("accept_dad"), show("enhanced_dad")),
            ("1".into(), "1".into())
        );
        let shown = run("ip -n pod -6 -o addr show dev eth0 scope global");
        assert!(
            !shown.contains("nodad") && !shown.contains("tentative"),
            "{shown}"
        );
        node.ok("DEL", FIRST, &conf);
    });
}

#[test]
fn routes_have_the_attributes_that_were_asked_for() {
    as_bridge_and_through_delegate("routes_have_the_attributes_that_were_asked_for", |node| {
        let mut conf = node.conf(json!({"isDefaultGateway":true}));
        let ipam = conf.get("ipam").cloned().unwrap_or(json!({}));
        conf["ipam"] = ipam;
        conf["ipam"]["routes"] = json!([
            {"dst":"10.96.0.0/12","mtu":1300,"advmss":1200,"priority":7},
            {"dst":"10.97.0.0/16","table":100},
            {"dst":"10.98.0.5/32","gw":"10.244.1.9","scope":0},
        ]);
        let result = node.ok("ADD", FIRST, &conf);
        assert_eq!(result["routes"][0]["mtu"], 1300, "{result}");
        let main = run("ip -n pod route show");
        for words in [
            "10.96.0.0/12 via 10.244.1.1 dev eth0 metric 7 mtu 1300 advmss 1200",
            "10.98.0.5 via 10.244.1.9 dev eth0",
            "default via 10.244.1.1 dev eth0",
        ] {
            assert!(main.contains(words), "{words} in {main}");
        }
        let other = run("ip -n pod route show table 100");
        assert!(other.contains("10.97.0.0/16 via 10.244.1.1"), "{other}");
        node.ok("DEL", FIRST, &conf);
    });
}

#[test]
fn a_bridge_of_the_wrong_mtu_follows_its_smallest_port() {
    on_a_node(
        "a_bridge_of_the_wrong_mtu_follows_its_smallest_port",
        |node| {
            let of = |mtu: u64| node.conf(json!({"mtu": mtu}));
            run("ip link add cni0 type bridge");
            // Set by hand, the kernel does not see to it any more.
            run("ip link set cni0 mtu 1500");
            node.ok("ADD", FIRST, &of(1400));
            assert_eq!(mtu("cni0"), 1400, "the pod could not take more");
            node.ok("ADD", SECOND, &of(1450));
            assert_eq!(mtu("cni0"), 1400, "the first pod cannot take more");
            node.ok("DEL", FIRST, &of(1400));
            node.ok("DEL", SECOND, &of(1450));
            run("ip link set cni0 mtu 1400");
            node.ok("ADD", SECOND, &of(1450));
            assert_eq!(mtu("cni0"), 1450, "nothing smaller is left");
            let (code, text) = node.refused("ADD", FIRST, &node.conf(json!({"mtu": 65536})));
            assert!(code == 7 && text.contains("mtu 65536"), "{text}");
            run("ip addr add fd00:9::1/64 dev cni0");
            let (code, text) = node.refused("ADD", FIRST, &of(1200));
            assert!(code == 7 && text.contains("fd00:9::1/64"), "{text}");
            assert!(addresses("cni0").contains("fd00:9::1/64"));
        },
    );
}

#[test]
fn the_address_of_a_former_subnet_gives_way_when_its_pods_are_gone() {
    on_a_node(
        "the_address_of_a_former_subnet_gives_way_when_its_pods_are_gone",
        |_| {
            let node = Node { plugin: "flannel" };
            let conf = node.conf(json!({}));
            node.ok("ADD", FIRST, &conf);
            let env = include_str!("../../conf/subnet.env");
            let moved = env.replace("SUBNET=10.244.1.1/24", "SUBNET=10.244.7.1/24");
            assert_ne!(moved, env);
            fs::write("/run/flannel/subnet.env", moved).unwrap();
            let (code, text) = node.refused("ADD", SECOND, &conf);
            assert!(code == 7 && text.contains("10.244.1.1/24"), "{text}");
            assert!(
                text.contains("10.244.7.1/24") && text.contains("forceAddress"),
                "{text}"
            );
            assert!(
                addresses("cni0").contains("10.244.1.1/24"),
                "the first pod's"
            );

            node.ok("DEL", FIRST, &conf);
            node.ok("ADD", SECOND, &conf);
            let now = addresses("cni0");
            assert!(
                now.contains("10.244.7.1/24") && !now.contains("10.244.1.1"),
                "{now}"
            );
        },
    );
}

/// This kernel may not filter VLANs; where it does the promise is the virtual machine's to keep.
#[test]
fn without_vlan_filtering_a_vlan_is_refused_and_nothing_stays() {
    as_bridge_and_through_delegate(
        "without_vlan_filtering_a_vlan_is_refused_and_nothing_stays",
        |node| {
            if succeeds("ip link add probe type bridge vlan_filtering 1") {
                run("ip link del probe");
                eprintln!("this kernel filters VLANs: nothing to see");
                fs::create_dir_all("/var/lib/cni").unwrap();
                return;
            }
            for options in [
                json!({"vlan":100}),
                json!({"vlan":100,"isGateway":true}),
                json!({"vlanTrunk":[{"minID":5,"maxID":9}]}),
                json!({"vlanTrunk":[]}),
            ] {
                let conf = node.conf(options);
                let (code, text) = node.refused("ADD", FIRST, &conf);
                assert_eq!(code, 2, "{text}");
                assert!(text.contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{text}");
                assert!(!succeeds("ip link show cni0"), "a bridge is left");
                run("ip link add cni0 type bridge");
                let (code, text) = node.refused("ADD", FIRST, &conf);
                assert!(code == 2 && text.contains("VLAN"), "{text}");
                run("ip link del cni0");
                let held = fs::read_dir("/var/lib/cni/networks/net").unwrap();
                let held = held.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                let held: Vec<String> = held.filter(|name| name.starts_with("10.")).collect();
                assert!(held.is_empty(), "{held:?}");
                assert!(!run("ip -n pod link show").contains("eth0"));
                node.ok("DEL", FIRST, &conf);
            }
            run("ip link add cni0 type bridge");
        },
    );
}

#[test]
fn a_bridge_with_ports_that_filters_no_vlans_is_left_as_it_is() {
    on_a_node(
        "a_bridge_with_ports_that_filters_no_vlans_is_left_as_it_is",
        |node| {
            let plain = node.conf(json!({}));
            node.ok("ADD", FIRST, &plain);
            let (code, text) = node.refused("ADD", SECOND, &node.conf(json!({"vlan":100})));
            assert!(code == 7 && text.contains("vlan_filtering 1"), "{text}");
            assert!(!run("ip -n pod2 link show").contains("eth0"));
        },
    );
}

#[test]
fn a_pod_cannot_send_by_another_mac_and_its_rules_go_with_it() {
    as_bridge_and_through_delegate(
        "a_pod_cannot_send_by_another_mac_and_its_rules_go_with_it",
        |node| {
            let conf = node.conf(json!({"isGateway":true,"macspoofchk":true}));
            let ruleset = || run("nft -s list ruleset");
            let result = node.ok("ADD", FIRST, &conf);
            let other = node.ok("ADD", SECOND, &conf);
            let mac = result["interfaces"][2]["mac"].as_str().unwrap();
            let host = result["interfaces"][1]["name"].as_str().unwrap();
            let other_host = other["interfaces"][1]["name"].as_str().unwrap();
            let rules = ruleset();
            for line in [
                "type filter hook prerouting priority dstnat; policy accept;".to_owned(),
                format!(
                    "iifname \"{host}\" jump cni-br-iface-abc-eth0 comment \"macspoofchk-abc-eth0\""
                ),
                "jump cni-br-iface-abc-eth0-mac comment \"macspoofchk-abc-eth0, net: net\"".into(),
                format!("ether saddr {mac} return comment \"macspoofchk-abc-eth0\""),
                "drop comment \"macspoofchk-abc-eth0\"".into(),
                format!(
                    "iifname \"{other_host}\" jump cni-br-iface-def-eth0 comment \"macspoofchk-def-eth0\""
                ),
            ] {
                assert!(rules.contains(&line), "{line} in {rules}");
            }

            let ping = || succeeds("ip netns exec pod ping -c 1 -W 1 10.244.1.1");
            assert!(ping(), "by its own");
            run("ip -n pod link set eth0 address 02:00:00:00:00:66");
            run("ip -n pod neigh flush dev eth0");
            assert!(!ping(), "by another");
            run(&format!("ip -n pod link set eth0 address {mac}"));
            assert!(ping(), "by its own again");

            let (exit, document) = node.check(FIRST, &conf, &result);
            assert_eq!(exit, 0, "{document}");
            run("nft flush chain bridge nat cni-br-iface-abc-eth0-mac");
            let (exit, document) = node.check(FIRST, &conf, &result);
            assert!(
                exit == 1 && document["msg"].to_string().contains("macspoofchk"),
                "{document}"
            );

            node.ok("DEL", FIRST, &conf);
            let rules = ruleset();
            assert!(!rules.contains("abc") && rules.contains("def"), "{rules}");
            // Without the key in today's config.
            node.ok("DEL", SECOND, &node.conf(json!({})));
            assert!(!ruleset().contains("macspoofchk"), "{}", ruleset());
        },
    );
}

#[test]
fn gc_takes_the_rules_of_its_network_alone() {
    on_a_node("gc_takes_the_rules_of_its_network_alone", |node| {
        let mut conf = node.conf(json!({"macspoofchk":true}));
        let mut elsewhere = conf.clone();
        elsewhere["name"] = json!("other");
        conf["cniVersion"] = json!("1.1.0");
        node.ok("ADD", FIRST, &conf);
        node.ok("ADD", SECOND, &elsewhere);
        // Nothing else is left of the attachment.
        run("ip -n pod link del eth0");
        fs::remove_dir_all("/var/lib/cni/networks/net").unwrap();
        conf["cni.dev/valid-attachments"] = json!([{"containerID":FIRST,"ifname":"eth0"}]);
        node.ok("GC", FIRST, &conf);
        let rules = run("nft -s list ruleset");
        assert!(rules.contains("abc") && rules.contains("def"), "{rules}");
        conf["cni.dev/valid-attachments"] = json!([]);
        node.ok("GC", FIRST, &conf);
        let rules = run("nft -s list ruleset");
        assert!(!rules.contains("abc") && rules.contains("def"), "{rules}");
    });
}

#[test]
fn names_that_no_rule_can_hold_are_refused_and_nothing_stays() {
    on_a_node(
        "names_that_no_rule_can_hold_are_refused_and_nothing_stays",
        |node| {
            let conf = node.conf(json!({"macspoofchk":true}));
            let long = "a".repeat(230);
            let (code, text) = node.refused("ADD", &long, &conf);
            assert!(code == 7 && text.contains("macspoofchk"), "{text}");
            assert!(!run("ip -n pod link show").contains("eth0"));
            node.ok("DEL", &long, &conf);
        },
    );
}
