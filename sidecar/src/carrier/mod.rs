//! What carries traffic beside the kernel's tables, while a lease is held: the udp backend's data
//! path, WireGuard's peers, the extension backend's commands. The loop calls it twice a round, and it never holds the
//! loop up.
//!
//! Which peers there are is decided elsewhere (`peers`, `backend`); this does the deeds.

pub(crate) mod extension;
mod memory;
mod udp;
mod wireguard;

use std::path::Path;

use self::memory::Memory;
use crate::apply::Kernel;
use crate::backend::{Backend, Identity};
use crate::lease::Lease;
use crate::peers::Node;
use crate::subnets::Subnets;
use crate::tables::Facts;
use crate::underlay::Underlay;

/// The part of a backend that is not in the kernel's tables.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// The tables are all there is.
    Kernel,
    /// Packets go through user space.
    Udp(udp::Tunnel),
    /// Peers are in the device, not in the tables.
    Wireguard(wireguard::Tunnels),
    /// Programs are told of every peer.
    Extension(extension::Programs),
}

impl Carrier {
    /// The carrier of a backend; what it must remember is below `state_dir`. Must run on a tokio
    /// `LocalSet`.
    pub(crate) fn of(backend: &Backend, identity: &Identity, state_dir: &Path) -> Self {
        match backend {
            Backend::Udp(options) => Self::Udp(udp::Tunnel::new(*options)),
            Backend::Wireguard(options) => match identity.key.clone() {
                Some(key) => Self::Wireguard(wireguard::Tunnels::new(options.clone(), key)),
                None => Self::Kernel,
            },
            Backend::Extension(options) => {
                let memory = Memory::below(state_dir);
                Self::Extension(extension::Programs::start(options.clone(), memory))
            }
            Backend::Vxlan(_) | Backend::Ipip(_) | Backend::HostGw | Backend::Alloc => Self::Kernel,
        }
    }

    /// Makes what the tables build upon, if it is not there. Whether it changed the kernel, so that
    /// `facts` are no longer what is.
    pub(crate) fn ensure(
        &mut self,
        kernel: &mut Kernel,
        node: &Node,
        underlay: &Underlay,
        facts: &Facts,
    ) -> Result<bool, String> {
        match self {
            Self::Kernel | Self::Wireguard(_) | Self::Extension(_) => Ok(false),
            Self::Udp(tunnel) => tunnel.ensure(kernel, node, underlay, facts),
        }
    }

    /// Takes over the peers of now. What failed is tried again with the next round.
    pub(crate) fn follow(
        &mut self,
        node: &Node,
        peers: &[(&Subnets, &Lease)],
    ) -> Result<(), String> {
        match self {
            Self::Kernel => {}
            Self::Udp(tunnel) => tunnel.follow(peers),
            Self::Wireguard(tunnels) => tunnels.follow(node, peers)?,
            Self::Extension(programs) => programs.follow(peers),
        }
        Ok(())
    }

    /// Whether the peers matter to it.
    pub(crate) fn follows(&self) -> bool {
        !matches!(self, Self::Kernel)
    }
}
