//! WireGuard devices: made like every other link, and told their keys and peers by generic
//! netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_route::link::{InfoKind, LinkAttribute};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use crate::error::Result;
use crate::link;
use crate::socket::{Failure, Raw, Request};

/// A key of any kind.
pub type Key = [u8; 32];

/// Peers in one message: its attributes are counted with 16 bits.
const BATCH: usize = 64;

/// `ip link add NAME mtu N txqueuelen 0 type wireguard`. Left down, without a key.
pub fn create(name: &str, mtu: u32) -> Request {
    let attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::TxQueueLen(0),
    ];
    link::create(InfoKind::Wireguard, None, attributes, false)
}

/// A device as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// Its own public key; None before it was given a private one.
    pub public_key: Option<Key>,
    /// The UDP port.
    pub port: u16,
    /// Its peers, by their public keys.
    pub peers: BTreeMap<Key, Peer>,
}

/// A peer of a device.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Peer {
    /// The pre-shared key, if there is one.
    pub preshared_key: Option<Key>,
    /// Where it was last, or was said to be.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 is never.
    pub keepalive: u16,
    /// What may come from it, and goes to it.
    pub allowed: BTreeSet<IpNet>,
    /// Seconds since 1970; 0 is never. Not written.
    pub last_handshake: u64,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("endpoint", &self.endpoint)
            .field("keepalive", &self.keepalive)
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}

/// A change of a device's peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Add or change a peer. Without an endpoint, the one that it has stays.
    Put(Key, Peer),
    /// Remove a peer.
    Remove(Key),
}

/// A socket of the family `wireguard`.
#[derive(Debug)]
pub struct Socket {
    pub(crate) raw: Raw,
    pub(crate) family: u16,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace. None where the kernel has no
    /// WireGuard, or has not loaded it: making a device loads it.
    pub fn open() -> Result<Option<Socket>> {
        let mut raw = Raw::open(NETLINK_GENERIC)?;
        let ask = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
        });
        let answer = match raw.get(&ask) {
            Ok(answer) => answer,
            Err(Failure::Refused {
                errno: Errno::ENOENT,
                ..
            }) => None,
            Err(failure) => {
                return Err(failure.into_error(|| "look for WireGuard in the kernel".into()));
            }
        };
        let attributes = answer.map(|answer| answer.into_parts().1.nlas);
        let family = attributes.into_iter().flatten().find_map(|nla| match nla {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        });
        Ok(family.map(|family| Socket { raw, family }))
    }

    /// `wg show NAME dump`.
    pub fn dump(&mut self, name: &str) -> Result<Device> {
        let ask = self.message(WireguardCmd::GetDevice, name, Vec::new());
        let parts = self.raw.dump(
            &ask,
            || format!("dump WireGuard device {name}"),
            |answer: GenlMessage<WireguardMessage>| Some(answer.into_parts().1.attributes),
        )?;
        let mut device = Device::default();
        for attribute in parts.into_iter().flatten() {
            match attribute {
                WireguardAttribute::PublicKey(key) => device.public_key = Some(key),
                WireguardAttribute::ListenPort(port) => device.port = port,
                WireguardAttribute::Peers(peers) => {
                    peers.into_iter().for_each(|peer| take(&mut device, peer));
                }
                _ => {}
            }
        }
        Ok(device)
    }

    /// `wg set NAME private-key … listen-port N`.
    pub fn set_key(&mut self, name: &str, private_key: Key, port: u16) -> Result<()> {
        let attributes = vec![
            WireguardAttribute::PrivateKey(private_key),
            WireguardAttribute::ListenPort(port),
        ];
        let message = self.message(WireguardCmd::SetDevice, name, attributes);
        let op = || format!("set key and port {port} of WireGuard device {name}");
        let answers = self.raw.exchange([(&message, 0)].into_iter());
        answers
            .into_iter()
            .collect::<std::result::Result<(), _>>()
            .map_err(|failure| failure.into_error(op))
    }

    /// `wg set NAME peer …`, in order, many at once.
    pub fn apply(&mut self, name: &str, changes: &[Change]) -> Result<()> {
        let messages: Vec<_> = changes
            .chunks(BATCH)
            .map(|batch| {
                let peers = batch.iter().map(request).collect();
                let attributes = vec![WireguardAttribute::Peers(peers)];
                self.message(WireguardCmd::SetDevice, name, attributes)
            })
            .collect();
        let op = || format!("change peers of WireGuard device {name}");
        for message in &messages {
            let answers = self.raw.exchange([(message, 0)].into_iter());
            answers
                .into_iter()
                .collect::<std::result::Result<(), _>>()
                .map_err(|failure| failure.into_error(op))?;
        }
        Ok(())
    }

    fn message(
        &self,
        cmd: WireguardCmd,
        name: &str,
        more: Vec<WireguardAttribute>,
    ) -> GenlMessage<WireguardMessage> {
        let mut attributes = vec![WireguardAttribute::IfName(name.to_owned())];
        attributes.extend(more);
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.family);
        message
    }
}

/// A peer with many addresses comes in several parts.
fn take(device: &mut Device, part: WireguardPeer) {
    let key = part.0.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(*key),
        _ => None,
    });
    let Some(key) = key else { return };
    let peer = device.peers.entry(key).or_default();
    for attribute in part.0 {
        match attribute {
            WireguardPeerAttribute::PresharedKey(key) => {
                peer.preshared_key = Some(key).filter(|key| *key != [0; 32]);
            }
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive = seconds,
            WireguardPeerAttribute::LastHandshake(time) => {
                peer.last_handshake = u64::try_from(time.seconds).unwrap_or(0);
            }
            WireguardPeerAttribute::AllowedIps(all) => {
                peer.allowed.extend(all.into_iter().filter_map(allowed));
            }
            _ => {}
        }
    }
}

fn allowed(entry: WireguardAllowedIp) -> Option<IpNet> {
    let (mut ip, mut length) = (None, None);
    for attribute in entry.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(address) => ip = Some(address),
            WireguardAllowedIpAttr::Cidr(bits) => length = Some(bits),
            _ => {}
        }
    }
    IpNet::new(ip?, length?).ok()
}

fn request(change: &Change) -> WireguardPeer {
    WireguardPeer(match change {
        Change::Remove(key) => vec![
            WireguardPeerAttribute::PublicKey(*key),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
        ],
        Change::Put(key, peer) => {
            let allowed = peer.allowed.iter().map(|net| {
                let family = match net.addr() {
                    IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
                    IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
                };
                WireguardAllowedIp(vec![
                    WireguardAllowedIpAttr::Family(family),
                    WireguardAllowedIpAttr::IpAddr(net.addr()),
                    WireguardAllowedIpAttr::Cidr(net.prefix_len()),
                ])
            });
            let mut attributes = vec![
                WireguardPeerAttribute::PublicKey(*key),
                WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
                // All zeroes take one away.
                WireguardPeerAttribute::PresharedKey(peer.preshared_key.unwrap_or([0; 32])),
                WireguardPeerAttribute::PersistentKeepalive(peer.keepalive),
                WireguardPeerAttribute::AllowedIps(allowed.collect()),
            ];
            attributes.extend(peer.endpoint.map(WireguardPeerAttribute::Endpoint));
            attributes
        }
    })
}
