//! The data path of the backend `udp`: IPv4 packets between a TUN device and a UDP socket, for
//! hosts without VXLAN in the kernel. On the wire it is flannel's: a datagram to port 8285 holds
//! one bare IPv4 packet, without a header, encryption or proof of who sent it.
//!
//! ```text
//!  pods ─▶ flannel0 ─▶ outward: peer by destination, hop, cut ─▶ UDP ─▶ peer
//!  pods ◀─ flannel0 ◀─ inward:  source belongs to sender, hop, merge ◀─ UDP ◀─ peer
//! ```
//!
//! What flannel does one packet at a time is done for up to 64 at once: the device hands over TCP
//! streams in pieces of 64 kB, which leave in one send (`UDP_SEGMENT`), arrive in one receive
//! (`UDP_GRO`), and go to the other host's kernel in one piece again. Each step is asked of the
//! kernel and left out where it is not to be had, and [`Options`] can turn each of it off.
//!
//! `cut`, `merge`, `packet`, `checksum`, `icmp` and [`Peers`] are pure; `socket`,
//! `outward` and `inward` do the I/O. A started data path does not set up its device; [`device`] says
//! what there is to do (address, MTU, route).
//!
//! As flannel: one hop is counted on each side; a packet whose TTL runs out is dropped in silence;
//! what no lease covers is answered with "network unreachable"; datagrams that the network below
//! cannot carry whole are fragmented. Unlike flannel: a packet from a host that does not hold its
//! source's subnet is dropped, datagrams larger than the MTU are not truncated, a TTL of zero does
//! not wrap, and the host hears the ICMP.
//!
//! Why not the crates for it: quinn-udp forbids the kernel to fragment (`IP_PMTUDISC_PROBE`, right
//! for QUIC and wrong for a tunnel) and asks for a time stamp and an address with every datagram;
//! tun-rs copies each segment into a buffer of its own and brings a second netlink family along.
//! nix has the control messages of both offloads, and a TUN device is two ioctls.

pub(crate) mod checksum;
mod counters;
pub(crate) mod cut;
pub mod device;
mod drops;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
pub(crate) mod icmp;
mod inward;
pub(crate) mod merge;
mod outward;
pub(crate) mod packet;
mod peers;
mod shared;
pub(crate) mod socket;

use std::io::{self, PipeWriter};
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kernel::tun::{self, Offload};

use self::inward::Inward;
use self::outward::Outward;
use self::shared::Shared;

pub use self::counters::{Count, Counters};
pub use self::drops::{Dropped, Drops};
pub use self::peers::Peers;

/// Flannel's port.
pub const PORT: u16 = 8285;
/// Bytes of IP and UDP header around each packet: the device's MTU is that much smaller.
pub const OVERHEAD: u32 = 28;
/// The device's name, as flannel's first one.
pub const DEVICE: &str = "flannel0";

/// What to ask of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Streams in pieces of 64 kB from and to the device.
    pub device: bool,
    /// Many datagrams for each send.
    pub gso: bool,
    /// Many datagrams for each receive.
    pub gro: bool,
    /// Queues of the device, with two threads for each.
    pub queues: usize,
}

impl Options {
    /// One packet for each system call, as flannel does it.
    pub fn one_by_one() -> Self {
        Self {
            device: false,
            gso: false,
            gro: false,
            ..Self::default()
        }
    }

    fn is_one_by_one(self) -> bool {
        !self.device && !self.gso && !self.gro
    }
}

impl Default for Options {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            device: true,
            gso: true,
            gro: true,
            // Beyond, the kernel's own work is what limits.
            queues: processors.min(4),
        }
    }
}

/// Where the two ends are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    /// The device's name; `%d` stands for the first free number.
    pub device: String,
    /// The underlay's address, and the port.
    pub listen: SocketAddrV4,
}

/// What the kernel agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// What the device leaves to us.
    pub device: Offload,
    /// Queues, each with a socket and two threads.
    pub queues: usize,
    /// Many datagrams for each send.
    pub gso: bool,
    /// Many datagrams for each receive.
    pub gro: bool,
}

/// The data path could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No device.
    #[error("make the TUN device {device}: {source}{}", device_remedy(source))]
    Device {
        /// The name asked for.
        device: String,
        /// The cause.
        source: io::Error,
    },
    /// No socket.
    #[error("listen on UDP {listen}: {source}{}", socket_remedy(source))]
    Socket {
        /// The address and port asked for.
        listen: SocketAddrV4,
        /// The cause.
        source: io::Error,
    },
    /// No threads.
    #[error("start the threads of the udp data path: {0}")]
    Threads(io::Error),
}

