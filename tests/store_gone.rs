//! The store goes and comes back, whichever it is: what the nodes have stands meanwhile, pods come
//! and go, nothing flaps, and afterwards the store is followed again.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::observe::Family;
use cni_test_harness::process::log_tail;
use cni_test_harness::skip_unless;
use cni_test_harness::stores::{Kind, Stored};

const SOON: Duration = Duration::from_secs(60);
const REPLY: Duration = Duration::from_secs(2);
const NEW: (&str, &str) = (
    "10.244.250.0-24",
    r#"{"PublicIP":"192.168.50.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#,
);

fn log(cluster: &Cluster, index: usize) -> String {
    let daemon = cluster.member(index).daemon().expect("it runs");
    log_tail(daemon.log_path(), 1000)
}

/// Waits until the first node has a route to the new lease's subnet, or has none.
fn wait_for_new(cluster: &Cluster, wanted: bool) -> Result<()> {
    let what = format!("a route to 10.244.250.0/24: {wanted}");
    cluster.member(0).wait_for(&what, SOON, |view| {
        let routes = view.routes(Family::V4)?;
        Ok(routes.iter().any(|route| route.dst == "10.244.250.0/24") == wanted)
    })
}

fn changes_nothing(kind: Kind) -> Result<()> {
    let mut stored = Stored::lay_out(kind, "gone", &Spec::default())?;
    for index in [0, 1] {
        stored.cluster.member_mut(index).start_daemon()?;
    }
    stored.cluster.wait_in_sync(READY_DEADLINE)?;
    let (near, far) = (stored.cluster.pod(0)?, stored.cluster.pod(1)?);
    let peer = stored.cluster.member(1).subnet()?.trunc().to_string();
    let changes = stored.cluster.member(0).node().dir().join("monitor");
    let watch = format!(
        "(ip monitor link route neigh & bridge monitor fdb & wait) > {}",
        changes.display()
    );
    let sh = Path::new("/bin/sh");
    let node = stored.cluster.member(0).node();
    let monitor = node.spawn("monitor", sh, &["-c".to_owned(), watch])?;
    // What comes before the monitors listen they do not see, so it is done until they do.
    stored
        .cluster
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
        stored.take_away()?;
        for index in [0, 1] {
            let member = stored.cluster.member(index);
            member.wait_for("twilld has noticed", SOON, |_| {
                Ok(log(&stored.cluster, index).contains("WARN"))
            })?;
        }
        let new = stored.cluster.pod(0)?;
        // Three seconds without it.
        assert!(new.ping(&far, 300, REPLY)?.complete());
        new.delete()?;
        let routes = stored.cluster.member(0).view().routes(Family::V4)?;
        assert!(routes.iter().any(|route| route.dst == peer), "{routes:?}");
        stored.bring_back()?;
        let ping = ping.join().expect("ping's thread")?;
        assert!(ping.complete(), "{ping:?}");
        Ok(())
    })?;
    // They follow it again: a lease that comes is seen, and one that goes.
    stored.put(NEW.0, NEW.1)?;
    wait_for_new(&stored.cluster, true)?;
    stored.delete(NEW.0)?;
    wait_for_new(&stored.cluster, false)?;
    assert!(near.ping(&far, 3, REPLY)?.complete());
    monitor.kill();
    let seen = std::fs::read_to_string(&changes)?;
    let peer_mac = stored.cluster.member(1).view().mac("flannel.1")?;
    let peer_base = peer.trim_end_matches("/24");
    let of_peer = |line: &&str| line.contains(&peer_mac) || line.contains(peer_base);
    let flapped: Vec<&str> = seen.lines().filter(of_peer).collect();
    assert_eq!(flapped, Vec::<&str>::new());
    assert!(
        seen.contains("10.244.250.0"),
        "the monitors were deaf: {seen}"
    );
    Ok(())
}

#[test]
fn a_folder_that_goes_and_comes_back_changes_nothing() -> Result<()> {
    changes_nothing(Kind::Folder)
}

#[test]
fn an_etcd_that_goes_and_comes_back_changes_nothing() -> Result<()> {
    skip_unless!(Kind::Etcd.installed());
    changes_nothing(Kind::Etcd)
}

#[test]
fn a_kubernetes_that_goes_and_comes_back_changes_nothing() -> Result<()> {
    skip_unless!(Kind::Kubernetes.installed());
    changes_nothing(Kind::Kubernetes)
}
