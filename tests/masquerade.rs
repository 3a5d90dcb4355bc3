//! Pod traffic that leaves the network takes the node's address; what stays inside keeps its own.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Spec};
use cni_test_harness::process::Daemon;
use cni_test_harness::wait;

/// Records on a node's device which source addresses echo requests to it carry.
fn watch(cluster: &Cluster, node: usize, device: &str) -> Result<(Daemon, std::path::PathBuf)> {
    let member = cluster.member(node);
    let args = format!("-l -n -i {device} icmp[icmptype]==icmp-echo");
    let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
    let daemon = member
        .node()
        .spawn("tcpdump", "/usr/bin/tcpdump".as_ref(), &args)?;
    let log = daemon.log_path().to_owned();
    member.wait_for("tcpdump listens", Duration::from_secs(5), |_| {
        Ok(std::fs::read_to_string(&log)?.contains("listening on"))
    })?;
    Ok((daemon, log))
}

#[test]
fn traffic_that_leaves_the_network_takes_the_nodes_address() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let pod = cluster.pod(0)?;
    let node = cluster.member(0).place().v4.addr().to_string();
    let other = cluster.member(1).place().v4.addr();
    let (_tcpdump, log) = watch(&cluster, 1, "eth0")?;
    let ping = pod.view().ping(other.into(), 2, Duration::from_secs(2))?;
    assert!(ping.complete(), "{ping:?}");
    let expected = format!("IP {node} > {other}: ICMP echo request");
    wait::until_true("the request is seen", Duration::from_secs(5), || {
        Ok(std::fs::read_to_string(&log)?.contains(&expected))
    })?;
    let pod_ip = pod.ip()?.to_string();
    assert!(!std::fs::read_to_string(&log)?.contains(&format!("IP {pod_ip} >")));
    Ok(())
}

#[test]
fn traffic_between_pods_keeps_its_source() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let (_tcpdump, log) = watch(&cluster, 1, "cni0")?;
    assert!(near.ping(&far, 2, Duration::from_secs(2))?.complete());
    let expected = format!("IP {} > {}: ICMP echo request", near.ip()?, far.ip()?);
    wait::until_true("the request is seen", Duration::from_secs(5), || {
        Ok(std::fs::read_to_string(&log)?.contains(&expected))
    })
}

#[test]
fn the_rules_are_in_a_table_of_twills_own_and_forwarded_pods_are_accepted() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let rules = cluster.member(0).view().nft_text()?;
    assert_eq!(rules.matches("table ").count(), 1, "{rules}");
    for line in [
        "table inet twilld {",
        "type nat hook postrouting priority srcnat; policy accept;",
        "type filter hook forward priority filter; policy accept;",
        "ip saddr 10.244.0.0/16 accept",
        "ip daddr 10.244.0.0/16 accept",
        "masquerade fully-random",
    ] {
        assert!(rules.contains(line), "{line} in {rules}");
    }
    Ok(())
}

#[test]
fn without_ip_masq_there_is_no_masquerading() -> Result<()> {
    let mut spec = Spec::default();
    spec.twilld_args.push("--ip-masq=false".to_owned());
    let cluster = Cluster::start(&spec)?;
    let rules = cluster.member(0).view().nft_text()?;
    assert!(!rules.contains("masquerade"), "{rules}");
    assert_eq!(cluster.member(0).subnet_env()?["FLANNEL_IPMASQ"], "false");
    Ok(())
}

#[test]
fn a_table_that_drops_forwarded_traffic_is_named() -> Result<()> {
    let cluster = Cluster::start(&Spec {
        nodes: 1,
        ..Spec::default()
    })?;
    let member = cluster.member(0);
    let chain = "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }";
    member.node().exec("nft", &[chain])?;
    let log = member.daemon().expect("it runs").log_path().to_owned();
    wait::until_true("the chain is named", Duration::from_secs(5), || {
        let said = std::fs::read_to_string(&log)?;
        Ok(said.contains("may be dropped") && said.contains("ip filter FORWARD"))
    })
}
