//! A socket that hears what the kernel says to a group: of changes ([`crate::monitor`]), and of
//! what it misses ([`crate::miss`]).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc::{self, BPF_ABS, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET};
use nix::sys::socket::{setsockopt, sockopt};

use crate::socket::{Answer, split};

/// The multicast group of neighbours, forwarding entries, and what is asked about them.
pub(crate) const RTNLGRP_NEIGH: u32 = 3;
/// The kernel asks user space, which changes nothing.
pub(crate) const RTM_GETNEIGH: u16 = 30;

/// Which kinds of messages a subscription hears.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Only {
    /// This one.
    Of(u16),
    /// All but this one.
    AllBut(u16),
}

/// A socket that hears `groups`, of what is said there `only` some, and keeps `bytes` of it.
pub(crate) fn subscribe(
    protocol: isize,
    groups: &[u32],
    only: Only,
    bytes: usize,
) -> io::Result<netlink_sys::Socket> {
    let mut opened = netlink_sys::Socket::new(protocol)?;
    opened.set_non_blocking(true)?;
    receive_buffer(&opened, bytes);
    // What comes through all the same is passed over where it is read.
    let _ = hear(&opened, only);
    // The kernel passes over sockets without a port number of their own.
    opened.bind_auto()?;
    for group in groups {
        opened.add_membership(*group)?;
    }
    Ok(opened)
}

/// How much the kernel may keep for a socket, beyond the machine's limit where we may.
fn receive_buffer(socket: &netlink_sys::Socket, bytes: usize) {
    // SAFETY: the descriptor is open for as long as `socket` is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    // With less of it notifications are lost sooner, which is noticed.
    let _ = setsockopt(&fd, sockopt::RcvBufForce, &bytes);
}

/// Has the kernel drop other messages before they take room in the socket.
fn hear(socket: &netlink_sys::Socket, only: Only) -> nix::Result<()> {
    let (kind, same, other) = match only {
        Only::Of(kind) => (kind, u32::MAX, 0),
        Only::AllBut(kind) => (kind, 0, u32::MAX),
    };
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut program = [
        // The type is at the fifth byte of the header, and is loaded as the network's order.
        step(BPF_LD | BPF_H | BPF_ABS, 0, 0, 4),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, u16::from_be(kind).into()),
        step(BPF_RET | BPF_K, 0, 0, same),
        step(BPF_RET | BPF_K, 0, 0, other),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the descriptor is open for as long as `socket` is borrowed; the program and the array
    // that it points to outlive the call, which copies both.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// The messages of one read.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let (message, rest) = split(bytes)?;
        bytes = rest;
        Some(message)
    })
}
