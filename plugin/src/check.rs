//! CHECK: compares what the runtime says was made with what is there. Changes nothing.
//!
//! What other plugins added since is no difference. [`difference`] is pure.

mod routed;
mod vlans;

use ipnet::IpNet;
use kernel::link::Link;
use kernel::route::Route;
use kernel::{Netns, Socket, address, link, route, vlan};

use crate::attachment::Attachment;
use crate::builtin::{BuiltIn, Place};
use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::config::bridge::{BridgeNetwork, Ipam};
use crate::config::flannel::Dialect;
use crate::config::mode::Mode;
use crate::delegate::Delegates;
use crate::error::{Code, Error};
use crate::invocation::Sandboxed;
use crate::ipam::{Owner, Store};
use crate::network::{Maker, Network};
use crate::node::{Node, find_spoof_check};
use crate::result::{AddResult, Interface};
use crate::version::Version;

/// What is there.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The device with the bridge's name, where there is to be one.
    pub(crate) bridge: Option<Link>,
    /// The device with the name that the result gives the node's end.
    pub(crate) host: Option<Link>,
    /// The device with the pod's interface's name, in the sandbox.
    pub(crate) pod: Option<Link>,
    /// Its addresses.
    pub(crate) addresses: Vec<IpNet>,
    /// Every route in the sandbox.
    pub(crate) routes: Vec<Route>,
    /// Every route of the node, where it routes to each pod.
    pub(crate) node_routes: Vec<Route>,
    /// What there is of VLANs, where the network has some.
    pub(crate) vlans: vlans::Found,
}

/// Says what is wrong with the attachment, if anything.
pub(crate) fn check(
    header: &Header,
    request: &Sandboxed,
    dialect: Dialect,
    delegates: Delegates<'_>,
) -> Result<(), Error> {
    let version = Version::of_config_since(&header.version, "CHECK", Version::V0_4_0)?;
    let args = CniArgs::parse(&request.args)?;
    let previous = header.previous_result(version)?;
    let network = Network::of_attached(header, version, dialect, &args, &request.container_id)?;
    let config = &network.rendered;
    let bridge = match &network.maker {
        Maker::Here(bridge) => bridge,
        Maker::Delegate(kind) => {
            let main = delegates.plugin(kind, config);
            return main.check(header);
        }
    };
    let built_in = BuiltIn::parse(&header.config, dialect)?;
    let mut node = Node::open()?;
    let netns = node.sandbox(&request.netns, request.netns_override)?;
    let owner = Owner {
        container_id: &request.container_id,
        ifname: &request.ifname,
    };
    match &bridge.ipam {
        Some(Ipam::HostLocal(ipam))
            if !Store::new(&ipam.data_dir, &header.name).holds_any(&owner)? =>
        {
            return Err(failed(format!(
                "host-local: Failed to find address added by container {}",
                request.container_id
            )));
        }
        Some(Ipam::Other(kind)) => delegates.plugin(kind, config).check(header)?,
        _ => {}
    }
    let host = node_end(&previous, bridge.device()).map_or("", |host| &host.name);
    let facts = facts(&mut node, &netns, bridge, host, &request.ifname)?;
    if let Some(difference) = difference(bridge, request, &previous, &facts) {
        return Err(failed(difference));
    }
    let attachment = Attachment::new(&header.name, &request.container_id, &request.ifname)?;
    if bridge.check_spoofing {
        find_spoof_check(&attachment)?;
    }
    let place = Place {
        attachment: &attachment,
        gateway: bridge.gateway_device().unwrap_or(host),
        host_ifname: host,
        ips: &previous.ips,
    };
    built_in.check(&mut node.socket, &place)
}

fn failed(difference: String) -> Error {
    Error::new(Code::CheckFailed, difference)
}

fn facts(
    node: &mut Node,
    netns: &Netns,
    network: &BridgeNetwork,
    host: &str,
    ifname: &str,
) -> Result<Facts, Error> {
    let mut read = || -> kernel::Result<Facts> {
        let mut facts = Facts::default();
        match network.device() {
            Some(bridge) => facts.bridge = link::by_name(&mut node.socket, bridge)?,
            None => facts.node_routes = all_routes(&mut node.socket)?,
        }
        if !host.is_empty() {
            facts.host = link::by_name(&mut node.socket, host)?;
        }
        if network.vlans.is_some() {
            let gateway = network.vlan_gateway.as_ref();
            let gateway = gateway.map(|gateway| gateway.name.as_str());
            facts.vlans = vlans_found(&mut node.socket, facts.host.as_ref(), gateway)?;
        }
        let inside = netns.enter(&node.home, Socket::open);
        let mut inside = inside.map_err(|error| kernel::Error::Io {
            op: "read the sandbox".into(),
            source: std::io::Error::other(error),
        })??;
        facts.pod = link::by_name(&mut inside, ifname)?;
        if let Some(pod) = &facts.pod {
            let addresses = address::dump(&mut inside, Some(pod.ifindex))?;
            facts.addresses = addresses.into_iter().map(|address| address.net).collect();
            facts.routes = all_routes(&mut inside)?;
        }
        Ok(facts)
    };
    read().map_err(|error| Error::new(Code::Kernel, error.to_string()))
}

