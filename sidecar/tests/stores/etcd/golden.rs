//! Replays what flanneld was seen to write to etcd (`../golden`, `golden`) against the real
//! etcd: the same store before must give the same store afterwards, every key, value and time to
//! live to the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cni_test_harness::etcd::{Etcd, installed};
use cni_test_harness::skip_unless;
use serde_json::Value;
use twilld::lease::Lease;
use twilld::net_conf::NetConf;
use twilld::store::{Renewal, Store, StoreError};
use twilld::subnet::Claim;
use twilld::subnet_env::previous_subnets;

use super::{PREFIX, key, store};
use crate::conformance::{DAY, run};

/// Which side has a line that the other has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Only {
    Flanneld,
    Twilld,
}

use Only::{Flanneld, Twilld};

/// Where twilld differs on purpose: case, side, end or part of the line, reason.
const DIFFERENCES: &[(&str, Only, &str, &str)] = &[
    (
        "reservation",
        Flanneld,
        "10.5.55.0-24\t86400",
        "flanneld makes a lease of its own reservation, which then expires",
    ),
    (
        "reservation",
        Twilld,
        "10.5.55.0-24\tnone",
        "a reservation stays one",
    ),
    (
        "vxlan-ipv6-only-second-node",
        Flanneld,
        "\"PublicIPv6\":\"fd00:50::1\"",
        "flanneld takes every IPv6-only node for itself, and overwrites the other's lease",
    ),
    (
        "vxlan-ipv6-only-second-node",
        Twilld,
        "\"PublicIPv6\":\"fd00:50::30\"",
        "the other node keeps its subnet",
    ),
    (
        "vxlan-ipv6-only-second-node",
        Twilld,
        "\"PublicIPv6\":\"fd00:50::1\"",
        "and we get one of our own",
    ),
    (
        "bad-lease-v4-on-dual-node",
        Twilld,
        "10.5.20.0-24&fd00:5:0:20::-64",
        "flanneld dies of the other's key without an IPv6 half",
    ),
    (
        "own-lease-stolen-then-renewed",
        Flanneld,
        "\"PublicIP\":\"192.168.50.1\"",
        "flanneld writes over the lease of the node that took it",
    ),
    (
        "own-lease-stolen-then-renewed",
        Twilld,
        "\"PublicIP\":\"192.168.50.66\"",
        "a lease that is somebody else's is left alone, and the loss reported",
    ),
    (
        "own-lease-revoked",
        Twilld,
        "10.5.20.0-24",
        "flanneld ends with code 0, which no supervisor restarts; we take the free subnet back",
    ),
];

/// What happens after the lease is acquired.
const STOLEN: &[&str] = &["own-lease-stolen", "own-lease-stolen-then-renewed"];
const REVOKED: &[&str] = &["own-lease-revoked"];
/// Cases in which peers come and go afterwards: their lines say nothing about what we wrote.
const LIVE: &[&str] = &[
    "peer-added-live",
    "peer-changed-live",
    "peer-removed-live",
    "restart-stale-peer",
    "bad-lease-dual-on-v4-node",
    "bad-lease-live",
    "etcd-restart",
    "extension",
];

const OUR_V4: &str = r#"{"PublicIP":"192.168.50.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#;
const OUR_DUAL: &str = r#"{"PublicIP":"192.168.50.1","PublicIPv6":"fd00:50::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:06:01"}}"#;
const THIEF: &str = r#"{"PublicIP":"192.168.50.66","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}}"#;

struct Case {
    name: String,
    dir: PathBuf,
}

/// One line of `etcd.txt`.
type Line = (String, String, String);

