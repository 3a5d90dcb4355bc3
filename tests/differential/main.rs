//! The same input through the Go chain and through twill under its drop-in names, each on a fresh
//! node: everything that other people's tools can see afterwards is the same, but for what the
//! table [`DIFFERENCES`] lists with a reason. A row that nothing needs any more fails the test.

mod cases;
mod snapshot;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cases::Case;
use cni_test_harness::netconf::NetworkList;
use cni_test_harness::netns::{self, Netns};
use cni_test_harness::node::Node;
use cni_test_harness::runtime::{Attachment, PluginFailure, Runtime};
use cni_test_harness::{skip_unless, tools};
use serde_json::{Value, json};
use snapshot::Lines;

/// The names under which twill stands in for the chain.
const NAMES: [&str; 4] = ["bridge", "host-local", "portmap", "tuning"];

/// Case, line (both may have `*`), and why twill's is another one.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    (
        "*",
        "*/files/net/boot_id",
        "what an earlier boot reserved is free; host-local leaks it",
    ),
    (
        "*",
        "*/node/links/VETH/ifalias",
        "the node's end says whose it is, so that GC needs no store",
    ),
    (
        "*",
        "*/num_*x_queues",
        "one queue per end: the kernel's one per CPU costs an RCU grace period and gives a veth nothing",
    ),
    (
        "*",
        "*/node/links/VETH/txqlen",
        "the kernel's default; theirs is 0 because their library writes what nobody set",
    ),
    (
        "*",
        "*/node/settings/VETH/ipv6/accept_ra",
        "a port hands all it receives to its bridge: the setting has no effect there",
    ),
    (
        "*",
        "*/addr_info/*/nodad",
        "nobody waits for the detection of duplicates of addresses that the node alone gives out",
    ),
    (
        "masquerade-nftables-*",
        "*/node/nft",
        "the comments on table and chain say who made theirs; the rules are the same",
    ),
    (
        "portmap-*",
        "*/node/nft",
        "host ports are elements of maps instead of rules per pod, in a table of twill's own",
    ),
    (
        "chain-*",
        "*/node/nft",
        "host ports are elements of maps instead of rules per pod, in a table of twill's own",
    ),
    (
        "route-options-*",
        "add/pod/routes4/main default dev eth0 #0/metrics/*",
        "a default route's mtu and advmss are honoured; theirs drops them for the gateway it fills in",
    ),
    (
        "route-options-*",
        "check/*",
        "theirs fails the CHECK of a pod it has just made",
    ),
    (
        "layer-2-*",
        "check/*",
        "theirs asks for IPAM's CHECK where there is no IPAM",
    ),
    (
        "interface-down-*",
        "check/*",
        "theirs asks for IPAM's CHECK where there is no IPAM",
    ),
    (
        "layer-2-*",
        "add/pod/settings/eth0/*",
        "the pod's interface is prepared for addresses, whoever gives them",
    ),
    (
        "interface-down-*",
        "add/pod/settings/eth0/*",
        "the pod's interface is prepared for addresses, whoever gives them",
    ),
];

