//! CRI-O: its pods reach those of another node, and CRI-O's own ways (host ports that it makes
//! itself, CHECK after every ADD, GC at every start) do them no harm.
//!
//! No registry has CRI-O: `CRIO` names one.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::cluster::{Cluster, Member, Spec};
use cni_test_harness::cri::{HostPort, Protocol, Setup};
use cni_test_harness::crio::{Crio, Programs};
use cni_test_harness::{skip_unless, tools, try_if_there};
use ipnet::IpNet;
use serde_json::json;

use crate::crash;
use crate::seen::{SERVE, SOON, answers, rates, wait_until_nothing_is_left};

fn dual_stack() -> Spec {
    Spec {
        net_conf: json!({
            "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48",
            "Backend": {"Type": "vxlan"}
        }),
        ..Spec::default()
    }
}

/// A CRI-O on a node, as an operator sets one up: `programs` in its folder of plugins, a conflist of
/// conf/ unchanged.
fn start(
    member: &Member,
    programs: &Programs,
    plugins: &[(&str, PathBuf)],
    conflist: &str,
) -> Result<Crio> {
    let bin_dir = member.node().make_dir("bin")?;
    for (name, program) in plugins {
        std::fs::copy(program, bin_dir.join(name))?;
    }
    let conf_dir = member.node().make_dir("stock")?;
    let conf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("conf")
        .join(conflist);
    std::fs::copy(conf, conf_dir.join(conflist))?;
    let run_dir = member.node().make_dir("run")?;
    Crio::start(
        programs,
        &Setup {
            netns: member.node().name(),
            dir: member.node().dir(),
            cni_bin_dir: &bin_dir,
            cni_conf_dir: &conf_dir,
            binds: vec![(run_dir, PathBuf::from("/run/flannel"))],
        },
    )
}

/// What nodes of [`dual_stack`] gave a pod of `crio` is theirs to give, and what remains of it after
/// the pod is nothing.
fn a_pod_lives_and_goes(cluster: &Cluster, crio: &Crio) -> Result<()> {
    let here = cluster.member(0);
    let cri = crio.cri()?;
    assert!(cri.version()?.starts_with("cri-o "));
    assert_eq!(cri.network_ready()?, Ok(()));
    let spec = crio.pod("web").label("app", "web");
    let pod = cri.run_pod(&spec)?;
    let container = cri.run_container(&pod, &spec, "main", &[])?;

    let ips = cri.pod_status(&pod)?.ips;
    let env = here.subnet_env()?;
    let subnets = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"];
    for (ip, subnet) in ips.iter().zip(subnets.map(|name| &env[name])) {
        let subnet: IpNet = subnet.parse()?;
        assert!(subnet.contains(ip), "{ip} is not of {subnet}");
    }
    assert_eq!(ips.len(), 2, "{ips:?}");
    let far = cluster.pod(1)?;
    for ip in &ips {
        let reached = far.view().ping(*ip, 2, Duration::from_secs(2))?;
        assert!(reached.complete(), "{ip}: {reached:?}");
    }
    for target in far.added().ips() {
        let target = target.to_string();
        let ping = cri.exec(&container, &["ping", "-c", "2", "-W", "2", &target])?;
        assert_eq!(ping.code, 0, "{target}: {ping:?}");
    }

    cri.stop_pod(&pod)?;
    cri.stop_pod(&pod)?;
    assert!(!cri.pod_status(&pod)?.ready);
    cri.remove_pod(&pod)?;
    cri.remove_pod(&pod)?;
    let names = [vec![pod], ips.iter().map(IpAddr::to_string).collect()].concat();
    nothing_is_left(here, crio, &names)
}

fn nothing_is_left(member: &Member, crio: &Crio, names: &[String]) -> Result<()> {
    let reservations = crio.cni_state_dir().join("networks/cbr0");
    wait_until_nothing_is_left(member.view(), &reservations, names)
        .with_context(|| crio.log_tail())?;
    assert!(crio.cached_results()?.is_empty());
    Ok(())
}

#[test]
fn a_pod_of_crio_reaches_a_pod_on_another_node_and_leaves_nothing() -> Result<()> {
    let programs = try_if_there!(Programs::named());
    let cluster = Cluster::start(&dual_stack())?;
    let plugins = [("twill", tools::built("twill")?)];
    let crio = start(cluster.member(0), &programs, &plugins, "10-twill.conflist")?;
    a_pod_lives_and_goes(&cluster, &crio)
}