fn cases(folder: &str) -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(folder);
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    let dirs = files.filter(|file| file.path().join("net-conf.json").exists());
    let mut cases: Vec<Case> = dirs
        .map(|file| Case {
            name: file.file_name().into_string().unwrap(),
            dir: file.path(),
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

fn is_ours(value: &str) -> bool {
    ["192.168.50.1\"", "fd00:50::1\"", "203.0.113.9\""]
        .iter()
        .any(|ip| value.contains(ip))
}

impl Case {
    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(file)).ok()
    }

    fn lines(&self, file: &str) -> BTreeSet<Line> {
        let text = self.read(file).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let columns = lines.map(|line| {
            let mut columns = line.split('\t').map(str::to_owned);
            let mut next = || columns.next().unwrap();
            (next(), next(), next())
        });
        columns.collect()
    }

    fn ours(&self) -> Option<Line> {
        let lines = self
            .lines("etcd.txt")
            .into_iter()
            .chain(self.lines("etcd.before.txt"));
        lines
            .filter(|(key, ..)| key.contains("/subnets/"))
            .find(|(_, value, _)| is_ours(value))
    }

    /// Key, value and time to live of what was there before.
    fn before(&self) -> Vec<(String, String, Option<u64>)> {
        let Some(text) = self.read("leases.json") else {
            // The input was not kept: what others have afterwards they had before.
            let lines = self.lines("etcd.txt").into_iter();
            let others =
                lines.filter(|(key, value, _)| key.contains("/subnets") && !is_ours(value));
            return others
                .map(|(key, value, ttl)| (key, value, ttl.parse().ok()))
                .collect();
        };
        let json: Value = serde_json::from_str(&text).unwrap();
        let leases = json.as_object().unwrap().iter().map(|(key, lease)| {
            let (value, ttl) = match lease.as_str() {
                Some(value) => (value, Some(DAY.as_secs())),
                None => (lease["value"].as_str().unwrap(), lease["ttl"].as_u64()),
            };
            (key.clone(), value.to_owned(), ttl)
        });
        leases.collect()
    }

    fn claim(&self, net_conf: &NetConf) -> Claim {
        let ours = self.ours();
        let invented = match net_conf.ranges.families().count() {
            2 => OUR_DUAL,
            _ => OUR_V4,
        };
        let value = ours
            .as_ref()
            .map_or(invented, |(_, value, _)| value.as_str());
        let written = self.read("subnet.env.before");
        let mut previous = written.and_then(|text| previous_subnets(&text));
        let reuses = self.before().iter().any(|(_, value, _)| is_ours(value));
        if let (Some((key, ..)), None, false) = (&ours, previous, reuses) {
            // flanneld drew this one at random; so that the rest can be compared, we want it too.
            let name = key.rsplit('/').next().unwrap();
            previous = name
                .parse()
                .ok()
                .filter(|_| self.name != "vxlan-ipv6-only-second-node");
        }
        Claim {
            ranges: net_conf.ranges,
            lease: Lease::parse(value.as_bytes()).unwrap(),
            previous,
        }
    }

    fn prepare(&self, etcd: &Etcd) {
        etcd.ctl(&["del", "--prefix", "/"]).unwrap();
        let net_conf = self.read("net-conf.json").unwrap();
        etcd.put(&format!("{PREFIX}/config"), &net_conf, None)
            .unwrap();
        for (key, value, ttl) in self.before() {
            etcd.put(&key, &value, ttl).unwrap();
        }
    }

    /// Does what the case is about; the store afterwards.
    async fn replay(&self, etcd: &Etcd) -> BTreeSet<Line> {
        self.prepare(etcd);
        let node = store(etcd, DAY);
        let config = node.config().await.unwrap().unwrap();
        let net_conf = NetConf::parse(&config).unwrap();
        let mut claim = self.claim(&net_conf);
        let held = node.acquire(&claim).await.unwrap();
        claim.previous = Some(held.subnets);
        let our_key = key(&held.subnets.to_string());
        if STOLEN.contains(&&*self.name) {
            etcd.put(&our_key, THIEF, Some(DAY.as_secs())).unwrap();
            let renewal = node.renew(&claim).await.unwrap();
            assert!(matches!(renewal, Renewal::Lost { .. }), "{renewal:?}");
        }
        if REVOKED.contains(&&*self.name) {
            etcd.ctl(&[
                "lease",
                "revoke",
                &etcd.lease_of(&our_key).unwrap().unwrap(),
            ])
            .unwrap();
            let renewal = node.renew(&claim).await.unwrap();
            assert!(matches!(renewal, Renewal::TakenBack(_)), "{renewal:?}");
        }
        dump(etcd)
    }
}

fn dump(etcd: &Etcd) -> BTreeSet<Line> {
    let lines = etcd.entries(PREFIX).unwrap().into_iter().map(|entry| {
        let ttl = entry
            .granted_ttl
            .map_or("none".to_owned(), |ttl| ttl.to_string());
        (entry.key, entry.value, ttl)
    });
    lines.collect()
}

/// What the table's entries look into: the value and, apart, key and time to live.
fn shown((key, value, ttl): &Line) -> String {
    format!("{value}\n{key}\t{ttl}")
}

