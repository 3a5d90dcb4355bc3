//! Kernel settings below `/proc/sys`, of the calling thread's network namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Reads a setting, without the newline behind it. `key` is a path below `/proc/sys`, e.g.
/// `net/ipv4/ip_forward`: dots in a device's name then need no escape.
pub fn read(key: &str) -> io::Result<String> {
    fs::read_to_string(path(key)).map(|text| text.trim_end().to_owned())
}

/// Writes a setting.
pub fn write(key: &str, value: &str) -> io::Result<()> {
    fs::write(path(key), value)
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
