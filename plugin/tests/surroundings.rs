//! What twill does under the name `bridge`, beside what the Go chain left, and before the daemon is
//! there; looked at with `ip` and `iptables`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod namespaces;

use std::time::Duration;

use calls::{ok, reserved, run, tool, write_subnet_env};
use serde_json::json;

fn on_a_node(test: &str, f: impl FnOnce() + Send) {
    if namespaces::available(test) {
        namespaces::in_a_node_of_its_own(&["pod", "pod2"], f);
    }
}

#[test]
fn del_takes_away_the_iptables_chain_that_the_go_chain_made() {
    on_a_node(
        "del_takes_away_the_iptables_chain_that_the_go_chain_made",
        || {
            // "CNI-" and the hash of the network's name and the container ID.
            let ours = "CNI-64e75f641d11615844d681b7";
            for (chain, ip) in [(ours, "10.244.1.2"), ("CNI-another", "10.244.1.3")] {
                tool(&format!("iptables -t nat -N {chain}"));
                tool(&format!(
                    "iptables -t nat -A {chain} -d 10.244.1.0/24 -j ACCEPT"
                ));
                tool(&format!(
                    "iptables -t nat -A POSTROUTING -s {ip} -j {chain}"
                ));
            }
            let conf = json!({"cniVersion":"1.0.0","name":"cbr0","type":"flannel"});
            ok("flannel", "DEL", &[], &conf);
            let left = tool("iptables -t nat -S");
            assert!(!left.contains(ours), "{left}");
            assert_eq!(left.matches("CNI-another").count(), 3, "{left}");
        },
    );
}

#[test]
fn add_waits_a_moment_for_the_daemons_file() {
    on_a_node("add_waits_a_moment_for_the_daemons_file", || {
        let conf = json!({"cniVersion":"1.0.0","name":"cbr0","type":"twill"});
        let (code, msg) = run("twill", "ADD", &[], &conf).failure();
        assert_eq!(code, 11, "it waits, but not for ever: {msg}");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Later than the plugin's first look, whichever comes first.
                let (send, receive) = std::sync::mpsc::channel::<()>();
                let _ = receive.recv_timeout(Duration::from_millis(50));
                drop(send);
                write_subnet_env();
            });
            // A thread that is started here has this one's namespaces.
            ok("twill", "ADD", &[], &conf);
        });
    });
}

#[test]
fn a_bridge_without_ipam_is_a_switch() {
    on_a_node("a_bridge_without_ipam_is_a_switch", || {
        let mut conf = json!({"cniVersion":"1.0.0","name":"l2","type":"bridge","bridge":"br9"});
        let result = ok("bridge", "ADD", &[], &conf);
        assert_eq!(result["interfaces"][0]["name"], "br9");
        assert_eq!(result.get("ips"), None);
        let inside = tool("ip -n pod -4 -o addr show dev eth0");
        assert_eq!(inside, "", "no address");
        conf["prevResult"] = result;
        ok("bridge", "CHECK", &[], &conf);
        ok("bridge", "DEL", &[], &conf);
        ok("bridge", "DEL", &[], &conf);
        assert!(!tool("ip -o link show").contains("veth"));
    });
}

#[test]
fn a_container_interface_that_is_not_wanted_up_stays_down() {
    on_a_node(
        "a_container_interface_that_is_not_wanted_up_stays_down",
        || {
            let conf = json!({"cniVersion":"1.0.0","name":"l2","type":"bridge","bridge":"br9",
            "disableContainerInterface":true});
            ok("bridge", "ADD", &[], &conf);
            let link = tool("ip -n pod -o link show dev eth0");
            assert!(link.contains("state DOWN"), "{link}");
        },
    );
}

#[test]
fn two_pods_of_a_bridge_with_two_ranges_have_an_address_of_each() {
    on_a_node(
        "two_pods_of_a_bridge_with_two_ranges_have_an_address_of_each",
        || {
            let ranges = json!([[{"subnet":"10.1.2.0/24"}],[{"subnet":"10.1.3.0/24"}]]);
            let conf = json!({"cniVersion":"1.0.0","name":"two","type":"bridge","isGateway":true,
            "ipam":{"type":"host-local","ranges":ranges}});
            ok("bridge", "ADD", &[], &conf);
            let second = [("CNI_CONTAINERID", "def"), ("CNI_NETNS", "/run/netns/pod2")];
            let result = ok("bridge", "ADD", &second, &conf);
            assert_eq!(result["ips"].as_array().unwrap().len(), 2);
            let addresses = tool("ip -4 -o addr show dev cni0");
            assert_eq!(addresses.lines().count(), 2, "{addresses}");
        },
    );
}

#[test]
fn the_trace_of_the_runtime_is_logged_and_nothing_that_is_none() {
    let conf = json!({"cniVersion":"1.1.0","name":"cbr0","type":"bridge"});
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let said = |trace| {
        run("bridge", "STATUS", &[("TRACEPARENT", trace)], &conf)
            .ok()
            .stderr
    };
    assert_eq!(said(trace), format!("twill: traceparent={trace}\n"));
    assert_eq!(said("a\nb"), "");
}

#[test]
fn a_pod_whose_files_were_lost_is_deleted_with_its_ports_and_a_repeated_del_finds_nothing() {
    let test =
        "a_pod_whose_files_were_lost_is_deleted_with_its_ports_and_a_repeated_del_finds_nothing";
    on_a_node(test, || {
        write_subnet_env();
        let mut config = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "twill"});
        let plain = config.clone();
        config["runtimeConfig"] = json!({"portMappings":
            [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        ok("twill", "ADD", &[], &config);
        std::fs::remove_dir_all("/var/lib/cni").unwrap();
        // Another pod's ADD, and the index of owners is whole again.
        let other = [("CNI_CONTAINERID", "def"), ("CNI_NETNS", "/run/netns/pod2")];
        ok("twill", "ADD", &other, &plain);
        let pairs = || tool("ip -o link show type veth").lines().count();
        assert_eq!(pairs(), 2);
        assert!(tool("nft list ruleset").contains("8080"));
        run("twill", "DEL", &[], &plain).ok();
        assert_eq!(pairs(), 1);
        assert!(!tool("nft list ruleset").contains("8080"));
        assert_eq!(reserved("cbr0").len(), 1, "the other's");
        for _ in 0..2 {
            run("twill", "DEL", &[], &plain).ok();
        }
        run("twill", "DEL", &other, &plain).ok();
        assert_eq!((pairs(), reserved("cbr0").len()), (0, 0));
    });
}
