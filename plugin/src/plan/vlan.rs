//! The gateway of a VLAN: one end of a pair, whose other end is a port of the bridge in that VLAN
//! alone. It is shared by the VLAN's pods, and stays as the bridge does. Pure.

use ipnet::IpNet;
use kernel::Mac;

use super::addressing::{Addressing, addressing};
use super::bridge::Present;
use crate::config::bridge::{BridgeNetwork, VlanGateway};
use crate::error::{Code, Error};

/// The gateway as it should be. It is brought up when its port is in the VLAN and not before, so
/// that one that is not up was left half made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VlanGatewayStep {
    /// Its name and its VLAN.
    pub(crate) gateway: VlanGateway,
    /// Its number, if it is there.
    pub(crate) ifindex: Option<u32>,
    /// The port's number, if it is there and not yet in the VLAN.
    pub(crate) unfinished_port: Option<u32>,
    /// The name of the port, if it is to be made.
    pub(crate) port_name: String,
    /// Bytes; `None`: the kernel's default.
    pub(crate) mtu: Option<u32>,
    /// Its hardware address, if it is to be made.
    pub(crate) mac: Mac,
    /// The gateway's addresses.
    pub(crate) addressing: Addressing,
}

/// The step for a network whose pods have a VLAN. `mac` is the hardware address of a gateway
/// that is to be made.
pub(super) fn step(
    network: &BridgeNetwork,
    gateway: &VlanGateway,
    gateways: &[IpNet],
    present: Option<&Present>,
    mac: Mac,
    port_name: String,
) -> Result<VlanGatewayStep, Error> {
    let name = &gateway.name;
    let conflict = |msg: String| Err(Error::new(Code::Conflict, msg));
    let addressing = match present {
        None => Addressing::all(gateways),
        Some(present) if present.kind != "veth" => {
            return conflict(format!(
                "failed to create the gateway of VLAN {}: {name:?} already exists but is not a veth",
                gateway.vid
            ));
        }
        Some(present) => match addressing(network, gateways, present)? {
            (addressing, None) => addressing,
            // Which pods are in its VLAN is not asked: a VLAN's gateway changes by force alone.
            (_, Some(refusal)) => return Err(Error::new(Code::InvalidConfig, refusal)),
        },
    };
    let unfinished = present.filter(|present| !present.up);
    Ok(VlanGatewayStep {
        gateway: gateway.clone(),
        ifindex: present.map(|present| present.ifindex),
        unfinished_port: unfinished.and_then(|present| present.peer),
        port_name,
        mtu: network.mtu,
        mac,
        addressing,
    })
}
