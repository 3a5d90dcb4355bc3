//! A node's lease in a real etcd is lost to another node: what `--on-lease-loss` says is done, and
//! said, and the pods that run keep what they have. One that nobody took is taken back.

use std::time::Duration;

use anyhow::{Result, ensure};
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::etcd::{self, Etcd};
use cni_test_harness::observe::Family;
use cni_test_harness::process::log_tail;
use cni_test_harness::skip_unless;
use cni_test_harness::stream::Stream;
use cni_test_harness::wait;
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);
const REPLY: Duration = Duration::from_secs(2);
const PREFIX: &str = "/coreos.com/network";
const THIEF: &str = r#"{"PublicIP":"192.168.50.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#;
const DAY: u64 = 24 * 60 * 60;

fn start(on_lease_loss: &str) -> Result<(Etcd, Cluster)> {
    let spec = Spec {
        twilld_args: vec![format!("--on-lease-loss={on_lease_loss}")],
        ..Spec::default()
    };
    let (etcd, mut cluster) = Etcd::with_cluster("loss", &spec, PREFIX)?;
    let config = format!("{PREFIX}/config");
    etcd.put(&config, &spec.net_conf.to_string(), None)?;
    for index in [0, 1] {
        cluster.member_mut(index).start_daemon()?;
    }
    cluster.wait_in_sync(READY_DEADLINE)?;
    Ok((etcd, cluster))
}

/// The subnet of a node as a route has it.
fn subnet(cluster: &Cluster, index: usize) -> Result<String> {
    Ok(cluster.member(index).subnet()?.trunc().to_string())
}

fn key(subnet: &str) -> String {
    format!("{PREFIX}/subnets/{}", subnet.replace('/', "-"))
}

/// The first node's lease is deleted, and another node takes the subnet before the first one can.
fn steal(etcd: &Etcd, cluster: &Cluster) -> Result<String> {
    let key = key(&subnet(cluster, 0)?);
    let daemon = cluster.member(0).daemon().expect("it runs");
    daemon.signal(Signal::SIGSTOP)?;
    etcd.delete_all(std::slice::from_ref(&key))?;
    etcd.put(&key, THIEF, Some(DAY))?;
    daemon.signal(Signal::SIGCONT)?;
    Ok(key)
}

fn log(cluster: &Cluster) -> String {
    let daemon = cluster.member(0).daemon().expect("it was started");
    log_tail(daemon.log_path(), 1000)
}

fn wait_for_log(cluster: &Cluster, words: &[&str]) -> Result<()> {
    cluster.member(0).wait_for(&words.join(", "), SOON, |_| {
        let log = log(cluster);
        Ok(words.iter().all(|words| log.contains(words)))
    })
}

fn wait_for_route(cluster: &Cluster, index: usize, to: &str) -> Result<()> {
    let member = cluster.member(index);
    member.wait_for(&format!("a route to {to}"), SOON, |view| {
        let routes = view.routes(Family::V4)?;
        Ok(routes.iter().any(|route| route.dst == to))
    })
}

fn lost(stream: Stream) -> Result<Vec<usize>> {
    Ok(stream.end()?.lost)
}

#[test]
fn kept_it_is_said_loudly_and_taken_back_when_it_is_free() -> Result<()> {
    skip_unless!(etcd::installed());
    let (etcd, cluster) = start("keep")?;
    let (near, beside, far) = (cluster.pod(0)?, cluster.pod(0)?, cluster.pod(1)?);
    let mut stream = Stream::start(near.netns(), beside.ip()?)?;
    let (env, peer) = (cluster.member(0).subnet_env()?, subnet(&cluster, 1)?);
    let key = steal(&etcd, &cluster)?;
    let loudly = ["ERROR", "somebody else's now", "192.168.50.77"];
    wait_for_log(&cluster, &loudly)?;
    stream.go_on(500)?;
    ensure!(cluster.member(0).subnet_env()? == env);
    wait_for_route(&cluster, 0, &peer)?;
    ensure!(etcd.entries(&key)?[0].value == THIEF, "written over");
    // Said once, not with every look.
    let said = log(&cluster);
    ensure!(said.matches(loudly[1]).count() == 1, "{said}");
    etcd.delete_all(std::slice::from_ref(&key))?;
    wait_for_log(&cluster, &["taken back", "the lease is ours again"])?;
    let ip = cluster.member(0).place().v4.addr().to_string();
    let entries = etcd.entries(&key)?;
    ensure!(entries[0].value.contains(&ip), "{entries:?}");
    ensure!(entries[0].granted_ttl == Some(DAY), "{entries:?}");
    wait::until_true("peers send to it again", SOON, || {
        Ok(near.ping(&far, 1, REPLY)?.complete())
    })?;
    ensure!(far.ping(&near, 3, REPLY)?.complete());
    ensure!(lost(stream)?.is_empty());
    Ok(())
}

#[test]
fn revoked_it_is_taken_back_at_once_and_nothing_else_happens() -> Result<()> {
    skip_unless!(etcd::installed());
    // Even where a loss is the end: nobody has taken it.
    let (etcd, mut cluster) = start("exit")?;
    let (near, beside, far) = (cluster.pod(0)?, cluster.pod(0)?, cluster.pod(1)?);
    let stream = Stream::start(near.netns(), beside.ip()?)?;
    let (env, key) = (cluster.member(0).subnet_env()?, key(&subnet(&cluster, 0)?));
    let before = etcd.entries(&key)?;
    let lease = etcd.lease_of(&key)?.expect("it has one");
    etcd.ctl(&["lease", "revoke", &lease])?;
    wait_for_log(&cluster, &["taken back"])?;
    ensure!(etcd.entries(&key)? == before);
    wait::until_true("peers send to it again", SOON, || {
        Ok(near.ping(&far, 1, REPLY)?.complete())
    })?;
    ensure!(cluster.member(0).subnet_env()? == env);
    ensure!(cluster.member_mut(0).daemon_ended()?.is_none());
    ensure!(lost(stream)?.is_empty());
    Ok(())
}

