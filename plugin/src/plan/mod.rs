//! From a network, a reservation and what the node has, the steps that make an attachment. Pure.
//!
//! Each step knows its undo. The bridge, its address and forwarding have none: other pods may use
//! them by the time this one fails. What is in the sandbox goes with the pair.

mod bridge;
mod routes;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::Mac;

use crate::attachment::{self, Attachment};
use crate::config::bridge::{BridgeNetwork, Gateway};
use crate::error::Error;
use crate::result::{IpConfig, Route};

pub(crate) use bridge::{BridgeStep, Present};
pub(crate) use routes::routes;
use routes::with_gateways;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// See [`BridgeStep`].
    Bridge(BridgeStep),
    /// The node forwards packets of this address's family.
    Forward {
        /// Which family.
        v6: bool,
    },
    /// See [`Pair`].
    Pair(Pair),
    /// See [`Sandbox`].
    Sandbox(Sandbox),
    /// What the node remembers of who had the pod's addresses before is forgotten.
    Forget(Vec<IpAddr>),
    /// What the pod sends out of its subnets is masqueraded.
    Masquerade {
        /// Whose rules these are.
        attachment: Attachment,
        /// The pod's addresses.
        addresses: Vec<IpNet>,
    },
}

/// The veth pair: one end a port of the bridge, the other the pod's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// Whose it is, and so its name and alias.
    pub(crate) attachment: Attachment,
    /// Bytes; `None`: the kernel's default.
    pub(crate) mtu: Option<u32>,
    /// Of the node's end. Computed from the attachment: it marks the end as ours while it has no
    /// alias yet.
    pub(crate) host_mac: Mac,
    /// Of the pod's end.
    pub(crate) pod_mac: Mac,
    /// The port's settings.
    pub(crate) hairpin: bool,
    /// The port's settings.
    pub(crate) isolated: bool,
    /// The pod's addresses: what the node remembers of who had them before is forgotten.
    pub(crate) forget: Vec<IpAddr>,
}

/// What happens in the pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// The interface.
    pub(crate) ifname: String,
    /// Its addresses.
    pub(crate) addresses: Vec<IpNet>,
    /// Its routes, with gateways filled in.
    pub(crate) routes: Vec<Route>,
    /// Bring it up.
    pub(crate) raise: bool,
    /// Detect duplicates of its IPv6 addresses, and wait for the outcome.
    pub(crate) detect_duplicates: bool,
}

/// What is left to do when ADD fails after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undo {
    /// Delete the pair, if the node's end is still this attachment's.
    DeletePair(Attachment),
    /// Delete the attachment's masquerading rules.
    DeleteMasquerade(Attachment),
}

impl Step {
    /// How the step is taken back; None where it must not be.
    pub(crate) fn undo(&self) -> Option<Undo> {
        match self {
            Step::Pair(pair) => Some(Undo::DeletePair(pair.attachment.clone())),
            Step::Masquerade { attachment, .. } => Some(Undo::DeleteMasquerade(attachment.clone())),
            Step::Bridge(_) | Step::Forward { .. } | Step::Sandbox(_) | Step::Forget(_) => None,
        }
    }
}

/// The steps of ADD, in order. `seed` is this node's, so that bridges that are made on several
/// nodes differ in their hardware address.
pub(crate) fn add(
    network: &BridgeNetwork,
    attachment: &Attachment,
    ips: &[IpConfig],
    present: Option<&Present>,
    seed: &str,
) -> Result<Vec<Step>, Error> {
    let addresses: Vec<IpNet> = ips
        .iter()
        .filter_map(|ip| ip.address)
        .map(|a| a.0)
        .collect();
    let gateways = match network.gateway {
        Gateway::None => vec![],
        _ => routes::gateways(ips),
    };
    let mut bridge = bridge::step(network, &gateways, present)?;
    if present.is_none() {
        let mac = Mac::local_unicast(hash_of(&[network.bridge.as_bytes(), seed.as_bytes()]));
        bridge.make = Some((network.mtu, mac));
    }
    let mut steps = vec![Step::Bridge(bridge)];
    for v6 in [false, true] {
        if gateways
            .iter()
            .any(|gateway| gateway.addr().is_ipv6() == v6)
        {
            steps.push(Step::Forward { v6 });
        }
    }
    steps.push(Step::Pair(Pair {
        attachment: attachment.clone(),
        mtu: network.mtu,
        host_mac: attachment.host_mac(),
        pod_mac: network
            .mac
            .unwrap_or_else(|| pod_mac(attachment, &addresses)),
        hairpin: network.hairpin,
        isolated: network.isolated,
        forget: addresses.iter().map(IpNet::addr).collect(),
    }));
    steps.push(Step::Sandbox(Sandbox {
        ifname: attachment.ifname.clone(),
        routes: with_gateways(&routes(network, ips), ips),
        addresses: addresses.clone(),
        raise: network.raise,
        detect_duplicates: network.detect_duplicates,
    }));
    if network.masquerade {
        steps.push(Step::Masquerade {
            attachment: attachment.clone(),
            addresses,
        });
    }
    Ok(steps)
}

/// The steps of ADD before another plugin is asked for addresses, which may need the interface to
/// be there (DHCP): the bridge and the pair.
pub(crate) fn add_port(
    network: &BridgeNetwork,
    attachment: &Attachment,
    present: Option<&Present>,
    seed: &str,
) -> Result<Vec<Step>, Error> {
    let mut steps = add(network, attachment, &[], present, seed)?;
    steps.retain(|step| matches!(step, Step::Bridge(_) | Step::Pair(_)));
    Ok(steps)
}

/// The steps of ADD after [`add_port`], with what the plugin answered.
pub(crate) fn add_addresses(
    network: &BridgeNetwork,
    attachment: &Attachment,
    ips: &[IpConfig],
    present: Option<&Present>,
    seed: &str,
) -> Result<Vec<Step>, Error> {
    let mut steps = add(network, attachment, ips, present, seed)?;
    for step in &mut steps {
        if let Step::Pair(pair) = step {
            *step = Step::Forget(std::mem::take(&mut pair.forget));
        }
    }
    Ok(steps)
}

/// A pod's hardware address follows from its IP address, so that neighbours' tables stay right
/// when the address is used again.
fn pod_mac(attachment: &Attachment, addresses: &[IpNet]) -> Mac {
    let v4 = addresses.iter().find_map(|address| match address.addr() {
        IpAddr::V4(ip) => Some(ip.octets()),
        IpAddr::V6(_) => None,
    });
    let [a, b, c, d] = v4.unwrap_or_else(|| {
        let text = match addresses.first() {
            Some(address) => address.addr().to_string(),
            None => attachment.alias(),
        };
        let [_, _, a, b, c, d] = hash_of(&[text.as_bytes()]);
        [a, b, c, d]
    });
    Mac([0x0a, 0x58, a, b, c, d])
}

fn hash_of(parts: &[&[u8]]) -> [u8; 6] {
    let [_, _, bytes @ ..] = attachment::hash(parts).to_be_bytes();
    bytes
}
