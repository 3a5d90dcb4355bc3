//! Every backend that this kernel can do, chosen by net-conf and end to end: pods of different
//! nodes reach each other, what is lost comes back, and a node that cannot take part says why.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::netns;
use cni_test_harness::observe::Family;
use cni_test_harness::pod::Pod;
use cni_test_harness::process::log_tail;
use cni_test_harness::underlay::{IFNAME, Shape};
use cni_test_harness::wait;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);
const REPLY: Duration = Duration::from_secs(2);

fn spec(nodes: u8, backend: Value) -> Spec {
    Spec {
        nodes,
        shape: Shape::Bridge,
        net_conf: json!({"Network": "10.244.0.0/16", "Backend": backend}),
        ..Spec::default()
    }
}

/// Nodes whose daemons are ready; which routes that means differs from backend to backend.
fn start(spec: &Spec) -> Result<Cluster> {
    let name = netns::unique_name("backend");
    let mut cluster = Cluster::lay_out(spec, &name, &std::env::temp_dir().join(&name))?;
    for index in 0..cluster.members().len() {
        cluster.member_mut(index).start_daemon()?;
    }
    for index in 0..cluster.members().len() {
        cluster.member_mut(index).wait_ready(READY_DEADLINE)?;
    }
    Ok(cluster)
}

fn log(cluster: &Cluster, index: usize) -> String {
    let daemon = cluster.member(index).daemon().expect("it runs");
    log_tail(daemon.log_path(), 1000)
}

/// Every pod gets an answer from every other; a daemon that was just told of a peer may need a
/// moment.
fn all_reach_each_other(pods: &[Pod]) -> Result<()> {
    for from in pods {
        for to in pods {
            let what = format!("a ping from {} to {}", from.ip()?, to.ip()?);
            wait::until_true(&what, SOON, || Ok(from.ping(to, 1, REPLY)?.complete()))?;
        }
    }
    Ok(())
}

fn pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    (0..cluster.members().len())
        .map(|index| cluster.pod(index))
        .collect()
}

/// The route to `subnet` on the first node, as `via dev proto`.
fn route(cluster: &Cluster, subnet: &str) -> Result<Option<String>> {
    let routes = cluster.member(0).view().routes(Family::V4)?;
    let found = routes.into_iter().find(|route| route.dst == subnet);
    Ok(found.map(|route| format!("{} {} {}", route.via, route.dev, route.protocol)))
}

#[test]
fn host_gw_joins_three_nodes_repairs_routes_and_prunes_what_went() -> Result<()> {
    let mut cluster = start(&spec(3, json!({"Type": "host-gw"})))?;
    cluster.wait_in_sync(READY_DEADLINE)?;
    all_reach_each_other(&pods(&cluster)?)?;
    let env = cluster.member(0).subnet_env()?;
    let mtu = cluster.member(0).view().mtu(IFNAME)?;
    assert_eq!(env["FLANNEL_MTU"], mtu.to_string());

    let [second, third] = [1, 2].map(|index| cluster.member(index));
    let gone = third.subnet()?.trunc().to_string();
    let kept = second.subnet()?.trunc().to_string();
    let via = format!("{} {IFNAME} 116", second.place().v4.addr());
    assert_eq!(route(&cluster, &kept)?, Some(via.clone()));

    // Deleted, and turned to somebody else.
    let first = cluster.member(0).node();
    first.netns().ip(&["route", "del", &kept])?;
    wait::until_true("the deleted route", SOON, || {
        Ok(route(&cluster, &kept)?.as_ref() == Some(&via))
    })?;
    let gateway = cluster.member(0).place().v4_gateway.to_string();
    let change = ["route", "replace", &kept, "via", &gateway, "proto", "116"];
    first.netns().ip(&change)?;
    wait::until_true("the changed route", SOON, || {
        Ok(route(&cluster, &kept)?.as_ref() == Some(&via))
    })?;

    // A peer that goes while nobody looks, and somebody's own route beside.
    let foreign = ["route", "add", "10.244.250.0/24", "via", &gateway];
    first.netns().ip(&foreign)?;
    cluster.member_mut(0).kill_daemon();
    cluster.member_mut(2).kill_daemon();
    let lease = format!("subnets/{}", gone.replace('/', "-"));
    std::fs::remove_file(cluster.store_dir().join(&lease)).context(lease)?;
    cluster.member_mut(0).start_daemon()?;
    wait::until_true("the stale route to go", SOON, || {
        Ok(route(&cluster, &gone)?.is_none())
    })?;
    assert_eq!(route(&cluster, &kept)?, Some(via));
    assert!(route(&cluster, "10.244.250.0/24")?.is_some());
    Ok(())
}

#[test]
fn host_gw_carries_both_families() -> Result<()> {
    let mut dual = spec(2, json!({"Type": "host-gw"}));
    dual.net_conf = json!({
        "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48",
        "Backend": {"Type": "host-gw"}
    });
    let cluster = start(&dual)?;
    let other = cluster.member(1).subnet_env()?["FLANNEL_IPV6_SUBNET"].clone();
    let base = other.replace("::1/", "::/");
    cluster.member(0).wait_for("the IPv6 route", SOON, |view| {
        let routes = view.routes(Family::V6)?;
        Ok(routes
            .iter()
            .any(|route| route.dst == base && route.dev == IFNAME))
    })?;
    all_reach_each_other(&pods(&cluster)?)
}

