//! What is wrong with one lease costs only that lease: it is skipped, counted and named with the
//! reason, whatever it is, and every other peer is reached.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{READY_DEADLINE, Spec};
use cni_test_harness::etcd::{self, Etcd};
use cni_test_harness::observe::Family;
use cni_test_harness::process::log_tail;
use cni_test_harness::skip_unless;
use cni_test_harness::wait::{self, Look};

const SOON: Duration = Duration::from_secs(20);
const PREFIX: &str = "/coreos.com/network";

/// A value as flanneld writes it.
fn value(ip: &str, kind: &str, data: &str) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"{kind}","BackendData":{data}}}"#
    )
}

fn data(n: u8) -> String {
    format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02x}"}}"#)
}

fn good(n: u8) -> (String, String) {
    (
        format!("10.244.{n}.0-24"),
        value(&format!("192.168.50.{n}"), "vxlan", &data(n)),
    )
}

/// Name and value of each bad one, and words of the reason.
fn bad(own_ip: &str) -> Vec<(String, String, &'static str)> {
    let vxlan = |ip: &str, n| value(ip, "vxlan", &data(n));
    let megabyte = format!(
        r#"{{"PublicIP":"192.168.50.90","BackendType":"vxlan","x":"{}"}}"#,
        "x".repeat(1_000_000)
    );
    let all: Vec<(&str, String, &str)> = vec![
        ("nonsense", vxlan("192.168.50.70", 70), "its key"),
        ("10.244.71.0-33", vxlan("192.168.50.71", 71), "its key"),
        ("10.244.72.7-24", vxlan("192.168.50.72", 72), "its key"),
        (
            "10.244.73.0-24&nonsense-64",
            vxlan("192.168.50.73", 73),
            "its key",
        ),
        ("10.244.74.0-24", "{not json".to_owned(), "its value"),
        ("10.244.75.0-24", String::new(), "its value"),
        ("10.244.76.0-24", vxlan("bad", 76), "PublicIP"),
        (
            "10.244.77.0-24",
            value("192.168.50.77", "teleport", "null"),
            "teleport",
        ),
        (
            "10.244.78.0-24",
            value("192.168.50.78", "vxlan", "null"),
            "",
        ),
        (
            "10.244.79.0-24",
            value(
                "192.168.50.79",
                "vxlan",
                r#"{"VNI":"1","VtepMAC":"02:00:00:00:00:4f"}"#,
            ),
            "VNI",
        ),
        (
            "10.244.80.0-24",
            value(
                "192.168.50.80",
                "vxlan",
                r#"{"VNI":1,"VtepMAC":"nonsense"}"#,
            ),
            "VtepMAC",
        ),
        (
            "10.99.81.0-24",
            vxlan("192.168.50.81", 81),
            "outside the network",
        ),
        ("10.244.200.0-25", vxlan("192.168.50.82", 82), "overlaps"),
        ("10.244.83.0-24", vxlan(own_ip, 83), "is our own"),
        ("10.244.84.0-24", vxlan("127.0.0.1", 84), "no host's"),
        ("10.244.85.0-24", vxlan("224.0.0.1", 85), "no host's"),
        ("10.244.86.0-24", vxlan("255.255.255.255", 86), "no host's"),
        ("10.244.87.0-24", vxlan("0.0.0.0", 87), "no public"),
        ("10.244.90.0-24", megabyte, "are no lease"),
    ];
    all.into_iter()
        .map(|(name, value, words)| (name.to_owned(), value, words))
        .collect()
}

#[test]
fn every_kind_of_bad_lease_is_skipped_counted_and_named_and_the_rest_works() -> Result<()> {
    skip_unless!(etcd::installed());
    let mut spec = Spec::default();
    // No node's subnet is one that is put here.
    spec.net_conf["SubnetMin"] = "10.244.1.0".into();
    spec.net_conf["SubnetMax"] = "10.244.60.0".into();
    let (etcd, mut cluster) = Etcd::with_cluster("bad", &spec, PREFIX)?;
    etcd.put(
        &format!("{PREFIX}/config"),
        &spec.net_conf.to_string(),
        None,
    )?;
    let put = |name: &str, value: &str| {
        let key = format!("{PREFIX}/subnets/{name}");
        match value.len() {
            0..10_000 => etcd.put(&key, value, Some(24 * 60 * 60)),
            _ => etcd.put_large(&key, value),
        }
    };
    // One that is overlapped, before and after it by name.
    let (name, value) = good(200);
    put(&name, &value)?;
    let own_ip = cluster.member(0).place().v4.addr().to_string();
    let bad = bad(&own_ip);
    // Half of them are there when the daemons start, the others come while they run.
    let (before, after) = bad.split_at(bad.len() / 2);
    for (name, value, _) in before {
        put(name, value)?;
    }
    for index in [0, 1] {
        cluster.member_mut(index).start_daemon()?;
    }
    cluster.wait_in_sync(READY_DEADLINE)?;
    for (n, (name, value, _)) in (100..).zip(after) {
        put(name, value)?;
        // Each is followed by a good one, which is not held up.
        let (name, value) = good(n);
        put(&name, &value)?;
        let route = format!("10.244.{n}.0/24");
        cluster.member(0).wait_for(&route, SOON, |view| {
            let routes = view.routes(Family::V4)?;
            Ok(routes.iter().any(|other| other.dst == route))
        })?;
    }
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    assert!(near.ping(&far, 3, Duration::from_secs(2))?.complete());

    let daemon = cluster.member(0).daemon().expect("it runs");
    let count = format!("skipped={}", bad.len());
    let log = wait::until(&count, SOON, || {
        let log = log_tail(daemon.log_path(), 10_000);
        Ok(
            match log.lines().last().is_some_and(|line| line.contains(&count)) {
                true => Look::Done(log),
                false => Look::NotYet(log),
            },
        )
    })?;
    for (name, _, words) in &bad {
        let mut lines = log.lines().filter(|line| line.contains("lease skipped"));
        let named = |line: &str| line.contains(&format!("{name} ")) && line.contains(words);
        assert!(lines.any(named), "{name} with {words:?} is not in:\n{log}");
    }
    assert!(log.len() < 100_000, "a value is not for the log");
    let routes = cluster.member(0).view().routes(Family::V4)?;
    let programmed = routes
        .iter()
        .filter(|route| route.dev == "flannel.1")
        .count();
    // The other node, the one that is overlapped, and those that came with the bad ones.
    assert_eq!(programmed, 2 + after.len(), "{routes:?}");
    Ok(())
}
