//! The leases in a real etcd: nodes find each other through it, also where it wants to know who they
//! are. What happens when it goes is in `store_gone.rs`.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::etcd::{self, Etcd};
use cni_test_harness::process::log_tail;
use cni_test_harness::skip_unless;
use cni_test_harness::underlay::Shape;
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
const REPLY: Duration = Duration::from_secs(2);
const PREFIX: &str = "/coreos.com/network";

/// Two nodes, and an etcd where the nodes' default gateway is. The cluster's own store folder stays
/// unused.
fn start() -> Result<(Etcd, Cluster)> {
    let (etcd, mut cluster) = lay_out()?;
    start_daemons(&mut cluster)?;
    Ok((etcd, cluster))
}

fn lay_out() -> Result<(Etcd, Cluster)> {
    let spec = Spec {
        shape: Shape::Bridge,
        ..Spec::default()
    };
    let (etcd, cluster) = Etcd::with_cluster("etcd", &spec, PREFIX)?;
    etcd.put(
        &format!("{PREFIX}/config"),
        &spec.net_conf.to_string(),
        None,
    )?;
    Ok((etcd, cluster))
}

fn start_daemons(cluster: &mut Cluster) -> Result<()> {
    for index in 0..cluster.members().len() {
        cluster.member_mut(index).start_daemon()?;
    }
    cluster.wait_in_sync(READY_DEADLINE)
}

#[test]
fn nodes_that_share_an_etcd_reach_each_other() -> Result<()> {
    skip_unless!(etcd::installed());
    let (etcd, cluster) = start()?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    assert!(near.ping(&far, 3, REPLY)?.complete());
    assert!(far.ping(&near, 3, REPLY)?.complete());
    let entries = etcd.entries(&format!("{PREFIX}/subnets/"))?;
    assert_eq!(entries.len(), 2, "{entries:?}");
    for member in cluster.members() {
        let name = member.subnet()?.trunc().to_string().replace('/', "-");
        let entry = entries.iter().find(|entry| entry.key.ends_with(&name));
        let entry = entry.expect("the node's lease");
        assert!(entry.value.contains(&member.place().v4.addr().to_string()));
        assert_eq!(entry.granted_ttl, Some(24 * 60 * 60));
    }
    // Nothing went into the folder that was not asked for.
    assert!(!cluster.store_dir().join("subnets").exists());
    Ok(())
}

#[test]
fn a_password_is_used_and_never_logged() -> Result<()> {
    const PASSWORD: &str = "hunter2-is-no-secret";
    skip_unless!(etcd::installed());
    let (mut etcd, mut cluster) = lay_out()?;
    etcd.enable_users("flannel", PASSWORD)?;
    for index in [0, 1] {
        cluster.member_mut(index).add_twilld_args(&[
            "--etcd-username=flannel".to_owned(),
            format!("--etcd-password={PASSWORD}"),
            "-v=10".to_owned(),
        ]);
    }
    start_daemons(&mut cluster)?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    assert!(near.ping(&far, 3, REPLY)?.complete());
    // Also while it is not there and when tokens are taken anew.
    etcd.kill_all();
    cluster
        .member(0)
        .wait_for("a warning", SOON, |_| Ok(log(&cluster).contains("WARN")))?;
    etcd.start_all()?;
    cluster
        .member(0)
        .wait_for("it is watched again", SOON, |_| {
            Ok(log(&cluster).contains("watched again"))
        })?;
    let log = log(&cluster);
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "{log}");
    assert!(!log.contains(PASSWORD), "{log}");
    Ok(())
}

/// A lease without an end that nobody keeps, as a node leaves it that was reserved one and is gone.
#[test]
fn ipv6_that_is_held_back_for_a_dead_node_comes_by_the_command_in_the_log() -> Result<()> {
    skip_unless!(etcd::installed());
    let spec = Spec {
        nodes: 1,
        net_conf: json!({
            "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48",
            "Backend": {"Type": "vxlan"}
        }),
        twilld_args: vec![
            "--healthz-ip=127.0.0.1".to_owned(),
            "--healthz-port=8081".to_owned(),
        ],
        ..Spec::default()
    };
    let (etcd, mut cluster) = Etcd::with_cluster("held", &spec, PREFIX)?;
    let config = spec.net_conf.to_string();
    etcd.put(&format!("{PREFIX}/config"), &config, None)?;
    let dead = format!("{PREFIX}/subnets/10.244.77.0-24");
    let value = r#"{"PublicIP":"192.168.50.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#;
    etcd.put(&dead, value, None)?;
    start_daemons(&mut cluster)?;
    let member = cluster.member(0);
    let has_ipv6 = || Ok(member.subnet_env()?.contains_key("FLANNEL_IPV6_SUBNET"));
    assert!(!has_ipv6()?);
    let readyz = || -> Result<String> {
        let ask = "exec 3<>/dev/tcp/127.0.0.1/8081; printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        Ok(member.node().exec("bash", &["-c", ask])?.stdout_text())
    };
    member.wait_for("readyz that tells why", SOON, |_| {
        let said = readyz()?;
        Ok(said.contains("200 OK") && said.contains("10.244.77.0-24"))
    })?;
    let log = log(&cluster);
    let command = log.split("deletion=\"").nth(1).expect("it is there");
    let command = command.split('"').next().unwrap_or_default();
    member.node().exec("sh", &["-c", command])?;
    assert_eq!(etcd.entries(&dead)?, []);
    member.wait_for("IPv6", SOON, |_| has_ipv6())?;
    let said = readyz()?;
    assert!(!said.contains("held back"), "{said}");
    Ok(())
}

fn log(cluster: &Cluster) -> String {
    let daemon = cluster.member(0).daemon().expect("it runs");
    log_tail(daemon.log_path(), 100_000)
}
