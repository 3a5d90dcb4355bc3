//! What is wrong with one lease costs only that lease: it is skipped, counted and named with the
//! reason, whatever it is and whichever store it is in, and every other peer is reached.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{READY_DEADLINE, Spec};
use cni_test_harness::observe::Family;
use cni_test_harness::process::log_tail;
use cni_test_harness::skip_unless;
use cni_test_harness::stores::{Kind, Put, Stored};
use cni_test_harness::wait::{self, Look};

const SOON: Duration = Duration::from_secs(20);

/// A value as flanneld writes it.
fn value(ip: &str, kind: &str, data: &str) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"{kind}","BackendData":{data}}}"#
    )
}

fn data(n: u8) -> String {
    format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02x}"}}"#)
}

fn without_vni(n: u8) -> String {
    format!(r#"{{"VtepMAC":"02:00:00:00:00:{n:02x}"}}"#)
}

fn good(kind: Kind, n: u8) -> (String, String) {
    let data = match kind {
        // F5's BIG-IP makes Nodes that name none.
        Kind::Kubernetes if !n.is_multiple_of(2) => without_vni(n),
        _ => data(n),
    };
    (
        format!("10.244.{n}.0-24"),
        value(&format!("192.168.50.{n}"), "vxlan", &data),
    )
}

/// Name and value of each bad one, and words of the reason, of which one must be told.
fn bad(own_ip: &str) -> Vec<(String, String, &'static [&'static str])> {
    let vxlan = |ip: &str, n| value(ip, "vxlan", &data(n));
    let with = |n: u8, data: &str| value(&format!("192.168.50.{n}"), "vxlan", data);
    let megabyte = with(90, &format!(r#"{{"x":"{}"}}"#, "x".repeat(1_000_000)));
    // The most that Kubernetes takes.
    let great = with(91, &format!(r#"{{"x":"{}"}}"#, "x".repeat(200_000)));
    let all: Vec<(&str, String, &[&str])> = vec![
        ("nonsense", vxlan("192.168.50.70", 70), &["its "]),
        ("10.244.71.0-33", vxlan("192.168.50.71", 71), &["its "]),
        ("10.244.72.7-24", vxlan("192.168.50.72", 72), &["its "]),
        (
            "10.244.73.0-24&nonsense-64",
            vxlan("192.168.50.73", 73),
            &["its "],
        ),
        (
            "10.244.74.0-24",
            "{not json".to_owned(),
            &["its value", "backend-data"],
        ),
        (
            "10.244.75.0-24",
            String::new(),
            &["its value", "no public address"],
        ),
        (
            "10.244.76.0-24",
            vxlan("bad", 76),
            &["PublicIP", "public-ip"],
        ),
        (
            "10.244.77.0-24",
            value("192.168.50.77", "teleport", "null"),
            &["teleport"],
        ),
        ("10.244.78.0-24", with(78, "null"), &["BackendData"]),
        (
            "10.244.79.0-24",
            with(79, r#"{"VNI":"1","VtepMAC":"02:00:00:00:00:4f"}"#),
            &["VNI"],
        ),
        (
            "10.244.80.0-24",
            with(80, r#"{"VNI":1,"VtepMAC":"nonsense"}"#),
            &["VtepMAC"],
        ),
        (
            "10.244.81.0-24",
            with(81, r#"{"VNI":9,"VtepMAC":"02:00:00:00:00:51"}"#),
            &["its VNI is 9"],
        ),
        ("10.244.82.0-24", with(82, r#"{"VNI":1}"#), &["VtepMAC"]),
        ("10.244.92.0-24", with(92, &without_vni(92)), &["no VNI"]),
        (
            "10.99.81.0-24",
            vxlan("192.168.50.81", 81),
            &["outside the network"],
        ),
        ("10.244.200.0-25", vxlan("192.168.50.82", 82), &["overlaps"]),
        ("10.244.83.0-24", vxlan(own_ip, 83), &["is our own"]),
        ("10.244.84.0-24", vxlan("127.0.0.1", 84), &["no host's"]),
        ("10.244.85.0-24", vxlan("224.0.0.1", 85), &["no host's"]),
        (
            "10.244.86.0-24",
            vxlan("255.255.255.255", 86),
            &["no host's"],
        ),
        ("10.244.87.0-24", vxlan("0.0.0.0", 87), &["no public"]),
        ("10.244.90.0-24", megabyte, &["are no lease"]),
        (
            "10.244.91.0-24",
            great,
            &["are no lease", "are no backend's"],
        ),
    ];
    all.into_iter()
        .map(|(name, value, words)| (name.to_owned(), value, words))
        .collect()
}

fn skipped_counted_and_named_in(kind: Kind) -> Result<()> {
    let mut spec = Spec::default();
    // No node's subnet is one that is put here.
    spec.net_conf["SubnetMin"] = "10.244.1.0".into();
    spec.net_conf["SubnetMax"] = "10.244.60.0".into();
    let mut stored = Stored::lay_out(kind, "bad", &spec)?;
    // One that is overlapped, before and after it by name.
    let (name, value) = good(kind, 200);
    stored.put(&name, &value)?;
    let own_ip = stored.cluster.member(0).place().v4.addr().to_string();
    let mut bad = bad(&own_ip);
    if kind == Kind::Kubernetes {
        // A podCIDR with host bits means its network there, to everybody, and a VNI may be missing.
        bad.retain(|(name, ..)| !["10.244.72.7-24", "10.244.92.0-24"].contains(&name.as_str()));
    }
    let mut entered = Vec::new();
    let mut put = |stored: &Stored, name: &str, value: &str, words| -> Result<()> {
        match stored.put(name, value)? {
            Put::Entered(names) => entered.push((names, words)),
            Put::Refused(reason) => eprintln!("{kind:?} itself refuses {name}: {reason:.200}"),
        }
        Ok(())
    };
    // Some are there when the daemons start, no more than are told of one by one; the others come
    // while they run.
    let (before, after) = bad.split_at(8);
    for (name, value, words) in before {
        put(&stored, name, value, *words)?;
    }
    for index in [0, 1] {
        stored.cluster.member_mut(index).start_daemon()?;
    }
    stored.cluster.wait_in_sync(READY_DEADLINE)?;
    for (n, (name, value, words)) in (100..).zip(after) {
        put(&stored, name, value, *words)?;
        // Each is followed by a good one, which is not held up.
        let (name, value) = good(kind, n);
        stored.put(&name, &value)?;
        let route = format!("10.244.{n}.0/24");
        stored.cluster.member(0).wait_for(&route, SOON, |view| {
            let routes = view.routes(Family::V4)?;
            Ok(routes.iter().any(|other| other.dst == route))
        })?;
    }
    let (near, far) = (stored.cluster.pod(0)?, stored.cluster.pod(1)?);
    assert!(near.ping(&far, 3, Duration::from_secs(2))?.complete());

    assert!(
        entered.len() >= 16,
        "{kind:?} takes too little: {entered:?}"
    );
    let daemon = stored.cluster.member(0).daemon().expect("it runs");
    let count = format!("skipped={}", entered.len());
    let log = wait::until(&count, SOON, || {
        let log = log_tail(daemon.log_path(), 10_000);
        let mut lines = log.lines().rev();
        let last = lines.find(|line| line.contains("in sync"));
        Ok(match last.is_some_and(|line| line.contains(&count)) {
            true => Look::Done(log),
            false => Look::NotYet(log),
        })
    })?;
    for (names, words) in &entered {
        let mut lines = log.lines().filter(|line| line.contains("lease skipped"));
        let named = |line: &str| {
            names.iter().any(|name| line.contains(&format!("{name} ")))
                && words.iter().any(|words| line.contains(words))
        };
        assert!(
            lines.any(named),
            "{names:?} with {words:?} is not in:\n{log}"
        );
    }
    assert!(log.len() < 100_000, "a value is not for the log");
    let routes = stored.cluster.member(0).view().routes(Family::V4)?;
    let programmed = routes
        .iter()
        .filter(|route| route.dev == "flannel.1")
        .count();
    // The other node, the one that is overlapped, and those that came with the bad ones.
    assert_eq!(programmed, 2 + after.len(), "{routes:?}");
    Ok(())
}

#[test]
fn every_bad_lease_in_the_folder_is_skipped_counted_and_named_and_the_rest_works() -> Result<()> {
    skipped_counted_and_named_in(Kind::Folder)
}

#[test]
fn every_bad_lease_in_etcd_is_skipped_counted_and_named_and_the_rest_works() -> Result<()> {
    skip_unless!(Kind::Etcd.installed());
    skipped_counted_and_named_in(Kind::Etcd)
}

#[test]
fn every_bad_lease_in_kubernetes_is_skipped_counted_and_named_and_the_rest_works() -> Result<()> {
    skip_unless!(Kind::Kubernetes.installed());
    skipped_counted_and_named_in(Kind::Kubernetes)
}
