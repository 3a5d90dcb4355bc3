//! A whole Kubernetes cluster with twill as its network: as the manifest in conf/ installs it, with
//! IPv4 alone and with both families, and in flannel's place under flannel's name.
//!
//! `./dev test-kube` runs these; they take minutes, and `./dev test` leaves them out.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use cni_test_harness::containerd::Programs;
use cni_test_harness::kubernetes::cluster::{self, Cluster, Network, Spec};
use cni_test_harness::observe::Family;
use cni_test_harness::skip_unless;
use cni_test_harness::wait::Look;
use ipnet::IpNet;

/// Routes on a node to a subnet.
fn has_route(cluster: &Cluster, index: usize, subnet: &IpNet) -> Result<bool> {
    let family = match subnet {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    };
    let routes = cluster.worker(index).node().view().routes(family)?;
    Ok(routes.iter().any(|route| route.dst == subnet.to_string()))
}

fn wait_for_routes(cluster: &Cluster, index: usize, subnets: &[IpNet], wanted: bool) -> Result<()> {
    for subnet in subnets {
        let what = format!("route to {subnet} on node {}: {wanted}", index + 1);
        cluster.wait(&what, || {
            Ok(match has_route(cluster, index, subnet)? == wanted {
                true => Look::Done(()),
                false => Look::NotYet("not so".to_owned()),
            })
        })?;
    }
    Ok(())
}

/// A Node says what flanneld says on one, letter for letter, and nothing else under its prefix.
fn says_what_flanneld_says(cluster: &Cluster, index: usize, dual_stack: bool) -> Result<()> {
    let worker = cluster.worker(index);
    let (view, place) = (worker.node().view(), worker.place());
    let data = |device: &str| -> Result<String> {
        let mac = view.mac(device)?;
        Ok(format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#))
    };
    let mut wanted = BTreeMap::from([
        ("backend-data", data("flannel.1")?),
        ("backend-type", "vxlan".to_owned()),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", place.v4.addr().to_string()),
    ]);
    if dual_stack {
        wanted.insert("backend-v6-data", data("flannel-v6.1")?);
        wanted.insert("public-ipv6", place.v6.addr().to_string());
    }
    let object = cluster.server().get_json(&["node", worker.name()])?;
    let annotations = object["metadata"]["annotations"].as_object();
    let said: BTreeMap<&str, String> = annotations
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.strip_prefix("flannel.alpha.coreos.com/")?, value)))
        .map(|(suffix, value)| (suffix, value.as_str().unwrap_or_default().to_owned()))
        .collect();
    ensure!(said == wanted, "{said:#?}, not {wanted:#?}");
    let families = object["spec"]["podCIDRs"].as_array().map(Vec::len);
    ensure!(families == Some(if dual_stack { 2 } else { 1 }));
    Ok(())
}

/// The whole life of a cluster of two nodes.
fn pods_reach_each_other_and_nodes_come_and_go(
    containerd: Programs,
    network: Network,
    dual_stack: bool,
) -> Result<()> {
    let mut cluster = Cluster::start(&Spec {
        nodes: 2,
        containerd,
        dual_stack,
    })?;
    for worker in cluster.workers() {
        assert_ne!(cluster.condition(worker.name(), "Ready")?, "True");
    }
    cluster.install_network(network)?;
    cluster.wait_ready()?;
    (0..2).try_for_each(|index| says_what_flanneld_says(&cluster, index, dual_stack))?;
    cluster.deploy(4)?;
    let spread = cluster.spread()?;
    ensure!(
        spread.len() == 2 && spread.values().all(|pods| pods.len() >= 3),
        "pods on both nodes: {spread:?}"
    );
    // Two of `each`, two of `host`, four of `some`: eight ask eight, by two protocols, at every
    // address.
    let families = if dual_stack { 2 } else { 1 };
    assert_eq!(cluster.wait_all_reached()?, 8 * 8 * 2 * families);

    let before = cluster.pod_cidrs("node2")?;
    wait_for_routes(&cluster, 0, &before, true)?;
    cluster.remove_node(1)?;
    wait_for_routes(&cluster, 0, &before, false)?;

    cluster.bring_back(1)?;
    let after = cluster.pod_cidrs("node2")?;
    assert_ne!(
        before, after,
        "the controller manager gives the next subnet"
    );
    cluster.wait_ready()?;
    wait_for_routes(&cluster, 0, &after, true)?;
    cluster.wait_deployed()?;
    cluster.wait_all_reached()?;
    let moved = cluster.answering()?;
    let each = moved
        .iter()
        .find(|pod| pod.node == "node2" && pod.name.starts_with("each"));
    let each = each.expect("a pod of the DaemonSet");
    let is_of = |ip| after.iter().any(|subnet| subnet.contains(ip));
    ensure!(
        each.ips.len() == families && each.ips.iter().all(is_of),
        "{:?} is out of {after:?}",
        each.ips
    );
    Ok(())
}

#[test]
#[ignore = "minutes; `./dev test-kube` runs it"]
fn a_cluster_lives_on_the_manifest() -> Result<()> {
    skip_unless!(cluster::available());
    let containerd = skip_unless!(Programs::of_the_distribution());
    pods_reach_each_other_and_nodes_come_and_go(containerd, Network::Manifest, false)
}

#[test]
#[ignore = "minutes; `./dev test-kube` runs it"]
fn a_dual_stack_cluster_lives_on_the_manifest() -> Result<()> {
    skip_unless!(cluster::available());
    let containerd = skip_unless!(Programs::of_the_distribution());
    pods_reach_each_other_and_nodes_come_and_go(containerd, Network::Manifest, true)
}

#[test]
#[ignore = "minutes; `./dev test-kube` runs it"]
fn a_cluster_with_containerd_2_lives_on_twill_under_flannels_name() -> Result<()> {
    skip_unless!(cluster::available());
    let containerd = skip_unless!(Programs::second_generation());
    pods_reach_each_other_and_nodes_come_and_go(containerd, Network::FlannelName, false)
}
