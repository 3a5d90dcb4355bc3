//! Replays what flanneld was seen to write on its Node: the same patches, byte for byte, and the
//! same Node afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni_test_harness::kubernetes::{ApiServer, Programs};
use cni_test_harness::skip_unless;
use serde_json::{Value, json};
use twilld::family::{ByFamily, Family};
use twilld::lease::Lease;
use twilld::net_conf::NetConf;
use twilld::store::kube::KubeStore;
use twilld::store::{Store, StoreError};
use twilld::subnet::Claim;

use super::{as_admin, options};
use crate::conformance::run;

/// Which side has a line that the other has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Only {
    Flanneld,
    Twilld,
}

/// Where twilld differs on purpose: case, side, part of the line, reason.
const DIFFERENCES: &[(&str, Only, &str, &str)] = &[
    (
        "kube-public-ip-overwrite-restart",
        Only::Flanneld,
        "patch {}",
        "an empty patch at every restart changes nothing",
    ),
    (
        "kube-no-annotations",
        Only::Twilld,
        "",
        "flanneld panics on a Node without any annotation; twilld publishes",
    ),
    (
        "kube-podcidr-outside",
        Only::Flanneld,
        "",
        "flanneld publishes before it finds that the podCIDR is outside the network, and exits: peers send to a node that does not receive. twilld publishes nothing and waits",
    ),
];

struct Case {
    name: String,
    cmd: String,
    net_conf: Value,
    before: Value,
    after: Value,
    /// The patches, in order, their times left out.
    patches: Vec<String>,
}

impl Case {
    fn read(dir: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        let json = |name: &str| serde_json::from_str(&text(name)).unwrap();
        let api = text("api.txt");
        let bodies = api.lines().filter_map(|line| line.strip_prefix("  body: "));
        Self {
            name: dir.file_name().unwrap().to_str().unwrap().to_owned(),
            cmd: text("cmd"),
            net_conf: json("net-conf.json"),
            before: json("nodes.before.json"),
            after: json("nodes.json"),
            patches: bodies.map(timeless).collect(),
        }
    }

    fn flag(&self, name: &str) -> Option<&str> {
        let mut words = self.cmd.split_whitespace();
        words.find_map(|word| word.strip_prefix(&format!("--{name}=")))
    }

    fn starts(&self) -> usize {
        if self.name.contains("restart") { 2 } else { 1 }
    }

    /// What flanneld's backend had to say, without what the store makes of it.
    fn lease(&self, public_ips: ByFamily<IpAddr>) -> Lease {
        let kind = self.net_conf["Backend"]["Type"].as_str().unwrap();
        let written: Option<Value> = self
            .patches
            .first()
            .map(|patch| serde_json::from_str(patch).unwrap());
        let data = |family: Family| {
            let suffix = match family {
                Family::V4 => "backend-data",
                Family::V6 => "backend-v6-data",
            };
            let annotations = written.as_ref()?["metadata"]["annotations"].as_object()?;
            let found = annotations
                .iter()
                .find(|(name, _)| name.ends_with(suffix))?;
            found
                .1
                .as_str()
                .filter(|data| *data != "null")
                .map(Box::from)
        };
        Lease {
            public_ips,
            // These two say nothing about themselves.
            backend_type: if ["udp", "alloc"].contains(&kind) {
                "".into()
            } else {
                kind.into()
            },
            backend_data: Family::ALL
                .into_iter()
                .filter_map(|f| Some((f, data(f)?)))
                .collect(),
        }
    }

    fn claim(&self, facts: &ByFamily<IpAddr>) -> Claim {
        // What a backend is does not matter for the ranges.
        let mut net_conf = self.net_conf.clone();
        net_conf["Backend"] = json!({"Type": "vxlan"});
        let net_conf = NetConf::parse(net_conf.to_string().as_bytes()).unwrap();
        let mut ips = ByFamily::default();
        for family in net_conf.ranges.families() {
            let (flag, own) = match family {
                Family::V4 => ("public-ip", "192.168.50.1"),
                Family::V6 => ("public-ipv6", "fd00:50::1"),
            };
            let told = self.flag(flag).unwrap_or(own).parse().unwrap();
            ips.set(family, facts.get(family).copied().unwrap_or(told));
        }
        Claim {
            ranges: net_conf.ranges,
            lease: self.lease(ips),
            previous: None,
        }
    }
}

/// Times vary; that they are times does not.
fn timeless(text: &str) -> String {
    let mut rest = text;
    let mut out = String::new();
    while let Some(at) = rest.find("Time\":\"") {
        let (head, tail) = rest.split_at(at + "Time\":\"".len());
        let (time, tail) = tail.split_at("2026-11-21T10:55:00Z".len());
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        out += head;
        out += "<time>";
        rest = tail;
    }
    out + rest
}

/// What there is to see of our Node: annotations and conditions.
fn seen(node: &Value) -> BTreeSet<String> {
    let annotations = node["annotations"].as_object().into_iter().flatten();
    let annotations = annotations.map(|(name, value)| format!("annotation {name}={value}"));
    let conditions = node["conditions"].as_array().into_iter().flatten();
    let conditions = conditions.map(|c| {
        format!(
            "condition {} {} {} {}",
            c["type"], c["status"], c["reason"], c["message"]
        )
    });
    annotations.chain(conditions).collect()
}

