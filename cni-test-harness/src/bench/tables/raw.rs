//! A node's tables by bare netlink messages: what the kernel asks for the same objects, in batches
//! and in flannel's shape and order. Written out by bytes, so that nothing of ours is in it.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

const HEADER: usize = 16;
/// Bytes per send: fewer sends gain nothing.
const SEND: usize = 48 * 1024;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const PUT: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
const AF_INET: u8 = libc::AF_INET as u8;
const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;
const NTF_SELF: u8 = 2;
const RTNH_F_ONLINK: u32 = 4;
const PROTOCOL_BOOT: u8 = 3;

/// One of a peer's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Its route, with a metric of its own or without.
    Route { metric: bool },
    /// Its VTEP's MAC.
    Neighbour,
    /// Where that is.
    Forwarding,
}

/// The numbers of peer `n`, as its lease has them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    base: [u8; 4],
    remote: [u8; 4],
    mac: [u8; 6],
}

impl Peer {
    pub(super) fn number(n: usize) -> Self {
        let [_, _, high, low] = u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
        Self {
            base: [10, high + 1, low, 0],
            remote: [172, 16, high, low],
            mac: [2, 0, 0, 0, high, low],
        }
    }
}

/// A routing socket in the namespace of the thread that opened it.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        );
        Ok(Self {
            socket: socket.context("open a netlink socket")?,
            sequence: 0,
        })
    }

    /// All entries, as many in a send as go into one.
    pub(super) fn put_batched(
        &mut self,
        ifindex: u32,
        entries: impl Iterator<Item = (Entry, Peer)>,
    ) -> Result<()> {
        self.batched(entries, |out, entry, peer| {
            message(out, entry, peer, ifindex, true, PUT)
        })
    }

    /// Deletes entries in the same way.
    pub(super) fn delete_batched(
        &mut self,
        ifindex: u32,
        entries: impl Iterator<Item = (Entry, Peer)>,
    ) -> Result<()> {
        self.batched(entries, |out, entry, peer| {
            message(out, entry, peer, ifindex, false, 0)
        })
    }

    /// Each entry by itself, the next one when the kernel has answered: as flannel does.
    pub(super) fn put_each(
        &mut self,
        ifindex: u32,
        entries: impl Iterator<Item = (Entry, Peer)>,
    ) -> Result<()> {
        let mut out = Vec::new();
        for (entry, peer) in entries {
            let at = message(&mut out, entry, peer, ifindex, true, PUT);
            self.send(&mut out, at)?;
        }
        Ok(())
    }

    fn batched(
        &mut self,
        entries: impl Iterator<Item = (Entry, Peer)>,
        message: impl Fn(&mut Vec<u8>, Entry, Peer) -> usize,
    ) -> Result<()> {
        let (mut out, mut last) = (Vec::with_capacity(SEND + 256), 0);
        for (entry, peer) in entries {
            last = message(&mut out, entry, peer);
            if out.len() > SEND {
                self.send(&mut out, last)?;
            }
        }
        match out.is_empty() {
            true => Ok(()),
            false => self.send(&mut out, last),
        }
    }

    /// Sends what is gathered, asks for an answer to the last message alone, and waits for it.
    fn send(&mut self, out: &mut Vec<u8>, last: usize) -> Result<()> {
        self.sequence += 1;
        let flags = u16::from_ne_bytes([out[last + 6], out[last + 7]]) | ACK;
        out[last + 6..last + 8].copy_from_slice(&flags.to_ne_bytes());
        out[last + 8..last + 12].copy_from_slice(&self.sequence.to_ne_bytes());
        send(self.socket.as_raw_fd(), out, MsgFlags::empty()).context("send")?;
        out.clear();
        let mut buffer = [0; 8192];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty());
            let length = length.context("read the kernel's answer")?;
            let field = |at: usize| [0, 1, 2, 3].map(|n| buffer[at + n]);
            let (sequence, code) = (u32::from_ne_bytes(field(8)), i32::from_ne_bytes(field(16)));
            if length < HEADER + 4 || code != 0 {
                bail!("the kernel refused a message: {code}");
            }
            if sequence == self.sequence {
                return Ok(());
            }
        }
    }

    /// The three dumps, read and thrown away.
    pub(super) fn dump(&mut self, ifindex: u32) -> Result<()> {
        for (kind, family) in [
            (libc::RTM_GETROUTE, AF_INET),
            (libc::RTM_GETNEIGH, 0),
            (libc::RTM_GETNEIGH, AF_BRIDGE),
        ] {
            let mut out = Vec::new();
            begin(&mut out, kind, DUMP);
            let ifindex = if family == AF_BRIDGE { ifindex } else { 0 };
            out.extend([family, 0, 0, 0]);
            out.extend(ifindex.to_ne_bytes());
            out.extend([0; 4]);
            end(&mut out, 0);
            send(self.socket.as_raw_fd(), &out, MsgFlags::empty()).context("ask for a dump")?;
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty());
                if is_the_end(&buffer[..length.context("read a dump")?]) {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Whether a dump ends with this read: its last message may come behind others.
fn is_the_end(mut read: &[u8]) -> bool {
    while let Some(header) = read.get(..HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = i32::from(u16::from_ne_bytes([header[4], header[5]]));
        if kind == libc::NLMSG_DONE || kind == libc::NLMSG_ERROR || length < HEADER {
            return true;
        }
        read = read.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// Appends one message; where it begins.
fn message(
    out: &mut Vec<u8>,
    entry: Entry,
    peer: Peer,
    ifindex: u32,
    put: bool,
    flags: u16,
) -> usize {
    let kind = match (entry, put) {
        (Entry::Route { .. }, true) => libc::RTM_NEWROUTE,
        (Entry::Route { .. }, false) => libc::RTM_DELROUTE,
        (_, true) => libc::RTM_NEWNEIGH,
        (_, false) => libc::RTM_DELNEIGH,
    };
    let start = begin(out, kind, flags);
    match entry {
        Entry::Route { metric } => {
            let (table, universe, unicast) = (libc::RT_TABLE_MAIN, 0, libc::RTN_UNICAST);
            out.extend([AF_INET, 24, 0, 0, table, PROTOCOL_BOOT, universe, unicast]);
            out.extend(RTNH_F_ONLINK.to_ne_bytes());
            attribute(out, libc::RTA_DST, &peer.base);
            attribute(out, libc::RTA_GATEWAY, &peer.base);
            attribute(out, libc::RTA_OIF, &ifindex.to_ne_bytes());
            if metric {
                let number = u32::from_be_bytes(peer.base) >> 8;
                attribute(out, libc::RTA_PRIORITY, &number.to_ne_bytes());
            }
        }
        Entry::Neighbour => {
            neighbour(out, AF_INET, ifindex, 0);
            attribute(out, libc::NDA_DST, &peer.base);
            attribute(out, libc::NDA_LLADDR, &peer.mac);
        }
        Entry::Forwarding => {
            neighbour(out, AF_BRIDGE, ifindex, NTF_SELF);
            attribute(out, libc::NDA_LLADDR, &peer.mac);
            attribute(out, libc::NDA_DST, &peer.remote);
        }
    }
    end(out, start);
    start
}

fn begin(out: &mut Vec<u8>, kind: u16, flags: u16) -> usize {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend((REQUEST | flags).to_ne_bytes());
    out.extend([0; 8]);
    start
}

/// `struct ndmsg`, permanent.
fn neighbour(out: &mut Vec<u8>, family: u8, ifindex: u32, flags: u8) {
    out.extend([family, 0, 0, 0]);
    out.extend(ifindex.to_ne_bytes());
    out.extend(libc::NUD_PERMANENT.to_ne_bytes());
    out.extend([flags, 0]);
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (4 + value.len()) as u16;
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    // Attributes begin at multiples of four.
    out.resize(out.len().next_multiple_of(4), 0);
}

fn end(out: &mut [u8], start: usize) {
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}