/// Runs a case's ADD, CHECK and DEL on a node of its own, and says what there is after each.
fn play(case: &Case, cni_path: &[PathBuf]) -> Result<Lines> {
    let node = Node::new("same")?;
    let data = node.make_dir("data")?;
    let pod = Netns::new("pod")?;
    let mut attachment = Attachment::eth0("the-container", &pod.path());
    attachment.capability_args = case.capabilities.as_object().context("an object")?.clone();
    let args = case.args.iter();
    attachment.args = args
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let list = json!({"name": "net", "cniVersion": case.version, "plugins": case.plugins});
    let text = list
        .to_string()
        .replace("DATA", &data.display().to_string());
    let list = NetworkList::parse(serde_json::from_str(&text)?)?;
    let runtime = Runtime::new(node.netns(), cni_path)?;

    let mut lines = Lines::new();
    let mut note = |when: &str, more: Lines| {
        lines.extend(
            more.into_iter()
                .map(|(name, value)| (format!("{when}/{name}"), value)),
        );
    };
    let said = |outcome: Result<()>| match outcome {
        Ok(()) => Ok(json!({"ok": true})),
        Err(error) => match PluginFailure::of(&error) {
            Some(failure) => Ok(json!({"code": failure.code})),
            None => Err(error),
        },
    };
    let added = match runtime.add(&list, &attachment) {
        Ok(added) => added.result,
        Err(error) => said(Err(error))?,
    };
    note("add", snapshot::of(json!({"result": added}), &node, &pod));
    note("add", snapshot::take(&node, &pod, &data)?);
    if case.version != "0.3.0" && case.version != "0.3.1" {
        let checked = said(runtime.check(&list, &attachment))?;
        note("check", snapshot::of(checked, &node, &pod));
    }
    let deleted = said(runtime.del(&list, &attachment))?;
    note("del", snapshot::of(deleted, &node, &pod));
    note("del", snapshot::take(&node, &pod, &data)?);
    Ok(lines)
}

/// twill under its drop-in names.
fn installed(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let twill = tools::built("twill")?;
    for name in NAMES {
        std::os::unix::fs::symlink(&twill, dir.join(name))?;
    }
    Ok(dir.to_owned())
}

/// `*` is any run of bytes.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|at| matches(rest, &text[at..])),
        [first, rest @ ..] => text.first() == Some(first) && matches(rest, &text[1..]),
    }
}

#[test]
fn twill_leaves_a_node_and_a_pod_as_the_go_chain_does() -> Result<()> {
    let go = skip_unless!(tools::go_plugin_path(&NAMES));
    let go: Vec<PathBuf> = std::env::split_paths(&go).collect();
    let dir = std::env::temp_dir().join(netns::unique_name("names"));
    let twill = [installed(&dir)?];
    let (mut found, mut used) = (Vec::new(), BTreeSet::new());
    for case in cases::all() {
        let name = format!("{}-{}", case.name, case.version);
        let theirs = play(&case, &go).with_context(|| format!("{name}, the Go chain"))?;
        let ours = play(&case, &twill).with_context(|| format!("{name}, twill"))?;
        assert!(theirs.len() > 100, "{name}: only {} lines", theirs.len());
        let keys: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
        for key in keys
            .into_iter()
            .filter(|key| theirs.get(*key) != ours.get(*key))
        {
            let is = |(of, line, _): &(&str, &str, &str)| {
                matches(of.as_bytes(), name.as_bytes()) && matches(line.as_bytes(), key.as_bytes())
            };
            match DIFFERENCES.iter().position(is) {
                Some(row) => drop(used.insert(row)),
                None => found.push(format!(
                    "{name}: {key}\n    theirs: {}\n    twill's: {}",
                    theirs.get(key).map_or("(nothing)", |value| value),
                    ours.get(key).map_or("(nothing)", |value| value)
                )),
            }
        }
    }
    std::fs::remove_dir_all(&dir)?;
    let rows = DIFFERENCES.iter().enumerate();
    let stale = rows.filter(|(row, _)| !used.contains(row));
    found.extend(
        stale.map(|(_, (case, line, _))| format!("nothing differs any more: {case} {line}")),
    );
    assert!(
        found.is_empty(),
        "{} differences:\n{}",
        found.len(),
        found.join("\n")
    );
    Ok(())
}

#[test]
fn a_difference_is_noticed() -> Result<()> {
    let case = |mtu: u32| -> Result<Value> {
        Ok(json!({"links": {"eth0": {"mtu": mtu, "ifindex": mtu}}}))
    };
    let node = Node::new("same")?;
    let pod = Netns::new("pod")?;
    let lines = |mtu| Ok::<_, anyhow::Error>(snapshot::of(case(mtu)?, &node, &pod));
    assert_eq!(lines(1400)?, lines(1400)?);
    assert_eq!(lines(1400)?.len(), 1, "the number of a device is no line");
    assert_ne!(lines(1400)?, lines(1500)?);
    Ok(())
}