#[test]
fn etcd_holds_what_flanneld_would_have_written() {
    skip_unless!(installed());
    let etcd = Etcd::start().unwrap();
    let mut unused: BTreeSet<usize> = (0..DIFFERENCES.len()).collect();
    let mut surprises = Vec::new();
    let mut replayed = 0;
    for case in cases("golden").into_iter().chain(cases("stores/golden")) {
        let mut want = case.lines("etcd.txt");
        if want.is_empty() || case.name == "create-race" {
            continue;
        }
        let mut have = run(case.replay(&etcd));
        if LIVE.contains(&&*case.name) {
            want.retain(|(_, value, _)| is_ours(value));
            have.retain(|(_, value, _)| is_ours(value));
            assert_eq!(want.len(), 1, "{}", case.name);
        }
        let flanneld = want.difference(&have).map(|line| (Flanneld, line));
        let twilld = have.difference(&want).map(|line| (Twilld, line));
        for (side, line) in flanneld.chain(twilld) {
            let mut known = DIFFERENCES
                .iter()
                .enumerate()
                .filter(|(_, (name, only, part, _))| {
                    *name == case.name && *only == side && shown(line).contains(part)
                });
            match known.next() {
                Some((index, _)) => {
                    unused.remove(&index);
                }
                None => surprises.push(format!("{}: only {side:?} has {line:?}", case.name)),
            }
        }
        replayed += 1;
    }
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
    let unused: Vec<_> = unused.into_iter().map(|index| DIFFERENCES[index]).collect();
    assert!(
        unused.is_empty(),
        "no case shows these differences any more: {unused:?}"
    );
    assert!(replayed >= 25, "{replayed}");
}

#[test]
fn of_two_nodes_that_want_the_last_subnet_one_gets_it_and_the_other_is_told_why() {
    skip_unless!(installed());
    let etcd = Etcd::start().unwrap();
    let case = cases("stores/golden")
        .into_iter()
        .find(|case| case.name == "create-race")
        .unwrap();
    case.prepare(&etcd);
    let net_conf = NetConf::parse(case.read("net-conf.json").unwrap().as_bytes());
    // Its backend is not built; the subnets are what this is about.
    let ranges = match net_conf {
        Ok(net_conf) => net_conf.ranges,
        Err(_) => {
            let vxlan = case
                .read("net-conf.json")
                .unwrap()
                .replace("alloc", "vxlan");
            NetConf::parse(vxlan.as_bytes()).unwrap().ranges
        }
    };
    let claim = |ip: &str| Claim {
        ranges,
        lease: Lease::parse(format!(r#"{{"PublicIP":"{ip}"}}"#).as_bytes()).unwrap(),
        previous: None,
    };
    let (one, other) = (store(&etcd, DAY), store(&etcd, DAY));
    let (first, second) = (claim("192.168.60.1"), claim("192.168.50.1"));
    let both = futures_util::future::join(one.acquire(&first), other.acquire(&second));
    let outcomes: [_; 2] = run(both).into();
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let told = outcomes
        .iter()
        .filter(|o| matches!(o, Err(StoreError::OutOfSubnets(_))))
        .count();
    // Flanneld's loser ends with "subnet already exists" and does not look again.
    assert_eq!((won, told), (1, 1));
    let no_matter_who = |lines: BTreeSet<Line>| -> BTreeMap<String, (String, String)> {
        let lines = lines
            .into_iter()
            .map(|(key, value, ttl)| (key, (value.replace("192.168.60.1", "192.168.50.1"), ttl)));
        lines.collect()
    };
    assert_eq!(
        no_matter_who(dump(&etcd)),
        no_matter_who(case.lines("etcd.txt"))
    );
}

#[test]
fn without_a_free_subnet_the_reason_is_told() {
    skip_unless!(installed());
    let etcd = Etcd::start().unwrap();
    let case = cases("stores/golden")
        .into_iter()
        .find(|case| case.name == "bad-no-space")
        .unwrap();
    case.prepare(&etcd);
    let before = dump(&etcd);
    let net_conf = NetConf::parse(case.read("net-conf.json").unwrap().as_bytes()).unwrap();
    let node = store(&etcd, DAY);
    let error = run(node.acquire(&case.claim(&net_conf))).unwrap_err();
    assert!(error.to_string().contains("10.5.20.0"), "{error}");
    assert_eq!(dump(&etcd), before);
}
