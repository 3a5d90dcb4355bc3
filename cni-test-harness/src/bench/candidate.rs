//! Who is measured, and what exactly is started for an ADD and a DEL of a pod.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::chain::Chain;
use super::measure::Start;
use super::scene::Scene;
use crate::netns::{self, Netns};
use crate::node::Node;
use crate::suite;
use crate::tools;

/// Names of candidates, as the report says them.
pub(super) const NOTHING: &str = "a process that does nothing";
pub(super) const FLOOR: &str = "the floor";
pub(super) const TWILL: &str = "twill";
pub(super) const DEBIAN: &str = "bridge + host-local, Debian's";
pub(super) const UPSTREAM: &str = "bridge + host-local v1.9.1";
pub(super) const CHAIN: &str = "bridge + host-local + portmap v1.9.1";
pub(super) const FLANNEL: &str = "flannel + bridge + host-local + portmap";

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
    /// Plugins, called as a runtime does.
    Plugins(Box<Chain>),
}

/// All that attach a plain pod, with `pods` namespaces each, and why others are left out.
pub(super) fn all(pods: usize) -> Result<(Vec<Candidate>, Vec<String>)> {
    let floor = tools::built("floor")?;
    let bare = floor_on_a_bridge(floor.clone())?;
    let mut all = vec![Candidate::new(FLOOR, bare, pods)?];
    let mut missing = Vec::new();
    for name in [TWILL, DEBIAN, UPSTREAM, CHAIN, FLANNEL] {
        match Candidate::of_plugins(name, Scene::Plain, pods) {
            Ok(candidate) => all.push(candidate),
            Err(error) if name == TWILL => return Err(error),
            Err(error) => missing.push(format!("{name}: {error:#}")),
        }
    }
    let nothing = How::Nothing {
        node: Node::new("nothing")?,
        program: floor,
    };
    all.push(Candidate::new(NOTHING, nothing, pods)?);
    Ok((all, missing))
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

    /// The plugins of a name in a scene; an error says what is missing on this machine.
    pub(super) fn of_plugins(name: &'static str, scene: Scene, pods: usize) -> Result<Self> {
        let chain = Chain::new(name, scene)?;
        Self::new(name, How::Plugins(Box::new(chain)), pods)
    }

    /// Where its plugins run.
    pub(super) fn node(&self) -> &Node {
        match &self.how {
            How::Nothing { node, .. } | How::Floor { node, .. } => node,
            How::Plugins(chain) => chain.node(),
        }
    }

    /// How many processes a runtime starts for a verb, one after the other.
    pub(super) fn steps(&self) -> usize {
        match &self.how {
            How::Plugins(chain) => chain.len(),
            _ => 1,
        }
    }

    /// What an ADD of pod number `pod` starts as its `step`, after the one that answered `previous`.
    pub(super) fn add(&self, pod: usize, step: usize, previous: Option<&[u8]>) -> Result<Start> {
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
            How::Plugins(chain) => chain.call("ADD", step, &self.pods[pod], previous)?,
        })
    }

    /// What a DEL of pod number `pod` starts as its `step`, whose ADD answered `added`.
    pub(super) fn del(&self, pod: usize, step: usize, added: &[u8]) -> Result<Start> {
        Ok(match &self.how {
            How::Nothing { program, .. } => Start::of(program, ["nothing".to_owned()]),
            How::Floor { program, .. } => {
                Start::of(program, ["del".to_owned(), format!("veth{pod}")])
            }
            // A chain is taken down backwards.
            How::Plugins(chain) => {
                let step = chain.len() - 1 - step;
                chain.call("DEL", step, &self.pods[pod], Some(added))?
            }
        })
    }

    /// Whether a DEL of what is gone is no failure.
    pub(super) fn repeats_del(&self) -> bool {
        !matches!(self.how, How::Floor { .. })
    }
}
