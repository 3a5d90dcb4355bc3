//! Whether a device leaves the checksums of what it sends to the hardware below it.

use nix::errno::Errno;

use crate::device::{ethtool, unless_missing};
use crate::error::{Error, Result};
use crate::socket::Socket;

/// The commands of `struct ethtool_value` (linux/ethtool.h).
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `ethtool -k NAME`, tx-checksumming. None if there is no such device, or it does not say.
pub fn sends_unfinished_checksums(socket: &Socket, name: &str) -> Result<Option<bool>> {
    let mut order = value(ETHTOOL_GTXCSUM, 0);
    let answer = match ethtool(socket, name, &mut order) {
        Err(Errno::EOPNOTSUPP) => return Ok(None),
        answer => unless_missing(name, answer)?,
    };
    Ok(answer.map(|()| order[4..] != [0; 4]))
}

/// `ethtool -K NAME tx off`: checksums are computed before a packet goes into the device, and with
/// that the device cuts no large packets either (TSO needs checksums). For a VXLAN device this is
/// `tx-checksum-ip-generic`.
pub fn finish_checksums(socket: &Socket, name: &str) -> Result<()> {
    let mut order = value(ETHTOOL_STXCSUM, 0);
    let done = ethtool(socket, name, &mut order);
    done.map_err(|errno| Error::io(format!("ethtool -K {name} tx off"), errno))
}

fn value(command: u32, data: u32) -> [u8; 8] {
    let mut order = [0; 8];
    order[..4].copy_from_slice(&command.to_ne_bytes());
    order[4..].copy_from_slice(&data.to_ne_bytes());
    order
}
