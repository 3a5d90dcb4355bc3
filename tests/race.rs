//! Fifty nodes whose daemons start at once, for forty subnets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cni_test_harness::cluster::Spec;
use cni_test_harness::process::log_tail;
use cni_test_harness::skip_unless;
use cni_test_harness::stores::{Kind, Stored};
use cni_test_harness::wait;
use serde_json::{Value, json};

const NODES: usize = 50;
const SUBNETS: usize = 40;
/// Fifty processes on whatever machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Each real, in a namespace of its own. `alloc` gives subnets and makes no devices.
fn forty_get_the_forty_subnets_and_ten_are_told_why(kind: Kind) -> Result<()> {
    let spec = Spec {
        nodes: u8::try_from(NODES)?,
        net_conf: json!({
            "Network": "10.244.0.0/16", "SubnetMin": "10.244.1.0", "SubnetMax": "10.244.40.0",
            "Backend": {"Type": "alloc"}
        }),
        ..Spec::default()
    };
    let mut stored = Stored::lay_out(kind, "race", &spec)?;
    for index in 0..NODES {
        stored.cluster.member_mut(index).start_daemon()?;
    }
    let mut won = BTreeMap::new();
    let mut told = BTreeSet::new();
    wait::until_true("a subnet, or an end, for everyone", DEADLINE, || {
        for index in 0..NODES {
            let member = stored.cluster.member_mut(index);
            if let Some(status) = member.daemon_ended()? {
                ensure!(status.code() == Some(1), "node {index} ended with {status}");
                told.insert(index);
            } else if member.subnet_file()?.exists() {
                won.insert(index, member.subnet()?.trunc());
            }
        }
        Ok(won.len() + told.len() == NODES)
    })?;
    ensure!(
        told.iter().all(|index| !won.contains_key(index)),
        "{told:?}"
    );
    let subnets: BTreeSet<_> = won.values().collect();
    ensure!(
        (won.len(), subnets.len()) == (SUBNETS, SUBNETS),
        "{} nodes have {} subnets",
        won.len(),
        subnets.len()
    );
    for index in told {
        let member = stored.cluster.member(index);
        let daemon = member.daemon().context("it ran")?;
        let log = log_tail(daemon.log_path(), 1000);
        let why = "10.244.1.0 to 10.244.40.0";
        ensure!(
            log.contains("ERROR") && log.contains(why),
            "node {index}: {log}"
        );
        ensure!(!member.subnet_file()?.exists(), "node {index}");
    }
    // The store knows each winner by its own address.
    let entries = stored.entries()?;
    ensure!(entries.len() == SUBNETS, "{entries:?}");
    for (index, subnet) in won {
        let name = subnet.to_string().replace('/', "-");
        let value: Value = serde_json::from_str(entries.get(&name).context(name)?)?;
        let ip = stored.cluster.member(index).place().v4.addr().to_string();
        ensure!(value["PublicIP"] == ip, "{subnet} of {ip}: {value}");
    }
    Ok(())
}

#[test]
fn of_fifty_daemons_forty_get_the_forty_subnets_of_a_folder_and_ten_are_told_why() -> Result<()> {
    forty_get_the_forty_subnets_and_ten_are_told_why(Kind::Folder)
}

#[test]
fn of_fifty_daemons_forty_get_the_forty_subnets_of_an_etcd_and_ten_are_told_why() -> Result<()> {
    skip_unless!(Kind::Etcd.installed());
    forty_get_the_forty_subnets_and_ten_are_told_why(Kind::Etcd)
}
