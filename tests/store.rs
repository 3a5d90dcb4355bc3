//! The shared folder that leases live in: many daemons, odd files, expiry, a missing config.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::netns;
use cni_test_harness::observe::Family;
use cni_test_harness::process::log_tail;
use cni_test_harness::stream::Stream;
use serde_json::json;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn eight_daemons_that_start_at_once_get_eight_subnets() -> Result<()> {
    // 10.244.0.0/20 at /24 has 14 subnets to give: collisions are likely.
    let cluster = Cluster::start(&Spec {
        nodes: 8,
        net_conf: json!({"Network": "10.244.0.0/20", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}),
        ..Spec::default()
    })?;
    let subnets: BTreeSet<_> = cluster
        .members()
        .iter()
        .map(|member| member.subnet())
        .collect::<Result<_>>()?;
    assert_eq!(subnets.len(), 8);
    Ok(())
}

#[test]
fn a_lease_is_flannels_value_under_flannels_key() -> Result<()> {
    let cluster = Cluster::start(&Spec {
        nodes: 1,
        ..Spec::default()
    })?;
    let member = cluster.member(0);
    let key = member.subnet()?.trunc().to_string().replace('/', "-");
    let value = std::fs::read_to_string(cluster.store_dir().join("subnets").join(key))?;
    let (ip, mac) = (member.place().v4.addr(), member.view().mac("flannel.1")?);
    assert_eq!(
        value,
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    );
    Ok(())
}

#[test]
fn torn_and_foreign_files_are_named_and_skipped_and_the_rest_works() -> Result<()> {
    let mut cluster = Cluster::start(&Spec::default())?;
    let subnets = cluster.store_dir().join("subnets");
    let far = std::fs::FileTimes::new()
        .set_modified(std::time::SystemTime::now() + Duration::from_secs(3600));
    let put = |name: &str, value: &str| -> Result<()> {
        let file = subnets.join(name);
        std::fs::write(&file, value)?;
        std::fs::File::options()
            .write(true)
            .open(&file)?
            .set_times(far)?;
        Ok(())
    };
    put("10.244.77.0-24", "{\"PublicIP\":\"192.168.50.77\",\"Back")?;
    put("10.244.78.0-24", "")?;
    put("README", "not a lease")?;
    put(
        "10.99.1.0-24",
        r#"{"PublicIP":"192.168.50.79","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:79"}}"#,
    )?;
    put(
        "10.244.80.0-24",
        r#"{"PublicIP":"192.168.50.80","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:80"}}"#,
    )?;
    cluster
        .member(0)
        .wait_for("the good one is programmed", SOON, |view| {
            Ok(view
                .routes(Family::V4)?
                .iter()
                .any(|r| r.dst == "10.244.80.0/24"))
        })?;
    cluster.wait_in_sync(READY_DEADLINE)?;
    let routes = cluster.member(0).view().routes(Family::V4)?;
    for skipped in ["10.244.77.0/24", "10.244.78.0/24", "10.99.1.0/24"] {
        assert!(
            routes.iter().all(|r| r.dst != skipped),
            "{skipped} in {routes:?}"
        );
    }
    let daemon = cluster.member(0).daemon().expect("it runs");
    let log = log_tail(daemon.log_path(), 1000);
    for name in ["10.244.77.0-24", "10.244.78.0-24", "README", "10.99.1.0-24"] {
        assert!(log.contains(name), "{name} is not named in {log}");
    }
    Ok(())
}

