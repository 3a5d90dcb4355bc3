//! The configuration is changed under running daemons, in any of the stores: what leaves running
//! pods as they are is acted upon, anything else is said and left to a person. No packet is lost.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::observe::Family;
use cni_test_harness::process::log_tail;
use cni_test_harness::skip_unless;
use cni_test_harness::stores::{Kind, Stored};
use cni_test_harness::stream::Stream;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const REPLY: Duration = Duration::from_secs(2);
const BOTH: [usize; 2] = [0, 1];

fn net_conf(network: &str, vni: u32) -> Value {
    json!({"Network": network, "Backend": {"Type": "vxlan", "VNI": vni}})
}

fn start(kind: Kind) -> Result<Stored> {
    start_with(kind, net_conf("10.244.0.0/16", 1))
}

fn start_with(kind: Kind, net_conf: Value) -> Result<Stored> {
    let spec = Spec {
        net_conf,
        ..Spec::default()
    };
    let mut stored = Stored::lay_out(kind, "config", &spec)?;
    for index in BOTH {
        stored.cluster.member_mut(index).start_daemon()?;
    }
    stored.cluster.wait_in_sync(READY_DEADLINE)?;
    Ok(stored)
}

fn wait_for_env(cluster: &Cluster, key: &str, value: &str) -> Result<()> {
    BOTH.iter().try_for_each(|index| {
        let member = cluster.member(*index);
        member.wait_for(&format!("{key}={value}"), SOON, |_| {
            Ok(member.subnet_env()?.get(key).is_some_and(|it| it == value))
        })
    })
}

fn wait_for_log(cluster: &Cluster, words: &str) -> Result<()> {
    BOTH.iter().try_for_each(|index| {
        let member = cluster.member(*index);
        let daemon = member.daemon().expect("it runs");
        member.wait_for(words, SOON, |_| {
            Ok(log_tail(daemon.log_path(), 1000).contains(words))
        })
    })
}

fn is_followed_while_pods_talk(kind: Kind) -> Result<()> {
    let mut stored = start(kind)?;
    let (near, far) = (stored.cluster.pod(0)?, stored.cluster.pod(1)?);
    let mut stream = Stream::start(near.netns(), far.ip()?)?;
    let subnets = BOTH.map(|index| stored.cluster.member(index).subnet().ok());

    // A wider network: peers may come out of the new part.
    stored.write_config(&net_conf("10.244.0.0/15", 1).to_string())?;
    wait_for_env(&stored.cluster, "FLANNEL_NETWORK", "10.244.0.0/15")?;
    let value = r#"{"PublicIP":"192.168.50.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#;
    stored.put("10.245.7.0-24", value)?;
    stored
        .cluster
        .member(0)
        .wait_for("a peer of the new part", SOON, |view| {
            let routes = view.routes(Family::V4)?;
            Ok(routes.iter().any(|route| route.dst == "10.245.7.0/24"))
        })?;

    // What cannot be acted upon is said, and changes nothing.
    let plain = json!({"Network": "10.244.0.0/15", "Backend": {"Type": "host-gw"}});
    for (text, words) in [
        (
            net_conf("10.244.0.0/15", 7).to_string(),
            "field Backend is another one",
        ),
        (
            plain.to_string(),
            "field Backend.Type is host-gw, and was vxlan",
        ),
        (
            net_conf("10.99.0.0/16", 1).to_string(),
            "may be outside 10.99.0.0/16",
        ),
        ("{not json".to_owned(), "line 1"),
    ] {
        stored.write_config(&text)?;
        wait_for_log(&stored.cluster, words)?;
    }
    stored.cluster.wait_in_sync(READY_DEADLINE)?;
    wait_for_env(&stored.cluster, "FLANNEL_NETWORK", "10.244.0.0/15")?;
    stream.go_on(500)?;
    assert_eq!(stream.end()?.lost, Vec::<usize>::new());
    let now = BOTH.map(|index| stored.cluster.member(index).subnet().ok());
    assert_eq!(now, subnets);
    let new = stored.cluster.pod(0)?;
    assert!(new.ping(&far, 3, REPLY)?.complete());
    // Written back, it is what runs; the nodes go on from there.
    stored.write_config(&net_conf("10.244.0.0/15", 1).to_string())?;
    stored.write_config(&net_conf("10.244.0.0/14", 1).to_string())?;
    wait_for_env(&stored.cluster, "FLANNEL_NETWORK", "10.244.0.0/14")
}

#[test]
fn a_change_in_the_folder_is_followed_while_pods_talk() -> Result<()> {
    is_followed_while_pods_talk(Kind::Folder)
}

#[test]
fn a_change_in_etcd_is_followed_while_pods_talk() -> Result<()> {
    skip_unless!(Kind::Etcd.installed());
    is_followed_while_pods_talk(Kind::Etcd)
}

#[test]
fn a_change_in_kubernetes_is_followed_while_pods_talk() -> Result<()> {
    skip_unless!(Kind::Kubernetes.installed());
    is_followed_while_pods_talk(Kind::Kubernetes)
}

fn dual_stack() -> Value {
    let mut dual = net_conf("10.244.0.0/16", 1);
    dual["EnableIPv6"] = true.into();
    dual["IPv6Network"] = "fd00:244::/48".into();
    dual
}

