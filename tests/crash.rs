//! A killed ADD leaves nothing that one DEL does not clear, wherever it was killed.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Member, Spec};
use cni_test_harness::netns::{self, Netns};
use cni_test_harness::observe::View;
use cni_test_harness::process;
use cni_test_harness::runtime::{Attachment, Call};
use cni_test_harness::{skip_unless, tools};

const DEADLINE: Duration = Duration::from_secs(30);

/// Everything that a pod leaves on a node: devices, reservations, scratch files.
fn residue(member: &Member) -> Result<BTreeSet<String>> {
    let mut found: BTreeSet<String> = member.view().link_names()?.into_iter().collect();
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

/// Runs the plugin and kills it when it makes its system call number `at`; whether it finished
/// before that.
fn cut_short(member: &Member, strace: &Path, call: &Call, at: u32) -> Result<bool> {
    let mut command = member.node().command(strace)?;
    command
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=all", "-e"])
        .arg(format!("inject=all:signal=KILL:when={at}"))
        .arg(&call.program)
        .env_clear()
        .envs(call.env.iter().map(|(key, value)| (key, value)));
    let output = process::run(&mut command, &call.stdin, DEADLINE)?;
    Ok(output.status.success())
}

#[test]
fn add_killed_at_any_system_call_is_cleared_by_one_del() -> Result<()> {
    let strace = skip_unless!(tools::program("strace"));
    let cluster = Cluster::start(&Spec {
        nodes: 1,
        ..Spec::default()
    })?;
    let member = cluster.member(0);
    // The bridge is shared and stays; the first pod makes it.
    drop(cluster.pod(0)?);
    let before = residue(member)?;
    let runtime = member.runtime();
    let mut killed = 0;
    for at in 1.. {
        let pod = Netns::create(&netns::unique_name("pod"))?;
        let attachment = Attachment::eth0(pod.name(), &pod.path());
        let call = runtime.compose("ADD", member.list(), 0, &attachment, &[])?;
        let finished = cut_short(member, &strace, &call, at)?;
        if !finished {
            killed += 1;
        }
        runtime.del(member.list(), &attachment)?;
        let eth0 = View::of(&pod).link_names()?;
        assert_eq!(eth0, Vec::<String>::new(), "killed at system call {at}");
        assert_eq!(residue(member)?, before, "killed at system call {at}");
        // The next ADD of the same attachment works.
        if at % 10 == 0 {
            runtime.add(member.list(), &attachment)?;
            runtime.del(member.list(), &attachment)?;
        }
        if finished {
            break;
        }
    }
    assert!(killed > 30, "only {killed} system calls were cut short");
    Ok(())
}

#[test]
fn del_killed_at_any_system_call_is_finished_by_the_next() -> Result<()> {
    let strace = skip_unless!(tools::program("strace"));
    let cluster = Cluster::start(&Spec {
        nodes: 1,
        ..Spec::default()
    })?;
    let member = cluster.member(0);
    drop(cluster.pod(0)?);
    let before = residue(member)?;
    let runtime = member.runtime();
    for at in 1.. {
        let pod = Netns::create(&netns::unique_name("pod"))?;
        let attachment = Attachment::eth0(pod.name(), &pod.path());
        runtime.add(member.list(), &attachment)?;
        let call = runtime.compose("DEL", member.list(), 0, &attachment, &[])?;
        let finished = cut_short(member, &strace, &call, at)?;
        runtime.del(member.list(), &attachment)?;
        assert_eq!(residue(member)?, before, "killed at system call {at}");
        if finished {
            return Ok(());
        }
    }
    unreachable!("DEL ends");
}
