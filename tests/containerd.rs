//! Real runtimes: containers and CRI pods that containerd and runc make reach pods on other nodes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Member, Spec};
use cni_test_harness::containerd::{self, Containerd, HostPort, Protocol, Setup};
use cni_test_harness::{skip_unless, tools};
use serde_json::{Value, json};

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

/// Whether the pod's web server answers at an address, asked from a node.
fn answers(from: &Member, to: SocketAddr) -> Result<bool> {
    from.node().netns().run(|| {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(2)) else {
            return Ok(false);
        };
        stream.write_all(b"GET /answer HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.ends_with("from the pod\n"))
    })
}

/// The rates of the token buckets on a node, in bytes per second, in order.
fn rates(member: &Member) -> Result<Vec<u64>> {
    let said = member.node().exec("tc", &["-j", "qdisc"])?;
    let all: Vec<Value> = serde_json::from_slice(&said.stdout)?;
    let buckets = all.iter().filter(|qdisc| qdisc["kind"] == "tbf");
    let mut rates: Vec<u64> = buckets
        .filter_map(|qdisc| qdisc["options"]["rate"].as_u64())
        .collect();
    rates.sort_unstable();
    Ok(rates)
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
    let serve = "mkdir /www && echo from the pod > /www/answer && exec httpd -f -p 80 -h /www";
    cri.run_container(&pod, &spec, "main", &["/bin/sh", "-c", serve])?;
    let address = SocketAddr::from((here.place().v4.addr(), 8080));
    there.wait_for("the pod answers", Duration::from_secs(10), |_| {
        answers(there, address)
    })?;
    assert!(answers(here, address)?, "from the pod's own node");
    assert_eq!(rates(here)?, [500_000, 1_000_000]);

    cri.stop_pod(&pod)?;
    assert!(!answers(there, address)?, "the port is closed with the pod");
    cri.remove_pod(&pod)?;
    here.wait_for("nothing is left", Duration::from_secs(5), |_| {
        let ports = here.view().nft_text()?.contains(&pod);
        Ok(leftovers(here)?.is_empty() && rates(here)?.is_empty() && !ports)
    })
}
