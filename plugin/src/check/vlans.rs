//! What a bridge that filters VLANs is beside one that does not: the VLANs of the pod's port, and the
//! gateway that the pod's VLAN has. Pure.

use kernel::link::Link;
use kernel::vlan::Membership;

use super::differs;
use crate::config::bridge::VlanGateway;
use crate::config::vlan::Vlans;
use crate::result::AddResult;

/// What is there of a network's VLANs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The VLANs of the pod's port.
    pub(crate) port: Membership,
    /// The device with the gateway's name, where there is to be one.
    pub(crate) gateway: Option<Link>,
    /// The other end of its pair.
    pub(crate) gateway_port: Option<Link>,
    /// The VLANs of that end.
    pub(crate) gateway_vlans: Membership,
}

/// The first thing that keeps the pod out of its VLANs, or lets it into others.
pub(super) fn difference(
    vlans: &Vlans,
    gateway: Option<&VlanGateway>,
    previous: &AddResult,
    bridge: &Link,
    port: &Link,
    found: &Found,
) -> Option<String> {
    if !bridge.filters_vlans {
        return Some(format!(
            "bridge {} does not filter VLANs any more",
            bridge.name
        ));
    }
    let port = of_port(vlans, &port.name, &found.port);
    port.or_else(|| of_gateway(gateway?, previous, bridge, found))
}

fn of_port(vlans: &Vlans, name: &str, is: &Membership) -> Option<String> {
    // Of an empty trunk alone nothing follows for the port.
    let untagged = vlans.untagged()?;
    if is.pvid != Some(untagged) || !is.untagged.contains(&untagged) {
        return Some(format!(
            "bridge port {name} does not have VLAN {untagged} as its own (PVID, untagged)"
        ));
    }
    let tagged = vlans.tagged();
    // A trunk may have thousands: the first one says enough.
    if let Some(missing) = tagged.difference(&is.tagged).next() {
        return Some(format!("bridge port {name} is not in VLAN {missing}"));
    }
    if vlans.keep_default {
        return None;
    }
    let mut all = is.untagged.union(&is.tagged);
    let other = all.find(|vid| **vid != untagged && !tagged.contains(vid))?;
    Some(format!(
        "bridge port {name} is in VLAN {other}, which is not the pod's"
    ))
}