fn k1(nodes: &Value) -> Value {
    let nodes = nodes.as_array().unwrap();
    let found = nodes.iter().find(|node| node["name"] == "k1");
    found.cloned().unwrap_or_default()
}

fn replay(server: &ApiServer, case: &Case) -> (Vec<String>, BTreeSet<String>) {
    server.kubectl(&["delete", "node", "--all"], b"").unwrap();
    let object = |node: &Value| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": node["name"], "annotations": node["annotations"]},
            "spec": node["spec"],
        })
    };
    let nodes: Vec<Value> = case.before.as_array().unwrap().iter().map(object).collect();
    server.create(&nodes).unwrap();
    if case.name == "kube-network-unavailable-true-before" {
        let condition = json!({"status": {"conditions": [{
            "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated",
            "lastHeartbeatTime": "2001-01-01T00:00:00Z", "lastTransitionTime": "2001-01-01T00:00:00Z",
        }]}});
        let args = [
            "patch",
            "node",
            "k1",
            "--subresource=status",
            "-p",
            &condition.to_string(),
        ];
        server.kubectl(&args, b"").unwrap();
    }
    let before = server.requests("twilld").unwrap().len();
    for _ in 0..case.starts() {
        run(start(server, case));
    }
    let asked = server.requests("twilld").unwrap();
    let patches = asked[before..]
        .iter()
        .filter(|request| request.verb == "patch");
    let patches = patches.map(|request| {
        assert_eq!(
            (&*request.uri, request.code),
            ("/api/v1/nodes/k1/status", 200)
        );
        timeless(request.body.as_ref().unwrap())
    });
    let patches = patches.collect();
    let list = server.get_json(&["nodes"]).unwrap();
    let nodes = list["items"].as_array().unwrap();
    let node = nodes.iter().find(|node| node["metadata"]["name"] == "k1");
    let node = node.map(|node| {
        json!({"annotations": node["metadata"]["annotations"], "conditions": node["status"]["conditions"]})
    });
    (patches, seen(&node.unwrap_or_default()))
}

/// From the store's side, what one start of twilld is.
async fn start(server: &ApiServer, case: &Case) {
    let mut options = options(as_admin(server), "k1");
    if let Some(prefix) = case.flag("kube-annotation-prefix") {
        options.annotation_prefix = prefix.to_owned();
    }
    let store = KubeStore::new(options).unwrap();
    let facts = match store.facts().await {
        Err(StoreError::Waiting(_) | StoreError::Ungiven(_)) => return,
        facts => facts.unwrap(),
    };
    let claim = case.claim(&facts.public_ips);
    if case.starts() > 1
        && server
            .requests("twilld")
            .unwrap()
            .last()
            .is_some_and(|r| r.verb == "patch")
    {
        // The second start knows what the first one published.
        assert_eq!(
            facts.published.unwrap().backend_data,
            claim.lease.backend_data
        );
    }
    match store.acquire(&claim).await {
        Err(StoreError::Waiting(_) | StoreError::Ungiven(_)) => return,
        held => held.unwrap(),
    };
    if case.flag("set-node-network-unavailable") != Some("false") {
        store.announce().await;
    }
}

#[test]
fn a_node_is_written_on_as_flanneld_writes_on_it() {
    let programs = skip_unless!(Programs::find());
    let server = ApiServer::start(&programs).unwrap();
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/stores/golden-kube");
    let mut dirs: Vec<PathBuf> = fs::read_dir(golden)
        .unwrap()
        .map(|dir| dir.unwrap().path())
        .collect();
    dirs.retain(|dir| dir.is_dir());
    dirs.sort();
    assert!(dirs.len() >= 20, "{dirs:?}");
    let mut needed = BTreeSet::new();
    let mut wrong = Vec::new();
    for dir in dirs {
        let case = Case::read(&dir);
        let (patches, node) = replay(&server, &case);
        let mut theirs = seen(&k1(&case.after));
        let mut ours = node;
        // Each patch with its place, so that order counts. Places that a difference moves do not.
        let moved = DIFFERENCES.iter().any(|(name, ..)| *name == case.name);
        let placed = |patches: &[String]| -> Vec<String> {
            let place = |(n, patch): (usize, &String)| match moved {
                true => format!("patch {patch}"),
                false => format!("{n}: patch {patch}"),
            };
            patches.iter().enumerate().map(place).collect()
        };
        theirs.extend(placed(&case.patches));
        ours.extend(placed(&patches));
        let only = |side, line: &&String| (side, (*line).clone());
        let differing = theirs
            .difference(&ours)
            .map(|line| only(Only::Flanneld, &line))
            .chain(
                ours.difference(&theirs)
                    .map(|line| only(Only::Twilld, &line)),
            );
        for (side, line) in differing {
            let reason = DIFFERENCES.iter().position(|(name, whose, part, _)| {
                *name == case.name && *whose == side && line.contains(part)
            });
            match reason {
                Some(at) => {
                    needed.insert(at);
                }
                None => wrong.push(format!("{}: only {side:?}: {line}", case.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let unneeded = (0..DIFFERENCES.len()).filter(|at| !needed.contains(at));
    let unneeded: Vec<&str> = unneeded.map(|at| DIFFERENCES[at].0).collect();
    assert!(
        unneeded.is_empty(),
        "differences that are none any more: {unneeded:?}"
    );
}
