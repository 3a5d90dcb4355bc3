//! When the last peer's route, neighbour and forwarding entry came: counted from the kernel's own
//! notifications, as `ip monitor route neigh` gets them, so that nobody has to look in between.

use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket,
};
use nix::sys::time::TimeVal;

const GROUPS: u32 = (libc::RTMGRP_NEIGH | libc::RTMGRP_IPV4_ROUTE) as u32;
/// Room for all that can come while this process does not run.
const BUFFER: usize = 256 << 20;
/// `struct nlmsghdr`, after which the message of its kind begins.
const HEADER: usize = 16;
const PEERS_PREFIX: u8 = 24;

/// How many of each have come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) routes: usize,
    pub(super) neighbours: usize,
    pub(super) forwarding: usize,
}

impl Counts {
    fn reached(&self, peers: usize) -> bool {
        self.routes.min(self.neighbours).min(self.forwarding) >= peers
    }

    /// Takes in the messages of one datagram.
    fn note(&mut self, mut datagram: &[u8]) {
        while datagram.len() >= HEADER {
            let field = |at: usize| [0, 1, 2, 3].map(|n| datagram[at + n]);
            let length = u32::from_ne_bytes(field(0)) as usize;
            if length < HEADER || length > datagram.len() {
                return;
            }
            let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
            self.note_one(kind, &datagram[HEADER..length]);
            // Messages begin at multiples of four.
            datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
        }
    }

    fn note_one(&mut self, kind: u16, body: &[u8]) {
        match (kind, body) {
            // struct rtmsg: family, length of the destination
            (libc::RTM_NEWROUTE, [family, PEERS_PREFIX, ..])
                if i32::from(*family) == libc::AF_INET =>
            {
                self.routes += 1;
            }
            // struct ndmsg: family, padding, ifindex, state
            (libc::RTM_NEWNEIGH, [family, _, _, _, _, _, _, _, low, high, ..]) => {
                if u16::from_ne_bytes([*low, *high]) & libc::NUD_PERMANENT == 0 {
                    return;
                }
                match i32::from(*family) {
                    libc::AF_INET => self.neighbours += 1,
                    libc::AF_BRIDGE => self.forwarding += 1,
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

/// A subscription in the namespace of the thread that opened it.
pub(super) struct Arrivals {
    socket: OwnedFd,
}

impl Arrivals {
    pub(super) fn subscribe() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .context("open a netlink socket")?;
        setsockopt(&socket, RcvBufForce, &BUFFER).context("enlarge its buffer")?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(1, 0)).context("set its time-out")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS)).context("subscribe to changes")?;
        Ok(Self { socket })
    }

    /// Waits until so many of each have come; when the last one did.
    pub(super) fn wait_for(&self, peers: usize, deadline: Duration) -> Result<Instant> {
        let reached = |counts: &Counts| counts.reached(peers);
        self.wait_until(deadline, reached)
            .with_context(|| format!("wait for {peers} peers"))
    }

    /// Waits until enough has come; when it did.
    pub(super) fn wait_until(
        &self,
        deadline: Duration,
        enough: impl Fn(&Counts) -> bool,
    ) -> Result<Instant> {
        let start = Instant::now();
        let mut counts = Counts::default();
        let mut buffer = vec![0; 1 << 16];
        while !enough(&counts) {
            if start.elapsed() > deadline {
                bail!("there are {counts:?} after {deadline:?}");
            }
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => counts.note(&buffer[..length]),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("read the kernel's notifications"),
            }
        }
        Ok(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = (HEADER + body.len()) as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn only_what_a_peer_needs_is_counted() {
        let permanent = [0, 0, 0, 0, 0, 0, 0, 0x80, 0];
        let neighbour = |family: u8, state: &[u8]| [&[family], state].concat();
        let datagram = [
            message(libc::RTM_NEWROUTE, &[2, 24, 0, 0]),
            message(libc::RTM_NEWROUTE, &[2, 32, 0, 0]),
            message(libc::RTM_DELROUTE, &[2, 24, 0, 0]),
            message(libc::RTM_NEWNEIGH, &neighbour(2, &permanent)),
            message(libc::RTM_NEWNEIGH, &neighbour(2, &[0; 9])),
            message(libc::RTM_NEWNEIGH, &neighbour(7, &permanent)),
        ]
        .concat();
        let mut counts = Counts::default();
        counts.note(&datagram);
        let want = Counts {
            routes: 1,
            neighbours: 1,
            forwarding: 1,
        };
        assert_eq!(counts, want);
        assert!(counts.reached(1) && !counts.reached(2));
        // Half a message is nothing.
        counts.note(&datagram[..HEADER + 2]);
        assert_eq!(counts, want);
    }
}