fn of_gateway(
    gateway: &VlanGateway,
    previous: &AddResult,
    bridge: &Link,
    found: &Found,
) -> Option<String> {
    let VlanGateway { name, vid } = gateway;
    let pair = found.gateway.as_ref().zip(found.gateway_port.as_ref());
    let joined = pair.filter(|(_, port)| port.master == Some(bridge.ifindex));
    let Some((device, port)) = joined else {
        return Some(format!(
            "{name}, the gateway of VLAN {vid}, was not found on bridge {}",
            bridge.name
        ));
    };
    let was = previous.interfaces.iter().find(|i| i.name == *name);
    if let Some(was) = was.filter(|was| differs(&was.mac, device)) {
        return Some(format!("Interface {name} Mac doesn't match: {}", was.mac));
    }
    if !device.up || !port.up {
        return Some(format!("{name}, the gateway of VLAN {vid}, is down"));
    }
    let own = Vlans {
        own: Some(*vid),
        ..Vlans::default()
    };
    of_port(&own, &port.name, &found.gateway_vlans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Interface;

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.into(),
            up: true,
            filters_vlans: name == "cni0",
            ..Link::default()
        }
    }

    fn membership(pvid: u16, untagged: &[u16], tagged: &[u16]) -> Membership {
        Membership {
            pvid: Some(pvid),
            untagged: untagged.iter().copied().collect(),
            tagged: tagged.iter().copied().collect(),
        }
    }

    fn vlans(own: Option<u16>, trunk: &[u16], keep_default: bool) -> Vlans {
        Vlans {
            own,
            trunk: trunk.iter().copied().collect(),
            keep_default,
        }
    }

    /// What is wrong with a port; "" if nothing is.
    fn of(vlans: &Vlans, port: Membership) -> String {
        let found = Found {
            port,
            ..Found::default()
        };
        let (bridge, port) = (link(1, "cni0"), link(2, "veth0"));
        let none = AddResult::default();
        difference(vlans, None, &none, &bridge, &port, &found).unwrap_or_default()
    }

    #[test]
    fn a_port_that_is_in_its_vlans_is_as_it_was_made() {
        for (vlans, is) in [
            (vlans(Some(100), &[], false), membership(100, &[100], &[])),
            (vlans(Some(100), &[], true), membership(100, &[1, 100], &[])),
            (
                vlans(Some(100), &[100, 200], false),
                membership(100, &[100], &[200]),
            ),
            (
                vlans(None, &[200, 201], false),
                membership(1, &[1], &[200, 201]),
            ),
            (vlans(None, &[], false), membership(1, &[1], &[7])),
        ] {
            assert_eq!(of(&vlans, is.clone()), "", "{vlans:?} {is:?}");
        }
    }

    #[test]
    fn a_port_that_lost_a_vlan_or_is_in_another_is_named() {
        for (vlans, is, word) in [
            (
                vlans(Some(100), &[], false),
                membership(1, &[1], &[100]),
                "veth0 does not have VLAN 100",
            ),
            (
                vlans(Some(100), &[], false),
                Membership::default(),
                "VLAN 100",
            ),
            (
                vlans(Some(100), &[200, 201], true),
                membership(100, &[100, 200], &[201]),
                "not in VLAN 200",
            ),
            (
                vlans(Some(100), &[], false),
                membership(100, &[1, 100], &[300]),
                "in VLAN 1, which is not",
            ),
        ] {
            let said = of(&vlans, is.clone());
            assert!(said.contains(word), "{vlans:?} {is:?}: {said}");
        }
    }

    #[test]
    fn a_bridge_that_stopped_filtering_keeps_nothing_apart() {
        let bridge = Link {
            filters_vlans: false,
            ..link(1, "cni0")
        };
        let found = Found {
            port: membership(100, &[100], &[]),
            ..Found::default()
        };
        let (vlans, none) = (vlans(Some(100), &[], false), AddResult::default());
        let said = difference(&vlans, None, &none, &bridge, &link(2, "veth0"), &found);
        assert!(said.unwrap().contains("does not filter VLANs"));
    }

    #[test]
    fn the_gateway_of_a_vlan_is_looked_at_with_its_port() {
        let gateway = VlanGateway {
            name: "cni0.100".into(),
            vid: 100,
        };
        let mac: kernel::Mac = "02:00:00:00:00:07".parse().unwrap();
        let whole = Found {
            port: membership(100, &[100], &[]),
            gateway: Some(Link {
                mac: Some(mac),
                ..link(3, "cni0.100")
            }),
            gateway_port: Some(Link {
                master: Some(1),
                ..link(4, "veth1")
            }),
            gateway_vlans: membership(100, &[100], &[]),
        };
        let previous = AddResult {
            interfaces: vec![Interface {
                name: "cni0.100".into(),
                mac: mac.to_string(),
                ..Interface::default()
            }],
            ..AddResult::default()
        };
        let vlans = vlans(Some(100), &[], false);
        let said = |change: &dyn Fn(&mut Found)| {
            let mut found = whole.clone();
            change(&mut found);
            let (bridge, port) = (link(1, "cni0"), link(2, "veth0"));
            difference(&vlans, Some(&gateway), &previous, &bridge, &port, &found)
                .unwrap_or_default()
        };
        assert_eq!(said(&|_| {}), "");
        let gone = said(&|found| found.gateway = None);
        assert!(gone.contains("was not found"), "{gone}");
        let elsewhere = said(&|found| found.gateway_port.as_mut().unwrap().master = Some(9));
        assert!(elsewhere.contains("was not found"), "{elsewhere}");
        let other = said(&|found| found.gateway.as_mut().unwrap().mac = None);
        assert!(other.contains("02:00:00:00:00:07"), "{other}");
        let down = said(&|found| found.gateway_port.as_mut().unwrap().up = false);
        assert!(down.contains("is down"), "{down}");
        let out = said(&|found| found.gateway_vlans = membership(1, &[1], &[]));
        assert!(out.contains("veth1 does not have VLAN 100"), "{out}");
    }
}
