//! The floor under every CNI plugin: the least that a process can do for the same result.
//!
//! No parsing, no lookups, no reservation, no result: the numbers come as arguments, the messages
//! are bytes. The benchmark sets plugins beside it. It is built static, as twill is:
//!
//! - `floor nothing`: starts and ends;
//! - `floor add NETNS BRIDGE-INDEX HOST-IFNAME HOST-INDEX ADDRESS PREFIX GATEWAY NETWORK MTU`;
//! - `floor del HOST-IFNAME`;
//! - `floor rusage PROGRAM ARGS…`: runs PROGRAM with the same environment, stdin and stdout, and writes
//!   its peak RSS in KiB to stderr. A child begins with its parent's pages, so the peak of a small
//!   program can only be seen from a smaller one.

use std::error::Error;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

type Outcome = Result<(), Box<dyn Error>>;

/// The pod's interface gets this index, which is free beside a loopback. The kernel heeds it when
/// the host's end asks for one too (drivers/net/veth.c).
const POD_INDEX: u32 = 2;

const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args[..] {
        ["nothing"] => Ok(()),
        [
            "add",
            netns,
            bridge,
            host,
            index,
            address,
            prefix,
            gateway,
            network,
            mtu,
        ] => {
            let ips = [address, gateway, network];
            add(netns, host, &ips, [bridge, index, prefix, mtu])
        }
        ["del", host] => del(host),
        ["rusage", program, ref args @ ..] => rusage(program, args),
        _ => Err("nothing | add … | del IFNAME | rusage PROGRAM ARGS…".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn add(netns: &str, host: &str, ips: &[&str; 3], numbers: [&str; 4]) -> Outcome {
    let pod = std::fs::File::open(netns)?;
    let [address, gateway, network] = ips;
    let (address, gateway): (Ipv4Addr, Ipv4Addr) = (address.parse()?, gateway.parse()?);
    let (network, length) = network
        .split_once('/')
        .ok_or("a network has a prefix length")?;
    let (network, length): (Ipv4Addr, u8) = (network.parse()?, length.parse()?);
    let [bridge, index, prefix, mtu] = numbers.map(str::parse::<u32>);
    let (bridge, index, prefix, mtu) = (bridge?, index?, u8::try_from(prefix?)?, mtu?);

    // ip link add HOST index INDEX mtu MTU master BRIDGE up type veth \
    //     peer eth0 index 2 mtu MTU netns POD
    // ip link set HOST type bridge_slave hairpin on
    let mut batch = Batch::default();
    batch.message(
        libc::RTM_NEWLINK,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        |m| {
            m.link(index, libc::IFF_UP as u32);
            m.text(libc::IFLA_IFNAME, host);
            m.number(libc::IFLA_MTU, mtu);
            m.number(libc::IFLA_MASTER, bridge);
            m.nest(libc::IFLA_LINKINFO, |m| {
                m.text(libc::IFLA_INFO_KIND, "veth");
                m.nest(libc::IFLA_INFO_DATA, |m| {
                    m.nest(VETH_INFO_PEER, |m| {
                        m.link(POD_INDEX, 0);
                        m.text(libc::IFLA_IFNAME, "eth0");
                        m.number(libc::IFLA_MTU, mtu);
                        m.number(libc::IFLA_NET_NS_FD, pod.as_raw_fd() as u32);
                    });
                });
            });
        },
    );
    batch.message(libc::RTM_NEWLINK, libc::NLM_F_ACK, |m| {
        m.link(0, 0);
        m.text(libc::IFLA_IFNAME, host);
        m.nest(libc::IFLA_LINKINFO, |m| {
            m.text(libc::IFLA_INFO_SLAVE_KIND, "bridge");
            m.nest(libc::IFLA_INFO_SLAVE_DATA, |m| {
                m.attribute(IFLA_BRPORT_MODE, &[1])
            });
        });
    });
    batch.send(&netlink()?)?;

    setns(&pod, CloneFlags::CLONE_NEWNET)?;
    // ip addr add ADDRESS/PREFIX dev eth0; ip link set eth0 up
    // ip route add NETWORK via GATEWAY; ip route add default via GATEWAY
    let mut batch = Batch::default();
    batch.message(
        libc::RTM_NEWADDR,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        |m| {
            m.bytes(&[libc::AF_INET as u8, prefix, 0, 0]);
            m.bytes(&POD_INDEX.to_ne_bytes());
            m.attribute(libc::IFA_LOCAL, &address.octets());
            m.attribute(libc::IFA_ADDRESS, &address.octets());
            let broadcast = u32::from(address) | u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            m.attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes());
        },
    );
    batch.message(libc::RTM_NEWLINK, 0, |m| {
        m.link(POD_INDEX, libc::IFF_UP as u32)
    });
    for (dst, length, ack) in [
        (network, length, 0),
        (Ipv4Addr::UNSPECIFIED, 0, libc::NLM_F_ACK),
    ] {
        batch.message(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | ack, |m| {
            let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT);
            let scope = libc::RT_SCOPE_UNIVERSE;
            let kind = libc::RTN_UNICAST;
            m.bytes(&[
                libc::AF_INET as u8,
                length,
                0,
                0,
                table,
                protocol,
                scope,
                kind,
            ]);
            m.bytes(&[0; 4]);
            m.attribute(libc::RTA_DST, &dst.octets());
            m.attribute(libc::RTA_GATEWAY, &gateway.octets());
            m.number(libc::RTA_OIF, POD_INDEX);
        });
    }
    batch.send(&netlink()?)
}

fn del(host: &str) -> Outcome {
    // ip link del HOST
    let mut batch = Batch::default();
    batch.message(libc::RTM_DELLINK, libc::NLM_F_ACK, |m| {
        m.link(0, 0);
        m.text(libc::IFLA_IFNAME, host);
    });
    batch.send(&netlink()?)
}

fn rusage(program: &str, args: &[&str]) -> Outcome {
    let status = std::process::Command::new(program).args(args).status()?;
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    eprintln!("{}", used.max_rss());
    status
        .success()
        .then_some(())
        .ok_or_else(|| format!("{program}: {status}").into())
}

fn netlink() -> nix::Result<OwnedFd> {
    let route = SockProtocol::NetlinkRoute;
    socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        route,
    )
}

/// Netlink messages that are sent together; only the last one asks for an answer.
#[derive(Default)]
struct Batch(Vec<u8>);

impl Batch {
    fn message(&mut self, kind: u16, flags: libc::c_int, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        self.bytes(&[0; 4]);
        self.bytes(&kind.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
        self.bytes(&[0; 8]);
        fill(self);
        let length = (self.0.len() - start) as u32;
        self.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// struct ifinfomsg
    fn link(&mut self, index: u32, flags: u32) {
        self.bytes(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
        for field in [index, flags, flags] {
            self.bytes(&field.to_ne_bytes());
        }
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.bytes(&[0; 2]);
        self.bytes(&kind.to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |m| m.bytes(value));
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), b"\0"].concat());
    }

    /// The kernel has done everything when send returns; what it answers is the last message's
    /// acknowledgement, or the first failure.
    fn send(&self, socket: &OwnedFd) -> Outcome {
        send(socket.as_raw_fd(), &self.0, MsgFlags::empty())?;
        let mut answer = [0; 1024];
        recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        // struct nlmsghdr (16 bytes), then the error number of struct nlmsgerr.
        match i32::from_ne_bytes(answer[16..20].try_into()?) {
            0 => Ok(()),
            error => Err(std::io::Error::from_raw_os_error(-error).into()),
        }
    }
}
