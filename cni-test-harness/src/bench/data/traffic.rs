//! What is sent from one node to the other, and how much of it arrives: plain sockets, a thread on
//! either side, nothing that the system would have to have installed.
//!
//! Counted is what the receiver gets within a slice of time, after a moment in which the connection
//! finds its speed.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpCongestion;

use super::way::Site;

/// How long nothing may arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long traffic flows before it is counted.
const WARM_UP: Duration = Duration::from_millis(100);
/// It sends what is acknowledged and has no clock of its own, as BBR has; every kernel has it.
const CONGESTION_CONTROL: &str = "reno";
/// Bytes of a write to a stream, and of a read.
const CHUNK: usize = 128 << 10;
/// Bytes in a large datagram: they fit in a packet of every way.
pub(super) const LARGE: usize = 1_400;
/// Bytes in a small one: 64 with IP and UDP header.
const SMALL: usize = 36;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// One stream, bits per second.
    Tcp,
    /// Large datagrams, one for each system call, bits per second of their contents.
    Udp,
    /// One byte there and one back on a standing connection, per second.
    RoundTrips,
    /// Small datagrams, one for each system call, per second.
    SmallPackets,
}

impl Measure {
    pub(super) const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::RoundTrips, Self::SmallPackets];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::RoundTrips => "round trips",
            Self::SmallPackets => "64-byte packets",
        }
    }
}

/// One slice of one measure.
pub(super) fn measure(site: &Site, measure: Measure, slice: Duration) -> Result<f64> {
    let seconds = |amount: u64, time: Duration| amount as f64 / time.as_secs_f64();
    match measure {
        Measure::Tcp => {
            let (bytes, time) = tcp(site, slice)?;
            Ok(8.0 * seconds(bytes, time))
        }
        Measure::Udp => {
            let (datagrams, time) = udp(site, LARGE, slice)?;
            Ok(8.0 * LARGE as f64 * seconds(datagrams, time))
        }
        Measure::SmallPackets => {
            let (datagrams, time) = udp(site, SMALL, slice)?;
            Ok(seconds(datagrams, time))
        }
        Measure::RoundTrips => {
            let (count, time) = round_trips(site, slice)?;
            Ok(seconds(count, time))
        }
    }
}

/// Two ends of a connection, each in its node's namespace, and made there.
fn connect(site: &Site) -> Result<(TcpStream, TcpStream)> {
    let to = site.to();
    let listener = site
        .there()
        .run(|| TcpListener::bind((to, 0)).context("listen"))?;
    let address = listener.local_addr()?;
    let near = site.from().run(|| {
        TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("connect to {address}"))
    })?;
    let (far, _) = listener.accept()?;
    setsockopt(&near, TcpCongestion, &CONGESTION_CONTROL.into())?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((near, far))
}

fn tcp(site: &Site, slice: Duration) -> Result<(u64, Duration)> {
    let (mut near, mut far) = connect(site)?;
    both(
        |stop| {
            let chunk = vec![b'x'; CHUNK];
            while !stop.load(Ordering::Relaxed) {
                match near.write(&chunk).map_err(|error| (error.kind(), error)) {
                    Ok(_) => {}
                    // The other end has seen enough.
                    Err((ErrorKind::BrokenPipe | ErrorKind::ConnectionReset, _)) => break,
                    Err((_, error)) => return Err(error).context("send"),
                }
            }
            Ok(())
        },
        || {
            let mut chunk = vec![0; CHUNK];
            let counted = count(slice, || {
                let length = far.read(&mut chunk).context("receive")?;
                Ok(length as u64)
            });
            // What is on its way would hold the sender's last write up.
            drop(far);
            counted
        },
    )
}

fn udp(site: &Site, length: usize, slice: Duration) -> Result<(u64, Duration)> {
    let to = site.to();
    let far = site
        .there()
        .run(|| UdpSocket::bind((to, 0)).context("bind"))?;
    let address = far.local_addr()?;
    far.set_read_timeout(Some(PATIENCE))?;
    let near = site.from().run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
        socket.connect(address).context("connect")?;
        Ok(socket)
    })?;
    both(
        |stop| {
            let datagram = vec![b'x'; length];
            while !stop.load(Ordering::Relaxed) {
                match near.send(&datagram) {
                    Ok(_) => {}
                    // The receiver is gone at the end; before, a device may be out of room.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
                    Err(error) => return Err(error).context("send"),
                }
            }
            Ok(())
        },
        || {
            let mut datagram = vec![0; length];
            count(slice, || {
                let received = far.recv(&mut datagram).context("receive")?;
                Ok(u64::from(received == length))
            })
        },
    )
}

fn round_trips(site: &Site, slice: Duration) -> Result<(u64, Duration)> {
    let (mut near, mut far) = connect(site)?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            let mut byte = [0];
            while far.read(&mut byte)? == 1 {
                far.write_all(&byte)?;
            }
            Ok(())
        });
        let mut byte = *b"x";
        let counted = count(slice, || {
            near.write_all(&byte).context("send")?;
            near.read_exact(&mut byte).context("receive")?;
            Ok(1)
        });
        drop(near);
        let echoed = echo.join().map_err(|_| anyhow!("the echo panicked"))?;
        let counted = counted?;
        echoed.context("echo")?;
        Ok(counted)
    })
}

/// Sends until the receiver has counted.
fn both(
    send: impl FnOnce(&AtomicBool) -> Result<()> + Send,
    receive: impl FnOnce() -> Result<(u64, Duration)>,
) -> Result<(u64, Duration)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&stop));
        let stopping = StopAtEnd(&stop);
        let counted = receive();
        drop(stopping);
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        let counted = counted?;
        sent?;
        Ok(counted)
    })
}

/// Tells the sender to end, also when the receiver panics.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sums up what `next` brings within a slice of time, which begins when the warm-up is over.
fn count(slice: Duration, mut next: impl FnMut() -> Result<u64>) -> Result<(u64, Duration)> {
    let warm = Instant::now() + WARM_UP;
    while Instant::now() < warm {
        next()?;
    }
    let (began, mut sum) = (Instant::now(), 0);
    loop {
        // The clock costs a part of what a small packet does.
        for _ in 0..8 {
            sum += next()?;
        }
        let time = began.elapsed();
        if time >= slice {
            return Ok((sum, time));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_the_warm_up_is_counted_until_the_slice_is_over() {
        let start = Instant::now();
        let slice = Duration::from_millis(5);
        let (sum, time) = count(slice, || Ok(u64::from(start.elapsed() >= WARM_UP))).unwrap();
        assert!(sum > 0 && sum % 8 == 0 && time >= slice, "{sum} {time:?}");
        let broken = count(slice, || Err(anyhow!("nothing comes")));
        assert_eq!(broken.unwrap_err().to_string(), "nothing comes");
    }
}
