//! The udp backend's data path: started, given its peers, and started anew when its device or its
//! address goes.

use tokio::task::{AbortHandle, spawn_local};
use tracing::{info, warn};

use crate::apply::Kernel;
use crate::backend::udp;
use crate::lease::Lease;
use crate::peers::Node;
use crate::subnets::Subnets;
use crate::tables::Facts;
use crate::udp::{DataPath, Dropped, Drops, Ends, Options, Peers, device};
use crate::underlay::Underlay;

/// The data path and what it was made for.
#[derive(Debug)]
pub(crate) struct Tunnel {
    options: udp::Options,
    running: Option<Running>,
    peers: Peers,
}

#[derive(Debug)]
struct Running {
    ends: Ends,
    path: DataPath,
    telling: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.telling.abort();
    }
}

impl Tunnel {
    pub(super) fn new(options: udp::Options) -> Self {
        Self {
            options,
            running: None,
            peers: Peers::default(),
        }
    }

    /// Must run on a tokio `LocalSet`.
    pub(super) fn ensure(
        &mut self,
        kernel: &mut Kernel,
        node: &Node,
        underlay: &Underlay,
        facts: &Facts,
    ) -> Result<bool, String> {
        let none = "udp needs an IPv4 address and subnet";
        let ends = self.options.ends(underlay).ok_or(none)?;
        let (subnet, network) = udp::addresses(node).ok_or(none)?;
        if let Some(running) = &self.running {
            let device = running.path.device();
            let fault = match running.path.failure() {
                Some(failure) => failure,
                None if running.ends != ends => {
                    format!("{} is no longer ours", running.ends.listen)
                }
                None if facts.link(device).is_none() => "its device is gone".to_owned(),
                None => return Ok(false),
            };
            warn!(reason = fault, "the udp data path is started anew");
            // The port and the name must be free again.
            self.running = None;
        }
        let options = match self.options.offload {
            true => Options::default(),
            false => Options::one_by_one(),
        };
        let path = DataPath::start(&ends, options, self.peers.clone())
            .map_err(|error| error.to_string())?;
        let setup = |ifindex| {
            let mtu = underlay.mtu.saturating_sub(crate::udp::OVERHEAD);
            device::setup(ifindex, mtu, subnet.network(), network)
        };
        kernel
            .set_up(path.device(), setup)
            .map_err(|error| error.to_string())?;
        info!(
            device = path.device(), listen = %ends.listen, abilities = ?path.abilities(),
            "the udp data path runs"
        );
        self.running = Some(Running {
            ends,
            telling: spawn_local(tell(path.drops())).abort_handle(),
            path,
        });
        Ok(true)
    }

    pub(super) fn follow(&mut self, peers: &[(&Subnets, &Lease)]) {
        let peers = self.options.peers(peers);
        if peers == self.peers {
            return;
        }
        self.peers = peers;
        if let Some(running) = &self.running {
            running.path.set_peers(self.peers.clone());
        }
    }
}

/// Tells what is dropped, as often as [`Drops::more`] says.
async fn tell(mut drops: Drops) {
    loop {
        for Dropped {
            count,
            more,
            total,
            last,
        } in drops.more().await
        {
            let what = count.name();
            match last {
                Some((source, from)) => warn!(
                    what, more, total, %source, %from,
                    "dropped packets whose source is not in the sending peer's subnet; the last one's stands here"
                ),
                None => warn!(what, more, total, "the udp data path lost packets"),
            }
        }
    }
}