fn ipv6_comes_to_pods_that_talk_by_ipv4(kind: Kind) -> Result<()> {
    let mut stored = start(kind)?;
    let (near, far) = (stored.cluster.pod(0)?, stored.cluster.pod(1)?);
    let stream = Stream::start(near.netns(), far.ip()?)?;
    let subnets = BOTH.map(|index| stored.cluster.member(index).subnet().ok());
    stored.write_config(&dual_stack().to_string())?;
    wait_for_env(&stored.cluster, "FLANNEL_IPV6_NETWORK", "fd00:244::/48")?;
    stored.cluster.wait_in_sync(READY_DEADLINE)?;
    let pods = [stored.cluster.pod(0)?, stored.cluster.pod(1)?];
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        let ips = to.added().ips();
        assert_eq!(ips.len(), 2, "{ips:?}");
        for ip in ips {
            let reached = || Ok(from.view().ping(ip, 3, REPLY)?.complete());
            cni_test_harness::wait::until_true(&format!("{ip} is reached"), SOON, reached)?;
        }
    }
    assert_eq!(stream.end()?.lost, Vec::<usize>::new());
    let now = BOTH.map(|index| stored.cluster.member(index).subnet().ok());
    assert_eq!(now, subnets);
    Ok(())
}

#[test]
fn ipv6_comes_to_pods_that_talk_by_ipv4_through_the_folder() -> Result<()> {
    ipv6_comes_to_pods_that_talk_by_ipv4(Kind::Folder)
}

#[test]
fn ipv6_comes_to_pods_that_talk_by_ipv4_through_etcd() -> Result<()> {
    skip_unless!(Kind::Etcd.installed());
    ipv6_comes_to_pods_that_talk_by_ipv4(Kind::Etcd)
}

fn ipv6_is_not_taken_from_pods_that_talk_by_it(kind: Kind) -> Result<()> {
    let mut stored = start_with(kind, dual_stack())?;
    let (near, far) = (stored.cluster.pod(0)?, stored.cluster.pod(1)?);
    let ips = far.added().ips();
    assert_eq!(ips.len(), 2, "{ips:?}");
    for ip in &ips {
        let reached = || Ok(near.view().ping(*ip, 1, REPLY)?.complete());
        cni_test_harness::wait::until_true(&format!("{ip} is reached"), SOON, reached)?;
    }
    let streams = ips.iter().map(|ip| Stream::start(near.netns(), *ip));
    let streams = streams.collect::<Result<Vec<_>>>()?;
    let env = BOTH.map(|index| stored.cluster.member(index).subnet_env().ok());
    stored.write_config(&net_conf("10.244.0.0/16", 1).to_string())?;
    wait_for_log(&stored.cluster, "IPv6 is not enabled any more")?;
    stored.cluster.wait_in_sync(READY_DEADLINE)?;
    for stream in streams {
        assert_eq!(stream.end()?.lost, Vec::<usize>::new());
    }
    let now = BOTH.map(|index| stored.cluster.member(index).subnet_env().ok());
    assert_eq!(now, env);
    assert_eq!(stored.cluster.pod(0)?.added().ips().len(), 2);
    Ok(())
}

#[test]
fn ipv6_is_not_taken_from_pods_that_talk_by_it_through_the_folder() -> Result<()> {
    ipv6_is_not_taken_from_pods_that_talk_by_it(Kind::Folder)
}

#[test]
fn ipv6_is_not_taken_from_pods_that_talk_by_it_through_etcd() -> Result<()> {
    skip_unless!(Kind::Etcd.installed());
    ipv6_is_not_taken_from_pods_that_talk_by_it(Kind::Etcd)
}

#[test]
fn a_network_without_the_nodes_pod_cidr_takes_nothing_away_also_over_a_restart() -> Result<()> {
    skip_unless!(Kind::Kubernetes.installed());
    let mut stored = start(Kind::Kubernetes)?;
    let (near, far) = (stored.cluster.pod(0)?, stored.cluster.pod(1)?);
    let mut stream = Stream::start(near.netns(), far.ip()?)?;
    let env = stored.cluster.member(0).subnet_env()?;
    stored.write_config(&net_conf("10.99.0.0/16", 1).to_string())?;
    wait_for_log(
        &stored.cluster,
        "that this node was given is outside 10.99.0.0/16",
    )?;
    stored.cluster.member_mut(0).stop_daemon(SOON)?;
    stored.cluster.member_mut(0).start_daemon()?;
    let log = |stored: &Stored| {
        let daemon = stored.cluster.member(0).daemon().expect("it runs");
        log_tail(daemon.log_path(), 1000)
    };
    let waits = "is outside the net-conf's network 10.99.0.0/16";
    let member = stored.cluster.member(0);
    member.wait_for(waits, SOON, |_| Ok(log(&stored).contains(waits)))?;
    // The subnet is the node's: pods that run have it, and new ones get of it.
    assert_eq!(member.subnet_env()?, env);
    let new = stored.cluster.pod(0)?;
    assert!(new.ping(&far, 3, REPLY)?.complete());
    stream.go_on(300)?;
    // Mended, it is gone by without another start.
    stored.write_config(&net_conf("10.244.0.0/16", 1).to_string())?;
    let taken = "lease taken";
    member.wait_for(
        taken,
        SOON,
        |_| Ok(log(&stored).matches(taken).count() == 2),
    )?;
    stored.cluster.wait_in_sync(READY_DEADLINE)?;
    assert_eq!(stored.cluster.member(0).subnet_env()?, env);
    assert_eq!(stream.end()?.lost, Vec::<usize>::new());
    Ok(())
}
