//! From the peers to the TUN device: one thread for each queue.
//!
//! Nothing is handed over that did not come from the peer whose subnet it names as its source.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use kernel::tun::Offload;

use super::counters::{Count, Tally};
use super::merge::{Handover, Merge};
use super::packet::{self, Ipv4};
use super::peers::Peers;
use super::shared::Shared;
use super::socket::{Received, Socket};

/// What one receive may bring.
const SLOT: usize = u16::MAX as usize;
/// What the other side reads and sends in one batch, which is merged in one.
const BUFFER: usize = 5 * SLOT;
/// Receives in a batch.
const MOST_RECEIVES: usize = 64;
/// The header, the first packet, and what joined it.
const MOST_PARTS: usize = 1 + 64;

/// One queue's way in.
#[derive(Debug)]
pub(crate) struct Inward {
    pub(crate) queue: File,
    pub(crate) socket: Socket,
    pub(crate) offload: Offload,
    /// One packet for each system call.
    pub(crate) one_by_one: bool,
    pub(crate) shared: Arc<Shared>,
}

impl Inward {
    /// Forwards until it is told to stop, or the device is gone.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let mut tally = Tally::default();
        let mut received = Vec::with_capacity(MOST_RECEIVES);
        let mut merge = Merge::new(self.offload);
        while self.shared.wait(&self.socket)? {
            loop {
                received.clear();
                let drained = self.receive_batch(&mut buffer, &mut received)?;
                let peers = self.shared.peers();
                let mut start = 0;
                for one in &received {
                    accept(&mut buffer, start, one, &peers, &mut merge, &mut tally);
                    start += one.length;
                }
                for handover in merge.finish(&mut buffer).collect::<Vec<_>>() {
                    self.hand_over(&buffer, &handover, &mut tally)?;
                }
                self.shared.count(&mut tally);
                if drained {
                    break;
                }
            }
        }
        Ok(())
    }

    /// True if nothing is left in the socket.
    fn receive_batch(&mut self, buffer: &mut [u8], batch: &mut Vec<Received>) -> io::Result<bool> {
        let most = if self.one_by_one { 1 } else { MOST_RECEIVES };
        let mut at = 0;
        while batch.len() < most && buffer.len() - at >= SLOT {
            match self.socket.receive(&mut buffer[at..at + SLOT]) {
                Ok(None) => return Ok(true),
                Ok(Some(received)) => {
                    at += received.length;
                    batch.push(received);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Fails only if the device is gone.
    fn hand_over(&self, buffer: &[u8], packet: &Handover, tally: &mut Tally) -> io::Result<()> {
        let header = packet.vnet.render();
        let mut parts = [IoSlice::new(&[]); MOST_PARTS];
        let mut used = 0;
        if self.offload != Offload::Off {
            parts[0] = IoSlice::new(&header);
            used = 1;
        }
        for range in std::iter::once(&packet.first).chain(&packet.joined) {
            parts[used] = IoSlice::new(&buffer[range.clone()]);
            used += 1;
        }
        match nix::sys::uio::writev(&self.queue, &parts[..used]) {
            Ok(_) => {
                tally.one(Count::WritesIn);
                tally.add(Count::PacketsIn, packet.segments());
                tally.add(Count::BytesIn, packet.len());
                Ok(())
            }
            Err(errno @ nix::errno::Errno::EBADFD) => Err(errno.into()),
            // EIO while the device is down; ENOBUFS or ENOMEM when memory is short.
            Err(_) => {
                tally.add(Count::WriteFailed, packet.segments());
                Ok(())
            }
        }
    }
}

/// Takes what one receive brought apart into packets that may come in.
fn accept(
    buffer: &mut [u8],
    start: usize,
    received: &Received,
    peers: &Peers,
    merge: &mut Merge,
    tally: &mut Tally,
) {
    let mut trusted = None;
    let end = start + received.length;
    let mut at = start;
    while at < end {
        let datagram = &mut buffer[at..end.min(at + received.stride.max(1))];
        let next = at + datagram.len();
        match Ipv4::parse(datagram) {
            None => tally.one(Count::NotIpv4),
            // The packets of one receive are often one stream's.
            Some(ip) if trusted != Some(ip.source) && !peers.is_from(ip.source, received.from) => {
                tally.forged(ip.source, received.from);
            }
            Some(ip) => {
                trusted = Some(ip.source);
                match packet::hop(datagram) {
                    true => merge.add(buffer, at, &ip),
                    false => tally.one(Count::TimeOver),
                }
            }
        }
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::super::cut::tests::{tcp, udp};
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, SocketAddrV4};

    const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 20);

    /// The test packets' source is in this peer's subnet.
    fn peers() -> Peers {
        Peers::new([
            (
                "10.5.20.0/24".parse().unwrap(),
                SocketAddrV4::new(PEER, 8285),
            ),
            (
                "10.5.30.0/24".parse().unwrap(),
                SocketAddrV4::new(Ipv4Addr::new(192, 168, 50, 30), 8285),
            ),
        ])
    }

    fn accepted(datagrams: &[u8], stride: usize, from: Ipv4Addr) -> (usize, Tally) {
        let mut buffer = datagrams.to_vec();
        let received = Received {
            length: buffer.len(),
            stride,
            from,
        };
        let (mut merge, mut tally) = (Merge::default(), Tally::default());
        accept(&mut buffer, 0, &received, &peers(), &mut merge, &mut tally);
        let count = merge.finish(&mut buffer).count();
        (count, tally)
    }

    #[test]
    fn a_packet_comes_in_from_the_peer_that_has_its_source() {
        let packet = udp(b"hello");
        let (count, _) = accepted(&packet, packet.len(), PEER);
        assert_eq!(count, 1);
    }

    #[test]
    fn a_packet_from_another_peer_or_a_stranger_is_dropped_and_counted() {
        let packet = udp(b"hello");
        for from in [
            Ipv4Addr::new(192, 168, 50, 30),
            Ipv4Addr::new(192, 168, 50, 99),
        ] {
            let (count, tally) = accepted(&packet, packet.len(), from);
            assert_eq!((count, tally.get(Count::Spoofed)), (0, 1));
        }
        let mut no_subnet = udp(b"hello");
        no_subnet[12..16].copy_from_slice(&[8, 8, 8, 8]);
        let (count, tally) = accepted(&no_subnet, no_subnet.len(), PEER);
        assert_eq!((count, tally.get(Count::Spoofed)), (0, 1));
    }

    #[test]
    fn one_bad_datagram_among_good_ones_is_dropped_alone() {
        let good = tcp(1, 0x10, &[1; 60]);
        let mut spoofed = good.clone();
        spoofed[14] = 30;
        let mut torn = good.clone();
        torn[0] = 0;
        let mut over = good.clone();
        over[8] = 1;
        let all = [&good[..], &spoofed, &torn, &over, &good].concat();
        let (count, tally) = accepted(&all, good.len(), PEER);
        assert_eq!(count, 2);
        for dropped in [Count::Spoofed, Count::NotIpv4, Count::TimeOver] {
            assert_eq!(tally.get(dropped), 1, "{dropped:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_apart(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            stride in 0usize..200,
        ) {
            accepted(&bytes, stride, PEER);
        }
    }
}
