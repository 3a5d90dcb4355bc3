//! From the TUN device to the peers: one thread for each queue.
//!
//! A batch is whatever the device has at the moment, up to a buffer full. Datagrams in a row to the
//! same peer and of the same size leave in one system call.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::net::SocketAddrV4;
use std::ops::Range;
use std::sync::Arc;

use kernel::tun::{Offload, VnetHeader};
use nix::errno::Errno;

use super::counters::{Count, Tally};
use super::cut::{self, Datagram};
use super::icmp;
use super::packet::{self, Ipv4};
use super::peers::Peers;
use super::shared::Shared;
use super::socket::Socket;

/// The largest packet with the header before it.
const SLOT: usize = VnetHeader::LENGTH + u16::MAX as usize;
/// Five pieces of a stream. A piece is 45 datagrams of the usual size and a send takes 44 of them: what
/// is there together needs one send more than there are pieces, instead of two for each.
const BUFFER: usize = 5 * SLOT;
/// Packets in a batch.
const MOST_PACKETS: usize = 64;
/// `UDP_MAX_SEGMENTS` of older kernels; newer ones take 128.
const MOST_DATAGRAMS: usize = 64;
/// What an IP packet of 65535 bytes holds behind IP and UDP header.
const MOST_BYTES: usize = 65_507;

/// One queue's way out.
#[derive(Debug)]
pub(crate) struct Outward {
    pub(crate) queue: File,
    pub(crate) socket: Socket,
    pub(crate) offload: Offload,
    /// One packet for each system call.
    pub(crate) one_by_one: bool,
    pub(crate) shared: Arc<Shared>,
}

/// What is built up for one batch and kept for the next.
#[derive(Debug, Default)]
struct Work {
    tally: Tally,
    scratch: Vec<u8>,
    datagrams: Vec<Datagram>,
    /// The peer of each datagram.
    to: Vec<SocketAddrV4>,
}

