//! The gateway's addresses on a device that may have others. Pure.

use ipnet::IpNet;
use kernel::Mac;

use super::bridge::Present;
use crate::config::bridge::BridgeNetwork;
use crate::error::{Code, Error};

/// What to change about a device's addresses.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Addressing {
    /// Addresses that are in the way.
    pub(crate) drop: Vec<IpNet>,
    /// The gateway's addresses that it lacks.
    pub(crate) add: Vec<IpNet>,
    /// Fix its hardware address to what it is: pods cache the gateway's, and a bridge without one
    /// of its own takes the lowest of its ports'.
    pub(crate) pin: Option<Mac>,
}

impl Addressing {
    /// Of a device that is new.
    pub(super) fn all(gateways: &[IpNet]) -> Addressing {
        Addressing {
            add: gateways.to_vec(),
            ..Addressing::default()
        }
    }
}

/// What to change about the device that is there. With a text, only a device that no pod is joined
/// to may be changed so; the text refuses it.
pub(super) fn addressing(
    network: &BridgeNetwork,
    gateways: &[IpNet],
    present: &Present,
) -> Result<(Addressing, Option<String>), Error> {
    let name = network.gateway_device().unwrap_or(&network.bridge);
    let mut plan = Addressing::default();
    let mut refusal = None;
    let mut addresses = present.addresses.clone();
    for gateway in gateways {
        let in_the_way = conflicts(&addresses, *gateway).into_iter();
        // The gateways of two ranges stand beside each other, which upstream's do not.
        for conflict in in_the_way.filter(|address| !gateways.contains(address)) {
            let words = format!(
                "failed to set bridge addr: {name:?} already has an IP address different from {gateway}: {conflict}"
            );
            if !network.force_address {
                if !is_superseded(network, conflict) {
                    return Err(Error::new(Code::InvalidConfig, words));
                }
                refusal = Some(format!(
                    "{words}, which was this node's before; pods are still joined to it: delete them first, or set forceAddress, which cuts them off"
                ));
            }
            addresses.retain(|address| *address != conflict);
            plan.drop.push(conflict);
        }
        if !addresses.contains(gateway) {
            addresses.push(*gateway);
            plan.add.push(*gateway);
        }
    }
    if !plan.add.is_empty() {
        // A bridge that lost its last port has no address to keep.
        plan.pin = present.mac.filter(|mac| mac.0 != [0; 6]);
    }
    Ok((plan, refusal))
}

/// Whether an address is sure to be the gateway's of a subnet that this node had before: it is one
/// of the overlay, where the node has no other subnet than today's.
fn is_superseded(network: &BridgeNetwork, address: IpNet) -> bool {
    network
        .overlay
        .iter()
        .any(|overlay| overlay.contains(&address))
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
