//! From a network, a reservation and what the node has, the steps that make an attachment. Pure.
//!
//! Each step knows its undo. The bridge, its address, a VLAN's gateway and forwarding have none:
//! other pods may use them by the time this one fails. What is in the sandbox and on the node's end
//! goes with the pair.

mod addressing;
mod bridge;
mod routed;
mod routes;
#[cfg(test)]
mod tests;
mod vlan;

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::Mac;

use crate::attachment::{self, Attachment};
use crate::config::bridge::{BridgeNetwork, Gateway, Masquerading, VlanGateway};
use crate::config::mode::Mode;
use crate::config::vlan::Vlans;
use crate::error::{Code, Error};
use crate::result::{IpConfig, Route};

pub(crate) use addressing::Addressing;
pub(crate) use bridge::{BridgeStep, Present, fitting_mtu};
pub(crate) use routed::{HostEnd, shown};
pub(crate) use routes::routes;
use routes::with_gateways;
pub(crate) use vlan::VlanGatewayStep;

/// The smallest MTU that IPv6 works with, in bytes (RFC 8200 §5).
const IPV6_MIN_MTU: u32 = 1280;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// See [`BridgeStep`].
    Bridge(BridgeStep),
    /// See [`VlanGatewayStep`].
    VlanGateway(VlanGatewayStep),
    /// The node forwards packets of this address's family.
    Forward {
        /// Which family.
        v6: bool,
    },
    /// See [`Pair`].
    Pair(Pair),
    /// The bridge's MTU is not what its ports can take.
    FitMtu {
        /// The bridge's name.
        bridge: String,
        /// The pair's, in bytes.
        mtu: u32,
    },
    /// Frames from the attachment's pod with another hardware address than its own are dropped.
    CheckSpoofing(Attachment),
    /// See [`Sandbox`].
    Sandbox(Sandbox),
    /// See [`HostEnd`].
    HostEnd(HostEnd),
    /// What the node remembers of who had the pod's addresses before is forgotten.
    Forget(Vec<IpAddr>),
    /// What the pod sends out of its subnets is masqueraded.
    Masquerade {
        /// Whose rules these are.
        attachment: Attachment,
        /// The pod's addresses.
        addresses: Vec<IpNet>,
        /// Whose rules.
        by: Masquerading,
    },
}

/// The veth pair: one end the pod's interface, the other the node's; a port where there is a bridge.
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
    /// The port's VLANs, if the bridge filters them.
    pub(crate) vlans: Option<Vlans>,
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
    Pair(Attachment),
    /// Delete the attachment's masquerading rules.
    Masquerade(Attachment),
    /// Delete the attachment's rules against spoofing.
    SpoofCheck(Attachment),
}

impl Step {
    /// How the step is taken back; None where it must not be.
    pub(crate) fn undo(&self) -> Option<Undo> {
        match self {
            Step::Pair(pair) => Some(Undo::Pair(pair.attachment.clone())),
            Step::Masquerade { attachment, .. } => Some(Undo::Masquerade(attachment.clone())),
            Step::CheckSpoofing(attachment) => Some(Undo::SpoofCheck(attachment.clone())),
            Step::Bridge(_)
            | Step::VlanGateway(_)
            | Step::Forward { .. }
            | Step::FitMtu { .. }
            | Step::Forget(_)
            | Step::HostEnd(_)
            | Step::Sandbox(_) => None,
        }
    }
}

/// What the node has of a network already.
#[derive(Debug, Default, Clone)]
pub(crate) struct Found {
    /// Under the bridge's name.
    pub(crate) bridge: Option<Present>,
    /// Under the name of the VLAN's gateway, where the network has one.
    pub(crate) vlan_gateway: Option<Present>,
}

