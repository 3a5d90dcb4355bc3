//! The demo: a whole cluster on one machine, shown to a person.
//!
//! Nodes are network namespaces `twill-demo-node<N>`, pods `twill-demo-node<N>-pod<M>`; all that is
//! on disk is in /run/twill-demo. Both names are the demo's own, so that [`down`] can remove it
//! whole, also after a run that crashed. What is shown was printed by `ip`, `bridge` and `ping`,
//! and the store's files; `show` lays it out.

pub mod kubernetes;
mod show;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Member, READY_DEADLINE, Spec};
use crate::netns;
use crate::observe::Ping;
use crate::pod::Pod;
use crate::progress::Progress;

/// What all namespaces of the demo begin with.
pub const NAME: &str = "twill-demo";
/// Where everything is that the demo keeps on disk.
pub const DIR: &str = "/run/twill-demo";

/// What to show.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many nodes.
    pub nodes: u8,
    /// How many pods on each node.
    pub pods: u8,
    /// Leaves everything standing at the end.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            pods: 2,
            keep: false,
        }
    }
}

/// Builds the cluster, shows it, and takes it down unless it is kept. A ping that fails is an error.
pub fn run(options: Options) -> Result<()> {
    ensure!((1..=20).contains(&options.nodes), "--nodes is from 1 to 20");
    ensure!((1..=20).contains(&options.pods), "--pods is from 1 to 20");
    let progress = Progress::new();
    if stands() {
        progress.step("an earlier demo is removed", down)?;
    }
    let built = build(options, &progress);
    let (cluster, mut pods) = match built {
        Ok(built) => built,
        Err(error) => {
            // The pieces that were made are gone by now; this removes what they left.
            down()?;
            return Err(error);
        }
    };
    let verdict = show::everything(&cluster, &pods, &progress);
    if options.keep {
        pods.iter_mut().for_each(Pod::keep);
        let look = show::look_around(&cluster, &pods)?;
        cluster.keep();
        progress.heading("How to look around");
        look.iter().for_each(|line| progress.line(line));
    } else {
        progress.heading("Taken down");
        progress.step("pods deleted by the plugin", || {
            pods.into_iter().try_for_each(Pod::delete)
        })?;
        drop(cluster);
        progress.step("nodes removed", down)?;
    }
    verdict
}

fn build(options: Options, progress: &Progress) -> Result<(Cluster, Vec<Pod>)> {
    let Options { nodes, pods, .. } = options;
    progress.heading(&format!(
        "A cluster of {nodes} nodes with {pods} pods each, on this machine"
    ));
    let spec = Spec {
        nodes,
        ..Spec::default()
    };
    let mut cluster = progress.step("nodes as network namespaces, joined by a switch", || {
        Cluster::lay_out(&spec, NAME, Path::new(DIR))
    })?;
    for index in 0..usize::from(nodes) {
        let member = cluster.member_mut(index);
        let what = format!(
            "twilld on {}: subnet claimed, ready",
            short(member.node().name())
        );
        progress.step(&what, || {
            member.start_daemon()?;
            member.wait_ready(READY_DEADLINE)
        })?;
    }
    progress.step("every node has a route to every other", || {
        cluster.wait_in_sync(READY_DEADLINE)
    })?;
    let mut made = Vec::new();
    for member in cluster.members() {
        for number in 1..=pods {
            made.push(make_pod(member, number, progress)?);
        }
    }
    Ok((cluster, made))
}

fn make_pod(member: &Member, number: u8, progress: &Progress) -> Result<Pod> {
    let name = format!("{}-pod{number}", member.node().name());
    let what = format!("twill ADD: {}", short(&name));
    progress.step(&what, || member.named_pod(&name))
}

/// A name without what all names of the demo begin with.
fn short(name: &str) -> &str {
    name.strip_prefix(NAME)
        .and_then(|rest| rest.strip_prefix('-'))
        .unwrap_or(name)
}

/// Every pod pings every pod: by row the one that pings.
fn ping_all(pods: &[Pod]) -> Result<Vec<Vec<Ping>>> {
    let wait = Duration::from_secs(2);
    let row = |from: &Pod| {
        pods.iter()
            .map(|to| from.ping(to, 2, wait))
            .collect::<Result<_>>()
    };
    // One row after the other: pings at once would measure each other.
    pods.iter().map(row).collect()
}

/// Whether anything of a demo is on this machine.
pub fn stands() -> bool {
    Path::new(DIR).exists() || !names().is_empty()
}

fn names() -> Vec<String> {
    netns::names_with_prefix(&format!("{NAME}-"))
}

/// Removes the demo whole: processes, namespaces, folder. Nothing there is fine.
pub fn down() -> Result<()> {
    names().iter().try_for_each(|name| netns::tear_down(name))?;
    match std::fs::remove_dir_all(DIR) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {DIR}"))
        }
        _ => Ok(()),
    }
}
