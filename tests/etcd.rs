//! The leases in a real etcd: nodes find each other through it, also where it wants to know who they
//! are. What happens when it goes is in `store_gone.rs`.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::etcd::{self, Etcd};
use cni_test_harness::process::log_tail;
use cni_test_harness::skip_unless;
use cni_test_harness::underlay::Shape;

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

fn log(cluster: &Cluster) -> String {
    let daemon = cluster.member(0).daemon().expect("it runs");
    log_tail(daemon.log_path(), 100_000)
}
