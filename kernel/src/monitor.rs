//! Notifications: what others changed in the kernel.
//!
//! They only say where to look again. What is there now is dumped: a notification may be lost
//! (ENOBUFS), and then everything counts as changed. What our own requests changed in routes,
//! neighbours and rules is left out: the kernel marks it with the number of our socket.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::attribute::{find, number};
use crate::error::{Error, Result};
use crate::fdb::{self, FdbEntry};
use crate::neighbour::{self, Neighbour};
use crate::route::{self, Route};
use crate::socket::{Answer, HEADER};
use crate::subscription::{Only, RTM_GETNEIGH, RTNLGRP_NEIGH, messages, subscribe};
use crate::{Socket, nft};

/// Multicast groups of the routing family (`RTNLGRP_…`): link, neighbour, and addresses and routes
/// of both families.
const ROUTING_GROUPS: [u32; 6] = [1, RTNLGRP_NEIGH, 5, 7, 9, 11];
/// The multicast group of nftables' changes (`NFNLGRP_NFTABLES`).
const NFNLGRP_NFTABLES: u32 = 7;
/// The subsystem in the upper byte of a netfilter message's type (`NFNL_SUBSYS_NFTABLES`).
const NFNL_SUBSYS_NFTABLES: u8 = 10;
const NETFILTER_HEADER: usize = 4;
const NFT_MSG_DELTABLE: u8 = 2;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_DELCHAIN: u8 = 5;
const NFT_MSG_NEWGEN: u8 = 15;
/// Every object's attribute that names its table (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, …).
const NFTA_TABLE: u16 = 1;
/// `struct ifinfomsg`: family, padding, type, number, flags, mask of flags.
const LINK_HEADER: usize = 16;
const IFLA_IFNAME: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
/// What the kernel may keep for us while we are busy: some thousand notifications.
const RECEIVE_BUFFER: usize = 1024 * 1024;
const READ: usize = 32 * 1024;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A device came, went or changed.
    Link {
        /// Its number.
        ifindex: u32,
        /// Its name.
        name: String,
    },
    /// An address of this device came or went.
    Address(u32),
    /// A route came, went or was replaced; `None` for one that is not unicast.
    Route {
        /// Whether it went.
        gone: bool,
        /// The route.
        route: Option<Route>,
    },
    /// A neighbour came, went or changed.
    Neighbour {
        /// Whether it went.
        gone: bool,
        /// The entry.
        entry: Neighbour,
    },
    /// A forwarding entry of a device's own came, went or changed.
    Fdb {
        /// Whether it went.
        gone: bool,
        /// The entry.
        entry: FdbEntry,
    },
    /// Something in a table of nftables.
    Nftables {
        /// The table's name.
        table: String,
        /// Whether it was a chain or the whole table.
        chain: bool,
    },
    /// Notifications were lost: look at everything.
    Lost,
}

/// A subscription, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Monitor {
    routing: netlink_sys::Socket,
    nftables: netlink_sys::Socket,
    bell: Bell,
    /// The sockets whose changes are our own.
    own: (u32, u32),
    buffer: Vec<u8>,
}

impl Monitor {
    /// Subscribes. What is changed through the given sockets is not reported, links and addresses
    /// excepted. Must be called within a tokio runtime.
    pub fn open(routing: &mut Socket, nftables: &mut nft::Socket) -> Result<Monitor> {
        let failed = |error| Error::io("subscribe to the kernel's changes", error);
        let own = (
            routing.port().map_err(failed)?,
            nftables.port().map_err(failed)?,
        );
        let subscribed = |protocol, groups: &[u32], only| {
            subscribe(protocol, groups, only, RECEIVE_BUFFER).map_err(failed)
        };
        // Ours are known where they are read, too; but with very many peers they are very many, and
        // each would be a read of its own.
        let others = Only::Others {
            but: RTM_GETNEIGH,
            named: [RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEIGH, RTM_DELNEIGH],
            own: own.0,
        };
        let routing = subscribed(NETLINK_ROUTE, &ROUTING_GROUPS, others)?;
        let nftables = subscribed(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES], Only::All)?;
        Ok(Monitor {
            bell: Bell::of([&routing, &nftables]).map_err(failed)?,
            routing,
            nftables,
            own,
            buffer: Vec::new(),
        })
    }

    /// Waits until something has changed; [`Monitor::drain`] says what. What changes between the
    /// two wakes nobody: whoever waits before draining takes a burst at one go. It may be given up
    /// at any time.
    pub async fn changed(&self) -> Result<()> {
        self.bell.rung().await.map_err(failed_to_read)
    }

    /// Hands over what has changed, without waiting for more.
    pub fn drain(&mut self, mut take: impl FnMut(Change)) -> Result<()> {
        let (routing, nftables) = self.own;
        let buffer = &mut self.buffer;
        read_all(&self.routing, buffer, &mut take, |message| {
            routing_change(message, routing)
        })?;
        read_all(&self.nftables, buffer, &mut take, |message| {
            nftables_change(message, nftables)
        })?;
        let sockets = [&self.routing, &self.nftables];
        self.bell.set(sockets).map_err(failed_to_read)
    }
}

