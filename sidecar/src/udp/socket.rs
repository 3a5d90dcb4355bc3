//! The UDP sockets: all on one port, one for each queue, so that peers are spread over them by the
//! kernel while each peer's datagrams stay in order.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrIn, bind, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::Options;

/// What a burst may take up while a thread is not scheduled, in bytes; not this process' memory.
const KERNEL_BUFFER: usize = 4 << 20;
/// How long a send may wait for room in the device below. Also bounds how long a stop takes.
const SEND_SECONDS: i64 = 1;

/// One of the sockets.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
    control: Vec<u8>,
    gro: bool,
    gso: bool,
}

/// What one receive brought: datagrams of `stride` bytes, the last one possibly shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) length: usize,
    pub(crate) stride: usize,
    pub(crate) from: Ipv4Addr,
}

/// Opens a socket for each queue, all on one address and port. Fails with EADDRINUSE if anybody has that port,
/// other sockets of this kind included.
pub(crate) fn open(listen: SocketAddrV4, options: Options) -> io::Result<Vec<Socket>> {
    let count = options.queues.max(1);
    let mut sockets = Vec::with_capacity(count);
    for number in 0..count {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Udp,
        )?;
        // The first is bound without, so that it meets whoever is there; then it lets ours in.
        if number > 0 {
            setsockopt(&fd, sockopt::ReusePort, &true)?;
        }
        bind(fd.as_raw_fd(), &SockaddrIn::from(listen))?;
        if number == 0 && count > 1 {
            setsockopt(&fd, sockopt::ReusePort, &true)?;
        }
        // Beyond the system's limit only with CAP_NET_ADMIN; without, the limit has to do.
        if setsockopt(&fd, sockopt::RcvBufForce, &KERNEL_BUFFER).is_err() {
            let _ = setsockopt(&fd, sockopt::RcvBuf, &KERNEL_BUFFER);
        }
        if setsockopt(&fd, sockopt::SndBufForce, &KERNEL_BUFFER).is_err() {
            let _ = setsockopt(&fd, sockopt::SndBuf, &KERNEL_BUFFER);
        }
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(SEND_SECONDS, 0))?;
        // Linux 5.0 and 4.18. The second is asked for, not set: it goes with each send.
        let gro = options.gro && setsockopt(&fd, sockopt::UdpGroSegment, &true).is_ok();
        let gso = options.gso && nix::sys::socket::getsockopt(&fd, sockopt::UdpGsoSegment).is_ok();
        sockets.push(Socket {
            socket: UdpSocket::from(fd),
            control: nix::cmsg_space!(i32),
            gro,
            gso,
        });
    }
    Ok(sockets)
}

impl Socket {
    /// A second hold on the socket, for the thread of the other direction.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            control: nix::cmsg_space!(i32),
            ..*self
        })
    }

    /// Whether one receive may bring many datagrams.
    pub(crate) fn gro(&self) -> bool {
        self.gro
    }

    /// Whether one send may carry many datagrams.
    pub(crate) fn gso(&self) -> bool {
        self.gso
    }

    /// Receives without waiting; None if nothing is there.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut into = [IoSliceMut::new(buffer)];
        let control = self.gro.then(|| {
            let capacity = self.control.capacity();
            self.control.resize(capacity, 0);
            &mut self.control[..]
        });
        let fd = self.socket.as_raw_fd();
        let received = match recvmsg::<SockaddrIn>(fd, &mut into, control, MsgFlags::MSG_DONTWAIT) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let length = received.bytes;
        let Some(from) = received.address else {
            return Err(io::Error::other("a datagram without a sender"));
        };
        let mut stride = length;
        for message in received.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::UdpGroSegments(size) = message {
                stride = usize::try_from(size).unwrap_or(length);
            }
        }
        Ok(Some(Received {
            length,
            stride,
            from: from.ip(),
        }))
    }

    /// Sends datagrams of `size` bytes each (the last possibly shorter) to one peer. Waits a moment
    /// where the device below is busy: what is behind is better dropped before it is encapsulated.
    ///
    /// More than one datagram at a time needs [`Socket::gso`]. If the kernel cannot do it on this
    /// way after all, EIO or EINVAL comes back and nothing was sent.
    pub(crate) fn send(
        &self,
        parts: &[IoSlice<'_>],
        size: Option<u16>,
        peer: SocketAddrV4,
    ) -> nix::Result<()> {
        let control = size.as_ref().map(ControlMessage::UdpGsoSegments);
        let to = SockaddrIn::from(peer);
        let fd = self.socket.as_raw_fd();
        loop {
            match sendmsg(fd, parts, control.as_slice(), MsgFlags::empty(), Some(&to)) {
                Err(Errno::EINTR) => {}
                answer => return answer.map(drop),
            }
        }
    }

    /// No more than one datagram a send from now on.
    pub(crate) fn without_gso(&mut self) {
        self.gso = false;
    }
}

impl std::os::fd::AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(queues: usize) -> Options {
        Options {
            queues,
            ..Options::default()
        }
    }

    #[test]
    fn a_port_in_use_is_refused_even_if_its_holder_shares() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let held = UdpSocket::bind(any).unwrap();
        let std::net::SocketAddr::V4(taken) = held.local_addr().unwrap() else {
            panic!("an IPv4 socket");
        };
        let refused = open(taken, queues(2)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(held);
        let _ours = open(taken, queues(2)).unwrap();
        let refused = open(taken, queues(2)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn datagrams_sent_together_arrive_as_they_were() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let sender = open(any, queues(1)).unwrap().remove(0);
        let mut receiver = open(any, queues(1)).unwrap().remove(0);
        let std::net::SocketAddr::V4(to) = receiver.socket.local_addr().unwrap() else {
            panic!("an IPv4 socket");
        };
        let parts = [IoSlice::new(&[1; 10]), IoSlice::new(&[2; 14])];
        let size = sender.gso().then_some(10);
        sender.send(&parts, size, to).unwrap();
        let (mut buffer, mut lengths) = ([0; 100], Vec::new());
        while let Some(received) = receiver.receive(&mut buffer).unwrap() {
            assert_eq!(received.from, Ipv4Addr::LOCALHOST);
            let datagrams = buffer[..received.length].chunks(received.stride);
            lengths.extend(datagrams.map(<[u8]>::len));
        }
        let expected: &[usize] = if sender.gso() { &[10, 10, 4] } else { &[24] };
        assert_eq!(lengths, expected);
    }
}
