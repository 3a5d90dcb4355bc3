//! Misses: what the kernel asks user space for. An address of which a device should know the MAC
//! (L3, see [`crate::solicit`]), or a MAC of which a VXLAN device with `l2miss` should know the
//! node (L2).
//!
//! A miss is a question, and the kernel asks again by itself (L3 each second, L2 with every
//! packet), so that one that is lost costs nothing but time: this subscription never overruns, it
//! only leaves some out. It is apart from [`crate::monitor`], where a scan of a whole network would
//! drown what must not be lost.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as M};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::mac::Mac;
use crate::neighbour::address_of;
use crate::socket::{Answer, decode};
use crate::subscription::{Only, RTM_GETNEIGH, RTNLGRP_NEIGH, messages, subscribe};

/// Some hundred questions.
const RECEIVE_BUFFER: usize = 256 * 1024;
const READ: usize = 4 * 1024;

/// What the kernel misses on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Miss {
    /// The device.
    pub ifindex: u32,
    /// What it does not know.
    pub of: Missing,
}

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missing {
    /// The MAC address of this one; packets to it wait.
    MacOf(IpAddr),
    /// The node of this one; packets to it are dropped.
    NodeOf(Mac),
}

/// A subscription to misses, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Misses {
    socket: AsyncFd<netlink_sys::Socket>,
    buffer: Vec<u8>,
}

impl Misses {
    /// Subscribes. Must be called within a tokio runtime.
    pub fn open() -> Result<Self> {
        let failed = |error| Error::io("subscribe to the kernel's misses", error);
        let groups = [RTNLGRP_NEIGH];
        let only = Only::Of(RTM_GETNEIGH);
        let socket = subscribe(NETLINK_ROUTE, &groups, only, RECEIVE_BUFFER).map_err(failed)?;
        socket.set_no_enobufs(true).map_err(failed)?;
        // SAFETY: the socket owns its descriptor, always names the same one, and closes it only
        // when it is dropped, which is with the `AsyncFd` that it is moved into.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        let socket = socket.map_err(|error| failed(error.into()))?;
        Ok(Self {
            socket,
            buffer: Vec::new(),
        })
    }

    /// Waits until something is missing; [`Misses::drain`] says what. It may be given up at any
    /// time.
    pub async fn asked(&self) -> Result<()> {
        let ready = self.socket.readable().await;
        ready
            .map(|mut ready| ready.clear_ready())
            .map_err(failed_to_read)
    }

    /// Hands over what is missing, without waiting for more. Whether it stopped at `most` messages,
    /// so that there may be more.
    pub fn drain(&mut self, most: usize, mut take: impl FnMut(Miss)) -> Result<bool> {
        for _ in 0..most {
            self.buffer.clear();
            self.buffer.reserve(READ);
            let Err(error) = self.socket.get_ref().recv(&mut self.buffer, 0) else {
                messages(&self.buffer)
                    .filter_map(|message| asked(&message))
                    .for_each(&mut take);
                continue;
            };
            match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN) => return Ok(false),
                // Only where the option above does nothing.
                Some(Errno::EINTR | Errno::ENOBUFS) => {}
                _ => return Err(failed_to_read(error)),
            }
        }
        Ok(true)
    }
}

fn failed_to_read(error: io::Error) -> Error {
    Error::io("read the kernel's misses", error)
}

/// What a notification asks for, if it asks.
pub(crate) fn asked(message: &Answer<'_>) -> Option<Miss> {
    match decode(message.bytes) {
        Ok(M::GetNeighbour(message)) => parse(&message),
        _ => None,
    }
}

fn parse(message: &NeighbourMessage) -> Option<Miss> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => ip = address_of(address),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_slice(bytes),
            _ => {}
        }
    }
    // A VXLAN device's miss has the family INET, too (`vxlan_fdb_info`).
    let inet = [AddressFamily::Inet, AddressFamily::Inet6].contains(&message.header.family);
    let of = match (ip, mac) {
        (Some(ip), _) if inet => Missing::MacOf(ip),
        (None, Some(mac)) => Missing::NodeOf(mac),
        _ => return None,
    };
    let ifindex = message.header.ifindex;
    Some(Miss { ifindex, of })
}