#[test]
fn host_gw_names_the_peers_that_are_not_on_its_link() -> Result<()> {
    let mut routed = spec(2, json!({"Type": "host-gw"}));
    routed.shape = Shape::Routed;
    let cluster = start(&routed)?;
    let there = cluster.member(1).subnet()?.trunc().to_string();
    let said = there.replace('/', "-");
    wait::until_true("the peer to be named", SOON, || {
        let log = log(&cluster, 0);
        Ok(log.contains(&said) && log.contains("on no link of this node"))
    })?;
    assert_eq!(route(&cluster, &there)?, None);
    Ok(())
}

#[test]
fn udp_joins_nodes_and_comes_back_when_its_device_is_deleted() -> Result<()> {
    let mut cluster = start(&spec(2, json!({"Type": "udp"})))?;
    let both = pods(&cluster)?;
    all_reach_each_other(&both)?;
    let mtu = cluster.member(0).view().mtu(IFNAME)?;
    let env = cluster.member(0).subnet_env()?;
    assert_eq!(env["FLANNEL_MTU"], (mtu - 28).to_string());
    let lease = std::fs::read_dir(cluster.store_dir().join("subnets"))?;
    for entry in lease {
        let value = std::fs::read_to_string(entry?.path())?;
        assert!(!value.contains("BackendType"), "{value}");
    }

    let netns = cluster.member(0).node().netns();
    netns.ip(&["route", "del", "10.244.0.0/16", "dev", "flannel0"])?;
    netns.ip(&["addr", "flush", "dev", "flannel0"])?;
    all_reach_each_other(&both)?;
    netns.ip(&["link", "del", "flannel0"])?;
    all_reach_each_other(&both)?;

    // The data path is the daemon's own: it goes with it and comes back with it.
    cluster.member_mut(0).stop_daemon(SOON)?;
    assert!(cluster.member(0).view().link("flannel0")?.is_none());
    cluster.member_mut(0).start_daemon()?;
    all_reach_each_other(&both)
}

#[test]
fn udp_says_so_when_its_port_is_taken_and_makes_nothing() -> Result<()> {
    let spec = spec(1, json!({"Type": "udp", "Port": 9999}));
    let name = netns::unique_name("backend");
    let mut cluster = Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))?;
    let address = cluster.member(0).place().v4.addr();
    let bind = || Ok(std::net::UdpSocket::bind((address, 9999))?);
    let _held = cluster.member(0).node().netns().run(bind)?;
    cluster.member_mut(0).start_daemon()?;
    wait::until_true("the taken port to be named", SOON, || {
        let log = log(&cluster, 0);
        Ok(log.contains(":9999") && log.contains("Backend.Port"))
    })?;
    assert!(
        !cluster.store_dir().join("subnets").exists(),
        "a lease was taken"
    );
    assert!(cluster.member(0).view().link("flannel0")?.is_none());
    Ok(())
}

#[test]
fn alloc_takes_a_subnet_and_touches_no_route() -> Result<()> {
    let cluster = start(&spec(2, json!({"Type": "alloc"})))?;
    let pod = cluster.pod(0)?;
    assert!(cluster.member(0).subnet()?.contains(&pod.ip()?));
    let there = cluster.member(1).subnet()?.trunc().to_string();
    assert_eq!(route(&cluster, &there)?, None);
    let names = cluster.member(0).view().link_names()?;
    assert!(
        !names.iter().any(|name| name.starts_with("flannel")),
        "{names:?}"
    );
    Ok(())
}

/// flanneld's case `extension`: the same programs are told the same in the same order.
#[test]
fn extension_tells_programs_what_flanneld_tells_them_and_runs_no_shell() -> Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("sidecar/tests/golden/extension");
    let read = |file: &str| std::fs::read_to_string(golden.join(file)).context(file.to_owned());
    let name = netns::unique_name("backend");
    let dir = std::env::temp_dir().join(&name);
    let mut cluster = Cluster::lay_out(&spec(1, json!({})), &name, &dir)?;
    let (hook, said) = (dir.join("hook"), dir.join("hook.log"));
    let here = |text: String| text.replace("/run/flannel", &dir.display().to_string());
    std::fs::write(&hook, here(read("hook")?))?;
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
    std::fs::write(
        cluster.store_dir().join("config"),
        here(read("net-conf.json")?),
    )?;
    let leases: Value = serde_json::from_str(&read("leases.json")?)?;
    let leases_dir = cluster.store_dir().join("subnets");
    std::fs::create_dir_all(&leases_dir)?;
    let mut paths = Vec::new();
    for (key, value) in leases.as_object().context("leases.json")? {
        let path = leases_dir.join(key.rsplit('/').next().context("a key")?);
        std::fs::write(&path, value.as_str().context("a value")?)?;
        let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
        std::fs::File::options()
            .write(true)
            .open(&path)?
            .set_modified(tomorrow)?;
        paths.push(path);
    }
    cluster.member_mut(0).start_daemon()?;
    let told = |what: &str| {
        wait::until_true(what, SOON, || {
            let text = std::fs::read_to_string(&said).unwrap_or_default();
            // The programs' last line but for the first, who is told nothing.
            Ok(text.contains(&format!("argv: {what}")) && text.ends_with('\n'))
        })
    };
    told("add")?;
    for path in paths {
        std::fs::remove_file(path)?;
    }
    told("remove")?;
    let own = cluster.member(0).place().v4.addr();
    let expected = read("hook.log")?.replace("192.168.50.1\n", &format!("{own}\n"));
    let home = std::env::var("HOME").unwrap_or_default();
    let expected = expected.replace(" /root\n", &format!(" {home}\n"));
    wait::until_true("the last program", SOON, || {
        Ok(std::fs::read_to_string(&said)?.lines().count() == expected.lines().count())
    })?;
    assert_eq!(std::fs::read_to_string(&said)?, expected);
    let lease = std::fs::read_to_string(leases_dir.join("10.5.20.0-24"))?;
    assert!(
        lease.contains(r#""BackendData":"from pre\nsecond line""#),
        "{lease}"
    );
    Ok(())
}