#[test]
fn under_flannels_name_crio_is_served_with_its_stock_conflist() -> Result<()> {
    let programs = try_if_there!(Programs::named());
    let portmap = skip_unless!(tools::go_tool("portmap"));
    let cluster = Cluster::start(&dual_stack())?;
    let plugins = [("flannel", tools::built("twill")?), ("portmap", portmap)];
    let crio = start(
        cluster.member(0),
        &programs,
        &plugins,
        "10-flannel.conflist",
    )?;
    a_pod_lives_and_goes(&cluster, &crio)
}

#[test]
fn host_ports_and_bandwidth_annotations_of_crio_hold_until_the_pod_is_removed() -> Result<()> {
    let programs = try_if_there!(Programs::named());
    let cluster = Cluster::start(&dual_stack())?;
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let plugins = [("twill", tools::built("twill")?)];
    let crio = start(here, &programs, &plugins, "10-twill.conflist")?;
    let cri = crio.cri()?;
    let (v4, v6) = (here.place().v4.addr(), here.place().v6.addr());
    let port = |host_port, host_ip: String| HostPort {
        protocol: Protocol::Tcp,
        host_port,
        container_port: 80,
        host_ip,
    };
    let spec = crio
        .pod("web")
        .port(port(8080, String::new()))
        .port(port(8081, v4.to_string()))
        .annotation("kubernetes.io/ingress-bandwidth", "8M")
        .annotation("kubernetes.io/egress-bandwidth", "4M");
    let pod = cri.run_pod(&spec)?;
    cri.run_container(&pod, &spec, "main", &["/bin/sh", "-c", SERVE])?;
    let addresses = [
        SocketAddr::from((v4, 8080)),
        SocketAddr::from((v4, 8081)),
        SocketAddr::from((v6, 8080)),
    ];
    for address in addresses {
        let what = format!("the pod answers at {address}");
        there.wait_for(&what, SOON, |_| answers(there.node(), address))?;
        assert!(answers(here.node(), address)?, "{address} from its node");
    }
    assert_eq!(rates(here.node())?, [500_000, 1_000_000]);
    let ips = cri.pod_status(&pod)?.ips;

    cri.stop_pod(&pod)?;
    for address in addresses {
        assert!(!answers(there.node(), address)?, "{address} is closed");
    }
    cri.remove_pod(&pod)?;
    assert_eq!(rates(here.node())?, [0; 0]);
    let names = [vec![pod], ips.iter().map(IpAddr::to_string).collect()].concat();
    nothing_is_left(here, &crio, &names)
}

/// CRI-O collects at its start what none of its pods owns; what they own it says in the valid list.
#[test]
fn pods_live_through_a_crash_of_crio_and_its_gc_takes_only_what_is_nobodys() -> Result<()> {
    let programs = try_if_there!(Programs::named());
    let cluster = Cluster::start(&Spec::default())?;
    let here = cluster.member(0);
    let bin_dir = here.node().make_dir("bin")?;
    std::fs::copy(tools::built("twill")?, bin_dir.join("twill"))?;
    // The node's own conflist: its state is where the harness's runtime looks as well.
    let mut crio = Crio::start(
        &programs,
        &Setup {
            netns: here.node().name(),
            dir: here.node().dir(),
            cni_bin_dir: &bin_dir,
            cni_conf_dir: &here.node().make_dir("net.d")?,
            binds: Vec::new(),
        },
    )?;
    let (nobodys, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let reservations = here.node().make_dir("cni/networks/cbr0")?;
    let nobodys_file = reservations.join(nobodys.ip()?.to_string());
    assert!(nobodys_file.exists());

    let pods = crash::pods_live_through_it(&mut crio, &far)?;
    here.wait_for("nobody's pod is collected", SOON, |_| {
        Ok(!nobodys_file.exists() && nobodys.view().link("eth0")?.is_none())
    })?;
    for ip in pods.values().flatten() {
        let file = reservations.join(ip.to_string());
        assert!(file.exists(), "{ip} is still its pod's");
        let reached = far.view().ping(*ip, 1, Duration::from_secs(2))?;
        assert!(reached.complete(), "{ip} after GC: {reached:?}");
    }

    crash::remove(&crio, &pods)?;
    wait_until_nothing_is_left(here.view(), &reservations, &crash::names(&pods))?;
    assert!(crio.cached_results()?.is_empty());
    Ok(())
}
