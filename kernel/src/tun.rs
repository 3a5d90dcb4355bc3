//! TUN devices: IP packets to and from a file descriptor.
//!
//! Two ioctls are all there is to a TUN device, so they stand here themselves. Addresses, MTU and
//! routes are set like any other device's, see [`crate::link`]. The device ends with its last
//! queue.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

mod ioctl {
    #![allow(
        missing_docs,
        reason = "the macro makes public functions; what they do: tun(4)"
    )]
    nix::ioctl_write_int!(set_interface, b'T', 202);
    nix::ioctl_write_int!(set_offload, b'T', 208);
}

/// Packets come with a [`VnetHeader`] before them, and larger than the MTU where the kernel has
/// not cut them yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// None: each read and write is one packet and nothing else.
    Off,
    /// Checksums and TCP segmentation are left to the reader.
    Tcp,
    /// UDP segmentation as well (Linux 6.2).
    TcpAndUdp,
}

/// A TUN device, by its queues.
#[derive(Debug)]
pub struct Tun {
    /// Its name, which the kernel chose where a pattern was asked for.
    pub name: String,
    /// The queues; at least one. Reads do not block.
    pub queues: Vec<File>,
    /// What the kernel agreed to.
    pub offload: Offload,
}

/// `ip tuntap add mode tun name PATTERN [multi_queue] [vnet_hdr]`, but gone with its last queue.
///
/// `pattern` may end in `%d`. With `offload`, the kernel is asked for the most it can do; where it
/// knows no offloads or no second queue, the device is made without. Fails with EBUSY if somebody
/// else has a device of this name, with ENOENT or EPERM if /dev/net/tun is not to be had.
pub fn open(pattern: &str, queues: usize, offload: bool) -> io::Result<Tun> {
    let only_if = |wanted, flag| if wanted { flag } else { 0 };
    let multi = only_if(queues > 1, libc::IFF_MULTI_QUEUE);
    let header = only_if(offload, libc::IFF_VNET_HDR);
    let plain = libc::IFF_TUN | libc::IFF_NO_PI;
    let mut tried = vec![plain | multi | header, plain | header, plain];
    tried.dedup();
    let mut refusal = io::Error::from(io::ErrorKind::InvalidInput);
    for flags in tried {
        // Exclusively: a second queue of somebody else's device would take half of its packets.
        match open_queue(pattern, flags | libc::IFF_TUN_EXCL) {
            Ok((first, name)) => return complete(first, name, flags, queues),
            // What EINVAL means: a flag that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}

fn complete(first: File, name: String, flags: i32, queues: usize) -> io::Result<Tun> {
    let mut all = vec![first];
    if flags & libc::IFF_MULTI_QUEUE != 0 {
        for _ in 1..queues {
            all.push(open_queue(&name, flags)?.0);
        }
    }
    let offload = match flags & libc::IFF_VNET_HDR {
        0 => Offload::Off,
        _ => set_offload(&all[0])?,
    };
    Ok(Tun {
        name,
        queues: all,
        offload,
    })
}

fn open_queue(pattern: &str, flags: i32) -> io::Result<(File, String)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: an ifreq is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if pattern.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(pattern.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call is over.
    unsafe { ioctl::set_interface(file.as_raw_fd(), &raw mut request as libc::c_ulong) }?;
    let name = request.ifr_name.iter().take_while(|c| **c != 0);
    let name = name.map(|c| *c as u8 as char).collect();
    Ok((file, name))
}

/// The device's, not the queue's. Everything but UDP segmentation is as old as the header itself.
fn set_offload(queue: &File) -> io::Result<Offload> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN;
    // The kernel takes both or none.
    let udp = tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let ask = |flags: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        unsafe { ioctl::set_offload(queue.as_raw_fd(), libc::c_ulong::from(flags)) }
    };
    if ask(udp).is_ok() {
        return Ok(Offload::TcpAndUdp);
    }
    ask(tcp)?;
    Ok(Offload::Tcp)
}

/// What stands before a packet (`struct virtio_net_hdr`), in the byte order of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// The checksum at `checksum_start + checksum_offset` covers the pseudo header alone so far.
    pub needs_checksum: bool,
    /// What the packet is to be cut into.
    pub segments: Segments,
    /// Bytes of IP and transport header together.
    pub header_length: u16,
    /// Payload bytes of each segment but the last.
    pub segment_size: u16,
    /// From which byte of the packet the checksum counts.
    pub checksum_start: u16,
    /// Where it is kept, counted from there.
    pub checksum_offset: u16,
}

/// The kind of a packet larger than the MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Segments {
    /// An ordinary packet.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// UDP datagrams of one socket (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp,
    /// Anything else, e.g. over IPv6.
    Other,
}

impl VnetHeader {
    /// Its length in bytes.
    pub const LENGTH: usize = 10;
    const NEEDS_CSUM: u8 = 1;
    const ECN: u8 = 0x80;

    /// Reads the header; None if there are too few bytes.
    pub fn parse(bytes: &[u8]) -> Option<VnetHeader> {
        let bytes = bytes.get(..VnetHeader::LENGTH)?;
        let u16_at = |at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(VnetHeader {
            needs_checksum: bytes[0] & VnetHeader::NEEDS_CSUM != 0,
            segments: match bytes[1] & !VnetHeader::ECN {
                0 => Segments::None,
                1 => Segments::Tcp4,
                5 => Segments::Udp,
                _ => Segments::Other,
            },
            header_length: u16_at(2),
            segment_size: u16_at(4),
            checksum_start: u16_at(6),
            checksum_offset: u16_at(8),
        })
    }

    /// The header as bytes.
    ///
    /// # Panics
    /// For [`Segments::Other`], which cannot be said again.
    pub fn render(&self) -> [u8; VnetHeader::LENGTH] {
        let mut bytes = [0; VnetHeader::LENGTH];
        bytes[0] = if self.needs_checksum {
            VnetHeader::NEEDS_CSUM
        } else {
            0
        };
        bytes[1] = match self.segments {
            Segments::None => 0,
            Segments::Tcp4 => 1,
            Segments::Udp => 5,
            Segments::Other => panic!("a packet of an unknown kind is never written"),
        };
        let words = [
            self.header_length,
            self.segment_size,
            self.checksum_start,
            self.checksum_offset,
        ];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_reads_back_as_it_was_written() {
        let header = VnetHeader {
            needs_checksum: true,
            segments: Segments::Tcp4,
            header_length: 52,
            segment_size: 1420,
            checksum_start: 20,
            checksum_offset: 16,
        };
        assert_eq!(VnetHeader::parse(&header.render()), Some(header));
        assert_eq!(VnetHeader::parse(&header.render()[..9]), None);
    }

    #[test]
    fn the_ecn_bit_is_no_kind_of_its_own() {
        let bytes = [0, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
        let header = VnetHeader::parse(&bytes).unwrap();
        assert_eq!(header.segments, Segments::Tcp4);
    }
}