fn device_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            ": load the module tun (modprobe tun), or give the container /dev/net/tun"
        }
        io::ErrorKind::PermissionDenied => ": it takes CAP_NET_ADMIN",
        io::ErrorKind::ResourceBusy => ": another process has it; is a flanneld still running?",
        _ => "",
    }
}

fn socket_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            ": stop the program that has it (ss -lunp names it), or choose another Backend.Port \
             for the whole cluster"
        }
        _ => "",
    }
}

/// Whether a data path could be started here, as far as that can be told without making anything:
/// the port is free and there is a way to TUN devices.
pub fn probe(ends: &Ends) -> Result<(), StartError> {
    let listen = ends.listen;
    let options = Options {
        queues: 1,
        ..Options::one_by_one()
    };
    socket::open(listen, options).map_err(|source| StartError::Socket { listen, source })?;
    let device = "/dev/net/tun";
    let opened = std::fs::File::options().read(true).write(true).open(device);
    opened.map(drop).map_err(|source| StartError::Device {
        device: ends.device.clone(),
        source,
    })
}

/// A running data path: it forwards until it is dropped, which also removes the device.
#[derive(Debug)]
pub struct DataPath {
    device: String,
    abilities: Abilities,
    shared: Arc<Shared>,
    failure: Arc<Mutex<Option<String>>>,
    /// Closed before the threads are waited for.
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl DataPath {
    /// Makes the device and opens the sockets in the calling thread's network namespace, and
    /// starts to forward. The device has no address and is down.
    pub fn start(ends: &Ends, options: Options, peers: Peers) -> Result<Self, StartError> {
        // The port first: while it is taken, somebody's device carries the traffic.
        let listen = ends.listen;
        let sockets = socket::open(listen, options)
            .map_err(|source| StartError::Socket { listen, source })?;
        let tun =
            tun::open(&ends.device, options.queues.max(1), options.device).map_err(|source| {
                StartError::Device {
                    device: ends.device.clone(),
                    source,
                }
            })?;
        let (stopped, stop) = io::pipe().map_err(StartError::Threads)?;
        let mut path = Self {
            abilities: Abilities {
                device: tun.offload,
                queues: tun.queues.len(),
                gso: sockets.iter().all(socket::Socket::gso),
                gro: sockets.iter().all(socket::Socket::gro),
            },
            device: tun.name.clone(),
            shared: Arc::new(Shared::new(peers, stopped)),
            failure: Arc::default(),
            stop: Some(stop),
            threads: Vec::new(),
        };
        path.start_threads(tun, sockets, options.is_one_by_one())
            .map_err(StartError::Threads)?;
        Ok(path)
    }

    fn start_threads(
        &mut self,
        tun: tun::Tun,
        mut sockets: Vec<socket::Socket>,
        one_by_one: bool,
    ) -> io::Result<()> {
        // Where the device has less queues than asked for, nobody would read the other sockets.
        sockets.truncate(tun.queues.len());
        let offload = tun.offload;
        for (number, (queue, socket)) in tun.queues.into_iter().zip(sockets).enumerate() {
            let mut outward = Outward {
                queue: queue.try_clone()?,
                socket: socket.try_clone()?,
                offload,
                one_by_one,
                shared: Arc::clone(&self.shared),
            };
            let mut inward = Inward {
                queue,
                socket,
                offload,
                one_by_one,
                shared: Arc::clone(&self.shared),
            };
            self.spawn(format!("udp-out-{number}"), move || outward.run())?;
            self.spawn(format!("udp-in-{number}"), move || inward.run())?;
        }
        Ok(())
    }

    fn spawn(
        &mut self,
        name: String,
        mut run: impl FnMut() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let failure = Arc::clone(&self.failure);
        let thread = std::thread::Builder::new().name(name.clone());
        self.threads.push(thread.spawn(move || {
            if let Err(error) = run() {
                let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert_with(|| format!("{name}: {error}"));
            }
        })?);
        Ok(())
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// What the kernel agreed to.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Replaces the table of peers, for packets read from now on.
    pub fn set_peers(&self, peers: Peers) {
        self.shared.set_peers(peers);
    }

    /// What was forwarded and dropped.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// What it drops from now on, to be told of it.
    pub fn drops(&self) -> Drops {
        Drops::of(Arc::clone(&self.shared))
    }

    /// Why it stopped forwarding by itself: the device was deleted. It has to be started anew.
    pub fn failure(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone()
    }
}

impl Drop for DataPath {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
