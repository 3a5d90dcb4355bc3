//! The leases in a real etcd: nodes find each other through it, and what they have stands while it
//! is away and when it comes back.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::etcd::{self, Etcd};
use cni_test_harness::observe::Family;
use cni_test_harness::process::log_tail;
use cni_test_harness::skip_unless;
use cni_test_harness::underlay::Shape;

const SOON: Duration = Duration::from_secs(10);
const REPLY: Duration = Duration::from_secs(2);
const PREFIX: &str = "/test/network";

/// Two nodes, and an etcd where the nodes' default gateway is. The cluster's own store folder stays
/// unused.
fn start() -> Result<(Etcd, Cluster)> {
    let spec = Spec {
        shape: Shape::Bridge,
        ..Spec::default()
    };
    let (etcd, mut cluster) = Etcd::with_cluster("etcd", &spec, PREFIX)?;
    etcd.put(
        &format!("{PREFIX}/config"),
        &spec.net_conf.to_string(),
        None,
    )?;
    for index in 0..cluster.members().len() {
        cluster.member_mut(index).start_daemon()?;
    }
    cluster.wait_in_sync(READY_DEADLINE)?;
    Ok((etcd, cluster))
}

fn log(cluster: &Cluster, index: usize) -> String {
    let daemon = cluster.member(index).daemon().expect("it runs");
    log_tail(daemon.log_path(), 1000)
}

/// Waits until the first node has a route to `subnet`, or has none.
fn wait_for_route(cluster: &Cluster, subnet: &str, wanted: bool) -> Result<()> {
    let what = format!("route to {subnet}: {wanted}");
    cluster.member(0).wait_for(&what, SOON, |view| {
        let routes = view.routes(Family::V4)?;
        Ok(routes.iter().any(|route| route.dst == subnet) == wanted)
    })
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
fn an_etcd_that_goes_and_comes_back_changes_nothing() -> Result<()> {
    skip_unless!(etcd::installed());
    let (mut etcd, cluster) = start()?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let peer = cluster.member(1).subnet()?.trunc().to_string();
    let node = cluster.member(0).node();
    let changes = node.dir().join("monitor");
    let watch = format!(
        "(ip monitor link route neigh & bridge monitor fdb & wait) > {}",
        changes.display()
    );
    let sh = Path::new("/bin/sh");
    let monitor = node.spawn("monitor", sh, &["-c".to_owned(), watch])?;
    // What comes before the monitors listen they do not see, so it is done until they do.
    cluster
        .member(0)
        .wait_for("the monitors listen", SOON, |_| {
            for command in [
                "ip route add 10.99.0.0/24 dev eth0",
                "ip route del 10.99.0.0/24 dev eth0",
                "bridge fdb add 02:00:00:00:00:99 dev eth0",
                "bridge fdb del 02:00:00:00:00:99 dev eth0",
            ] {
                let words: Vec<&str> = command.split(' ').collect();
                node.exec(words[0], &words[1..])?;
            }
            let seen = std::fs::read_to_string(&changes).unwrap_or_default();
            Ok(seen.contains("10.99.0.0/24") && seen.contains("02:00:00:00:00:99"))
        })?;
    std::thread::scope(|scope| -> Result<()> {
        // 600 packets, 10 ms apart: all of the rest happens in the middle of them.
        let ping = scope.spawn(|| near.ping(&far, 600, REPLY));
        etcd.kill_all();
        for index in [0, 1] {
            cluster
                .member(index)
                .wait_for("twilld has noticed", SOON, |_| {
                    Ok(log(&cluster, index).contains("WARN"))
                })?;
        }
        let new = cluster.pod(0)?;
        // Three seconds without etcd.
        assert!(new.ping(&far, 300, REPLY)?.complete());
        let routes = cluster.member(0).view().routes(Family::V4)?;
        assert!(routes.iter().any(|route| route.dst == peer), "{routes:?}");
        etcd.start_all()?;
        let ping = ping.join().expect("ping's thread")?;
        assert!(ping.complete(), "{ping:?}");
        Ok(())
    })?;
    // They follow it again: a lease that comes is seen, and one that goes.
    let (key, value) = (
        format!("{PREFIX}/subnets/10.244.250.0-24"),
        r#"{"PublicIP":"192.168.50.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#,
    );
    etcd.put(&key, value, None)?;
    wait_for_route(&cluster, "10.244.250.0/24", true)?;
    etcd.delete_all(&[key])?;
    wait_for_route(&cluster, "10.244.250.0/24", false)?;
    assert!(near.ping(&far, 3, REPLY)?.complete());
    monitor.kill();
    let seen = std::fs::read_to_string(&changes)?;
    let (peer_mac, peer_base) = (
        cluster.member(1).view().mac("flannel.1")?,
        peer.trim_end_matches("/24").to_owned(),
    );
    let of_peer = |line: &&str| line.contains(&peer_mac) || line.contains(&peer_base);
    let flapped: Vec<&str> = seen.lines().filter(of_peer).collect();
    assert_eq!(flapped, Vec::<&str>::new());
    assert!(
        seen.contains("10.244.250.0"),
        "the monitors were deaf: {seen}"
    );
    Ok(())
}
