//! One file of the store's folder: read with care, because anybody may have put it there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use super::failed;
use crate::lease::Lease;
use crate::store::StoreError;
use crate::subnets::Subnets;

/// A lease is a few hundred bytes.
const LONGEST: u64 = 64 * 1024;

/// What a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The lease, or why it is none.
    pub(super) content: Result<(Subnets, Lease), String>,
    /// The file's mtime.
    pub(super) expires: SystemTime,
}

/// Whether a lease still counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Live,
    Expired,
}

/// What tells whether a file may have changed since it was read, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Entry {
    /// Only a readable lease expires: of anything else the mtime says when it was written, and
    /// deleting it is for a person to decide.
    pub(super) fn state(&self, now: SystemTime) -> State {
        match self.content {
            Ok(_) if self.expires <= now => State::Expired,
            _ => State::Live,
        }
    }
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let facts = fs::symlink_metadata(path)?;
        Ok(Self {
            inode: facts.ino(),
            size: facts.size(),
            // Changes with the content, the mtime and the mode, and cannot be set.
            changed: (facts.ctime(), facts.ctime_nsec()),
        })
    }
}

/// Whether a name is hidden: temporary files of editors and of copy programs.
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

/// Reads one file; `None` if there is none. Its name must be its lease's key.
pub(super) fn read(path: &Path) -> Result<Option<Entry>, StoreError> {
    match read_bounded(path) {
        Ok((text, expires)) => Ok(Some(Entry {
            content: decode(path, text),
            expires,
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // One file that cannot be opened must not stop the others.
        Err(error) => Ok(Some(Entry {
            content: Err(format!("cannot be read: {error}")),
            expires: SystemTime::UNIX_EPOCH,
        })),
    }
}

fn decode(path: &Path, text: Result<Vec<u8>, String>) -> Result<(Subnets, Lease), String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let subnets: Subnets = name.parse().map_err(|e| format!("its name: {e}"))?;
    let lease = Lease::parse(&text?).map_err(|e| format!("its value: {e}"))?;
    Ok((subnets, lease))
}

type Text = Result<Vec<u8>, String>;

fn read_bounded(path: &Path) -> io::Result<(Text, SystemTime)> {
    // A link out of the folder is not followed, and a pipe must not hang us.
    let file = File::options()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(path)?;
    let facts = file.metadata()?;
    let expires = facts.modified()?;
    if !facts.is_file() {
        return Ok((Err("not a regular file".to_owned()), expires));
    }
    let mut text = Vec::with_capacity(512);
    file.take(LONGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST {
        let problem = format!("more than {LONGEST} bytes are no lease");
        return Ok((Err(problem), expires));
    }
    Ok((Ok(text), expires))
}

/// The visible names in the folder, sorted.
pub(super) fn names(dir: &Path) -> Result<Vec<Box<str>>, StoreError> {
    let list = || -> io::Result<Vec<Box<str>>> {
        let mut names = Vec::new();
        for file in fs::read_dir(dir)? {
            let name = file?.file_name();
            let name = name.to_string_lossy();
            if !is_hidden(&name) {
                names.push(name.into());
            }
        }
        names.sort_unstable();
        Ok(names)
    };
    list().map_err(failed("list", dir))
}

/// Every visible file, by name.
pub(super) fn read_all(dir: &Path) -> Result<Vec<(Box<str>, Entry)>, StoreError> {
    let mut entries = Vec::new();
    for name in names(dir)? {
        if let Some(entry) = read(&dir.join(&*name))? {
            entries.push((name, entry));
        }
    }
    Ok(entries)
}
