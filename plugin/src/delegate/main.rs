//! The whole network by another plugin: flannel's `delegate.type` is not `bridge`. What is rendered
//! for it is kept, as for the bridge, so that DEL needs neither `subnet.env` nor today's config.
//!
//! The runtime's capabilities (`runtimeConfig`) are the delegate's to honour: nothing is built in.

use serde_json::Value;

use super::Delegate;
use crate::error::{Code, Error};
use crate::invocation::{Container, Sandboxed};
use crate::network::Network;
use crate::node::{Node, host_netns};
use crate::version::Version;
use kernel::netns::NetnsError;
use kernel::{Netns, device};

/// The plugin that a rendered config is for, if it is another one's.
pub(crate) fn kind_of(rendered: &Value) -> Option<&str> {
    let kind = go_json::field(rendered, "type")?.as_str()?;
    (kind != "bridge").then_some(kind)
}

/// The plugin that flannel's own config names as its delegate, if it is another one's.
pub(crate) fn named(config: &Value) -> Option<String> {
    kind_of(go_json::field(config, "delegate")?).map(str::to_owned)
}

/// Attaches the container, and returns the document for stdout: the delegate's result. A failure
/// is followed by DEL, as the specification wants it.
pub(crate) fn add(
    plugin: &Delegate<'_>,
    network: &Network,
    request: &Sandboxed,
    version: Version,
) -> Result<String, Error> {
    let node = Node::open()?;
    let netns = node.sandbox(&request.netns, request.netns_override)?;
    // The DEL after a failure would take away what another ADD made.
    let inside = netns.enter(&node.home, kernel::Socket::open);
    let inside = inside.map_err(refused)?.map_err(refused)?;
    let present = device::index(&inside, &request.ifname).map_err(refused)?;
    if present.is_some() {
        let msg = format!(
            "{} of container {} exists already",
            request.ifname, request.container_id
        );
        return Err(Error::new(Code::Conflict, msg));
    }
    // A delegate that is not there has nothing to delete either, and leaves no trace.
    let found = plugin.delegates.find(plugin.kind);
    found.map_err(|error| error.context("failed to delegate add"))?;
    network.keep(&request.container_id)?;
    let answer = plugin.add();
    answer
        .and_then(|stdout| render(plugin.kind, &stdout, version))
        .inspect_err(|_| drop(plugin.del()))
}

fn render(plugin: &str, stdout: &[u8], version: Version) -> Result<String, Error> {
    let mut document: Value = go_json::from_slice(stdout).map_err(|error| {
        let msg = format!("the result of plugin {plugin:?}: {error}");
        Error::new(Code::Decode, msg)
    })?;
    let without_version = go_json::field(&document, "cniVersion").is_none();
    let Some(object) = document.as_object_mut() else {
        let msg = format!("the result of plugin {plugin:?} is no JSON object");
        return Err(Error::new(Code::Decode, msg));
    };
    if without_version {
        object.insert("cniVersion".into(), version.as_str().into());
    }
    Ok(go_json::to_indented(&document).expect("a value is always JSON"))
}

/// Detaches the container, unless its sandbox is the node's own namespace.
pub(crate) fn del(plugin: &Delegate<'_>, request: &Container) -> Result<(), Error> {
    if let Some(path) = request.netns.as_ref().filter(|_| !request.netns_override) {
        let home = Netns::current().map_err(refused)?;
        match Netns::open(path) {
            Ok(netns) if netns.is(&home).map_err(refused)? => return Err(host_netns()),
            Ok(_) | Err(NetnsError::Missing { .. } | NetnsError::NotANamespace { .. }) => {}
            Err(error) => return Err(refused(error)),
        }
    }
    plugin.del()
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::new(Code::Kernel, error.to_string())
}
