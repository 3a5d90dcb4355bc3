//! Whether packets arrive whose checksums a VXLAN device leaves to the hardware below it; where
//! they do not, the device is told to finish them.
//!
//! Leaving them is what makes large packets (TSO) possible, and most hardware keeps its promise.
//! Some cards and hypervisors do not inside a tunnel: then pods' UDP and TCP is lost while ping
//! works (flannel's issues 1279, 1243). No look at this node tells, for the damage is done on the
//! way out of it, so a peer is asked ([`probe`]). The other known fault, a kernel before 5.7 that
//! wrongly corrects the outer checksum of a masqueraded packet, needs an outer checksum of zero,
//! which our devices do not send.
//!
//! The loop tells which devices there are; each is tried once, in a task beside the loop, and never
//! again unless nobody answered. What is off stays off: whoever turned it off had a reason, which
//! may have been us.

mod probe;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use futures_util::FutureExt;
use kernel::{Socket, offload};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::tables::{Device, DeviceName, Kind, Tables};

use self::probe::{Trial, Verdict};

/// So many peers are asked, until one answers.
const PEERS: usize = 3;
/// Before peers are asked again of whom none answered; doubles every time.
const AGAIN: Duration = Duration::from_secs(1);

/// What is known of the devices that are there, by number: one that is made anew begins anew.
#[derive(Debug, Default)]
pub(crate) struct Offload {
    devices: BTreeMap<u32, State>,
}

#[derive(Debug)]
enum State {
    /// Whether there is an answer is known when it ends. With the wait before another trial.
    Asking(JoinHandle<bool>, Duration),
    Answered,
    /// Nobody answered: not before then, and the wait after that.
    Later(Instant, Duration),
}

impl Offload {
    /// Tries the devices that are new, with the peers that there are. Must run on a tokio
    /// `LocalSet`; waits for nothing.
    pub(crate) fn follow(&mut self, want: &Tables, devices: &BTreeMap<u32, DeviceName>) {
        self.devices
            .retain(|ifindex, _| devices.contains_key(ifindex));
        for (ifindex, name) in devices {
            let Some(device) = want.devices.get(name) else {
                continue;
            };
            let state = self.devices.get_mut(ifindex);
            let Some(wait) = state.map_or(Some(AGAIN), State::due) else {
                continue;
            };
            if let Some(trial) = trial(name, device) {
                let asking = State::Asking(spawn_local(settle(trial)), wait);
                self.devices.insert(*ifindex, asking);
            }
        }
    }
}

impl State {
    /// Whether it is time for another trial, and the wait after that one.
    fn due(&mut self) -> Option<Duration> {
        if let Self::Asking(asking, wait) = self {
            let answered = asking.now_or_never()?.unwrap_or_default();
            *self = match answered {
                true => Self::Answered,
                false => Self::Later(Instant::now() + *wait, wait.saturating_mul(2)),
            };
        }
        match self {
            Self::Later(at, wait) if *at <= Instant::now() => Some(*wait),
            _ => None,
        }
    }
}

/// None while there is nobody to ask.
fn trial(name: &DeviceName, device: &Device) -> Option<Trial> {
    let Kind::Vxlan(_) = device.link.kind else {
        return None;
    };
    let own = device.addresses.first()?.addr();
    let peers = next_peers(device, own);
    (!peers.is_empty()).then(|| Trial {
        device: name.clone(),
        own,
        peers,
    })
}

/// Those behind our own subnet, so that not every node asks the same ones.
fn next_peers(device: &Device, own: IpAddr) -> Vec<IpAddr> {
    let behind = device.neighbours.range((Excluded(own), Unbounded));
    let before = device.neighbours.range(..own);
    let all = behind.chain(before).map(|(ip, _)| *ip);
    all.take(PEERS).collect()
}

/// Whether there was an answer, or none was needed.
async fn settle(trial: Trial) -> bool {
    let device = &trial.device;
    let socket = match Socket::open() {
        Ok(socket) => socket,
        Err(error) => {
            debug!(%device, %error, "look at checksum offload");
            return false;
        }
    };
    match offload::sends_unfinished_checksums(&socket, device) {
        Ok(Some(true)) => {}
        Ok(_) => return true,
        Err(error) => {
            debug!(%device, %error, "look at checksum offload");
            return false;
        }
    }
    match trial.verdict().await {
        Verdict::Arrives(peer) => {
            debug!(%device, %peer, "checksum offload works through the tunnel");
            true
        }
        Verdict::IsLost(peer) => turn_off(&socket, device, peer),
        Verdict::Unknown => {
            debug!(%device, peers = ?trial.peers, "nobody answers about checksum offload");
            false
        }
    }
}

fn turn_off(socket: &Socket, device: &str, peer: IpAddr) -> bool {
    match offload::finish_checksums(socket, device) {
        Ok(()) => {
            warn!(
                device, %peer,
                "packets are lost whose checksums are left to the network card, and others arrive: checksum offload turned off for this device, which costs throughput (once the card or its driver is mended: ethtool -K {device} tx on)"
            );
            true
        }
        Err(error) => {
            warn!(
                device, %peer, %error,
                "packets are lost whose checksums are left to the network card, and that cannot be turned off"
            );
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::Mac;
    use std::collections::BTreeSet;

    #[test]
    fn the_peers_behind_our_own_subnet_are_asked_first_and_round_the_end() {
        let own: IpAddr = "10.5.2.0".parse().unwrap();
        let neighbours = ["10.5.1.0", "10.5.3.0", "10.5.4.0", "10.5.0.0"];
        let device = Device {
            link: crate::tables::DeviceLink {
                kind: Kind::Wireguard,
                mac: None,
                mtu: 1450,
                up: true,
                asks: None,
            },
            addresses: BTreeSet::from([ipnet::IpNet::from(own)]),
            neighbours: neighbours
                .map(|ip| (ip.parse().unwrap(), Mac([2, 0, 0, 0, 0, 1])))
                .into(),
            fdb: BTreeMap::new(),
        };
        let asked: Vec<_> = next_peers(&device, own)
            .iter()
            .map(IpAddr::to_string)
            .collect();
        assert_eq!(asked, ["10.5.3.0", "10.5.4.0", "10.5.0.0"]);
        // Only VXLAN devices have a tunnel below them that a card may know.
        assert!(trial(&"flannel-wg".into(), &device).is_none());
    }
}
