//! A whole Kubernetes cluster with twill as its network: once as the manifest in conf/ installs it,
//! once in flannel's place under flannel's name.
//!
//! `./dev test-kube` runs these; they take minutes, and `./dev test` leaves them out.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use cni_test_harness::containerd::Programs;
use cni_test_harness::kubernetes::cluster::{self, Cluster, Network, Spec};
use cni_test_harness::observe::Family;
use cni_test_harness::skip_unless;
use cni_test_harness::wait::Look;

/// Routes on a node to a subnet.
fn has_route(cluster: &Cluster, index: usize, subnet: &str) -> Result<bool> {
    let routes = cluster.worker(index).node().view().routes(Family::V4)?;
    Ok(routes.iter().any(|route| route.dst == subnet))
}

fn wait_for_route(cluster: &Cluster, index: usize, subnet: &str, wanted: bool) -> Result<()> {
    let what = format!("route to {subnet} on node {}: {wanted}", index + 1);
    cluster.wait(&what, || {
        Ok(match has_route(cluster, index, subnet)? == wanted {
            true => Look::Done(()),
            false => Look::NotYet("not so".to_owned()),
        })
    })
}

/// The whole life of a cluster of two nodes.
fn pods_reach_each_other_and_nodes_come_and_go(
    containerd: Programs,
    network: Network,
) -> Result<()> {
    let mut cluster = Cluster::start(&Spec {
        nodes: 2,
        containerd,
    })?;
    for worker in cluster.workers() {
        assert_ne!(cluster.condition(worker.name(), "Ready")?, "True");
    }
    cluster.install_network(network)?;
    cluster.wait_ready()?;
    cluster.deploy(4)?;
    let spread = cluster.spread()?;
    ensure!(
        spread.len() == 2 && spread.values().all(|pods| pods.len() >= 3),
        "pods on both nodes: {spread:?}"
    );
    // Two of `each`, two of `host`, four of `some`: eight ask eight, by two protocols.
    assert_eq!(cluster.wait_all_reached()?, 8 * 8 * 2);

    let before = cluster.pod_cidr("node2")?;
    wait_for_route(&cluster, 0, &before.to_string(), true)?;
    cluster.remove_node(1)?;
    wait_for_route(&cluster, 0, &before.to_string(), false)?;

    cluster.bring_back(1)?;
    let after = cluster.pod_cidr("node2")?;
    assert_ne!(
        before, after,
        "the controller manager gives the next subnet"
    );
    cluster.wait_ready()?;
    wait_for_route(&cluster, 0, &after.to_string(), true)?;
    cluster.wait_deployed()?;
    cluster.wait_all_reached()?;
    let moved = cluster.answering()?;
    let each = moved
        .iter()
        .find(|pod| pod.node == "node2" && pod.name.starts_with("each"));
    let ip: Ipv4Addr = each.expect("a pod of the DaemonSet").ip.parse()?;
    assert!(after.contains(&ip), "{ip} is out of {after}");
    Ok(())
}

#[test]
#[ignore = "minutes; `./dev test-kube` runs it"]
fn a_cluster_lives_on_the_manifest() -> Result<()> {
    skip_unless!(cluster::available());
    let containerd = skip_unless!(Programs::of_the_distribution());
    pods_reach_each_other_and_nodes_come_and_go(containerd, Network::Manifest)
}

#[test]
#[ignore = "minutes; `./dev test-kube` runs it"]
fn a_cluster_with_containerd_2_lives_on_twill_under_flannels_name() -> Result<()> {
    skip_unless!(cluster::available());
    let containerd = skip_unless!(Programs::second_generation());
    pods_reach_each_other_and_nodes_come_and_go(containerd, Network::FlannelName)
}
