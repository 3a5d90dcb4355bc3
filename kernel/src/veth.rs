//! veth pairs: one message makes both ends, each where it belongs. Moving an existing end into
//! another namespace would cost RCU grace periods (some 16 ms).

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};

use crate::link;
use crate::mac::Mac;
use crate::socket::Request;

/// A veth pair to be made: the host's end here, the pod's end in its namespace.
#[derive(Debug, Clone)]
pub struct Veth<'a> {
    /// The name of the host's end.
    pub host_name: &'a str,
    /// The name of the pod's end.
    pub pod_name: &'a str,
    /// The pod's namespace.
    pub pod_netns: BorrowedFd<'a>,
    /// MTU of both ends; None leaves the kernel's 1500.
    pub mtu: Option<u32>,
    /// Address of the host's end; None lets the kernel choose one at random.
    pub host_mac: Option<Mac>,
    /// Address of the pod's end.
    pub pod_mac: Option<Mac>,
    /// The bridge that the host's end becomes a port of.
    pub master: Option<u32>,
    /// Transmit queue length of the host's end.
    pub host_txqlen: Option<u32>,
}

/// All that a veth uses unless somebody asks for more. By itself the kernel makes one per CPU, and
/// takes back all but the first with a wait for an RCU grace period.
const ONE_QUEUE: [LinkAttribute; 2] =
    [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];

impl Veth<'_> {
    /// `ip link add HOST [master BRIDGE] up type veth peer name POD netns NS`. Fails if either
    /// name is taken. The pod's end stays down: it cannot be brought up before the pair is joined
    /// (`veth_open` answers ENOTCONN).
    pub fn create(&self) -> Request {
        let mut peer = vec![
            LinkAttribute::IfName(self.pod_name.to_owned()),
            LinkAttribute::NetNsFd(self.pod_netns.as_raw_fd()),
        ];
        peer.extend(ONE_QUEUE);
        peer.extend(self.mtu.map(LinkAttribute::Mtu));
        peer.extend(
            self.pod_mac
                .map(|mac| LinkAttribute::Address(mac.0.to_vec())),
        );
        let mut host = vec![LinkAttribute::IfName(self.host_name.to_owned())];
        host.extend(ONE_QUEUE);
        host.extend(self.mtu.map(LinkAttribute::Mtu));
        host.extend(
            self.host_mac
                .map(|mac| LinkAttribute::Address(mac.0.to_vec())),
        );
        host.extend(self.master.map(LinkAttribute::Controller));
        host.extend(self.host_txqlen.map(LinkAttribute::TxQueueLen));
        let data = InfoData::Veth(InfoVeth::Peer(link::message(&peer)));
        link::create(InfoKind::Veth, Some(data), host, true)
    }
}
