//! A peer's kernel as the judge: two packets to a UDP port of its where nothing listens, one with
//! its checksum finished here, one with it left to the device. To a packet whose checksum is right
//! the kernel answers "port unreachable"; one with a wrong checksum it drops (`udp_rcv`). So a peer
//! that answers the first and never the second says that checksums are not filled in on the way.
//! It need not run twill, and a peer behind a firewall says nothing.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use crate::tables::DeviceName;

/// traceroute's first port, where nothing is meant to listen.
const PORT: u16 = 33434;
/// A node that takes longer to answer is too far away to be a node.
const ANSWER: Duration = Duration::from_millis(500);
/// Rounds over the peers, who may not know us yet; the waits between them double from this.
const ROUNDS: (u32, Duration) = (4, Duration::from_millis(100));
/// So many are lost before it counts. With the two finished ones these are as many answers as a
/// kernel gives to one address at once (`XRLIM_BURST_FACTOR`).
const UNFINISHED: usize = 4;

/// More of this packet is to come: nix has no name for it.
const MORE: MsgFlags = MsgFlags::from_bits_retain(nix::libc::MSG_MORE);

/// What to find out.
#[derive(Debug)]
pub(super) struct Trial {
    /// The device.
    pub(super) device: DeviceName,
    /// Our address on it.
    pub(super) own: IpAddr,
    /// The addresses of peers' devices.
    pub(super) peers: Vec<IpAddr>,
}

/// What this peer's answers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Checksums are filled in.
    Arrives(IpAddr),
    /// They are not.
    IsLost(IpAddr),
    /// Nobody answers.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
enum Checksum {
    Finished,
    Unfinished,
}

impl Trial {
    /// Asks until a peer answers, for some seconds.
    pub(super) async fn verdict(&self) -> Verdict {
        let (rounds, mut wait) = ROUNDS;
        for _ in 0..rounds {
            for peer in &self.peers {
                match self.ask(*peer).await {
                    // Our address or the route is not there yet, or not any more.
                    Ok(Verdict::Unknown) | Err(_) => {}
                    Ok(known) => return known,
                }
            }
            sleep(wait).await;
            wait *= 2;
        }
        Verdict::Unknown
    }

    async fn ask(&self, peer: IpAddr) -> io::Result<Verdict> {
        // An answer finds the socket by its port, so that late ones are not mistaken.
        let finished = self.open(peer).await?;
        let unfinished = self.open(peer).await?;
        if !is_answered(&finished, Checksum::Finished).await {
            return Ok(Verdict::Unknown);
        }
        for _ in 0..UNFINISHED {
            if is_answered(&unfinished, Checksum::Unfinished).await {
                return Ok(Verdict::Arrives(peer));
            }
        }
        // The peer may have gone meanwhile, or have answered enough.
        Ok(match is_answered(&finished, Checksum::Finished).await {
            true => Verdict::IsLost(peer),
            false => Verdict::Unknown,
        })
    }

    async fn open(&self, peer: IpAddr) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((self.own, 0)).await?;
        socket.bind_device(Some(self.device.as_bytes()))?;
        socket.connect((peer, PORT)).await?;
        Ok(socket)
    }
}

async fn is_answered(socket: &UdpSocket, checksum: Checksum) -> bool {
    let heard = |outcome: io::Result<usize>| match outcome {
        // Somebody listens there after all.
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    };
    if let Err(error) = put(socket, checksum).await {
        // The answer to an earlier one, perhaps.
        return heard(Err(error));
    }
    let answer = timeout(ANSWER, socket.recv(&mut [0; 8])).await;
    answer.is_ok_and(heard)
}

/// A packet that is put together from two pieces gets its checksum while they are copied, and only
/// one that comes whole may leave it to the device (`__ip_append_data`, `MSG_MORE`).
async fn put(socket: &UdpSocket, checksum: Checksum) -> io::Result<()> {
    let pieces: &[(&[u8], MsgFlags)] = match checksum {
        Checksum::Finished => &[(b"twi", MORE), (b"lld\n", MsgFlags::empty())],
        Checksum::Unfinished => &[(b"twilld\n", MsgFlags::empty())],
    };
    let piece_by_piece = || {
        let mut pieces = pieces.iter();
        pieces.try_for_each(|(bytes, flags)| {
            send(socket.as_raw_fd(), bytes, *flags)?;
            Ok(())
        })
    };
    socket.async_io(Interest::WRITABLE, piece_by_piece).await
}
