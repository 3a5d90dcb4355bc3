//! Notifications: what changed in the kernel since one last asked.
//!
//! They only say where to look again. What is there now is dumped: a notification may be lost
//! (ENOBUFS), and then everything counts as changed.

use std::collections::BTreeSet;

use futures_util::{FutureExt, StreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage as M;
use netlink_packet_route::route::RouteAttribute;
use netlink_proto::sys::protocols::NETLINK_NETFILTER;
use netlink_proto::sys::{AsyncSocket, TokioSocket};
use rtnetlink::MulticastGroup;

use crate::error::{Error, Result};

/// The multicast group of nftables' changes (`NFNLGRP_NFTABLES`).
const NFNLGRP_NFTABLES: u32 = 7;

/// What changed, by table and device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Devices that came, went or changed.
    pub links: BTreeSet<u32>,
    /// Devices whose addresses changed.
    pub addresses: BTreeSet<u32>,
    /// Devices that routes lead out of; 0 for a route without one (multipath, blackhole).
    pub routes: BTreeSet<u32>,
    /// Devices whose neighbours or forwarding entries changed.
    pub neighbours: BTreeSet<u32>,
    /// Something in nftables.
    pub nftables: bool,
    /// Notifications were lost: look at everything.
    pub lost: bool,
}

type Stream<T> = futures_util::stream::BoxStream<'static, NetlinkMessage<T>>;

/// A subscription, in the network namespace of the thread that opened it.
pub struct Monitor {
    routing: Stream<M>,
    nftables: Stream<NetfilterMessage>,
}

impl Monitor {
    /// Subscribes. Must be called within a tokio runtime, which drives the sockets.
    pub fn open() -> Result<Monitor> {
        let (connection, _, routing) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
        .map_err(|error| Error::io("subscribe to link, address and route changes", error))?;
        tokio::spawn(connection);
        Ok(Monitor {
            routing: routing.map(|(message, _)| message).boxed(),
            nftables: nftables_changes()?,
        })
    }

    /// Waits for a change, then takes all that came with it. None if the subscription ended, which
    /// loses changes: subscribe anew and look at everything.
    pub async fn changes(&mut self) -> Option<Changes> {
        let mut changes = Changes::default();
        tokio::select! {
            message = self.routing.next() => changes.take_routing(message?),
            message = self.nftables.next() => changes.take_nftables(message?),
        }
        while let Some(message) = self.routing.next().now_or_never() {
            changes.take_routing(message?);
        }
        while let Some(message) = self.nftables.next().now_or_never() {
            changes.take_nftables(message?);
        }
        Some(changes)
    }
}

fn nftables_changes() -> Result<Stream<NetfilterMessage>> {
    let failed = |error| Error::io("subscribe to nftables changes", error);
    let (mut connection, _, messages) = netlink_proto::new_connection_with_socket::<
        NetfilterMessage,
        TokioSocket,
    >(NETLINK_NETFILTER)
    .map_err(failed)?;
    let socket = connection.socket_mut().socket_mut();
    // The kernel passes over sockets without a port number of their own.
    socket.bind_auto().map_err(failed)?;
    socket.add_membership(NFNLGRP_NFTABLES).map_err(failed)?;
    tokio::spawn(connection);
    Ok(messages.map(|(message, _)| message).boxed())
}

impl Changes {
    fn take_routing(&mut self, message: NetlinkMessage<M>) {
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => self.take(&inner),
            NetlinkPayload::Overrun(_) => self.lost = true,
            _ => {}
        }
    }

    fn take_nftables(&mut self, message: NetlinkMessage<NetfilterMessage>) {
        self.nftables = true;
        self.lost |= matches!(message.payload, NetlinkPayload::Overrun(_));
    }

    fn take(&mut self, message: &M) {
        match message {
            M::NewLink(link) | M::DelLink(link) => {
                self.links.insert(link.header.index);
            }
            M::NewAddress(address) | M::DelAddress(address) => {
                self.addresses.insert(address.header.index);
            }
            M::NewNeighbour(entry) | M::DelNeighbour(entry) => {
                self.neighbours.insert(entry.header.ifindex);
            }
            M::NewRoute(route) | M::DelRoute(route) => {
                let device = route
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    });
                self.routes.insert(device.unwrap_or(0));
            }
            _ => {}
        }
    }
}
