//! Each option of the bridge plugin's where twill has that name, and the same option inside flannel's
//! `delegate`: what the tools show with it, and what without.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod namespaces;

use std::fs;

use calls::{ok, reserved, run, tool};
use serde_json::{Value, json};

/// The daemon's file of a node with both families; it masquerades, so that the plugin need not.
const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// Who is given the options.
const NAMES: [&str; 2] = ["bridge", "flannel"];

/// A network with these options of the bridge's, in both families.
fn conf(name: &str, options: Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "name": "net", "type": name});
    if name == "flannel" {
        conf["delegate"] = options;
        return conf;
    }
    conf["ipam"] = json!({"type": "host-local", "ranges":
        [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:0:1::/64"}]]});
    let conf_keys = conf.as_object_mut().unwrap();
    conf_keys.extend(options.as_object().unwrap().clone());
    conf
}

/// Does the same for each of the names, on a node of its own.
fn by_each_name(test: &str, f: impl Fn(&str) + Send + Sync) {
    if !namespaces::available(test) {
        return;
    }
    for name in NAMES {
        namespaces::in_a_node_of_its_own(&["pod", "pod2"], || {
            fs::create_dir("/run/flannel").unwrap();
            fs::write("/run/flannel/subnet.env", SUBNET_ENV).unwrap();
            f(name);
        });
    }
}

/// Attaches the pod, looks, and detaches it.
fn with_a_pod(name: &str, conf: &Value, look: impl FnOnce(&Value)) {
    let result = ok(name, "ADD", &[], conf);
    look(&result);
    ok(name, "DEL", &[], conf);
    assert_eq!(reserved("net"), Vec::<String>::new());
}

fn in_the_pod(key: &str) -> String {
    let path = format!("/proc/sys/net/ipv6/conf/eth0/{key}");
    tool(&format!("ip netns exec pod cat {path}"))
        .trim()
        .to_owned()
}

#[test]
fn is_gateway_puts_the_gateways_on_the_bridge_and_forwards() {
    by_each_name("is_gateway", |name| {
        let of_bridge = || tool("ip -o addr show dev cni0 scope global");
        // A namespace may begin with what the machine has.
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{key}"), "0").unwrap();
        }
        with_a_pod(name, &conf(name, json!({"isGateway": false})), |result| {
            assert_eq!(of_bridge(), "");
            // host-local names its gateways whoever has them.
            assert_eq!(result["ips"][0]["gateway"], "10.244.1.1");
        });
        assert_eq!(tool("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
        with_a_pod(name, &conf(name, json!({"isGateway": true})), |_| {
            let addresses = of_bridge();
            assert!(addresses.contains("10.244.1.1/24"), "{addresses}");
            assert!(addresses.contains("fd00:244:0:1::1/64"), "{addresses}");
            let routes = tool("ip -n pod route show");
            assert!(!routes.contains("default"), "{routes}");
        });
        assert_eq!(tool("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
        let v6 = "cat /proc/sys/net/ipv6/conf/all/forwarding";
        assert_eq!(tool(v6).trim(), "1");
    });
}

#[test]
fn is_default_gateway_leads_everything_to_it_in_both_families() {
    by_each_name("is_default_gateway", |name| {
        // It is the gateway too, whatever is said about that.
        let options = json!({"isDefaultGateway": true, "isGateway": false});
        with_a_pod(name, &conf(name, options), |result| {
            let v4 = tool("ip -n pod -4 route show default");
            assert!(v4.contains("via 10.244.1.1 dev eth0"), "{v4}");
            let v6 = tool("ip -n pod -6 route show default");
            assert!(v6.contains("via fd00:244:0:1::1 dev eth0"), "{v6}");
            let last = result["routes"].as_array().unwrap().last().unwrap();
            assert_eq!(last["dst"], "::/0", "{result}");
            tool("ip netns exec pod ping -c 1 -W 5 10.244.1.1");
            tool("ip netns exec pod ping -c 1 -W 5 fd00:244:0:1::1");
        });
    });
}

#[test]
fn force_address_alone_replaces_the_one_that_a_bridge_in_use_has() {
    by_each_name("force_address", |name| {
        tool("ip link add cni0 type bridge");
        tool("ip link add port type veth peer name other");
        tool("ip link set port master cni0");
        tool("ip addr add 10.9.9.1/24 dev cni0");
        let of_bridge = || tool("ip -4 -o addr show dev cni0");
        let refused = run(name, "ADD", &[], &conf(name, json!({"isGateway": true})));
        let (code, msg) = refused.failure();
        assert!(code == 7 && msg.contains("10.9.9.1/24"), "{code} {msg}");
        assert!(of_bridge().contains("10.9.9.1/24"));
        assert_eq!(reserved("net"), Vec::<String>::new());
        let forced = conf(name, json!({"isGateway": true, "forceAddress": true}));
        with_a_pod(name, &forced, |_| {
            let now = of_bridge();
            assert!(
                now.contains("10.244.1.1/24") && !now.contains("10.9.9.1"),
                "{now}"
            );
        });
    });
}

#[test]
fn ip_masq_masquerades_by_the_backend_that_is_named() {
    by_each_name("ip_masq", |name| {
        let masquerading = || {
            let lines = tool("nft list ruleset") + &tool("iptables-save");
            let lines = lines.lines().filter(|line| line.contains("10.244.1."));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        with_a_pod(name, &conf(name, json!({"ipMasq": false})), |_| {
            assert_eq!(masquerading(), Vec::<String>::new());
        });
        for options in [
            json!({"ipMasq": true}),
            json!({"ipMasq": true, "ipMasqBackend": "nftables"}),
        ] {
            with_a_pod(name, &conf(name, options), |_| {
                let rules = tool("nft list table inet cni_plugins_masquerade");
                assert!(
                    rules.contains("ip daddr != 10.244.1.0/24 masquerade"),
                    "{rules}"
                );
                assert!(
                    rules.contains("ip6 daddr != fd00:244:0:1::/64 masquerade"),
                    "{rules}"
                );
            });
            assert_eq!(masquerading(), Vec::<String>::new());
        }
        let options = json!({"ipMasq": true, "ipMasqBackend": "iptables"});
        with_a_pod(name, &conf(name, options), |_| {
            let rules = tool("iptables-save -t nat") + &tool("ip6tables-save -t nat");
            assert_eq!(rules.matches("-j MASQUERADE").count(), 2, "{rules}");
        });
        let rules = tool("iptables-save -t nat") + &tool("ip6tables-save -t nat");
        assert!(!rules.contains("CNI-"), "{rules}");
        let unknown = json!({"ipMasq": true, "ipMasqBackend": "foo"});
        let (code, msg) = run(name, "ADD", &[], &conf(name, unknown)).failure();
        assert!(code == 7 && msg.contains("\"foo\""), "{code} {msg}");
    });
}

#[test]
fn enabledad_looks_for_duplicates_and_no_pod_waits_for_it_else() {
    by_each_name("enabledad", |name| {
        let addresses = || tool("ip -n pod -6 -o addr show dev eth0 scope global");
        with_a_pod(name, &conf(name, json!({"isGateway": true})), |_| {
            assert_eq!(in_the_pod("accept_dad"), "0");
            assert!(!addresses().contains("tentative"), "{}", addresses());
        });
        with_a_pod(name, &conf(name, json!({"enabledad": true})), |_| {
            assert_eq!(in_the_pod("accept_dad"), "1");
            assert_eq!(in_the_pod("enhanced_dad"), "1");
            let shown = addresses();
            assert!(
                !shown.contains("nodad") && !shown.contains("tentative"),
                "{shown}"
            );
        });
    });
}

#[test]
fn disable_container_interface_leaves_it_down_and_goes_with_no_address() {
    by_each_name("disable_container_interface", |name| {
        let mut conf = conf(name, json!({"disableContainerInterface": true}));
        let (code, msg) = run(name, "ADD", &[], &conf).failure();
        assert!(
            code == 7 && msg.contains("DisableContainerInterface"),
            "{code} {msg}"
        );
        conf["ipam"] = json!({"type": ""});
        let is_up = || tool("ip -n pod -o link show eth0").contains(",UP");
        with_a_pod(name, &conf, |result| {
            assert!(!is_up());
            let mut check = conf.clone();
            check["prevResult"] = result.clone();
            ok(name, "CHECK", &[], &check);
        });
        let options = json!({"disableContainerInterface": false});
        let mut conf = self::conf(name, options);
        conf["ipam"] = json!({"type": ""});
        with_a_pod(name, &conf, |_| assert!(is_up()));
    });
}

#[test]
fn the_mac_and_the_addresses_come_from_every_source() {
    by_each_name("the_mac_and_the_addresses", |name| {
        let mac = |last: u8| format!("02:00:00:00:00:0{last}");
        let (plain, asked) = (
            conf(name, json!({})),
            [(
                "CNI_ARGS",
                "IgnoreUnknown=1;IP=10.244.1.9;MAC=02:00:00:00:00:01",
            )],
        );
        let mut of_args = plain.clone();
        of_args["args"] = json!({"cni": {"mac": mac(2), "ips": ["fd00:244:0:1::9"]}});
        let mut of_runtime = of_args.clone();
        of_runtime["runtimeConfig"] =
            json!({"mac": mac(3), "ips": ["10.244.1.9/24", "fd00:244:0:1::9"]});
        // flannel's plugin does not hand `args` on.
        let handed_on = name == "bridge";
        for (env, conf, expected, v4, v6) in [
            (&asked[..], &plain, mac(1), true, false),
            (
                &asked[..],
                &of_args,
                mac(if handed_on { 2 } else { 1 }),
                true,
                handed_on,
            ),
            (&[], &of_runtime, mac(3), true, true),
        ] {
            let result = ok(name, "ADD", env, conf);
            let shown = tool("ip -n pod -o link show eth0");
            assert!(
                shown.contains(&format!("link/ether {expected}")),
                "{conf}: {shown}"
            );
            assert_eq!(result["interfaces"][2]["mac"], json!(expected));
            let shown = tool("ip -n pod -o addr show dev eth0 scope global");
            assert_eq!(shown.contains("10.244.1.9/24"), v4, "{conf}: {shown}");
            assert_eq!(shown.contains("fd00:244:0:1::9/64"), v6, "{conf}: {shown}");
            ok(name, "DEL", env, conf);
        }
    });
}

#[test]
fn routes_have_their_table_scope_priority_and_sizes() {
    by_each_name("routes_have_their", |name| {
        let mut conf = conf(name, json!({}));
        conf["ipam"]["routes"] = json!([
            {"dst": "10.96.0.0/12", "mtu": 1300, "advmss": 1200, "priority": 7},
            {"dst": "10.97.0.0/16", "table": 100},
            {"dst": "10.98.0.0/16", "scope": 200},
            {"dst": "fd00:96::/64", "mtu": 1300, "advmss": 1200, "priority": 9, "table": 101},
        ]);
        with_a_pod(name, &conf, |result| {
            for (command, words) in [
                (
                    "ip -n pod route show 10.96.0.0/12",
                    "metric 7 mtu 1300 advmss 1200",
                ),
                (
                    "ip -n pod route show table 100",
                    "10.97.0.0/16 via 10.244.1.1",
                ),
                ("ip -n pod route show 10.98.0.0/16", "scope site"),
                (
                    "ip -n pod -6 route show table 101",
                    "metric 9 mtu 1300 advmss 1200",
                ),
            ] {
                let shown = tool(command);
                assert!(shown.contains(words), "{words} in {shown}");
            }
            assert_eq!(result["routes"][2]["dst"], "10.98.0.0/16");
            let mut check = conf.clone();
            check["prevResult"] = result.clone();
            ok(name, "CHECK", &[], &check);
        });
    });
}