/// Rings once when there is something to read, then not until it is set again. A program that
/// makes a pod changes some twenty things within a millisecond, and would pay for waking us twenty
/// times.
#[derive(Debug)]
struct Bell(AsyncFd<Sockets>);

/// Both sockets as one descriptor.
#[derive(Debug)]
struct Sockets(Epoll);

impl AsRawFd for Sockets {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// Something to read, said once.
fn once() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, 0)
}

impl Bell {
    fn of(sockets: [&netlink_sys::Socket; 2]) -> io::Result<Bell> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for socket in sockets {
            epoll.add(socket, once())?;
        }
        // SAFETY: the descriptor is always the same one, and closed only when its owner is dropped,
        // which is with the `AsyncFd` that it is moved into.
        let ready = unsafe { AsyncFd::register_with_interest(Sockets(epoll), Interest::READABLE) };
        Ok(Bell(ready?))
    }

    async fn rung(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        // Taking what rang is what makes it quiet.
        let mut rang = [EpollEvent::empty(); 2];
        self.0.get_ref().0.wait(&mut rang, EpollTimeout::ZERO)?;
        Ok(())
    }

    fn set(&self, sockets: [&netlink_sys::Socket; 2]) -> io::Result<()> {
        for socket in sockets {
            self.0.get_ref().0.modify(socket, &mut once())?;
        }
        Ok(())
    }
}

fn failed_to_read(error: io::Error) -> Error {
    Error::io("read the kernel's notifications", error)
}

fn read_all(
    socket: &netlink_sys::Socket,
    buffer: &mut Vec<u8>,
    take: &mut impl FnMut(Change),
    change: impl Fn(&Answer<'_>) -> Option<Change>,
) -> Result<()> {
    loop {
        buffer.clear();
        buffer.reserve(READ);
        let Err(error) = socket.recv(buffer, 0) else {
            messages(buffer)
                .filter_map(|message| change(&message))
                .for_each(&mut *take);
            continue;
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAGAIN) => return Ok(()),
            Some(Errno::EINTR) => {}
            Some(Errno::ENOBUFS) => take(Change::Lost),
            _ => return Err(failed_to_read(error)),
        }
    }
}

pub(crate) fn routing_change(message: &Answer<'_>, own: u32) -> Option<Change> {
    if message.port == own && (RTM_NEWROUTE..=RTM_DELNEIGH).contains(&message.kind) {
        return None;
    }
    let body = &message.bytes[HEADER..];
    match message.kind {
        RTM_NEWLINK | RTM_DELLINK => link_change(body),
        RTM_NEWADDR | RTM_DELADDR => {
            // `struct ifaddrmsg`: family, prefix length, flags, scope, the device's number.
            Some(Change::Address(number(body.get(4..8)?)?))
        }
        RTM_NEWROUTE => route_change(body, false),
        RTM_DELROUTE => route_change(body, true),
        RTM_NEWNEIGH => neighbour_change(body, false),
        RTM_DELNEIGH => neighbour_change(body, true),
        _ => None,
    }
}

/// Of a link's hundred attributes only the name counts here: the rest is not decoded.
fn link_change(message: &[u8]) -> Option<Change> {
    let (header, attributes) = message.split_at_checked(LINK_HEADER)?;
    let ifindex = number(&header[4..8])?;
    let name = find(attributes, IFLA_IFNAME).unwrap_or_default();
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    Some(Change::Link {
        ifindex,
        name: String::from_utf8_lossy(name).into_owned(),
    })
}

fn route_change(message: &[u8], gone: bool) -> Option<Change> {
    (!route::is_cloned(message)).then(|| Change::Route {
        gone,
        route: route::parse(message),
    })
}

fn neighbour_change(message: &[u8], gone: bool) -> Option<Change> {
    match i32::from(*message.first()?) {
        libc::AF_BRIDGE => fdb::parse(message).map(|entry| Change::Fdb { gone, entry }),
        _ => neighbour::parse(message).map(|entry| Change::Neighbour { gone, entry }),
    }
}

pub(crate) fn nftables_change(message: &Answer<'_>, own: u32) -> Option<Change> {
    let [kind, subsystem] = message.kind.to_ne_bytes();
    // A generation comes behind every transaction, and names nothing.
    if message.port == own || subsystem != NFNL_SUBSYS_NFTABLES || kind == NFT_MSG_NEWGEN {
        return None;
    }
    let attributes = message.bytes.get(HEADER + NETFILTER_HEADER..)?;
    let name = find(attributes, NFTA_TABLE)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    Some(Change::Nftables {
        table: String::from_utf8_lossy(name).into_owned(),
        chain: [NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_DELCHAIN].contains(&kind),
    })
}