/// The steps of ADD, in order. `seed` is this node's, so that bridges that are made on several
/// nodes differ in their hardware address; where nothing is to be made it may be anything.
pub(crate) fn add(
    network: &BridgeNetwork,
    attachment: &Attachment,
    ips: &[IpConfig],
    found: &Found,
    seed: &str,
) -> Result<Vec<Step>, Error> {
    let addresses: Vec<IpNet> = ips
        .iter()
        .filter_map(|ip| ip.address)
        .map(|a| a.0)
        .collect();
    if network.mode == Mode::Routed {
        mtu_suits(network.mtu, &addresses, &[], found)?;
        return routed::add(network, attachment, ips, &addresses);
    }
    let gateways = match network.gateway {
        Gateway::None => vec![],
        _ => routes::gateways(ips),
    };
    mtu_suits(network.mtu, &addresses, &gateways, found)?;
    let made = |name: &str| Mac::local_unicast(hash_of(&[name.as_bytes(), seed.as_bytes()]));
    let mac = made(&network.bridge);
    let mut steps = vec![];
    match &network.vlan_gateway {
        Some(gateway) if !gateways.is_empty() => {
            steps.push(Step::Bridge(bridge::step(
                network,
                &[],
                found.bridge.as_ref(),
                mac,
            )?));
            steps.push(Step::VlanGateway(vlan::step(
                network,
                gateway,
                &gateways,
                found.vlan_gateway.as_ref(),
                made(&gateway.name),
                vlan_port(gateway),
            )?));
        }
        _ => steps.push(Step::Bridge(bridge::step(
            network,
            &gateways,
            found.bridge.as_ref(),
            mac,
        )?)),
    }
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
        vlans: network.vlans.clone(),
        forget: addresses.iter().map(IpNet::addr).collect(),
    }));
    // A bridge that is made, or has the MTU already, keeps it when the pair joins.
    if let (Some(mtu), Some(present), Some(bridge)) = (network.mtu, &found.bridge, network.device())
        && present.mtu != mtu
    {
        let bridge = bridge.to_owned();
        steps.push(Step::FitMtu { bridge, mtu });
    }
    if network.check_spoofing {
        steps.push(Step::CheckSpoofing(attachment.clone()));
    }
    steps.push(Step::Sandbox(Sandbox {
        ifname: attachment.ifname.clone(),
        routes: with_gateways(&routes(network, ips), ips),
        addresses: addresses.clone(),
        raise: network.raise,
        detect_duplicates: network.detect_duplicates,
    }));
    if let Some(by) = network.masquerade {
        steps.push(Step::Masquerade {
            attachment: attachment.clone(),
            addresses,
            by,
        });
    }
    Ok(steps)
}

/// The steps of ADD before another plugin is asked for addresses, which may need the interface to
/// be there (DHCP): the bridge and the pair.
pub(crate) fn add_port(
    network: &BridgeNetwork,
    attachment: &Attachment,
    found: &Found,
    seed: &str,
) -> Result<Vec<Step>, Error> {
    let mut steps = add(network, attachment, &[], found, seed)?;
    steps.retain(|step| matches!(step, Step::Bridge(_) | Step::Pair(_)));
    Ok(steps)
}

/// The steps of ADD after [`add_port`], with what the plugin answered.
pub(crate) fn add_addresses(
    network: &BridgeNetwork,
    attachment: &Attachment,
    ips: &[IpConfig],
    found: &Found,
    seed: &str,
) -> Result<Vec<Step>, Error> {
    let mut steps = add(network, attachment, ips, found, seed)?;
    for step in &mut steps {
        if let Step::Pair(pair) = step {
            *step = Step::Forget(std::mem::take(&mut pair.forget));
        }
    }
    Ok(steps)
}

/// The kernel takes IPv6 away from a device whose MTU is smaller than IPv6 allows (RFC 8200 §5):
/// from the pod's, and from the bridge, which follows its smallest port.
fn mtu_suits(
    mtu: Option<u32>,
    addresses: &[IpNet],
    gateways: &[IpNet],
    found: &Found,
) -> Result<(), Error> {
    let Some(mtu) = mtu.filter(|mtu| *mtu < IPV6_MIN_MTU) else {
        return Ok(());
    };
    let there = found.bridge.iter().flat_map(|bridge| &bridge.addresses);
    let mut all = addresses.iter().chain(gateways).chain(there);
    let loses =
        all.find(|net| matches!(net, IpNet::V6(net) if !net.addr().is_unicast_link_local()));
    match loses {
        None => Ok(()),
        Some(net) => Err(Error::new(
            Code::InvalidConfig,
            format!("mtu {mtu} is too small for {net}: IPv6 needs {IPV6_MIN_MTU}"),
        )),
    }
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

/// The name of the bridge's port that leads to a VLAN's gateway: of the form of pods' ports.
fn vlan_port(gateway: &VlanGateway) -> String {
    let hash = attachment::hash(&[b"vlan gateway", gateway.name.as_bytes()]);
    format!("veth{:08x}", (hash >> 32) as u32 ^ hash as u32)
}

fn hash_of(parts: &[&[u8]]) -> [u8; 6] {
    let [_, _, bytes @ ..] = attachment::hash(parts).to_be_bytes();
    bytes
}
