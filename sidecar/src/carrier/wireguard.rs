//! The wireguard backend's peers and keys, once the kernel's tables have their devices.
//!
//! Nothing tells of a change to a device's peers, so that what others do to them is found when the
//! loop looks at everything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use kernel::wireguard::{Key, Socket};
use tracing::info;

use crate::backend::wireguard::{Options, PrivateKey, changes, wanted};
use crate::lease::Lease;
use crate::peers::Node;
use crate::subnets::Subnets;
use crate::tables::DeviceName;

/// The key, and what was said of peers last.
#[derive(Debug)]
pub(crate) struct Tunnels {
    options: Options,
    key: PrivateKey,
    socket: Option<Socket>,
    said: BTreeMap<DeviceName, BTreeMap<Key, SocketAddr>>,
}

impl Tunnels {
    pub(super) fn new(options: Options, key: PrivateKey) -> Self {
        Self {
            options,
            key,
            socket: None,
            said: BTreeMap::new(),
        }
    }

    /// Brings the devices' keys and peers in line.
    pub(super) fn follow(
        &mut self,
        node: &Node,
        peers: &[(&Subnets, &Lease)],
    ) -> Result<(), String> {
        // Who is left out was named with the tables.
        let (wanted, _) = wanted(&self.options, node, &self.key.public(), peers);
        if self.socket.is_none() {
            // Only now: the first device loads the module.
            self.socket = Socket::open().map_err(|error| error.to_string())?;
        }
        let socket = self.socket.as_mut().ok_or("this kernel has no wireguard")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        for (device, peers) in &wanted {
            let found = socket.dump(device).map_err(|error| error.to_string())?;
            let port = self.options.port_of(device, node.networks.families());
            if found.public_key != Some(self.key.public()) || found.port != port {
                let set = socket.set_key(device, self.key.bytes(), port);
                set.map_err(|error| {
                    format!("{error}; if the port is in use, `ss -lunp` says by whom")
                })?;
                info!(%device, port, "WireGuard key and port set");
            }
            let said = self.said.entry(device.clone()).or_default();
            let plan = changes(peers, &found, said, now);
            if !plan.is_empty() {
                socket
                    .apply(device, &plan)
                    .map_err(|error| error.to_string())?;
                info!(%device, peers = peers.len(), changes = plan.len(), "WireGuard peers changed");
            }
            let endpoints = peers.iter();
            *said = endpoints
                .filter_map(|(key, peer)| Some((*key, peer.endpoint?)))
                .collect();
        }
        Ok(())
    }
}
