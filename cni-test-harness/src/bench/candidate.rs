//! Who is measured, and what exactly is started for an ADD and a DEL of a pod.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use super::measure::Start;
use crate::netns::{self, Netns};
use crate::node::Node;
use crate::runtime::Attachment;
use crate::suite::{self, Plugins, Site};
use crate::tools;

/// Names of candidates, as the report says them.
pub(super) const NOTHING: &str = "a process that does nothing";
pub(super) const FLOOR: &str = "the floor";
pub(super) const TWILL: &str = "twill";
pub(super) const DEBIAN: &str = "bridge + host-local, Debian's";
pub(super) const UPSTREAM: &str = "bridge + host-local v1.9.1";

/// The floor's host ends have the indexes from here on.
const FIRST_INDEX: usize = 10_000;

/// One way to attach a pod, with a node and pods of its own.
pub(super) struct Candidate {
    pub(super) name: &'static str,
    how: How,
    pods: Vec<Netns>,
}

enum How {
    /// Starts and ends; the same for ADD and DEL.
    Nothing { node: Node, program: PathBuf },
    /// The bare messages; the bridge is made beforehand.
    Floor {
        node: Node,
        program: PathBuf,
        bridge_index: u64,
    },
    /// A plugin, called as a runtime does.
    Plugin(Site),
}

/// All candidates with `pods` namespaces each, and why others are left out.
pub(super) fn all(pods: usize) -> Result<(Vec<Candidate>, Vec<String>)> {
    let floor = tools::built("floor")?;
    let mut all = vec![Candidate::new(
        FLOOR,
        floor_on_a_bridge(floor.clone())?,
        pods,
    )?];
    all.push(Candidate::new(TWILL, plugin(&Plugins::twill()?)?, pods)?);
    let mut missing = Vec::new();
    for (name, plugins) in [(DEBIAN, Plugins::debian()), (UPSTREAM, Plugins::upstream())] {
        match plugins {
            Ok(plugins) => all.push(Candidate::new(name, plugin(&plugins)?, pods)?),
            Err(error) => missing.push(format!("{name}: {error}")),
        }
    }
    let nothing = How::Nothing {
        node: Node::new("nothing")?,
        program: floor,
    };
    all.push(Candidate::new(NOTHING, nothing, pods)?);
    Ok((all, missing))
}

fn plugin(plugins: &Plugins) -> Result<How> {
    Ok(How::Plugin(Site::with(plugins, "1.0.0", "10.77.0.0/24")?))
}

fn floor_on_a_bridge(program: PathBuf) -> Result<How> {
    let node = Node::new("floor")?;
    let bridge = suite::BRIDGE;
    node.netns().ip_batch(&format!(
        "link add {bridge} mtu {} type bridge\nlink set {bridge} up\naddr add 10.77.0.1/24 dev {bridge}\n",
        suite::MTU
    ))?;
    let link = node.view().link(bridge)?.context("the bridge just made")?;
    let bridge_index = link["ifindex"].as_u64().context("a link has an index")?;
    Ok(How::Floor {
        node,
        program,
        bridge_index,
    })
}

impl Candidate {
    fn new(name: &'static str, how: How, pods: usize) -> Result<Self> {
        let names: Vec<String> = (0..pods).map(|_| netns::unique_name("pod")).collect();
        Ok(Self {
            name,
            how,
            pods: Netns::create_many(&names)?,
        })
    }

    /// Where its plugin runs.
    pub(super) fn node(&self) -> &Node {
        match &self.how {
            How::Nothing { node, .. } | How::Floor { node, .. } => node,
            How::Plugin(site) => site.node(),
        }
    }

    /// What an ADD of pod number `pod` starts.
    pub(super) fn add(&self, pod: usize) -> Result<Start> {
        Ok(match &self.how {
            How::Nothing { program, .. } => Start::of(program, ["nothing".to_owned()]),
            How::Floor {
                program,
                bridge_index,
                ..
            } => {
                let host = u32::from(Ipv4Addr::new(10, 77, 0, 2)) + u32::try_from(pod)?;
                let args = [
                    "add".to_owned(),
                    self.pods[pod].path().to_string_lossy().into_owned(),
                    bridge_index.to_string(),
                    format!("veth{pod}"),
                    (FIRST_INDEX + pod).to_string(),
                    Ipv4Addr::from(host).to_string(),
                    "24".to_owned(),
                    "10.77.0.1".to_owned(),
                    suite::NETWORK.to_owned(),
                    suite::MTU.to_string(),
                ];
                Start::of(program, args)
            }
            How::Plugin(site) => self.call("ADD", site, pod, &[])?,
        })
    }

    /// What a DEL of pod number `pod` starts, whose ADD answered `added`.
    pub(super) fn del(&self, pod: usize, added: &[u8]) -> Result<Start> {
        Ok(match &self.how {
            How::Nothing { program, .. } => Start::of(program, ["nothing".to_owned()]),
            How::Floor { program, .. } => {
                Start::of(program, ["del".to_owned(), format!("veth{pod}")])
            }
            How::Plugin(site) => {
                let result: Value = serde_json::from_slice(added).context("read ADD's result")?;
                self.call("DEL", site, pod, &[("prevResult", result)])?
            }
        })
    }

    fn call(&self, verb: &str, site: &Site, pod: usize, more: &[(&str, Value)]) -> Result<Start> {
        let netns = &self.pods[pod];
        let attachment = Attachment::eth0(netns.name(), &netns.path());
        let call = site
            .runtime()
            .compose(verb, site.list(), 0, &attachment, more)?;
        Ok(Start {
            program: call.program,
            args: Vec::new(),
            env: call.env,
            stdin: call.stdin,
        })
    }
}