impl Outward {
    /// Forwards until it is told to stop, or the device is gone.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let mut work = Work::default();
        let mut packets = Vec::with_capacity(MOST_PACKETS);
        while self.shared.wait(&self.queue)? {
            loop {
                packets.clear();
                let drained = self.read_batch(&mut buffer, &mut packets)?;
                let peers = self.shared.peers();
                for range in &packets {
                    self.forward(&mut buffer, range.clone(), &peers, &mut work);
                }
                self.send(&buffer, &mut work);
                self.shared.count(&mut work.tally);
                if drained {
                    break;
                }
            }
        }
        Ok(())
    }

    /// True if nothing is left in the device.
    fn read_batch(&self, buffer: &mut [u8], packets: &mut Vec<Range<usize>>) -> io::Result<bool> {
        let most = if self.one_by_one { 1 } else { MOST_PACKETS };
        let mut at = 0;
        while packets.len() < most && buffer.len() - at >= SLOT {
            match (&self.queue).read(&mut buffer[at..at + SLOT]) {
                Ok(length) => {
                    packets.push(at..at + length);
                    at += length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn forward(&self, buffer: &mut [u8], read: Range<usize>, peers: &Peers, work: &mut Work) {
        let tally = &mut work.tally;
        let (vnet, start) = match self.offload {
            Offload::Off => (Some(VnetHeader::default()), read.start),
            _ => (
                VnetHeader::parse(&buffer[read.clone()]),
                read.start + VnetHeader::LENGTH,
            ),
        };
        let bytes = &mut buffer[start.min(read.end)..read.end];
        // A host asks for IPv6 routers on every new device: nothing that anybody lost.
        if bytes.first().is_some_and(|byte| byte >> 4 == 6) {
            return;
        }
        let (Some(vnet), Some(ip)) = (vnet, Ipv4::parse(bytes)) else {
            return tally.one(Count::NotIpv4);
        };
        let Some(peer) = peers.of(ip.destination) else {
            tally.one(Count::NoRoute);
            if let Some(answer) = icmp::net_unreachable(bytes, &ip) {
                self.answer(&answer, tally);
            }
            return;
        };
        if !packet::hop(bytes) {
            return tally.one(Count::TimeOver);
        }
        let before = work.datagrams.len();
        let cut = cut::cut(bytes, &vnet, &ip, &mut work.scratch, &mut work.datagrams);
        if cut.is_none() {
            return tally.one(Count::NotIpv4);
        }
        for datagram in &mut work.datagrams[before..] {
            datagram.body = start + datagram.body.start..start + datagram.body.end;
            work.to.push(peer);
        }
    }

    fn answer(&self, answer: &[u8], tally: &mut Tally) {
        let header = VnetHeader::default().render();
        let parts = [IoSlice::new(&header), IoSlice::new(answer)];
        let parts = match self.offload {
            Offload::Off => &parts[1..],
            _ => &parts[..],
        };
        if nix::sys::uio::writev(&self.queue, parts).is_err() {
            tally.one(Count::WriteFailed);
        }
    }

    fn send(&mut self, buffer: &[u8], work: &mut Work) {
        let mut at = 0;
        while at < work.datagrams.len() {
            let count = match self.socket.gso() {
                true => run_length(&work.datagrams[at..], &work.to[at..]),
                false => 1,
            };
            let run = &work.datagrams[at..at + count];
            let sent = send_run(&self.socket, buffer, &work.scratch, run, work.to[at]);
            match sent {
                Ok(()) => {
                    work.tally.one(Count::SendsOut);
                    work.tally.add(Count::PacketsOut, count);
                    let bytes = run.iter().map(Datagram::len).sum();
                    work.tally.add(Count::BytesOut, bytes);
                }
                // EIO: the device below does not compute checksums. Others: larger than the path's
                // MTU, which single datagrams may be.
                Err(errno @ (Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE)) if count > 1 => {
                    if errno == Errno::EIO {
                        self.socket.without_gso();
                    }
                    self.send_singly(buffer, at, count, work);
                }
                Err(_) => work.tally.add(Count::SendFailed, count),
            }
            at += count;
        }
        work.datagrams.clear();
        work.to.clear();
        work.scratch.clear();
    }

    fn send_singly(&self, buffer: &[u8], at: usize, count: usize, work: &mut Work) {
        for datagram in &work.datagrams[at..at + count] {
            let one = std::slice::from_ref(datagram);
            match send_run(&self.socket, buffer, &work.scratch, one, work.to[at]) {
                Ok(()) => {
                    work.tally.one(Count::SendsOut);
                    work.tally.one(Count::PacketsOut);
                    work.tally.add(Count::BytesOut, datagram.len());
                }
                Err(_) => work.tally.one(Count::SendFailed),
            }
        }
    }
}

/// How many datagrams from the first on can leave together: to one peer, of one size, only the
/// last one shorter.
fn run_length(datagrams: &[Datagram], to: &[SocketAddrV4]) -> usize {
    let size = datagrams[0].len();
    let (mut count, mut bytes) = (0, 0);
    for (datagram, peer) in datagrams.iter().zip(to).take(MOST_DATAGRAMS) {
        let length = datagram.len();
        bytes += length;
        if *peer != to[0] || length > size || bytes > MOST_BYTES {
            break;
        }
        count += 1;
        if length < size {
            break;
        }
    }
    // One that is too large for any datagram: the kernel shall say so.
    count.max(1)
}

fn send_run(
    socket: &Socket,
    buffer: &[u8],
    scratch: &[u8],
    run: &[Datagram],
    to: SocketAddrV4,
) -> nix::Result<()> {
    let mut parts = [IoSlice::new(&[]); 2 * MOST_DATAGRAMS];
    let mut used = 0;
    for datagram in run {
        let (header, body) = (
            &scratch[datagram.header.clone()],
            &buffer[datagram.body.clone()],
        );
        for part in [header, body] {
            if !part.is_empty() {
                parts[used] = IoSlice::new(part);
                used += 1;
            }
        }
    }
    let size = (run.len() > 1).then(|| run[0].len() as u16);
    socket.send(&parts[..used], size, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn datagrams(lengths: &[usize]) -> Vec<Datagram> {
        let one = |length: &usize| Datagram {
            header: 0..0,
            body: 0..*length,
        };
        lengths.iter().map(one).collect()
    }

    fn peer(n: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(192, 168, 50, n), 8285)
    }

    #[test]
    fn a_run_is_of_one_size_and_ends_with_a_shorter_one() {
        for (lengths, expected) in [
            (&[100, 100, 100][..], 3),
            (&[100, 100, 40, 40], 3),
            (&[40, 100, 100], 1),
            (&[100, 101], 1),
            (&[60_000, 5_000, 507], 2),
            (&[66_000, 10], 1),
            (&[8; 100], 64),
        ] {
            let to = vec![peer(1); lengths.len()];
            assert_eq!(
                run_length(&datagrams(lengths), &to),
                expected,
                "{lengths:?}"
            );
        }
    }

    #[test]
    fn a_run_is_one_peers() {
        let to = [peer(1), peer(1), peer(2)];
        assert_eq!(run_length(&datagrams(&[9, 9, 9]), &to), 2);
    }
}
