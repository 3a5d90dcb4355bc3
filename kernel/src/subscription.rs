//! A socket that hears what the kernel says to a group: of changes ([`crate::monitor`]), and of
//! what it misses ([`crate::miss`]).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc::{self, BPF_ABS, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use nix::sys::socket::{setsockopt, sockopt};

use crate::socket::{Answer, split};

/// The multicast group of neighbours, forwarding entries, and what is asked about them.
pub(crate) const RTNLGRP_NEIGH: u32 = 3;
/// The kernel asks user space, which changes nothing.
pub(crate) const RTM_GETNEIGH: u16 = 30;

/// Which messages a subscription hears.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Only {
    /// All.
    All,
    /// Those of this type.
    Of(u16),
    /// All but those of type `but`; of the types in `named` only what another socket than `own` has
    /// caused.
    Others {
        /// Never heard.
        but: u16,
        /// Messages of these name the socket that caused them.
        named: [u16; 4],
        /// That socket's number.
        own: u32,
    },
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
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let jump = |k, then, or| step(BPF_JMP | BPF_JEQ | BPF_K, then, or, k);
    // Type and port are at the fifth and the thirteenth byte of the header, and are loaded as the
    // network's order.
    let (load_type, load_port) = (
        step(BPF_LD | BPF_H | BPF_ABS, 0, 0, 4),
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, 12),
    );
    let is_type = |kind, then, or| jump(u16::from_be(kind).into(), then, or);
    let hear = step(BPF_RET | BPF_K, 0, 0, u32::MAX);
    let pass = step(BPF_RET | BPF_K, 0, 0, 0);
    let mut program = match only {
        Only::All => return Ok(()),
        Only::Of(kind) => vec![load_type, is_type(kind, 0, 1), hear, pass],
        Only::Others { but, named, own } => vec![
            load_type,
            is_type(but, 8, 0),
            is_type(named[0], 4, 0),
            is_type(named[1], 3, 0),
            is_type(named[2], 2, 0),
            is_type(named[3], 1, 0),
            hear,
            load_port,
            jump(u32::from_be(own), 1, 0),
            hear,
            pass,
        ],
    };
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
