//! A device by its name, as far as ioctls tell: a link message answers with hundreds of attributes
//! and waits for rtnl, which is what a plugin that lives for a millisecond spends its time on.

use std::ffi::c_int;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc::{self, ifreq};
use nix::sys::socket::{setsockopt, sockopt};

use crate::error::{Error, Result};
use crate::mac::Mac;
use crate::socket::Socket;

mod ioctl {
    #![allow(
        missing_docs,
        reason = "the macro makes public functions; what they do: netdevice(7)"
    )]
    use nix::libc::{self, ifreq};
    nix::ioctl_readwrite_bad!(index, libc::SIOCGIFINDEX, ifreq);
    nix::ioctl_readwrite_bad!(flags, libc::SIOCGIFFLAGS, ifreq);
    nix::ioctl_readwrite_bad!(mtu, libc::SIOCGIFMTU, ifreq);
    nix::ioctl_readwrite_bad!(hardware_address, libc::SIOCGIFHWADDR, ifreq);
    nix::ioctl_readwrite_bad!(ethtool, libc::SIOCETHTOOL, ifreq);
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its number in its namespace.
    pub ifindex: u32,
    /// Its driver, as `ethtool -i` says it: `bridge`, `veth`, …; empty where it has none.
    pub driver: String,
    /// Administratively up.
    pub up: bool,
    /// Receives everything.
    pub promiscuous: bool,
    /// Bytes of payload of one frame.
    pub mtu: u32,
    /// None for devices without Ethernet addresses.
    pub mac: Option<Mac>,
}

/// The device of that name in the socket's namespace; None if there is none.
pub fn by_name(socket: &Socket, name: &str) -> Result<Option<Device>> {
    let Some(ifindex) = index(socket, name)? else {
        return Ok(None);
    };
    let facts = || {
        let flags = ask(socket, name, ioctl::flags)?;
        // SAFETY: SIOCGIFFLAGS fills this member.
        let flags = c_int::from(unsafe { flags.ifr_ifru.ifru_flags });
        Ok(Device {
            ifindex,
            driver: ask_driver(socket, name)?,
            up: flags & libc::IFF_UP != 0,
            promiscuous: flags & libc::IFF_PROMISC != 0,
            mtu: ask_mtu(socket, name)?,
            mac: ask_mac(socket, name)?,
        })
    };
    unless_missing(name, facts())
}

/// Its number in the socket's namespace; None if there is none of that name.
///
/// For a name that nobody has the ioctl would run `modprobe` and wait for it (`dev_load`,
/// net/core/dev_ioctl.c), which takes longer than a whole ADD. To bind a socket to a device looks
/// for the name alone, and to one of netlink the binding means nothing.
pub fn index(socket: &Socket, name: &str) -> Result<Option<u32>> {
    match setsockopt(&socket.fd(), sockopt::BindToDevice, &name.into()) {
        Err(Errno::ENODEV) => Ok(None),
        // Whoever may not bind may ask all the same.
        _ => unless_missing(name, ask_index(socket, name)),
    }
}

/// Its hardware address; None if there is no such device, or it has no Ethernet address.
pub fn mac(socket: &Socket, name: &str) -> Result<Option<Mac>> {
    unless_missing(name, ask_mac(socket, name)).map(Option::flatten)
}

/// Its MTU in bytes; None if there is no such device.
pub fn mtu(socket: &Socket, name: &str) -> Result<Option<u32>> {
    unless_missing(name, ask_mtu(socket, name))
}

fn ask_index(socket: &Socket, name: &str) -> nix::Result<u32> {
    let answer = ask(socket, name, ioctl::index)?;
    // SAFETY: SIOCGIFINDEX fills this member.
    Ok(unsafe { answer.ifr_ifru.ifru_ifindex }.unsigned_abs())
}

fn ask_mtu(socket: &Socket, name: &str) -> nix::Result<u32> {
    let answer = ask(socket, name, ioctl::mtu)?;
    // SAFETY: SIOCGIFMTU fills this member.
    Ok(unsafe { answer.ifr_ifru.ifru_mtu }.unsigned_abs())
}

fn ask_mac(socket: &Socket, name: &str) -> nix::Result<Option<Mac>> {
    let answer = ask(socket, name, ioctl::hardware_address)?;
    // SAFETY: SIOCGIFHWADDR fills this member.
    let address = unsafe { answer.ifr_ifru.ifru_hwaddr };
    let bytes = address.sa_data.map(|c| c as u8);
    Ok(match address.sa_family {
        libc::ARPHRD_ETHER => Mac::from_slice(&bytes[..6]),
        _ => None,
    })
}

fn ask_driver(socket: &Socket, name: &str) -> nix::Result<String> {
    // struct ethtool_drvinfo (linux/ethtool.h): the command, the driver's name in 32 bytes, more.
    const ETHTOOL_GDRVINFO: u32 = 3;
    const DRIVER: std::ops::Range<usize> = 4..36;
    let mut info = [0_u8; 196];
    info[..4].copy_from_slice(&ETHTOOL_GDRVINFO.to_ne_bytes());
    match ethtool(socket, name, &mut info) {
        Ok(()) => {
            let name = info[DRIVER].split(|byte| *byte == 0).next();
            Ok(String::from_utf8_lossy(name.unwrap_or_default()).into_owned())
        }
        Err(Errno::EOPNOTSUPP) => Ok(String::new()),
        Err(errno) => Err(errno),
    }
}

/// What `ethtool` asks of a device. `order` begins with the command, has the size that belongs to
/// it, and is where the kernel answers.
pub(crate) fn ethtool(socket: &Socket, name: &str, order: &mut [u8]) -> nix::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = order.as_mut_ptr().cast();
    // SAFETY: this one reads and fills the structure that the request points to, which outlives it.
    unsafe { ioctl::ethtool(socket.fd().as_raw_fd(), &raw mut request) }.map(drop)
}

type Ask = unsafe fn(c_int, *mut ifreq) -> nix::Result<c_int>;

fn ask(socket: &Socket, name: &str, ask: Ask) -> nix::Result<ifreq> {
    let mut request = request(name)?;
    // SAFETY: the request reads the name and writes one member of one ifreq, which outlives it.
    unsafe { ask(socket.fd().as_raw_fd(), &raw mut request) }?;
    Ok(request)
}

fn request(name: &str) -> nix::Result<ifreq> {
    // SAFETY: an ifreq is plain old data, for which all zeroes is a value.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

pub(crate) fn unless_missing<T>(name: &str, answer: nix::Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(Error::io(format!("look at the device {name}"), errno)),
    }
}