#[test]
fn an_extension_that_fails_at_the_start_ends_the_daemon_without_a_lease() -> Result<()> {
    let spec = spec(
        1,
        json!({"Type": "extension", "PreStartupCommand": ["/bin/sh", "-c", "echo went wrong; exit 3"]}),
    );
    let name = netns::unique_name("backend");
    let mut cluster = Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))?;
    cluster.member_mut(0).start_daemon()?;
    wait::until_true("the failure to be told", SOON, || {
        let log = log(&cluster, 0);
        Ok(log.contains("Backend.PreStartupCommand") && log.contains("went wrong"))
    })?;
    assert!(
        !cluster.store_dir().join("subnets").exists(),
        "a lease was taken"
    );
    Ok(())
}

#[test]
fn what_cannot_work_is_one_line_that_says_what_to_change_and_nothing_is_made() -> Result<()> {
    for (backend, words) in [
        (json!({"Type": "nonsense"}), ["Backend.Type", "wireguard"]),
        (
            json!({"Type": "udp", "Port": "8285"}),
            ["Backend.Port", "string"],
        ),
        (
            json!({"Type": "udp", "Port": 70000}),
            ["Backend.Port", "65535"],
        ),
        (
            json!({"Type": "vxlan", "VNI": -1}),
            ["Backend.VNI", "16777215"],
        ),
        (json!({"Type": "vxlan", "MTU": 100}), ["Backend.MTU", "118"]),
        (
            json!({"Type": "vxlan", "OnDemand": true, "DirectRouting": true}),
            ["Backend.OnDemand", "DirectRouting"],
        ),
        (
            json!({"Type": "ipip", "DirectRouting": 1}),
            ["Backend.DirectRouting", "bool"],
        ),
        (
            json!({"Type": "wireguard", "Mode": "both"}),
            ["Backend.Mode", "separate"],
        ),
        (
            json!({"Type": "wireguard", "Mode": "ipv6"}),
            ["Backend.Mode", "EnableIPv6"],
        ),
        (
            json!({"Type": "wireguard", "PSK": "short"}),
            ["Backend.PSK", "wg genpsk"],
        ),
        (
            json!({"Type": "extension", "SubnetAddCommand": 7}),
            ["SubnetAddCommand", "list"],
        ),
    ] {
        let spec = spec(1, backend.clone());
        let name = netns::unique_name("backend");
        let mut cluster = Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))?;
        cluster.member_mut(0).start_daemon()?;
        let what = format!("{words:?} for {backend}");
        wait::until_true(&what, SOON, || {
            let log = log(&cluster, 0);
            let line = log.lines().find(|line| line.contains("ERROR"));
            Ok(line.is_some_and(|line| words.iter().all(|word| line.contains(word))))
        })?;
        assert!(!cluster.store_dir().join("subnets").exists(), "{backend}");
        let names = cluster.member(0).view().link_names()?;
        assert!(
            !names.iter().any(|name| name.starts_with("flannel")),
            "{names:?}"
        );
    }
    Ok(())
}

#[test]
fn a_port_that_another_program_has_ends_vxlan_before_a_lease_is_taken() -> Result<()> {
    let spec = spec(1, json!({"Type": "vxlan", "Port": 9998}));
    let name = netns::unique_name("backend");
    let mut cluster = Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))?;
    let bind = || Ok(std::net::UdpSocket::bind("0.0.0.0:9998")?);
    let _held = cluster.member(0).node().netns().run(bind)?;
    cluster.member_mut(0).start_daemon()?;
    wait::until_true("the taken port to be named", SOON, || {
        let log = log(&cluster, 0);
        Ok(log.contains("UDP port 9998 is in use") && log.contains("Backend.Port"))
    })?;
    assert!(
        !cluster.store_dir().join("subnets").exists(),
        "a lease was taken"
    );
    Ok(())
}
