//! The bridge that a network needs beside the one that is there. Pure.

use ipnet::IpNet;
use kernel::Mac;

use super::addressing::{Addressing, addressing};
use crate::config::bridge::BridgeNetwork;
use crate::error::{Code, Error};

/// What the node has under a device's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Present {
    /// Its number.
    pub(crate) ifindex: u32,
    /// `bridge`, or something else.
    pub(crate) kind: String,
    /// Administratively up.
    pub(crate) up: bool,
    /// Bytes.
    pub(crate) mtu: u32,
    /// Receives everything.
    pub(crate) promiscuous: bool,
    /// Of bridges: heeds the VLANs of its ports.
    pub(crate) filters_vlans: bool,
    /// The other end of a veth pair.
    pub(crate) peer: Option<u32>,
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
    /// Make it.
    pub(crate) make: Option<Make>,
    /// Bring it up.
    pub(crate) raise: bool,
    /// Let it receive everything.
    pub(crate) promiscuous: bool,
    /// Let it heed the VLANs of its ports, which it did not.
    pub(crate) filter_vlans: bool,
    /// The gateway's addresses, unless a VLAN has them.
    pub(crate) addressing: Addressing,
    /// The step is for a bridge without ports: with any it is refused in these words.
    pub(crate) unless_in_use: Option<String>,
}

/// How a bridge is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Make {
    /// Bytes; `None`: the kernel's default.
    pub(crate) mtu: Option<u32>,
    /// Its hardware address.
    pub(crate) mac: Mac,
    /// It heeds the VLANs of its ports.
    pub(crate) filter_vlans: bool,
}

/// The step for a network. `mac` is the hardware address of a bridge that is to be made.
pub(super) fn step(
    network: &BridgeNetwork,
    gateways: &[IpNet],
    present: Option<&Present>,
    mac: Mac,
) -> Result<BridgeStep, Error> {
    let name = &network.bridge;
    let Some(present) = present else {
        return Ok(BridgeStep {
            name: name.clone(),
            ifindex: None,
            make: Some(Make {
                mtu: network.mtu,
                mac,
                filter_vlans: network.vlans.is_some(),
            }),
            raise: false,
            promiscuous: network.promiscuous,
            filter_vlans: false,
            addressing: Addressing::all(gateways),
            unless_in_use: None,
        });
    };
    if present.kind != "bridge" {
        return Err(Error::new(
            Code::Conflict,
            format!(
                "failed to create bridge {name:?}: {name:?} already exists but is not a bridge"
            ),
        ));
    }
    let (addressing, superseded) = addressing(network, gateways, present)?;
    // What ports carry without a tag goes on, but what they carry with one would stop.
    let filter_vlans = network.vlans.is_some() && !present.filters_vlans;
    let unless_in_use = superseded.or_else(|| {
        filter_vlans.then(|| {
            format!(
                "bridge {name:?} has ports and does not filter VLANs, so that vlan and vlanTrunk would keep nothing apart; if its ports can stand it: ip link set dev {name} type bridge vlan_filtering 1"
            )
        })
    });
    Ok(BridgeStep {
        name: name.clone(),
        ifindex: Some(present.ifindex),
        make: None,
        raise: !present.up,
        promiscuous: network.promiscuous && !present.promiscuous,
        filter_vlans,
        addressing,
        unless_in_use,
    })
}

/// The MTU that a bridge should get when a port of this MTU has joined it: a bridge sends what its
/// smallest port can take, and the kernel only sees to that while nobody has set the bridge's.
pub(crate) fn fitting_mtu(port: u32, bridge: u32, ports: impl Iterator<Item = u32>) -> Option<u32> {
    let fits = ports.chain([port]).min().unwrap_or(port);
    (fits != bridge).then_some(fits)
}