fn vlans_found(
    socket: &mut Socket,
    port: Option<&Link>,
    gateway: Option<&str>,
) -> kernel::Result<vlans::Found> {
    let mut found = vlans::Found::default();
    if let Some(port) = port {
        found.port = vlan::of_port(socket, port.ifindex)?;
    }
    if let Some(gateway) = gateway {
        found.gateway = link::by_name(socket, gateway)?;
        if let Some(port) = found.gateway.as_ref().and_then(|gateway| gateway.lower) {
            found.gateway_port = link::by_index(socket, port)?;
            found.gateway_vlans = vlan::of_port(socket, port)?;
        }
    }
    Ok(found)
}

fn all_routes(socket: &mut Socket) -> kernel::Result<Vec<Route>> {
    let mut routes = route::dump(socket, false)?;
    routes.extend(route::dump(socket, true)?);
    Ok(routes)
}

/// The node's end in a result: what has no sandbox and is not the bridge.
fn node_end<'a>(previous: &'a AddResult, bridge: Option<&str>) -> Option<&'a Interface> {
    let mut interfaces = previous.interfaces.iter();
    interfaces
        .find(|interface| interface.sandbox.is_empty() && Some(interface.name.as_str()) != bridge)
}

/// The first thing that is not as the result says.
pub(crate) fn difference(
    network: &BridgeNetwork,
    request: &Sandboxed,
    previous: &AddResult,
    facts: &Facts,
) -> Option<String> {
    let Sandboxed { ifname, netns, .. } = request;
    let listed = |wanted: &str| previous.interfaces.iter().find(|i| i.name == wanted);
    let Some(pod) = listed(ifname) else {
        return Some(format!("Interface {ifname} is not in prevResult"));
    };
    if pod.sandbox != *netns {
        return Some(format!(
            "Sandbox in prevResult {} doesn't match configured netns: {netns}",
            pod.sandbox
        ));
    }
    if network.mode == Mode::Bridge
        && let Some(difference) = bridge_difference(network, previous, facts)
    {
        return Some(difference);
    }
    let Some(inside) = &facts.pod else {
        return Some(format!("Interface name {ifname} not found"));
    };
    if differs(&pod.mac, inside) {
        let is = inside.mac.map(|mac| mac.to_string()).unwrap_or_default();
        return Some(format!(
            "Interface {ifname} Mac {} doesn't match container Mac: {is}",
            pod.mac
        ));
    }
    let host = facts.host.as_ref().filter(|host| {
        let joined = host.lower == Some(inside.ifindex) && inside.lower == Some(host.ifindex);
        joined && host.master == facts.bridge.as_ref().map(|bridge| bridge.ifindex)
    });
    let Some(host) = host else {
        return Some(match network.mode {
            Mode::Bridge => {
                let name = &network.bridge;
                format!("CNI veth created for bridge {name} was not found")
            }
            Mode::Routed => format!("the node's end of {ifname} was not found"),
        });
    };
    if let Some((vlans, bridge)) = network.vlans.as_ref().zip(facts.bridge.as_ref()) {
        let gateway = network.vlan_gateway.as_ref();
        let found = &facts.vlans;
        let wrong = vlans::difference(vlans, gateway, previous, bridge, host, found);
        if wrong.is_some() {
            return wrong;
        }
    }
    if network.raise && !inside.up {
        return Some(format!("interface {ifname} is down"));
    }
    for address in previous.ips.iter().filter_map(|ip| ip.address) {
        if !facts.addresses.contains(&address.0) {
            return Some(format!(
                "Failed to match addr {} on interface {ifname}",
                address.0
            ));
        }
        let subnet = address.0.trunc();
        let connected =
            |route: &Route| route.destination == subnet && route.ifindex == Some(inside.ifindex);
        if network.mode == Mode::Bridge && !facts.routes.iter().any(connected) {
            return Some(format!(
                "Failed to find route to {subnet} for interface {ifname}"
            ));
        }
    }
    if network.mode == Mode::Routed
        && let Some(difference) = routed::difference(previous, facts, inside, host)
    {
        return Some(difference);
    }
    let missing = previous
        .routes
        .iter()
        .filter_map(|route| route.dst)
        .find(|dst| {
            let default = dst.0.prefix_len() == 0;
            let same = |there: &Route| match default {
                true => {
                    there.destination.prefix_len() == 0
                        && there.destination.addr().is_ipv6() == dst.0.addr().is_ipv6()
                }
                false => there.destination == dst.0.trunc(),
            };
            !facts.routes.iter().any(same)
        });
    missing.map(|dst| format!("Expected Route {} not found in routing table", dst.0))
}

/// What is wrong with the bridge itself.
fn bridge_difference(
    network: &BridgeNetwork,
    previous: &AddResult,
    facts: &Facts,
) -> Option<String> {
    let name = &network.bridge;
    let Some(bridge) = facts.bridge.as_ref().filter(|link| link.kind == "bridge") else {
        return Some(format!("bridge {name} not found"));
    };
    let was = previous.interfaces.iter().find(|i| i.name == *name);
    if let Some(was) = was.filter(|was| differs(&was.mac, bridge)) {
        return Some(format!(
            "Bridge interface {name} Mac doesn't match: {}",
            was.mac
        ));
    }
    let quiet = network.promiscuous && !bridge.promiscuous;
    quiet.then(|| format!("Bridge interface {name} is not promiscuous"))
}

/// A result that says nothing about a hardware address agrees with any.
fn differs(was: &str, link: &Link) -> bool {
    !was.is_empty() && was.parse::<kernel::Mac>().ok() != link.mac
}