#[test]
fn a_store_that_was_wiped_while_the_daemons_were_down_takes_no_peer_away() -> Result<()> {
    let mut cluster = Cluster::start(&Spec::default())?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let subnets = |cluster: &Cluster| {
        let members = cluster.members().iter();
        let subnets = members.map(|member| member.subnet());
        subnets.collect::<Result<Vec<_>>>()
    };
    let before = subnets(&cluster)?;
    let stream = Stream::start(near.netns(), far.ip()?)?;
    cluster.member_mut(0).kill_daemon();
    cluster.member_mut(1).kill_daemon();
    std::fs::remove_dir_all(cluster.store_dir().join("subnets"))?;
    let log = cluster.member(0).node().dir().join("log/twilld.log");
    let said_before = std::fs::read_to_string(&log)?.len();
    cluster.member_mut(0).start_daemon()?;
    cluster
        .member(0)
        .wait_for("twilld is in sync without peers", SOON, |_| {
            let said = std::fs::read_to_string(&log)?;
            Ok(said[said_before..].contains("in sync peers=0"))
        })?;
    // Only now does the other one put its lease back.
    assert_eq!(
        std::fs::read_dir(cluster.store_dir().join("subnets"))?.count(),
        1
    );
    cluster.member_mut(1).start_daemon()?;
    cluster.wait_in_sync(READY_DEADLINE)?;
    assert_eq!(subnets(&cluster)?, before);
    assert_eq!(stream.end()?.lost, Vec::<usize>::new());
    Ok(())
}

#[test]
fn a_lease_that_expires_takes_its_routes_with_it() -> Result<()> {
    let mut spec = Spec::default();
    spec.twilld_args.push("--lease-ttl=6s".to_owned());
    let mut cluster = Cluster::start(&spec)?;
    let gone = cluster.member(1).subnet()?.trunc().to_string();
    cluster.member_mut(1).kill_daemon();
    cluster
        .member(0)
        .wait_for("the route goes", Duration::from_secs(20), |view| {
            Ok(view.routes(Family::V4)?.iter().all(|r| r.dst != gone))
        })?;
    // The one that lives on has renewed its own meanwhile.
    let own = cluster
        .member(0)
        .subnet()?
        .trunc()
        .to_string()
        .replace('/', "-");
    let lease = std::fs::metadata(cluster.store_dir().join("subnets").join(own))?;
    assert!(lease.modified()? > std::time::SystemTime::now());
    Ok(())
}

#[test]
fn without_a_config_it_says_which_file_to_write_and_waits_for_it() -> Result<()> {
    let name = netns::unique_name("noconf");
    let dir = std::env::temp_dir().join(&name);
    let mut cluster = Cluster::lay_out(
        &Spec {
            nodes: 1,
            ..Spec::default()
        },
        &name,
        &dir,
    )?;
    let config = cluster.store_dir().join("config");
    let text = std::fs::read(&config)?;
    std::fs::remove_file(&config)?;
    cluster.member_mut(0).start_daemon()?;
    let log = cluster
        .member(0)
        .daemon()
        .expect("it runs")
        .log_path()
        .to_owned();
    cluster
        .member(0)
        .wait_for("the error names the file", SOON, |_| {
            let said = std::fs::read_to_string(&log)?;
            Ok(said.contains(&config.display().to_string()) && said.contains("Network"))
        })?;
    assert!(!cluster.member(0).subnet_file()?.exists());
    std::fs::write(&config, text)?;
    cluster.member_mut(0).wait_ready(READY_DEADLINE)
}

#[test]
fn the_network_flag_writes_a_config_when_there_is_none() -> Result<()> {
    let name = netns::unique_name("netflag");
    let dir = std::env::temp_dir().join(&name);
    let mut spec = Spec {
        nodes: 1,
        ..Spec::default()
    };
    spec.twilld_args.push("--network=10.77.0.0/16".to_owned());
    let mut cluster = Cluster::lay_out(&spec, &name, &dir)?;
    let config = cluster.store_dir().join("config");
    std::fs::remove_file(&config)?;
    let member = cluster.member_mut(0);
    member.start_daemon()?;
    member.wait_ready(READY_DEADLINE)?;
    assert_eq!(member.subnet_env()?["FLANNEL_NETWORK"], "10.77.0.0/16");
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&config)?)?;
    assert_eq!(written["Network"], "10.77.0.0/16");
    // A config that is there is not touched.
    member.stop_daemon(SOON)?;
    let before = std::fs::read(&config)?;
    member.start_daemon()?;
    member.wait_ready(READY_DEADLINE)?;
    assert_eq!(std::fs::read(&config)?, before);
    Ok(())
}