#[test]
fn where_that_is_the_end_the_daemon_ends_with_code_1_and_pods_go_on() -> Result<()> {
    skip_unless!(etcd::installed());
    let (etcd, mut cluster) = start("exit")?;
    let (near, beside) = (cluster.pod(0)?, cluster.pod(0)?);
    let far = cluster.pod(1)?;
    let mut stream = Stream::start(near.netns(), beside.ip()?)?;
    let (before, peer) = (subnet(&cluster, 0)?, subnet(&cluster, 1)?);
    steal(&etcd, &cluster)?;
    let mut code = None;
    wait::until_true("the daemon's end", SOON, || {
        code = cluster.member_mut(0).daemon_ended()?;
        Ok(code.is_some())
    })?;
    let log = log(&cluster);
    ensure!(code.and_then(|code| code.code()) == Some(1), "{code:?}");
    ensure!(log.contains("--on-lease-loss"), "{log}");
    ensure!(log.contains("192.168.50.77"), "{log}");
    // All of it stands as it stood.
    stream.go_on(300)?;
    ensure!(subnet(&cluster, 0)? == before);
    wait_for_route(&cluster, 0, &peer)?;
    // Started again it takes another subnet, and pods that run still have what they have.
    cluster.member_mut(0).kill_daemon();
    cluster.member_mut(0).start_daemon()?;
    wait::until_true("another subnet", SOON, || {
        Ok(subnet(&cluster, 0).is_ok_and(|now| now != before))
    })?;
    cluster.wait_in_sync(READY_DEADLINE)?;
    stream.go_on(300)?;
    ensure!(lost(stream)?.is_empty());
    near.delete()?;
    beside.delete()?;
    let new = cluster.pod(0)?;
    ensure!(new.ping(&far, 3, REPLY)?.complete());
    Ok(())
}

#[test]
fn renumbered_the_node_gets_another_subnet_and_its_peers_follow() -> Result<()> {
    skip_unless!(etcd::installed());
    let (etcd, mut cluster) = start("renumber")?;
    let (near, beside) = (cluster.pod(0)?, cluster.pod(0)?);
    let far = cluster.pod(1)?;
    let mut stream = Stream::start(near.netns(), beside.ip()?)?;
    let (before, mac) = (
        subnet(&cluster, 0)?,
        cluster.member(0).view().mac("flannel.1")?,
    );
    steal(&etcd, &cluster)?;
    wait_for_log(&cluster, &["taking another subnet", "192.168.50.77"])?;
    wait::until_true("another subnet", SOON, || {
        Ok(subnet(&cluster, 0).is_ok_and(|now| now != before))
    })?;
    let after = subnet(&cluster, 0)?;
    let base = after.trim_end_matches("/24");
    // The device stays and has the new subnet's address; whoever has the old one is a peer.
    cluster.member(0).wait_for("the device", SOON, |view| {
        let addresses = view.addresses_of("flannel.1")?;
        let v4: Vec<_> = addresses.iter().filter(|ip| !ip.contains(':')).collect();
        Ok(v4 == [&format!("{base}/32")] && view.mac("flannel.1")? == mac)
    })?;
    wait_for_route(&cluster, 0, &before)?;
    // The peer follows, route and neighbour; what it had of the old subnet is the thief's.
    wait_for_route(&cluster, 1, &after)?;
    let old = before.trim_end_matches("/24");
    cluster.member(1).wait_for("neighbours", SOON, |view| {
        let neighbours = view.neighbours("flannel.1")?;
        let mac_of = |ip: &str| {
            let neighbour = neighbours.iter().find(|neighbour| neighbour.ip == ip);
            neighbour.map(|neighbour| neighbour.mac.clone())
        };
        let thiefs = Some("02:00:00:00:00:77".to_owned());
        Ok(mac_of(base) == Some(mac.clone()) && mac_of(old) == thiefs)
    })?;
    let ours = etcd.entries(&key(&after))?;
    let ip = cluster.member(0).place().v4.addr().to_string();
    ensure!(ours[0].value.contains(&ip), "{ours:?}");
    ensure!(
        etcd.entries(&key(&before))?[0].value == THIEF,
        "written over"
    );
    // Running pods have each other and are as they were made; a new one waits until they are gone.
    stream.go_on(300)?;
    near.check()?;
    ensure!(lost(stream)?.is_empty());
    let refusal = cluster.pod(0).err().map(|error| format!("{error:#}"));
    let refusal = refusal.unwrap_or_default();
    ensure!(refusal.contains("pods are still joined to it"), "{refusal}");
    near.delete()?;
    beside.delete()?;
    cluster.wait_in_sync(READY_DEADLINE)?;
    let new = cluster.pod(0)?;
    ensure!(
        new.ip()?
            .to_string()
            .starts_with(base.trim_end_matches('0'))
    );
    ensure!(new.ping(&far, 3, REPLY)?.complete());
    ensure!(far.ping(&new, 3, REPLY)?.complete());
    Ok(())
}
