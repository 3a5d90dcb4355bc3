//! What the tests of the chained plugins share: running one, tools, and a node with pods made by
//! hand, so that a test here does not depend on the main plugin.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::calls::run_with;
pub(crate) use crate::calls::{Answer, inside, tool, try_tool};
use crate::namespaces;

/// Runs a plugin in the calling thread's namespaces.
pub(crate) fn run_plugin(name: &str, env: &[(&str, &str)], stdin: &str) -> Answer {
    run_with(name, &BTreeMap::from_iter(env.iter().copied()), stdin)
}

/// Runs a verb for a container's `eth0` in the sandbox `/run/netns/POD`.
pub(crate) fn call(plugin: &str, verb: &str, container: &str, pod: &str, config: &Value) -> Answer {
    let netns = match pod {
        "" => String::new(),
        pod => format!("/run/netns/{pod}"),
    };
    let env = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", container),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    run_plugin(plugin, &env, &config.to_string())
}

/// Runs `f` on a node of its own with a bridge and these sandboxes, of which `client` is no pod but
/// a neighbour of the node's. Where no node can be made the test is skipped, which fails in CI.
pub(crate) fn with_a_bridge(test: &str, sandboxes: &[&str], f: impl FnOnce() + Send) {
    if !namespaces::available(test) {
        return;
    }
    namespaces::in_a_node_of_its_own(sandboxes, || {
        bridge();
        if sandboxes.contains(&"client") {
            neighbour("client");
        }
        f();
    });
}

/// A bridge `cni0` with the gateway's addresses of 10.1.2.0/24 and fd00:1:2::/64.
pub(crate) fn bridge() {
    tool("ip link set lo up");
    tool("ip link add cni0 type bridge");
    tool("ip addr add 10.1.2.1/24 dev cni0");
    tool("ip addr add fd00:1:2::1/64 dev cni0 nodad");
    tool("ip link set cni0 up");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
}

/// A pod on the bridge, with `.N` of both subnets, and what its ADD would have answered.
pub(crate) fn pod(name: &str, number: u8) -> Value {
    let host = format!("veth0000000{number}");
    tool(&format!(
        "ip link add {host} type veth peer name eth0 netns {name}"
    ));
    tool(&format!("ip link set {host} master cni0 up"));
    tool(&format!("bridge link set dev {host} hairpin on"));
    inside(name, || {
        for command in [
            "ip link set lo up".to_owned(),
            "ip link set eth0 up".to_owned(),
            format!("ip addr add 10.1.2.{number}/24 dev eth0"),
            format!("ip addr add fd00:1:2::{number}/64 dev eth0 nodad"),
            "ip route add default via 10.1.2.1".to_owned(),
            "ip -6 route add default via fd00:1:2::1".to_owned(),
        ] {
            tool(&command);
        }
    });
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "cni0"}, {"name": host},
            {"name": "eth0", "sandbox": format!("/run/netns/{name}")}],
        "ips": [
            {"address": format!("10.1.2.{number}/24"), "gateway": "10.1.2.1", "interface": 2},
            {"address": format!("fd00:1:2::{number}/64"), "gateway": "fd00:1:2::1", "interface": 2}
        ]
    })
}

/// A host beside the node: 192.0.2.9 and 2001:db8::9; the node has `.1` and `.5` there.
fn neighbour(name: &str) {
    tool(&format!(
        "ip link add lan0 type veth peer name eth0 netns {name}"
    ));
    tool("ip link set lan0 up");
    for address in ["192.0.2.1/24", "192.0.2.5/24"] {
        tool(&format!("ip addr add {address} dev lan0"));
    }
    for address in ["2001:db8::1/64", "2001:db8::5/64"] {
        tool(&format!("ip addr add {address} dev lan0 nodad"));
    }
    inside(name, || {
        tool("ip link set lo up");
        tool("ip link set eth0 up");
        tool("ip addr add 192.0.2.9/24 dev eth0");
        tool("ip addr add 2001:db8::9/64 dev eth0 nodad");
        // Back to the pods, for what is not masqueraded.
        tool("ip route add 10.1.2.0/24 via 192.0.2.1");
        tool("ip -6 route add fd00:1:2::/64 via 2001:db8::1");
    });
}
