//! A network card with a fault: it promises to fill in the checksums of what goes out, and does so,
//! but not inside tunnels. Some real cards and hypervisors are like that.
//!
//! It sits in the underlay's namespace, in the cable of one node: a thread copies frames between
//! the node's end and the switch. The kernel hands frames over with what is left to do
//! (`PACKET_VNET_HDR`), and takes them so; a frame whose inner checksum is left to do goes on as if
//! that were done. What comes in is passed on as it is.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike, bind, socket};
use nix::unistd::{read, write};

use crate::underlay::{Place, Underlay};

/// `struct virtio_net_hdr`: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
const HEADER: usize = 10;
const CSUM_START: std::ops::Range<usize> = 6..8;
/// The flag `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// Where the UDP header of a tunnel over IPv6 begins. That of an inner packet comes later.
const OUTER: u16 = 14 + 40;
/// How soon it ends when it is to, in ms.
const LOOK: u16 = 50;

/// The card; the cable is cut when this is dropped.
#[derive(Debug)]
pub struct FaultyCard {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FaultyCard {
    /// Puts it into the cable of a node on a bridge.
    pub fn plug(underlay: &Underlay, place: &Place) -> Result<Self> {
        let port = underlay.port(place);
        let (inner, outer) = (
            format!("card{}", place.number),
            format!("in{}", place.number),
        );
        let middle = underlay.middle();
        // Without IPv6 the kernel has nothing of its own to say on them.
        middle.ip_batch(&format!(
            "link set {port} nomaster addrgenmode none\n\
             link add {inner} type veth peer {outer}\n\
             link set {inner} addrgenmode none\n\
             link set {outer} addrgenmode none\n\
             link set {outer} master br0\n\
             link set {inner} up\n\
             link set {outer} up\n"
        ))?;
        let (node, switch) = middle.run(|| Ok((frames_of(&port)?, frames_of(&inner)?)))?;
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let work = move || {
            while !until.load(Ordering::Relaxed) {
                copy(&node, &switch);
            }
        };
        let thread = std::thread::Builder::new().name("card".to_owned());
        let thread = thread.spawn(work).context("start a thread")?;
        Ok(Self {
            ended,
            thread: Some(thread),
        })
    }
}

impl Drop for FaultyCard {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// All frames that come in at a device, and the way out of it.
fn frames_of(ifname: &str) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let frames = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    let on: libc::c_int = 1;
    // SAFETY: the option is an int, which lives, and the length is its size.
    let answer = unsafe {
        libc::setsockopt(
            frames.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    Errno::result(answer).context("PACKET_VNET_HDR")?;
    let ifindex = if_nametoindex(ifname).with_context(|| format!("find {ifname}"))?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: i32::try_from(ifindex)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is to a sockaddr_ll that lives, and the length is its size.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    bind(frames.as_raw_fd(), &address.context("an address")?)
        .with_context(|| format!("bind to {ifname}"))?;
    Ok(frames)
}

/// Waits a moment for frames and passes them on.
fn copy(node: &OwnedFd, switch: &OwnedFd) {
    let mut ends = [node, switch].map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
    // Whatever goes wrong is a frame lost, as on any wire.
    let _ = poll(&mut ends, PollTimeout::from(LOOK));
    let mut buffer = vec![0; 1 << 17];
    while let Ok(length) = read(node, &mut buffer) {
        leave_undone(&mut buffer[..length]);
        let _ = write(switch, &buffer[..length]);
    }
    while let Ok(length) = read(switch, &mut buffer) {
        let _ = write(node, &buffer[..length]);
    }
}

/// The fault.
fn leave_undone(frame: &mut [u8]) {
    let Some(header) = frame.get_mut(..HEADER) else {
        return;
    };
    let begins = u16::from_ne_bytes([header[CSUM_START.start], header[CSUM_START.start + 1]]);
    if header[0] & NEEDS_CHECKSUM != 0 && begins > OUTER {
        header.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inner_checksum_is_left_undone_and_an_outer_one_is_not() {
        let frame = |begins: u16| {
            let mut frame = [7; 100];
            frame[..HEADER].fill(0);
            frame[0] = NEEDS_CHECKSUM;
            frame[CSUM_START].copy_from_slice(&begins.to_ne_bytes());
            frame
        };
        for (begins, undone) in [
            (14 + 20, false),
            (14 + 40, false),
            (14 + 20 + 8 + 8 + 34, true),
        ] {
            let mut seen = frame(begins);
            leave_undone(&mut seen);
            assert_eq!(seen[0] == 0, undone, "{begins}");
            assert_eq!(seen[HEADER..], frame(begins)[HEADER..]);
        }
    }
}
