//! The udp backend's data path: started, given its peers, and started anew when its device or its
//! address goes.

use tracing::{info, warn};

use crate::apply::Kernel;
use crate::backend::udp;
use crate::lease::Lease;
use crate::peers::Node;
use crate::subnets::Subnets;
use crate::tables::Facts;
use crate::udp::{Count, DataPath, Ends, Options, Peers, device};
use crate::underlay::Underlay;

/// The data path and what it was made for.
#[derive(Debug)]
pub(crate) struct Tunnel {
    options: udp::Options,
    running: Option<(Ends, DataPath)>,
    peers: Peers,
    spoofed: u64,
}

impl Tunnel {
    pub(super) fn new(options: udp::Options) -> Self {
        Self {
            options,
            running: None,
            peers: Peers::default(),
            spoofed: 0,
        }
    }

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
        if let Some((running, path)) = &self.running {
            let fault = match path.failure() {
                Some(failure) => failure,
                None if *running != ends => format!("{} is no longer ours", running.listen),
                None if facts.link(path.device()).is_none() => "its device is gone".to_owned(),
                None => return Ok(false),
            };
            warn!(reason = fault, "the udp data path is started anew");
            // The port and the name must be free again.
            self.running = None;
            self.spoofed = 0;
        }
        let options = Options {
            offload: self.options.offload,
            ..Options::default()
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
        self.running = Some((ends, path));
        Ok(true)
    }

    pub(super) fn follow(&mut self, peers: &[(&Subnets, &Lease)]) {
        let peers = self.options.peers(peers);
        let Some((_, path)) = &self.running else {
            self.peers = peers;
            return;
        };
        if peers != self.peers {
            self.peers = peers.clone();
            path.set_peers(peers);
        }
        let spoofed = path.counters().get(Count::Spoofed);
        if spoofed > self.spoofed {
            let (more, total) = (spoofed - self.spoofed, spoofed);
            warn!(
                more,
                total, "dropped packets whose source is not in the sending peer's subnet"
            );
            self.spoofed = spoofed;
        }
    }
}
