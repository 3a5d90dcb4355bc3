//! The bridge that a network needs beside the one that is there. Pure.

use ipnet::IpNet;
use kernel::Mac;

use crate::config::bridge::BridgeNetwork;
use crate::error::{Code, Error};

/// What the node has under the bridge's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Present {
    /// Its number.
    pub(crate) ifindex: u32,
    /// `bridge`, or something else.
    pub(crate) kind: String,
    /// Administratively up.
    pub(crate) up: bool,
    /// Receives everything.
    pub(crate) promiscuous: bool,
    /// Its hardware address, which may be its ports'.
    pub(crate) mac: Option<Mac>,
    /// Its addresses, in the kernel's order.
    pub(crate) addresses: Vec<IpNet>,
}

/// The bridge as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgeStep {
    /// Its name.
    pub(crate) name: String,
    /// Its number, if it is there.
    pub(crate) ifindex: Option<u32>,
    /// Make it, with this MTU and this address.
    pub(crate) make: Option<(Option<u32>, Mac)>,
    /// Bring it up.
    pub(crate) raise: bool,
    /// Let it receive everything.
    pub(crate) promiscuous: bool,
    /// Addresses that are in the way.
    pub(crate) drop: Vec<IpNet>,
    /// The gateway's addresses that it lacks.
    pub(crate) add: Vec<IpNet>,
    /// Fix its hardware address to what it is: pods cache the gateway's, and a bridge without one
    /// of its own takes the lowest of its ports'.
    pub(crate) pin: Option<Mac>,
}

/// All of the step but how to make a bridge that is missing.
pub(super) fn step(
    network: &BridgeNetwork,
    gateways: &[IpNet],
    present: Option<&Present>,
) -> Result<BridgeStep, Error> {
    let name = &network.bridge;
    let mut step = BridgeStep {
        name: name.clone(),
        ifindex: present.map(|present| present.ifindex),
        make: None,
        raise: false,
        promiscuous: network.promiscuous,
        drop: vec![],
        add: gateways.to_vec(),
        pin: None,
    };
    let Some(present) = present else {
        return Ok(step);
    };
    if present.kind != "bridge" {
        return Err(Error::new(
            Code::Conflict,
            format!(
                "failed to create bridge {name:?}: {name:?} already exists but is not a bridge"
            ),
        ));
    }
    step.raise = !present.up;
    step.promiscuous &= !present.promiscuous;
    step.add.clear();
    let mut addresses = present.addresses.clone();
    for gateway in gateways {
        let in_the_way = conflicts(&addresses, *gateway).into_iter();
        // The gateways of two ranges stand beside each other, which upstream's do not.
        for conflict in in_the_way.filter(|address| !gateways.contains(address)) {
            if !network.force_address {
                return Err(Error::new(
                    Code::InvalidConfig,
                    format!(
                        "failed to set bridge addr: {name:?} already has an IP address different from {gateway}: {conflict}"
                    ),
                ));
            }
            addresses.retain(|address| *address != conflict);
            step.drop.push(conflict);
        }
        if !addresses.contains(gateway) {
            addresses.push(*gateway);
            step.add.push(*gateway);
        }
    }
    if !step.add.is_empty() {
        // A bridge that lost its last port has no address to keep.
        step.pin = present.mac.filter(|mac| mac.0 != [0; 6]);
    }
    Ok(step)
}

/// The addresses that the gateway cannot stand beside, by upstream's rule: looking through them in
/// order until the gateway itself is met, every other one of IPv4, and an overlapping one of IPv6.
pub(super) fn conflicts(addresses: &[IpNet], gateway: IpNet) -> Vec<IpNet> {
    let before = addresses.iter().take_while(|address| **address != gateway);
    before
        .filter(|address| match (address, &gateway) {
            (IpNet::V4(_), IpNet::V4(_)) => true,
            (IpNet::V6(a), IpNet::V6(b)) => a.contains(&b.addr()) || b.contains(&a.addr()),
            _ => false,
        })
        .copied()
        .collect()
}
