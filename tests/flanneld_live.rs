//! Replays what flanneld was seen to do step by step with a real etcd (`sidecar/tests/golden`, the
//! cases with steps): the same keys and values, the same entries in the kernel, the same subnet.env
//! after every step. Where twilld does better on purpose, the test says so.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::cluster::{Cluster, Spec};
use cni_test_harness::etcd::{self, Etcd};
use cni_test_harness::process::log_tail;
use cni_test_harness::skip_unless;
use cni_test_harness::wait::{self, Look};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const PREFIX: &str = "/coreos.com/network";
const TTL: u64 = 86_400;
const PEER_31: (&str, &str) = (
    "/coreos.com/network/subnets/10.5.31.0-24",
    r#"{"PublicIP":"10.99.0.31","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:31"}}"#,
);

/// A node as the recorded ones were, with the case's leases in an etcd.
struct Replay {
    dir: PathBuf,
    cluster: Cluster,
    etcd: Etcd,
}

impl Replay {
    fn of(case: &str) -> Result<Self> {
        let spec = Spec {
            nodes: 1,
            twilld_args: vec!["--ip-masq=false".to_owned()],
            ..Spec::default()
        };
        let (etcd, cluster) = Etcd::with_cluster("replay", &spec, PREFIX)?;
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sidecar/tests/golden");
        let replay = Self {
            dir: golden.join(case),
            cluster,
            etcd,
        };
        let leases: Value = serde_json::from_str(&replay.read("leases.json")?)?;
        for (key, value) in leases.as_object().context("leases.json")? {
            let value = value.as_str().context("a value")?;
            replay.etcd.put(key, value, Some(TTL))?;
        }
        Ok(replay)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.dir.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    fn configure(&self, text: &str) -> Result<()> {
        self.etcd.put(&format!("{PREFIX}/config"), text, None)
    }

    fn start(&mut self) -> Result<()> {
        self.cluster.member_mut(0).start_daemon()
    }

    fn log(&self) -> String {
        let daemon = self.cluster.member(0).daemon().expect("it runs");
        log_tail(daemon.log_path(), 1000)
    }

    fn wait_for_log(&self, words: &str) -> Result<()> {
        wait::until(words, SOON, || {
            let log = self.log();
            Ok(match log.contains(words) {
                true => Look::Done(()),
                false => Look::NotYet(log),
            })
        })
    }

    /// What the recording has of a step, as lines; `.` is the case's end.
    fn recorded(&self, step: &str) -> BTreeSet<String> {
        let lines = |file: &str| {
            let text = self.read(&format!("{step}/{file}")).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines
        };
        let keys = lines("etcd.txt");
        let keys = keys.iter().filter(|line| !line.starts_with('#'));
        let routes = lines("route.txt");
        let mut seen: BTreeSet<String> = keys.map(|line| without_own_mac(line)).collect();
        seen.extend(routes.iter().filter_map(|line| peer_route(line)));
        for file in ["neigh.txt", "fdb.txt", "subnet.env"] {
            seen.extend(lines(file));
        }
        seen
    }

    /// The same as it is now.
    fn present(&self, with_etcd: bool) -> Result<BTreeSet<String>> {
        let member = self.cluster.member(0);
        let said = |program: &str, args: &[&str]| -> Result<Vec<String>> {
            let text = member.node().exec(program, args)?.stdout_text();
            Ok(text.lines().map(|line| line.trim().to_owned()).collect())
        };
        let mut seen = BTreeSet::new();
        if with_etcd {
            for entry in self.etcd.entries(PREFIX)? {
                let ttl = entry
                    .granted_ttl
                    .map_or("none".to_owned(), |ttl| ttl.to_string());
                let line = format!("{}\t{}\t{ttl}", entry.key, entry.value);
                seen.insert(without_own_mac(&line));
            }
        }
        let routes = said("ip", &["-N", "-d", "route", "show", "table", "all"])?;
        seen.extend(routes.iter().filter_map(|line| peer_route(line)));
        let neighbours = said("ip", &["neigh", "show", "nud", "permanent"])?;
        let fdb = said("bridge", &["fdb", "show"])?;
        // Multicast groups that devices listen to have no destination.
        let fdb = fdb.into_iter().filter(|line| line.contains(" dst "));
        let ours = neighbours.into_iter().chain(fdb);
        seen.extend(ours.filter(|line| line.contains("dev flannel")));
        let env = std::fs::read_to_string(member.subnet_file()?).unwrap_or_default();
        seen.extend(env.lines().map(str::to_owned));
        Ok(seen)
    }

    /// Waits until all is as it was seen to be after a step.
    fn reaches(&self, step: &str) -> Result<()> {
        let want = self.recorded(step);
        let with_etcd = want.iter().any(|line| line.starts_with(PREFIX));
        wait::until(&format!("what was recorded in {step}"), SOON, || {
            let have = self.present(with_etcd)?;
            let missing: Vec<_> = want.difference(&have).collect();
            let more: Vec<_> = have.difference(&want).collect();
            Ok(match missing.is_empty() && more.is_empty() {
                true => Look::Done(()),
                false => Look::NotYet(format!("missing {missing:#?}, too much {more:#?}")),
            })
        })
        .with_context(|| self.log())
    }
}

/// A line of etcd.txt; our own MAC is random.
fn without_own_mac(line: &str) -> String {
    let own = line.contains("\"PublicIP\":\"192.168.50.1\"");
    match line.split_once("\"VtepMAC\":\"") {
        Some((before, after)) if own => {
            let after = after.split_once('"').map_or("", |(_, after)| after);
            format!("{before}\"VtepMAC\":\"OURS\"{after}")
        }
        _ => line.to_owned(),
    }
}

/// Of a route out of our device where it leads to; the kernel's own are left out, and so is what
/// only concerns the one who made it (a metric, a protocol).
fn peer_route(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let words = words.strip_prefix(&["1"]).unwrap_or(&words);
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    let (to, via, dev) = (words.first()?, after("via")?, after("dev")?);
    dev.starts_with("flannel")
        .then(|| format!("{to} via {via} dev {dev}"))
}

#[test]
fn etcd_goes_and_comes_back() -> Result<()> {
    skip_unless!(etcd::installed());
    let mut replay = Replay::of("etcd-restart")?;
    replay.configure(&replay.read("net-conf.json")?)?;
    replay.start()?;
    replay.reaches("1-before")?;
    replay.etcd.kill_all();
    replay.wait_for_log("the leases in etcd cannot be watched, peers stay as they are")?;
    replay.reaches("2-etcd-down")?;
    replay.etcd.start_all()?;
    replay.etcd.put(PEER_31.0, PEER_31.1, Some(TTL))?;
    replay
        .etcd
        .delete_all(&[PEER_31.0.replace(".31.", ".30.")])?;
    replay.reaches(".")
}

#[test]
fn a_configuration_appears_later_and_is_wrong_at_first() -> Result<()> {
    skip_unless!(etcd::installed());
    let mut replay = Replay::of("config-appears-later")?;
    replay.start()?;
    replay.wait_for_log("no config in etcd")?;
    replay.configure("{not json")?;
    replay.wait_for_log("line 1")?;
    let nothing = replay.present(true)?;
    let config = format!("{PREFIX}/config\t{{not json\tnone");
    assert_eq!(nothing, BTreeSet::from([config]));
    replay.configure(&replay.read("net-conf.json")?)?;
    replay.reaches(".")
}

/// flanneld took an undecodable value that came while it ran for the end of every lease: after 155
/// seconds all peers were gone. Here they stay as they were at first, and later ones are seen.
#[test]
fn a_bad_lease_that_comes_takes_no_peer_away() -> Result<()> {
    skip_unless!(etcd::installed());
    let mut replay = Replay::of("bad-lease-live")?;
    replay.configure(&replay.read("net-conf.json")?)?;
    replay.start()?;
    replay.reaches("1-before")?;
    let bad = format!("{PREFIX}/subnets/10.5.32.0-24");
    replay.etcd.put(&bad, "{not json", Some(TTL))?;
    replay.wait_for_log("10.5.32.0-24")?;
    replay.reaches("2-after-2s")?;
    let (key, value) = (
        PEER_31.0.replace(".31.", ".33."),
        PEER_31.1.replace("31\"", "33\""),
    );
    replay.etcd.put(&key, &value, Some(TTL))?;
    let there = || {
        Ok(replay
            .present(false)?
            .contains("10.5.33.0/24 via 10.5.33.0 dev flannel.1"))
    };
    wait::until_true("a peer that comes afterwards", SOON, there)?;
    replay.etcd.delete_all(&[key])?;
    replay.reaches("2-after-2s")
}

/// The lines of the recorded routes that are not among the routes now.
fn routes_missing(replay: &Replay, case: &str) -> Result<Vec<String>> {
    let args = ["-N", "-d", "route", "show", "table", "all"];
    let said = replay.cluster.member(0).node().exec("ip", &args)?;
    let said = said.stdout_text();
    let have: BTreeSet<&str> = said.lines().map(str::trim).collect();
    let recorded = replay.read(&format!("{case}/route.txt"))?;
    let missing = recorded.lines().map(str::trim);
    let missing = missing.filter(|line| !have.contains(line));
    Ok(missing.map(str::to_owned).collect())
}

/// The data path of the backend udp ends with its daemon, the lease and the subnet file stay.
#[test]
fn udp_comes_and_goes_with_its_daemon() -> Result<()> {
    skip_unless!(etcd::installed());
    let mut replay = Replay::of("udp-sigterm")?;
    replay.configure(&replay.read("net-conf.json")?)?;
    replay.start()?;
    replay.reaches("../udp")?;
    assert_eq!(routes_missing(&replay, "../udp")?, Vec::<String>::new());
    // An exit code other than 0 is an error.
    replay.cluster.member_mut(0).stop_daemon(SOON)?;
    let view = replay.cluster.member(0).view();
    assert!(view.link("flannel0")?.is_none(), "the device is left");
    let recorded = replay.read("../udp/route.txt")?.lines().count();
    assert_eq!(routes_missing(&replay, "../udp")?.len(), recorded);
    let (want, have) = (replay.recorded("."), replay.present(true)?);
    assert_eq!(have, want);
    Ok(())
}
