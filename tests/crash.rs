//! A killed ADD leaves nothing that one DEL does not clear, wherever it was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Member, Spec};
use cni_test_harness::netconf::NetworkList;
use cni_test_harness::netns::{self, Netns};
use cni_test_harness::observe::{Family, View};
use cni_test_harness::pod::Pod;
use cni_test_harness::process::{self, Output};
use cni_test_harness::runtime::{Attachment, Call};
use cni_test_harness::{skip_unless, tools, wait};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(5);

/// Everything that a pod leaves on a node: devices, routes, reservations, scratch files.
fn residue(member: &Member) -> Result<BTreeSet<String>> {
    let mut found: BTreeSet<String> = member.view().link_names()?.into_iter().collect();
    let routes = member.view().routes(Family::V4)?;
    found.extend(routes.iter().map(|r| format!("{} dev {}", r.dst, r.dev)));
    for folder in ["cni/networks/cbr0", "cni/scratch"] {
        let Ok(entries) = std::fs::read_dir(member.node().make_dir(folder)?) else {
            continue;
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        found.extend(names.map(|name| format!("{folder}/{name}")));
    }
    found.retain(|name| !name.contains("last_reserved_ip") && !name.ends_with("/lock"));
    Ok(found)
}

/// Waits until the node is as it was: the daemon deletes what DEL has quiesced.
fn wait_until_clear(
    member: &Member,
    before: &BTreeSet<String>,
    cut: &(String, usize),
) -> Result<()> {
    wait::until_true(&format!("all is cleared, killed at {cut:?}"), SOON, || {
        Ok(residue(member)? == *before)
    })
}

/// Every system call of a whole run of the plugin, in order, by name.
fn system_calls(member: &Member, strace: &Path, call: &Call) -> Result<Vec<String>> {
    let trace = member.node().dir().join("trace");
    let mut command = member.node().command(strace)?;
    command.args(["-f", "-qq", "-o"]).arg(&trace);
    run(command, call)?;
    let text = std::fs::read_to_string(&trace)?;
    let names = text.lines().filter_map(|line| {
        let (_pid, made) = line.split_once(' ')?;
        let (name, _) = made.trim_start().split_once('(')?;
        Some(name.to_owned())
    });
    Ok(names.collect())
}

/// Where a run can be cut short: before the n-th call of each kind, in the order of the run.
/// (strace counts the calls of each kind for itself.)
fn cuts(calls: &[String]) -> Vec<(String, usize)> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut cuts = Vec::new();
    for name in calls {
        let count = seen.entry(name).or_default();
        *count += 1;
        // The first is strace's own start of the program.
        if name != "execve" {
            cuts.push((name.clone(), *count));
        }
    }
    cuts
}

/// Runs the plugin and kills it as it enters that system call; whether it came to its end first.
fn cut_short(member: &Member, strace: &Path, call: &Call, at: &(String, usize)) -> Result<bool> {
    let (name, count) = at;
    let mut command = member.node().command(strace)?;
    command
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={name}"))
        .arg("-e")
        .arg(format!("inject={name}:signal=KILL:when={count}"));
    Ok(run(command, call)?.status.success())
}

fn run(mut strace: Command, call: &Call) -> Result<Output> {
    strace
        .arg(&call.program)
        .env_clear()
        .envs(call.env.iter().map(|(key, value)| (key, value)));
    process::run(&mut strace, &call.stdin, DEADLINE)
}

/// How pods are joined to the node.
#[derive(Clone, Copy)]
enum Mode {
    Bridge,
    Routed,
}

impl Mode {
    fn list(self, member: &Member) -> Arc<NetworkList> {
        let mut list = NetworkList::clone(member.list());
        if let Self::Routed = self {
            list.plugins[0]["delegate"] = json!({"mode": "routed", "isDefaultGateway": true});
        }
        Arc::new(list)
    }
}

/// A node that has had a pod: its bridge is shared, and stays when its pods go.
fn node(mode: Mode) -> Result<(Cluster, BTreeSet<String>)> {
    let cluster = Cluster::start(&Spec {
        nodes: 1,
        ..Spec::default()
    })?;
    let member = cluster.member(0);
    drop(Pod::new(member.runtime(), &mode.list(member))?);
    wait::until_true("the first pod is gone", SOON, || {
        Ok(!residue(member)?.iter().any(|name| name.starts_with("veth")))
    })?;
    let before = residue(member)?;
    Ok((cluster, before))
}

#[test]
fn add_killed_at_any_system_call_is_cleared_by_one_del() -> Result<()> {
    let strace = skip_unless!(tools::program("strace"));
    killed_adds_are_cleared_by_one_del(&strace, Mode::Bridge)
}

#[test]
fn a_routed_add_killed_at_any_system_call_is_cleared_by_one_del() -> Result<()> {
    let strace = skip_unless!(tools::program("strace"));
    killed_adds_are_cleared_by_one_del(&strace, Mode::Routed)
}

fn killed_adds_are_cleared_by_one_del(strace: &Path, mode: Mode) -> Result<()> {
    let (cluster, before) = node(mode)?;
    let member = cluster.member(0);
    let list = mode.list(member);
    let runtime = member.runtime();
    let pod = Netns::create(&netns::unique_name("pod"))?;
    let attachment = Attachment::eth0(pod.name(), &pod.path());
    let call = runtime.compose("ADD", &list, 0, &attachment, &[])?;
    let cuts = cuts(&system_calls(member, strace, &call)?);
    runtime.del(&list, &attachment)?;
    let mut killed = 0;
    for (at, cut) in cuts.iter().enumerate() {
        if !cut_short(member, strace, &call, cut)? {
            killed += 1;
        }
        runtime.del(&list, &attachment)?;
        wait_until_clear(member, &before, cut)?;
        let eth0 = View::of(&pod).link_names()?;
        assert_eq!(eth0, Vec::<String>::new(), "killed at {cut:?}");
        // The next ADD of the same attachment works.
        if at % 10 == 0 {
            runtime.add(&list, &attachment)?;
            runtime.del(&list, &attachment)?;
        }
    }
    assert!(
        killed > 50,
        "only {killed} of {} runs were cut short",
        cuts.len()
    );
    Ok(())
}

#[test]
fn del_killed_at_any_system_call_is_finished_by_the_next() -> Result<()> {
    let strace = skip_unless!(tools::program("strace"));
    let (cluster, before) = node(Mode::Bridge)?;
    let member = cluster.member(0);
    let runtime = member.runtime();
    let pod = Netns::create(&netns::unique_name("pod"))?;
    let attachment = Attachment::eth0(pod.name(), &pod.path());
    let call = runtime.compose("DEL", member.list(), 0, &attachment, &[])?;
    runtime.add(member.list(), &attachment)?;
    let cuts = cuts(&system_calls(member, &strace, &call)?);
    let mut killed = 0;
    for cut in &cuts {
        runtime.add(member.list(), &attachment)?;
        if !cut_short(member, &strace, &call, cut)? {
            killed += 1;
        }
        runtime.del(member.list(), &attachment)?;
        wait_until_clear(member, &before, cut)?;
    }
    assert!(
        killed > 30,
        "only {killed} of {} runs were cut short",
        cuts.len()
    );
    Ok(())
}
