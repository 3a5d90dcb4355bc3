//! The daemon may end and come back at any time: traffic goes on, the MAC stays, nothing is
//! written when nothing changed, and what became stale meanwhile is removed.

use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::observe::Family;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn sigterm_ends_it_within_a_second_and_leaves_the_data_path_standing() -> Result<()> {
    let mut cluster = Cluster::start(&Spec::default())?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let took = cluster.member_mut(0).stop_daemon(SOON)?;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let ping = near.ping(&far, 5, Duration::from_secs(2))?;
    assert!(ping.complete(), "{ping:?}");
    // New pods can be made, too: subnet.env stays.
    let new = cluster.pod(0)?;
    assert!(new.ping(&far, 2, Duration::from_secs(2))?.complete());
    Ok(())
}

#[test]
fn a_killed_daemon_leaves_the_data_path_standing() -> Result<()> {
    let mut cluster = Cluster::start(&Spec::default())?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    cluster.member_mut(0).kill_daemon();
    cluster.member_mut(1).kill_daemon();
    assert!(near.ping(&far, 5, Duration::from_secs(2))?.complete());
    Ok(())
}

#[test]
fn a_restart_keeps_subnet_and_mac_and_loses_no_packet() -> Result<()> {
    let mut cluster = Cluster::start(&Spec::default())?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let before = (
        cluster.member(0).subnet()?,
        cluster.member(0).view().mac("flannel.1")?,
    );
    std::thread::scope(|scope| -> Result<()> {
        // 200 packets, 10 ms apart: the restart happens in the middle of them.
        let ping = scope.spawn(|| near.ping(&far, 200, Duration::from_secs(2)));
        let member = cluster.member_mut(0);
        member.stop_daemon(SOON)?;
        std::fs::remove_file(member.subnet_file()?)?;
        member.start_daemon()?;
        member.wait_ready(READY_DEADLINE)?;
        let ping = ping.join().expect("ping's thread")?;
        assert!(ping.complete(), "{ping:?}");
        Ok(())
    })?;
    let after = (
        cluster.member(0).subnet()?,
        cluster.member(0).view().mac("flannel.1")?,
    );
    assert_eq!(before, after);
    Ok(())
}

#[test]
fn a_reboot_keeps_subnet_and_mac() -> Result<()> {
    let mut cluster = Cluster::start(&Spec::default())?;
    let before = (
        cluster.member(0).subnet()?,
        cluster.member(0).view().mac("flannel.1")?,
    );
    let member = cluster.member_mut(0);
    member.kill_daemon();
    // What a reboot takes: devices, rules, and /run.
    member.node().exec("ip", &["link", "del", "flannel.1"])?;
    member.node().exec("nft", &["flush", "ruleset"])?;
    std::fs::remove_file(member.subnet_file()?)?;
    member.start_daemon()?;
    cluster.wait_in_sync(READY_DEADLINE)?;
    let after = (
        cluster.member(0).subnet()?,
        cluster.member(0).view().mac("flannel.1")?,
    );
    assert_eq!(before, after);
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    assert!(near.ping(&far, 2, Duration::from_secs(2))?.complete());
    Ok(())
}

#[test]
fn a_restart_writes_nothing_to_the_kernel_when_nothing_changed() -> Result<()> {
    let mut cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member_mut(0);
    member.stop_daemon(SOON)?;
    std::fs::remove_file(member.subnet_file()?)?;
    let log = member.node().dir().join("monitor");
    let watch = format!(
        "(ip monitor link address route neigh & bridge monitor fdb & stdbuf -oL nft monitor & wait) > {}",
        log.display()
    );
    let sh = std::path::Path::new("/bin/sh");
    let monitor = member
        .node()
        .spawn("monitor", sh, &["-c".to_owned(), watch])?;
    let node = member.node();
    node.exec(
        "ip",
        &[
            "link", "add", "probe", "type", "veth", "peer", "name", "probe2",
        ],
    )?;
    member.wait_for("the monitors listen", SOON, |_| {
        // Whatever came before they subscribed they do not see, so it is done until they do.
        node.exec("ip", &["link", "set", "probe", "up"])?;
        node.exec("ip", &["link", "set", "probe", "down"])?;
        node.exec("nft", &["add table inet probe; delete table inet probe"])?;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        Ok(text.contains("probe@") && text.contains("table inet probe"))
    })?;
    let listening = std::fs::read_to_string(&log)?.len();
    member.start_daemon()?;
    member.wait_ready(READY_DEADLINE)?;
    member
        .node()
        .exec("ip", &["link", "set", "probe", "name", "the-end"])?;
    member.wait_for("the monitors saw the end", SOON, |_| {
        Ok(std::fs::read_to_string(&log)?[listening..].contains("the-end"))
    })?;
    monitor.kill();
    let seen = std::fs::read_to_string(&log)?[listening..].to_owned();
    let foreign: Vec<_> = seen
        .lines()
        .filter(|line| {
            line.contains("flannel") || line.contains("10.244.") || line.contains("twill")
        })
        .collect();
    assert_eq!(foreign, Vec::<&str>::new());
    Ok(())
}

#[test]
fn a_peer_that_left_meanwhile_is_pruned_at_the_start() -> Result<()> {
    let mut cluster = Cluster::start(&Spec {
        nodes: 3,
        ..Spec::default()
    })?;
    let gone = cluster.member(2).subnet()?.trunc();
    let stays = cluster.member(1).subnet()?.trunc();
    let mac = cluster.member(2).view().mac("flannel.1")?;
    cluster.member_mut(0).kill_daemon();
    cluster.member_mut(2).kill_daemon();
    let name = gone.to_string().replace('/', "-");
    let lease = cluster.store_dir().join("subnets").join(&name);
    std::fs::remove_file(&lease).with_context(|| lease.display().to_string())?;
    let member = cluster.member_mut(0);
    member.start_daemon()?;
    member.wait_for("the peer's entries go", SOON, |view| {
        Ok(view
            .routes(Family::V4)?
            .iter()
            .all(|r| r.dst != gone.to_string())
            && view.fdb("flannel.1")?.iter().all(|e| e.mac != mac)
            && view.neighbours("flannel.1")?.iter().all(|n| n.mac != mac))
    })?;
    let routes = cluster.member(0).view().routes(Family::V4)?;
    assert!(
        routes.iter().any(|r| r.dst == stays.to_string()),
        "{routes:?}"
    );
    Ok(())
}
