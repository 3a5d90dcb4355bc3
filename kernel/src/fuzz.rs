//! The fuzz targets: every reader of this crate, with any bytes in the place of the kernel's
//! answers. Only with the feature `fuzz`.
//!
//! The kernel is no enemy, but it is newer than this program: messages grow, and attributes come
//! in kinds and lengths that nobody here has seen. Whatever comes, a request ends, in an answer or
//! in an error with words, and what was read can be asked for again. Nothing here talks to the
//! kernel's tables: the answers come from the other end of a pair of sockets.
//!
//! `./dev fuzz` runs them under libFuzzer (`cni-test-harness/src/bin/fuzz.rs`); the test of the
//! corpora runs the inputs in `kernel/fuzz/<target>/`, which are what real kernels said.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};

use crate::conntrack::UdpTo;
use crate::nft::{self, Family};
use crate::socket::Raw;
use crate::subscription::messages;
use crate::{Result, Socket, address, conntrack, fdb, link, miss, monitor, neighbour, route};
use crate::{solicit, tc, vlan, wireguard};

/// A target takes any bytes; it fails by panicking.
pub type Target = fn(&[u8]);

/// Every target, by the name of the folder with its inputs.
pub const TARGETS: &[(&str, Target)] = &[
    ("netlink-answers", answers),
    ("netlink-events", events),
    ("nftables-answers", nftables_answers),
];

/// The devices of the inputs: a port of a bridge, and its bridge.
const PORT: u32 = 4;
const BRIDGE: u32 = 2;
/// The table of the inputs.
const TABLE: &str = "twill-pods";

/// What comes back for a request of the routing family or of WireGuard's.
fn answers(bytes: &[u8]) {
    let ask: &[fn(&mut Socket) -> Result<()>] = &[
        |s| link::dump(s).map(drop),
        |s| link::by_index(s, PORT).map(drop),
        |s| link::ports(s, BRIDGE).map(drop),
        |s| {
            let found = address::dump(s, None)?;
            let again = found.iter().map(|a| address::delete(a.ifindex, a.net));
            s.apply_all(&again.collect::<Vec<_>>())
        },
        |s| routes(s, false),
        |s| routes(s, true),
        |s| route::towards(s, IpAddr::V4(Ipv4Addr::LOCALHOST)).map(drop),
        |s| {
            let found = neighbour::dump(s)?;
            let again = found.iter().map(|n| neighbour::delete(n.ifindex, n.ip));
            s.apply_all(&again.collect::<Vec<_>>())
        },
        |s| {
            let found = fdb::dump(s, None)?;
            let again = found.iter().map(|e| fdb::delete(e.ifindex, e.mac));
            s.apply_all(&again.collect::<Vec<_>>())
        },
        |s| fdb::idle(s, PORT).map(drop),
        |s| tc::token_bucket(s, PORT).map(drop),
        |s| tc::redirects(s, PORT).map(drop),
        |s| vlan::of_port(s, PORT).map(drop),
        |s| solicit::dump(s, false).map(drop),
        |s| s.apply_all(&[solicit::user_space(PORT, true), tc::delete_root(PORT)]),
    ];
    for ask in ask {
        let (raw, _kernel) = answered_with(bytes);
        has_words(ask(&mut Socket { raw }));
    }
    let (raw, _kernel) = answered_with(bytes);
    let mut wireguard = wireguard::Socket { raw, family: 29 };
    has_words(wireguard.dump("wg0").map(drop));
}

/// What was dumped can be named again: the daemon deletes what it found too many.
fn routes(socket: &mut Socket, v6: bool) -> Result<()> {
    let found = route::dump(socket, v6)?;
    let again: Vec<_> = (found.iter())
        .flat_map(|found| [route::replace(found), route::delete(found)])
        .collect();
    socket.apply_all(&again)
}

/// What comes back for a request about nftables or tracked connections.
fn nftables_answers(bytes: &[u8]) {
    let ask: &[fn(&mut nft::Socket) -> Result<()>] = &[
        |s| s.dump(Family::Inet, TABLE).map(drop),
        |s| s.tables(Family::Inet).map(drop),
        |s| s.generation().map(drop),
        |s| s.elements(Family::Inet, TABLE, "dnat4").map(drop),
        |s| s.has_chain(Family::Ipv4, "nat", "POSTROUTING").map(drop),
        |s| s.forward_drops().map(drop),
        |s| {
            let found = s.foreign_rules(Family::Ipv4, "nat", None)?;
            s.delete_foreign(Family::Ipv4, "nat", &found, &["CNI-abc"])
        },
    ];
    for ask in ask {
        let (raw, _kernel) = answered_with(bytes);
        has_words(ask(&mut nft::Socket { raw }));
    }
    for (v6, ip) in [
        (false, IpAddr::V4(Ipv4Addr::LOCALHOST)),
        (true, IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ] {
        let (mut raw, _kernel) = answered_with(bytes);
        let flows = [None, Some(ip)].map(|ip| UdpTo { v6, ip, port: 9999 });
        has_words(conntrack::dump(&mut raw, v6, &flows).map(drop));
    }
}

/// A socket to which these messages were sent, and the end that sent them, which has to stay. A
/// read ends where the number of the request changes, as one answer's does.
fn answered_with(bytes: &[u8]) -> (Raw, OwnedFd) {
    let quiet = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, quiet);
    let (ours, theirs) = pair.expect("a pair of sockets");
    let mut reads: Vec<&[u8]> = vec![];
    let (mut start, mut at, mut number) = (0, 0, None);
    for message in messages(bytes) {
        if number.is_some_and(|number| number != message.sequence) {
            reads.push(&bytes[start..at]);
            start = at;
        }
        number = Some(message.sequence);
        at = (at + message.bytes.len().next_multiple_of(4)).min(bytes.len());
    }
    reads.push(&bytes[start..]);
    // A read of nothing would be the end of a stream, which netlink has not.
    for read in reads.iter().filter(|read| !read.is_empty()) {
        // What finds no room is an answer that never comes.
        let _ = send(theirs.as_raw_fd(), read, MsgFlags::empty());
    }
    // SAFETY: the descriptor was just made, and nobody else owns it.
    let ours = unsafe { netlink_sys::Socket::from_raw_fd(ours.into_raw_fd()) };
    (Raw::over(ours), theirs)
}

fn has_words(outcome: Result<()>) {
    if let Err(error) = outcome {
        assert!(!error.to_string().is_empty());
    }
}

/// Notifications, as the monitor and the misses read them.
fn events(bytes: &[u8]) {
    let mut read = 0;
    for message in messages(bytes) {
        read += message.bytes.len();
        let _ = monitor::routing_change(&message, 0);
        let _ = monitor::nftables_change(&message, 0);
        let _ = miss::asked(&message);
    }
    assert!(read <= bytes.len(), "no byte is read twice");
}
