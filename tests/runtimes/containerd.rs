//! containerd: containers and CRI pods that it and runc make reach pods on other nodes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Member, Spec};
use cni_test_harness::containerd::{self, Containerd};
use cni_test_harness::cri::{HostPort, Protocol, Setup};
use cni_test_harness::{skip_unless, tools};
use serde_json::{Value, json};

use crate::crash;
use crate::seen::{SERVE, SOON, answers, rates, wait_until_nothing_is_left};

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

fn nothing_is_left(member: &Member, names: &[String]) -> Result<()> {
    let reservations = member.node().make_dir("cni/networks/cbr0")?;
    wait_until_nothing_is_left(member.view(), &reservations, names)
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
    nothing_is_left(here, &[client_id])?;
    nothing_is_left(there, &[server_id])
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
    nothing_is_left(cluster.member(0), &[])
}

#[test]
fn host_ports_and_bandwidth_annotations_of_a_cri_pod_hold_until_it_is_removed() -> Result<()> {
    skip_unless!(containerd::available());
    let loopback = skip_unless!(tools::debian_plugin("loopback"));
    let cluster = Cluster::start(&Spec::default())?;
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let conf = here.node().make_dir("net.d")?.join("10-twill.conflist");
    let mut list: Value = serde_json::from_slice(&std::fs::read(&conf)?)?;
    list["plugins"][0]["capabilities"] = json!({"portMappings": true, "bandwidth": true});
    std::fs::write(&conf, list.to_string())?;

    let containerd = start(here, &loopback)?;
    let cri = containerd.cri()?;
    let spec = containerd
        .pod("web")
        .port(HostPort {
            protocol: Protocol::Tcp,
            host_port: 8080,
            container_port: 80,
            host_ip: String::new(),
        })
        .annotation("kubernetes.io/ingress-bandwidth", "8M")
        .annotation("kubernetes.io/egress-bandwidth", "4M");
    let pod = cri.run_pod(&spec)?;
    cri.run_container(&pod, &spec, "main", &["/bin/sh", "-c", SERVE])?;
    let address = SocketAddr::from((here.place().v4.addr(), 8080));
    there.wait_for("the pod answers", SOON, |_| answers(there.node(), address))?;
    assert!(answers(here.node(), address)?, "from the pod's own node");
    assert_eq!(rates(here.node())?, [500_000, 1_000_000]);

    cri.stop_pod(&pod)?;
    assert!(
        !answers(there.node(), address)?,
        "the port is closed with the pod"
    );
    cri.remove_pod(&pod)?;
    assert_eq!(rates(here.node())?, [0; 0]);
    nothing_is_left(here, &[pod])
}

#[test]
fn pods_live_through_a_crash_of_containerd_and_leave_nothing() -> Result<()> {
    skip_unless!(containerd::available());
    let loopback = skip_unless!(tools::debian_plugin("loopback"));
    let cluster = Cluster::start(&Spec::default())?;
    let mut containerd = start(cluster.member(0), &loopback)?;
    let far = cluster.pod(1)?;
    let pods = crash::pods_live_through_it(&mut containerd, &far)?;
    crash::remove(&containerd, &pods)?;
    nothing_is_left(cluster.member(0), &crash::names(&pods))
}
