//! What a backend needs before a lease is taken: a kernel that can do it, a port that is free, and,
//! because the lease says it, the node's identity, remembered, found on devices that are there, or
//! drawn.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use anyhow::anyhow;
use kernel::Mac;
use kernel::feature::Feature;
use kernel::vxlan::DEFAULT_PORT;

use crate::backend::extension::{self, Environment};
use crate::backend::{Backend, Identity, ipip, vxlan};
use crate::carrier::extension as programs;
use crate::family::{ByFamily, Family};
use crate::key_file;
use crate::net_conf::NetConf;
use crate::peers::Node;
use crate::persist::Remembered;
use crate::store::NodeFacts;
use crate::tables::Facts;
use crate::udp;
use crate::underlay::Underlay;

/// Whether the kernel has what the backend needs, and the port is free: found out without making
/// anything in this namespace.
pub(crate) fn probe(net_conf: &NetConf, underlay: &Underlay, facts: &Facts) -> Result<(), String> {
    match &net_conf.backend {
        Backend::Vxlan(options) => {
            let ours = options.port.unwrap_or(DEFAULT_PORT);
            let devices = facts.links.iter().filter_map(|link| link.vxlan.as_ref());
            // Devices share a port among themselves, but with nobody else.
            if devices.clone().any(|vxlan| vxlan.port == ours) {
                return Ok(());
            }
            has(Feature::Vxlan, "or choose the Backend.Type udp or host-gw")?;
            port_is_free(net_conf.ranges.families(), ours)
        }
        Backend::Udp(options) => match options.ends(underlay) {
            Some(ends) => udp::probe(&ends).map_err(|error| error.to_string()),
            None => Err("udp needs an IPv4 address on the underlay".to_owned()),
        },
        Backend::Ipip(_) => match facts.link(ipip::DEVICE) {
            Some(_) => Ok(()),
            None => has(Feature::Ipip, "or choose the Backend.Type vxlan or host-gw"),
        },
        Backend::Wireguard(options) => {
            let families: Vec<Family> = net_conf.ranges.families().collect();
            let names = net_conf.backend.devices(families.iter().copied());
            // What is there is ours and has its port.
            if names.iter().any(|name| facts.link(name).is_some()) {
                return Ok(());
            }
            has(Feature::Wireguard, "or choose the Backend.Type vxlan")?;
            families
                .into_iter()
                .try_for_each(|family| port_is_free([family].into_iter(), options.port(family)))
        }
        Backend::HostGw | Backend::Alloc | Backend::Extension(_) => Ok(()),
    }
}

fn has(feature: Feature, instead: &str) -> Result<(), String> {
    let module = feature.module();
    match feature.is_there() {
        Some(false) => Err(format!(
            "this kernel has no {module}: load the module (modprobe {module}; some distributions have it in a package of extra modules), {instead}"
        )),
        Some(true) | None => Ok(()),
    }
}

fn port_is_free(families: impl Iterator<Item = Family>, port: u16) -> Result<(), String> {
    for family in families {
        let bound = UdpSocket::bind(SocketAddr::new(family.unspecified(), port));
        if bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
            return Err(format!(
                "UDP port {port} is in use: stop the program that has it (ss -lunp names it), or choose another Backend.Port for the whole cluster"
            ));
        }
    }
    Ok(())
}

/// The identity that peers know, or a new one.
pub(crate) async fn identity(
    net_conf: &NetConf,
    facts: &Facts,
    remembered: &Remembered,
    node: &NodeFacts,
    state_dir: &Path,
) -> anyhow::Result<Identity> {
    Ok(match &net_conf.backend {
        Backend::Vxlan(options) => {
            let families = net_conf.ranges.families();
            Identity {
                macs: macs(options, families, facts, remembered, node)?,
                ..Identity::default()
            }
        }
        Backend::Wireguard(_) => Identity {
            key: Some(key_file::load_or_draw(state_dir)?),
            ..Identity::default()
        },
        Backend::Extension(options) => Identity {
            said: before_the_lease(options).await?,
            ..Identity::default()
        },
        Backend::HostGw | Backend::Ipip(_) | Backend::Alloc | Backend::Udp(_) => {
            Identity::default()
        }
    })
}

/// What the operator's program says becomes part of the lease, if it says anything.
async fn before_the_lease(options: &extension::Options) -> anyhow::Result<Option<String>> {
    let Some(command) = &options.pre_startup else {
        return Ok(None);
    };
    let said = programs::run(command, &Environment::new(), "").await;
    let said = said.map_err(|reason| anyhow!("field Backend.PreStartupCommand: {reason}"))?;
    Ok(Some(said).filter(|said| !said.is_empty()))
}

/// Tells the operator's program which subnets are ours now.
pub(crate) async fn lease_taken(net_conf: &NetConf, node: &Node) -> anyhow::Result<()> {
    if let Backend::Extension(options) = &net_conf.backend
        && let Some(command) = &options.post_startup
    {
        let done = programs::run(command, &extension::about_us(node), "").await;
        done.map_err(|reason| anyhow!("field Backend.PostStartupCommand: {reason}"))?;
    }
    Ok(())
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
