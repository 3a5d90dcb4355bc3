//! What a backend needs before a lease is taken, because the lease says it: the node's identity,
//! remembered, found on devices that are there, or drawn.

use anyhow::anyhow;
use kernel::Mac;

use crate::backend::{Backend, Identity, vxlan};
use crate::family::{ByFamily, Family};
use crate::net_conf::NetConf;
use crate::persist::Remembered;
use crate::store::NodeFacts;
use crate::tables::Facts;

/// The identity that peers know, or a new one.
pub(crate) fn identity(
    net_conf: &NetConf,
    facts: &Facts,
    remembered: &Remembered,
    node: &NodeFacts,
) -> anyhow::Result<Identity> {
    Ok(match &net_conf.backend {
        Backend::Vxlan(options) => Identity {
            macs: macs(options, net_conf.ranges.families(), facts, remembered, node)?,
        },
        Backend::HostGw | Backend::Alloc => Identity::default(),
    })
}

/// Enters what must be known after a reboot.
pub(crate) fn remember(remembered: &mut Remembered, net_conf: &NetConf, identity: &Identity) {
    if let Backend::Vxlan(options) = &net_conf.backend {
        for (family, mac) in identity.macs.iter() {
            let name = options.device(family).to_string();
            remembered.macs.insert(name, *mac);
        }
    }
}

/// The VTEPs' addresses: the remembered ones, else those of devices that are there, else those that
/// peers know, else new ones.
fn macs(
    options: &vxlan::Options,
    families: impl Iterator<Item = Family>,
    facts: &Facts,
    remembered: &Remembered,
    node: &NodeFacts,
) -> anyhow::Result<ByFamily<Mac>> {
    let mut macs = ByFamily::default();
    for family in families {
        let name = options.device(family);
        let of_device = || facts.link(&name).filter(|link| link.vxlan.is_some())?.mac;
        let published = || vxlan::Options::published_mac(node.published.as_ref()?, family);
        let known = remembered.macs.get(&*name).copied();
        let known = known.or_else(of_device).or_else(published);
        let mac = match known.filter(|mac| mac.is_unicast()) {
            Some(mac) => mac,
            None => {
                let mut bytes = [0; 6];
                getrandom::fill(&mut bytes)
                    .map_err(|error| anyhow!("draw a random MAC address: {error}"))?;
                Mac::local_unicast(bytes)
            }
        };
        macs.set(family, mac);
    }
    Ok(macs)
}
