//! Kernel settings below `/proc/sys`, of the calling thread's network namespace.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::file;

/// Reads a setting, without the newline behind it. `key` is a path below `/proc/sys`, e.g.
/// `net/ipv4/ip_forward`: dots in a device's name then need no escape.
pub fn read(key: &str) -> io::Result<String> {
    file::read_text(&path(key)).map(|text| text.trim_end().to_owned())
}

/// Writes a setting.
pub fn write(key: &str, value: &str) -> io::Result<()> {
    file::open(&path(key), OFlag::O_WRONLY, 0)?.write_all(value.as_bytes())
}

/// Writes a setting only where it differs: `/proc/sys` may be read-only and right already.
pub fn ensure(key: &str, value: &str) -> io::Result<()> {
    match read(key) {
        Ok(present) if present == value => Ok(()),
        _ => write(key, value),
    }
}

fn path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key)
}
