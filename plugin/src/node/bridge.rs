//! The bridge, the gateway of a VLAN, and what follows for the bridge from a new port.

use kernel::{address, bridge, device, link, sysctl, veth, vlan};
use nix::errno::Errno;

use super::{Node, refused};
use crate::error::{Code, Error};
use crate::plan::{Addressing, BridgeStep, VlanGatewayStep, fitting_mtu};

impl Node {
    /// Makes the bridge or puts it right, and returns its number.
    pub(super) fn ensure_bridge(&mut self, step: &BridgeStep) -> Result<u32, Error> {
        let name = &step.name;
        if let Some(make) = step.make {
            let bridge = bridge::create(name, make.mtu, Some(make.mac), make.filter_vlans);
            let made = self.socket.apply_all(&[bridge]);
            // Another ADD may have made it since we looked.
            kernel::error::unless(made, &[Errno::EEXIST])
                .map_err(|error| without_filtering(make.filter_vlans, error))?;
        }
        let ifindex = match step.ifindex {
            Some(ifindex) => ifindex,
            None => self.new_bridge(name)?,
        };
        if let Some(words) = &step.unless_in_use
            && !link::ports(&mut self.socket, ifindex)
                .map_err(refused)?
                .is_empty()
        {
            return Err(Error::new(Code::InvalidConfig, words.clone()));
        }
        if step.filter_vlans {
            let change = link::change_index(ifindex).filter_vlans(true);
            let changed = self.socket.apply_all(&[change.request()]);
            changed.map_err(|error| without_filtering(true, error))?;
        }
        let mut requests = vec![];
        if step.raise {
            requests.push(link::change_index(ifindex).up().request());
        }
        if step.promiscuous {
            requests.push(link::change_index(ifindex).promiscuous(true).request());
        }
        requests.extend(readdress(ifindex, &step.addressing));
        if step.make.is_some() || !requests.is_empty() {
            refuse_advertisements(name);
            self.all(&requests)?;
        }
        Ok(ifindex)
    }

    fn new_bridge(&mut self, name: &str) -> Result<u32, Error> {
        let device = device::by_name(&self.socket, name).map_err(refused)?;
        match device.filter(|device| device.driver == "bridge") {
            Some(device) => Ok(device.ifindex),
            None => {
                let msg = format!("failed to create bridge {name:?}: no bridge has that name");
                Err(Error::new(Code::Conflict, msg))
            }
        }
    }

    /// Makes the gateway of a VLAN or puts it right, and returns its number.
    pub(super) fn ensure_vlan_gateway(
        &mut self,
        step: &VlanGatewayStep,
        bridge: u32,
    ) -> Result<u32, Error> {
        let name = &step.gateway.name;
        let mut unfinished = step.unfinished_port;
        let ifindex = match step.ifindex {
            Some(ifindex) => ifindex,
            None => {
                let pair = veth::Veth {
                    host_name: &step.port_name,
                    pod_name: name,
                    pod_netns: self.home.fd(),
                    mtu: step.mtu,
                    host_mac: None,
                    pod_mac: Some(step.mac),
                    master: Some(bridge),
                    host_txqlen: None,
                };
                let made = self.socket.apply_all(&[pair.create()]);
                // Another ADD may have made it since we looked.
                kernel::error::unless(made, &[Errno::EEXIST]).map_err(refused)?;
                let gateway = link::by_name(&mut self.socket, name).map_err(refused)?;
                let gateway = gateway.filter(|link| link.kind == "veth").ok_or_else(|| {
                    let msg = format!(
                        "failed to create the gateway {name:?} of VLAN {}: no veth has that name, or another device has that of its port {:?}",
                        step.gateway.vid, step.port_name
                    );
                    Error::new(Code::Conflict, msg)
                })?;
                unfinished = gateway.lower;
                gateway.ifindex
            }
        };
        let mut requests = vec![];
        if let Some(port) = unfinished {
            requests.push(vlan::leave_all(port));
            requests.push(vlan::join(
                port,
                Some(step.gateway.vid),
                &Default::default(),
            ));
            requests.push(link::change_index(port).up().request());
            requests.push(link::change_index(ifindex).up().request());
            refuse_advertisements(&step.port_name);
        }
        requests.extend(readdress(ifindex, &step.addressing));
        if !requests.is_empty() {
            refuse_advertisements(name);
            self.all(&requests)?;
        }
        Ok(ifindex)
    }

    /// Gives the bridge the MTU that suits its ports, the newest of which has this one.
    pub(super) fn fit_mtu(&mut self, name: &str, bridge: u32, mtu: u32) -> Result<(), Error> {
        let now = match device::mtu(&self.socket, name).map_err(refused)? {
            Some(now) if now != mtu => now,
            _ => return Ok(()),
        };
        let ports = link::ports(&mut self.socket, bridge).map_err(refused)?;
        let ports = ports.iter().map(|port| port.mtu);
        match fitting_mtu(mtu, now, ports) {
            Some(mtu) => self.all(&[link::change_index(bridge).mtu(mtu).request()]),
            None => Ok(()),
        }
    }
}

fn readdress(ifindex: u32, addressing: &Addressing) -> Vec<kernel::Request> {
    let Addressing { drop, add, pin } = addressing;
    let mut requests = vec![];
    requests.extend(drop.iter().map(|net| address::delete(ifindex, *net)));
    requests.extend(add.iter().map(|net| address::add(ifindex, *net)));
    requests.extend(pin.map(|mac| link::change_index(ifindex).mac(mac).request()));
    requests
}

/// Router advertisements are for hosts; without IPv6 there is nothing to say.
fn refuse_advertisements(ifname: &str) {
    let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/accept_ra"), "0");
}

fn without_filtering(asked: bool, error: kernel::Error) -> Error {
    match error.errno() {
        Some(Errno::EOPNOTSUPP) if asked => Error::new(
            Code::UnsupportedField,
            format!(
                "vlan and vlanTrunk need a kernel that filters VLANs on bridges (CONFIG_BRIDGE_VLAN_FILTERING), and this one does not: {error}"
            ),
        ),
        _ => refused(error),
    }
}
