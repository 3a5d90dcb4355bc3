//! A node that cannot take part says so in one line, which says what to change, and makes nothing:
//! no lease, no device, no rule, no `subnet.env`.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Spec};
use cni_test_harness::netns;
use cni_test_harness::underlay::IFNAME;
use cni_test_harness::wait;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);

fn dual_stack(backend: Value) -> Value {
    json!({
        "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48",
        "Backend": backend
    })
}

fn ipv4(backend: Value) -> Value {
    json!({"Network": "10.244.0.0/16", "Backend": backend})
}

/// One node with this net-conf, without a daemon.
fn lay_out(net_conf: Value) -> Result<Cluster> {
    let spec = Spec {
        nodes: 1,
        net_conf,
        ..Spec::default()
    };
    let name = netns::unique_name("unfit");
    Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))
}

/// Starts the daemon, which ends with one error that has all these words.
fn refuses(mut cluster: Cluster, words: &[&str]) -> Result<()> {
    let links = cluster.member(0).view().link_names()?;
    let member = cluster.member_mut(0);
    let log = member.node().dir().join("log/twilld.log");
    member.start_daemon()?;
    wait::until_true(&format!("{words:?}"), SOON, || {
        Ok(std::fs::read_to_string(&log)?.contains("ERROR"))
    })?;
    let said = std::fs::read_to_string(&log)?;
    let errors: Vec<_> = said.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    for word in words {
        assert!(errors[0].contains(word), "{word} is not in {}", errors[0]);
    }
    // A failed start is one that a supervisor sees.
    let ended = member.stop_daemon(SOON);
    assert!(ended.is_err(), "it ended as if all were well");
    assert!(!cluster.store_dir().join("subnets").exists(), "a lease");
    let member = cluster.member(0);
    assert_eq!(member.view().link_names()?, links);
    assert!(!member.subnet_file()?.exists(), "subnet.env");
    let rules = member.node().exec("nft", &["list", "ruleset"])?;
    assert_eq!(rules.stdout_text(), "");
    Ok(())
}

#[test]
fn an_underlay_without_an_ipv6_address_is_named_with_what_to_give_it() -> Result<()> {
    for backend in ["vxlan", "host-gw"] {
        let cluster = lay_out(dual_stack(json!({"Type": backend})))?;
        let node = cluster.member(0).node();
        node.netns().ip(&["-6", "addr", "flush", "dev", IFNAME])?;
        refuses(
            cluster,
            &[IFNAME, "no usable IPv6 address", "--iface", "config"],
        )?;
    }
    Ok(())
}

#[test]
fn an_underlay_without_an_ipv4_address_is_named_with_what_to_give_it() -> Result<()> {
    for backend in ["vxlan", "udp"] {
        let cluster = lay_out(ipv4(json!({"Type": backend})))?;
        let node = cluster.member(0).node();
        node.netns().ip(&["-4", "addr", "flush", "dev", IFNAME])?;
        refuses(
            cluster,
            &[IFNAME, "no usable IPv4 address", "--iface", "config"],
        )?;
    }
    Ok(())
}

#[test]
fn an_mtu_too_small_for_a_family_is_told_with_the_least_that_will_do() -> Result<()> {
    for (net_conf, mtu, least) in [
        (dual_stack(json!({"Type": "vxlan"})), "1349", "1350"),
        (ipv4(json!({"Type": "udp"})), "90", "96"),
    ] {
        let cluster = lay_out(net_conf)?;
        let node = cluster.member(0).node();
        node.netns().ip(&["link", "set", IFNAME, "mtu", mtu])?;
        refuses(cluster, &[IFNAME, "MTU", least])?;
    }
    let small = dual_stack(json!({"Type": "vxlan", "MTU": 1300}));
    refuses(lay_out(small)?, &["Backend.MTU", "IPv6", "1350"])
}

#[test]
fn a_port_in_use_is_told_in_either_family() -> Result<()> {
    for address in ["0.0.0.0:9997", "[::]:9997"] {
        let cluster = lay_out(dual_stack(json!({"Type": "vxlan", "Port": 9997})))?;
        let bind = || Ok(UdpSocket::bind(address)?);
        let _held = cluster.member(0).node().netns().run(bind)?;
        refuses(cluster, &["9997 is in use", "Backend.Port"])?;
    }
    Ok(())
}

#[test]
fn a_kernel_without_the_backends_device_is_told_with_the_module_to_load() -> Result<()> {
    for (backend, module) in [("wireguard", "wireguard"), ("ipip", "ipip")] {
        let cluster = lay_out(ipv4(json!({"Type": backend})))?;
        let tried = [
            "-c",
            &format!("ip link add probe type {module} 2>&1; ip link del probe"),
        ];
        let node = cluster.member(0).node();
        let has_it = node.try_exec("sh", &tried, SOON)?.status.success();
        if has_it {
            continue;
        }
        refuses(cluster, &[module, "modprobe", "Backend.Type"])?;
    }
    Ok(())
}

#[test]
fn an_unknown_backend_and_an_option_of_the_wrong_type_are_named() -> Result<()> {
    for (backend, words) in [
        (json!({"Type": "nonsense"}), ["Backend.Type", "vxlan"]),
        (json!({"Type": 7}), ["Backend.Type", "string"]),
        (json!({"Type": "ipsec"}), ["Backend.Type", "not built here"]),
        (
            json!({"Type": "vxlan", "VNI": "1"}),
            ["Backend.VNI", "string"],
        ),
        (json!({"Type": "vxlan", "GBP": 1}), ["Backend.GBP", "bool"]),
        (
            json!({"Type": "vxlan", "Port": 65536}),
            ["Backend.Port", "65535"],
        ),
    ] {
        refuses(lay_out(ipv4(backend))?, &words)?;
    }
    Ok(())
}
