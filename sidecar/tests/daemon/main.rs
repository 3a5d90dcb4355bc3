//! The real daemon on one node, a network namespace of its own, beside leases that are put into its
//! store by hand. What it made is looked at with `ip`, `bridge` and `nft`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod node;

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use self::node::{Node, node, wait};

const PEER_30: [&str; 3] = [
    // The metric is the subnet's number, 0x0a051e.
    "10.5.30.0/24 via 10.5.30.0 dev flannel.1 proto 3 metric 656670 onlink",
    "10.5.30.0 dev flannel.1 lladdr 02:00:00:00:00:30 PERMANENT",
    "02:00:00:00:00:30 dev flannel.1 dst 192.168.50.30 self permanent",
];

#[test]
fn a_node_joins_and_a_peer_comes_and_goes() {
    let node = node!();
    node.good_peer(30);
    let daemon = node.ready(&["--ip-masq"]);
    assert_eq!(node.seen(), PEER_30);
    assert_eq!(
        fs::read_to_string(node.path("subnet.env")).unwrap(),
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.20.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    let mac = node.mac();
    assert_eq!(
        node.own_value(),
        format!(
            r#"{{"PublicIP":"192.168.50.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    );
    let link = node.ip("-d link show flannel.1");
    for part in [
        "mtu 1450",
        "vxlan id 1 local 192.168.50.1 dev eth0",
        "dstport 8472 nolearning",
    ] {
        assert!(link.contains(part), "{part}: {link}");
    }
    assert!(
        node.ip("-4 -br addr show flannel.1")
            .contains("10.5.20.0/32")
    );
    let rules = node.run("nft list table inet twilld");
    for part in [
        "masquerade fully-random",
        "ip daddr != 224.0.0.0/4",
        "hook forward",
    ] {
        assert!(rules.contains(part), "{part}: {rules}");
    }
    node.good_peer(31);
    wait(
        || node.seen()[0].contains("10.5.31.0/24"),
        || format!("{:?}", node.seen()),
    );
    fs::remove_file(node.path("store/subnets/10.5.31.0-24")).unwrap();
    wait(|| node.seen() == PEER_30, || format!("{:?}", node.seen()));
    drop(daemon);
}

#[test]
fn sigterm_ends_it_within_a_second_and_leaves_the_data_path() {
    let node = node!();
    node.good_peer(30);
    let (code, took) = node.ready(&["--ip-masq"]).stop();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(node.seen(), PEER_30);
    assert!(
        node.run("nft list table inet twilld")
            .contains("masquerade")
    );
    assert!(node.path("subnet.env").exists());
}

#[test]
fn sigterm_ends_it_while_it_waits_for_a_config() {
    let node = node!();
    fs::remove_file(node.path("store/config")).unwrap();
    let daemon = node.start(&[]);
    daemon.logs("waiting for a configuration");
    let log = daemon.log();
    for part in ["store/config", "10.244.0.0/16", "--network"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!(daemon.stop().0, Some(0));
}

#[test]
fn a_restart_writes_nothing_prunes_what_went_and_keeps_the_mac() {
    let node = node!();
    node.good_peer(30);
    node.good_peer(31);
    node.ready(&[]).stop();
    let (mac, before) = (node.mac(), node.seen());
    let mut monitor = Command::new("ip")
        .args([
            "netns",
            "exec",
            &node.netns,
            "ip",
            "monitor",
            "link",
            "route",
            "neigh",
            "address",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    node.ready(&[]).stop();
    monitor.kill().unwrap();
    let mut written = String::new();
    monitor
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut written)
        .unwrap();
    monitor.wait().unwrap();
    assert!(!written.contains("flannel"), "{written}");
    assert_eq!(node.seen(), before);
    fs::remove_file(node.path("store/subnets/10.5.31.0-24")).unwrap();
    // As after a reboot: the device is gone, and the address must come back.
    let daemon = node.ready(&[]);
    wait(|| node.seen() == PEER_30, || format!("{:?}", node.seen()));
    daemon.stop();
    node.ip("link del flannel.1");
    fs::remove_file(node.path("subnet.env")).unwrap();
    fs::remove_file(node.path("store/subnets/10.5.20.0-24")).unwrap();
    let _daemon = node.ready(&[]);
    assert_eq!(node.mac(), mac);
}

#[test]
fn whatever_is_taken_away_or_changed_comes_back() {
    let node = node!();
    node.good_peer(30);
    let daemon = node.ready(&["--ip-masq"]);
    let (mac, whole) = (node.mac(), node.ip("-d link show flannel.1"));
    let intact = || {
        node.seen() == PEER_30
            && node.mac() == mac
            && node.ip("link show flannel.1").contains("mtu 1450")
            && node
                .ip("-4 -br addr show flannel.1")
                .contains("10.5.20.0/32")
            && node.run("nft list tables").contains("twilld")
    };
    for damage in [
        "ip route del 10.5.30.0/24",
        "ip route replace 10.5.30.0/24 via 192.168.50.9",
        "ip route add 10.5.99.0/24 via 10.5.99.0 dev flannel.1 onlink",
        "ip neigh del 10.5.30.0 dev flannel.1",
        "ip neigh replace 10.5.30.0 lladdr 02:00:00:00:66:66 dev flannel.1 nud permanent",
        "bridge fdb del 02:00:00:00:00:30 dev flannel.1",
        "bridge fdb replace 02:00:00:00:00:30 dev flannel.1 dst 192.168.50.66",
        "bridge fdb append 02:00:00:00:00:30 dev flannel.1 dst 192.168.50.67",
        "ip addr del 10.5.20.0/32 dev flannel.1",
        "ip addr add 10.5.21.7/32 dev flannel.1",
        "ip link set flannel.1 mtu 1300",
        "ip link set flannel.1 address 02:00:00:00:55:55",
        "ip link set flannel.1 down",
        "ip route flush table main dev flannel.1",
        "nft flush ruleset",
        "nft flush chain inet twilld postrouting",
        "ip link del flannel.1",
    ] {
        wait(intact, || {
            format!(
                "order before {damage}:\n{:?}\n{}",
                node.seen(),
                daemon.log()
            )
        });
        node.run(damage);
        let began = Instant::now();
        wait(intact, || {
            format!("repair of {damage}:\n{:?}\n{}", node.seen(), daemon.log())
        });
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{damage}: {:?}",
            began.elapsed()
        );
    }
    let repaired = node.ip("-d link show flannel.1");
    let detail = |text: &str| text.split("vxlan id").nth(1).map(str::to_owned);
    assert_eq!(detail(&repaired), detail(&whole));
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let node = node!();
    node.ip("link add flannel.9 type bridge");
    node.ip("route add 10.77.0.0/24 via 192.168.50.7");
    node.run("nft add table inet other");
    node.good_peer(30);
    let daemon = node.ready(&[]);
    node.ip("addr add 10.77.0.1/32 dev flannel.1");
    node.good_peer(31);
    wait(|| node.seen()[0].contains("10.5.31.0/24"), || daemon.log());
    assert!(node.ip("link show flannel.9").contains("flannel.9"));
    assert!(node.ip("route").contains("10.77.0.0/24"));
    assert!(node.ip("addr show flannel.1").contains("10.77.0.1/32"));
    assert!(node.run("nft list tables").contains("other"));
}

#[test]
fn a_device_that_fits_is_adopted_and_one_that_does_not_is_made_anew_with_its_peers() {
    let node = node!();
    node.good_peer(30);
    node.ip("link add flannel.1 address 02:00:00:00:aa:01 mtu 1300 type vxlan id 1 local 192.168.50.1 dev eth0 dstport 4789 nolearning");
    let index = |node: &Node| {
        node.ip("-o link show flannel.1")
            .split(':')
            .next()
            .unwrap()
            .to_owned()
    };
    let before = index(&node);
    node.ready(&[]).stop();
    assert_eq!(
        (index(&node), node.mac()),
        (before.clone(), "02:00:00:00:aa:01".to_owned())
    );
    assert!(node.ip("link show flannel.1").contains("mtu 1450"));
    node.net_conf(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.20.0","SubnetMax":"10.5.20.0","Backend":{"Type":"vxlan","Port":8472}}"#);
    let daemon = node.ready(&[]);
    assert!(
        daemon.log().contains("port is 4789, wanted 8472"),
        "{}",
        daemon.log()
    );
    assert_ne!(index(&node), before);
    assert_eq!(
        (node.seen(), node.mac()),
        (PEER_30.map(str::to_owned), "02:00:00:00:aa:01".to_owned())
    );
}

#[test]
fn bad_leases_are_named_and_cost_the_good_ones_nothing() {
    let node = node!();
    node.good_peer(30);
    node.peer("10.5.32.0-24", "{not json");
    node.peer("nonsense", "{}");
    let daemon = node.ready(&[]);
    assert_eq!(node.seen(), PEER_30);
    for part in ["10.5.32.0-24", "nonsense", "in sync peers=1 skipped=2"] {
        assert!(daemon.log().contains(part), "{part}: {}", daemon.log());
    }
    // A poisoned one that comes later.
    node.peer("10.5.30.0-25", "{\"PublicIP\":7}");
    daemon.logs("skipped=3");
    assert_eq!(node.seen(), PEER_30);
}

#[test]
fn of_many_bad_leases_that_come_at_once_each_is_named() {
    let node = node!();
    node.good_peer(30);
    let names: Vec<String> = (0..250).map(|n| format!("10.5.{n}.0-99")).collect();
    for name in &names {
        node.peer(name, "{not json");
    }
    let daemon = node.ready(&[]);
    daemon.logs("in sync peers=1 skipped=250");
    let log = daemon.log();
    let unnamed: Vec<_> = names.iter().filter(|name| !log.contains(*name)).collect();
    assert!(unnamed.is_empty(), "{unnamed:?} in {log}");
    let lines = log.lines().filter(|line| line.contains("lease skipped"));
    assert!(lines.count() < 20, "{log}");
}

#[test]
fn a_stolen_lease_is_told_and_our_pods_keep_their_network() {
    let node = node!();
    node.good_peer(30);
    let daemon = node.ready(&[]);
    node.peer(
        "10.5.20.0-24",
        r#"{"PublicIP":"192.168.50.66","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}}"#,
    );
    daemon.logs("somebody else's now");
    assert!(daemon.log().contains("192.168.50.66"), "{}", daemon.log());
    assert_eq!(node.seen(), PEER_30);
    assert!(node.own_value().contains("192.168.50.66"), "written over");
}

const STOLEN: &str = r#"{"PublicIP":"192.168.50.66","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}}"#;

#[test]
fn a_stolen_lease_ends_the_daemon_where_that_is_asked_for() {
    let node = node!();
    node.good_peer(30);
    let mut daemon = node.ready(&["--on-lease-loss=exit"]);
    node.peer("10.5.20.0-24", STOLEN);
    assert_eq!(daemon.exit_code(), Some(1));
    assert!(daemon.log().contains("192.168.50.66"), "{}", daemon.log());
    assert_eq!(node.seen(), PEER_30);
}

#[test]
fn a_stolen_lease_is_replaced_by_another_where_that_is_asked_for() {
    let node = node!();
    node.good_peer(30);
    let daemon = node.ready(&["--on-lease-loss=renumber"]);
    node.net_conf(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.20.0","SubnetMax":"10.5.21.0","Backend":{"Type":"vxlan"}}"#);
    node.peer("10.5.20.0-24", STOLEN);
    daemon.logs("subnets=10.5.21.0-24 mtu=1450");
    let env = fs::read_to_string(node.path("subnet.env")).unwrap();
    assert!(env.contains("FLANNEL_SUBNET=10.5.21.1/24"), "{env}");
    // The thief is a peer like any other now.
    wait(
        || node.seen()[0].contains("10.5.20.0/24") && node.seen()[0].contains("10.5.30.0/24"),
        || format!("{:?}\n{}", node.seen(), daemon.log()),
    );
    assert!(node.own_value().contains("192.168.50.66"), "written over");
}

#[test]
fn a_kubernetes_that_does_not_answer_is_named_and_waited_for() {
    let node = node!();
    let daemon = node.start(&[
        "--kube-subnet-mgr",
        "--kubeconfig-file=/nonexistent/kubeconfig",
        &format!("--net-config-path={}", node.path("store/config").display()),
    ]);
    daemon.logs("cannot ask the store about this node, trying again");
    assert!(
        daemon.log().contains("/nonexistent/kubeconfig"),
        "{}",
        daemon.log()
    );
    assert_eq!(daemon.stop().0, Some(0));
    assert!(!node.path("subnet.env").exists());
}

#[test]
fn a_lease_that_is_gone_is_taken_back() {
    let node = node!();
    let daemon = node.ready(&[]);
    let value = node.own_value();
    fs::remove_file(node.path("store/subnets/10.5.20.0-24")).unwrap();
    daemon.logs("taken back");
    assert_eq!(node.own_value(), value);
}

#[test]
fn a_changed_underlay_address_is_published_and_the_tunnel_follows() {
    let node = node!();
    node.good_peer(30);
    let daemon = node.ready(&["--iface=eth0"]);
    node.ip("addr add 192.168.50.2/24 dev eth0");
    node.ip("addr del 192.168.50.1/24 dev eth0");
    node.ip("addr replace 192.168.50.2/24 dev eth0");
    wait(
        || node.own_value().contains("192.168.50.2\""),
        || daemon.log(),
    );
    wait(
        || {
            node.ip("-d link show flannel.1")
                .contains("local 192.168.50.2")
        },
        || daemon.log(),
    );
    wait(
        || node.seen() == PEER_30,
        || format!("{:?}\n{}", node.seen(), daemon.log()),
    );
}

#[test]
fn ipv6_and_dual_stack_are_the_same_by_data() {
    let node = node!();
    node.net_conf(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#);
    node.peer(
        "10.5.30.0-24&fd00:5:0:30::-64",
        r#"{"PublicIP":"192.168.50.30","PublicIPv6":"fd00:50::30","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:30"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:06:30"}}"#,
    );
    let daemon = node.ready(&["--ip-masq"]);
    assert_eq!(node.seen()[0], PEER_30[0]);
    let routes = node.ip("-6 route show dev flannel-v6.1");
    assert!(
        routes.contains("fd00:5:0:30::/64 via fd00:5:0:30:: "),
        "{routes}"
    );
    assert!(node.seen()[2].contains("02:00:00:00:06:30 dev flannel-v6.1 dst fd00:50::30"));
    let env = fs::read_to_string(node.path("subnet.env")).unwrap();
    assert!(
        env.contains("FLANNEL_IPV6_SUBNET=fd00:5:0:") && env.contains("MTU=1430"),
        "{env}"
    );
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
    daemon.stop();
    // And nothing is written again.
    let daemon = node.ready(&["--ip-masq", "--v=2"]);
    daemon.logs(" round ");
    let log = daemon.log();
    let first = log.lines().find(|line| line.contains(" round "));
    assert!(first.unwrap().contains(" changes=0 "), "{log}");
}

#[test]
fn the_flags_are_flannelds_and_a_wrong_one_is_no_success() {
    let twilld = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_twilld"))
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    let (code, text) = twilld(&["--auto-detect"]);
    assert_eq!(code, Some(2));
    assert!(
        text.contains("--auto-detect") && text.contains("Usage"),
        "{text}"
    );
    assert_eq!(twilld(&["--help"]).0, Some(0));
    assert_eq!(
        twilld(&["--version"]),
        (Some(0), format!("{}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn what_cannot_work_ends_with_code_1_before_anything_is_made() {
    let node = node!();
    let ends = |flags: &[&str], words: &str| {
        let mut daemon = node.start(flags);
        assert_eq!(daemon.exit_code(), Some(1), "{words}");
        assert!(daemon.log().contains(words), "{words}: {}", daemon.log());
        assert!(!node.ip("link").contains("flannel"), "{words}");
        let leases = fs::read_dir(node.path("store/subnets")).unwrap().count();
        assert_eq!(leases, 0, "{words}");
    };
    ends(&["--iface=nosuch"], "nosuch");
    ends(&["--public-ip=203.0.113.9"], "203.0.113.9");
    node.net_conf(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"teleport"}}"#);
    ends(&[], "teleport");
    node.net_conf(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":60}}"#);
    ends(&[], "MTU");
}

#[test]
fn health_is_served_and_a_taken_port_costs_only_the_probes() {
    let node = node!();
    let flags = ["--healthz-ip=127.0.0.1", "--healthz-port=8081"];
    let _daemon = node.ready(&flags);
    let get = |path: &str| {
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/8081; printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3; head -1 <&3"
        );
        let output = Command::new("ip")
            .args(["netns", "exec", &node.netns, "bash", "-c", &script])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(get("/healthz").contains("200"));
    assert!(get("/readyz").contains("200"));
    assert!(get("/other").contains("404"));
    let state = format!("--state-dir={}", node.path("state2").display());
    let second = node.start(&[flags[0], flags[1], &state]);
    second.logs("cannot serve health checks");
    second.logs("in sync");
}

#[test]
fn the_network_flag_writes_a_config_once() {
    let node = node!();
    fs::remove_file(node.path("store/config")).unwrap();
    node.ready(&["--network=10.244.0.0/16"]).stop();
    let config = fs::read_to_string(node.path("store/config")).unwrap();
    assert_eq!(
        config.trim_end(),
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#
    );
    let mode = fs::metadata(Path::new(&node.path("store/config")))
        .unwrap()
        .mode();
    assert_eq!(mode & 0o777, 0o644);
}
