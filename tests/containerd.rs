//! Real runtimes: containers and CRI pods that containerd and runc make reach pods on other nodes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Member, Spec};
use cni_test_harness::containerd::{self, Containerd, Setup};
use cni_test_harness::{skip_unless, tools};

/// The folder of plugins for a node's containerd: twill, and the loopback that containerd runs
/// beside it.
fn plugins(member: &Member, loopback: &Path) -> Result<PathBuf> {
    let dir = member.node().make_dir("bin")?;
    std::fs::copy(tools::built("twill")?, dir.join("twill"))?;
    std::fs::copy(loopback, dir.join("loopback"))?;
    Ok(dir)
}

fn start(member: &Member, loopback: &Path) -> Result<Containerd> {
    Containerd::start(&Setup {
        netns: member.node().name(),
        dir: member.node().dir(),
        cni_bin_dir: &plugins(member, loopback)?,
        cni_conf_dir: &member.node().make_dir("net.d")?,
        binds: Vec::new(),
    })
}

/// What pods leave on a node.
fn leftovers(member: &Member) -> Result<Vec<String>> {
    let mut found = member.view().link_names()?;
    found.retain(|name| name.starts_with("veth"));
    let networks = member.node().make_dir("cni/networks")?.join("cbr0");
    let names = std::fs::read_dir(networks).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    found.extend(names.filter(|name| name.parse::<IpAddr>().is_ok()));
    Ok(found)
}

#[test]
fn a_cri_pod_reaches_a_cri_pod_on_another_node_and_leaves_nothing() -> Result<()> {
    skip_unless!(containerd::available());
    let loopback = skip_unless!(tools::debian_plugin("loopback"));
    let cluster = Cluster::start(&Spec::default())?;
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let (near, far) = (start(here, &loopback)?, start(there, &loopback)?);
    let (near_cri, far_cri) = (near.cri()?, far.cri()?);
    assert_eq!(near_cri.network_ready()?, Ok(()));

    let (client, server) = (near.pod("client"), far.pod("server"));
    let (client_id, server_id) = (near_cri.run_pod(&client)?, far_cri.run_pod(&server)?);
    let target = far_cri.pod_status(&server_id)?.ips[0];
    assert!(there.subnet()?.contains(&target), "{target}");
    let container = near_cri.run_container(&client_id, &client, "main", &[])?;
    let ping = near_cri.exec(
        &container,
        &["ping", "-c", "3", "-W", "2", &target.to_string()],
    )?;
    assert_eq!(ping.code, 0, "{ping:?}");
    // And a pod made by the harness's own runtime is on the same network.
    let plain = cluster.pod(1)?;
    let reached = plain.view().ping(
        near_cri.pod_status(&client_id)?.ips[0],
        2,
        Duration::from_secs(2),
    )?;
    assert!(reached.complete(), "{reached:?}");
    drop(plain);

    for (cri, id) in [(&near_cri, &client_id), (&far_cri, &server_id)] {
        cri.stop_pod(id)?;
        cri.stop_pod(id)?;
        cri.remove_pod(id)?;
    }
    for member in [here, there] {
        member.wait_for("nothing is left", Duration::from_secs(5), |_| {
            Ok(leftovers(member)?.is_empty())
        })?;
    }
    Ok(())
}

#[test]
fn a_container_of_ctr_run_reaches_a_pod_on_another_node() -> Result<()> {
    skip_unless!(containerd::available());
    let loopback = skip_unless!(tools::debian_plugin("loopback"));
    let cluster = Cluster::start(&Spec::default())?;
    let containerd = start(cluster.member(0), &loopback)?;
    let far = cluster.pod(1)?;
    let target = far.ip()?.to_string();
    let output = containerd
        .run_with_cni("one", &["ping", "-c", "3", "-W", "2", &target])?
        .stdout_text();
    assert!(output.contains("3 packets received"), "{output}");
    cluster
        .member(0)
        .wait_for("nothing is left", Duration::from_secs(5), |_| {
            Ok(leftovers(cluster.member(0))?.is_empty())
        })
}
