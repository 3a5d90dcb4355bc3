//! Where a promise is tried: a fresh node with a runtime and one network.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde_json::json;

use super::Plugins;
use crate::netconf::{NEWEST, NetworkList};
use crate::node::Node;
use crate::pod::Pod;
use crate::runtime::{PluginFailure, Runtime};

/// The bridge that pods hang on.
pub const BRIDGE: &str = "cni0";
/// The pods' MTU in bytes.
pub const MTU: u64 = 1450;
/// The whole network, to which pods get a route.
pub const NETWORK: &str = "10.76.0.0/14";
/// The network's name.
pub(super) const NAME: &str = "cbr0";

/// A node with an empty network state, and a network whose state is in the node's folder.
pub struct Site {
    subnet: Ipv4Net,
    list: Arc<NetworkList>,
    runtime: Arc<Runtime>,
    node: Node,
}

impl Site {
    /// A site that speaks version 1.0.0 and has 10.77.0.0/24.
    pub(super) fn new(plugins: &Plugins) -> Result<Self> {
        Self::with(plugins, "1.0.0", "10.77.0.0/24")
    }

    /// A site that speaks `version` and whose subnet is `subnet`.
    pub fn with(plugins: &Plugins, version: &str, subnet: &str) -> Result<Self> {
        let node = Node::new("site")?;
        let runtime =
            Arc::new(Runtime::new(node.netns(), &plugins.cni_path)?.knowing_up_to(NEWEST));
        let list = json!({"name": NAME, "cniVersion": version, "type": ""});
        let list = Arc::new(NetworkList::parse(list)?);
        let mut site = Self {
            subnet: subnet.parse()?,
            list,
            runtime,
            node,
        };
        site.write_subnet_env()?;
        let plugin = (plugins.conf)(&site);
        let list = json!({"name": NAME, "cniVersion": version, "plugins": [plugin]});
        site.list = Arc::new(NetworkList::parse(list)?);
        Ok(site)
    }

    fn write_subnet_env(&self) -> Result<()> {
        let (gateway, len) = (self.gateway(), self.subnet.prefix_len());
        let text = format!(
            "FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET={gateway}/{len}\nFLANNEL_MTU={MTU}\nFLANNEL_IPMASQ=true\n"
        );
        let path = self.subnet_file();
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The node's subnet.
    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// The first address of the subnet.
    pub fn gateway(&self) -> IpAddr {
        self.subnet
            .hosts()
            .next()
            .unwrap_or(self.subnet.addr())
            .into()
    }

    /// Address number `number` of the subnet, as text.
    pub(super) fn address(&self, number: u32) -> String {
        std::net::Ipv4Addr::from(u32::from(self.subnet.network()) + number).to_string()
    }

    /// Where reservations are kept; the network has a folder of its name in it.
    pub fn ipam_dir(&self) -> PathBuf {
        self.node.dir().join("networks")
    }

    /// The subnet.env that says the same as the configuration of bridge and host-local.
    pub fn subnet_file(&self) -> PathBuf {
        self.node.dir().join("subnet.env")
    }

    /// The runtime on the node.
    pub fn runtime(&self) -> &Arc<Runtime> {
        &self.runtime
    }

    /// The network.
    pub fn list(&self) -> &Arc<NetworkList> {
        &self.list
    }

    pub(super) fn pod(&self) -> Result<Pod> {
        Pod::new(&self.runtime, &self.list)
    }

    /// The reserved addresses, sorted as text, by the names of the files.
    pub(super) fn reserved(&self) -> Result<Vec<String>> {
        let dir = self.ipam_dir().join(NAME);
        let Ok(entries) = std::fs::read_dir(&dir) else {
            return Ok(Vec::new());
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names = names.collect::<Result<Vec<_>>>()?;
        let is_address = |name: &String| name.parse::<IpAddr>().is_ok();
        let mut names: Vec<_> = names.into_iter().filter(is_address).collect();
        names.sort();
        Ok(names)
    }

    /// The links of the node other than the bridge.
    pub(super) fn ports(&self) -> Result<Vec<String>> {
        let mut names = self.node.view().link_names()?;
        names.retain(|name| name != BRIDGE);
        Ok(names)
    }
}

/// The plugin's own failure, where there must be one.
pub(super) fn failure<T>(what: &str, outcome: Result<T>) -> Result<PluginFailure> {
    let error = outcome.err().with_context(|| format!("{what} succeeded"))?;
    match PluginFailure::of(&error) {
        Some(failure) => Ok(failure.clone()),
        None => Err(error),
    }
}
