//! Reservations on disk, in host-local's layout: `<dataDir>/<network>/` holds a file per address
//! (its owner inside), `last_reserved_ip.<n>` per range set, and `lock`. twill adds `boot_id`.
//!
//! Every change is made under the lock, by host-local too, and nothing is synced: what counts is
//! that a process killed at any point leaves files that the next one understands. What an owner
//! holds is found by the [`Index`].

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use fs2::FileExt;
use kernel::file;
use nix::fcntl::OFlag;

use super::index::{self, Index};
use super::{Boot, Held, IpamError, Owner};

/// The reservations of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Store {
    dir: PathBuf,
    /// Where its index is, among others.
    indexes: PathBuf,
}

/// A store that nobody else changes meanwhile.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    store: &'a Store,
    index: Index<'a>,
    /// The index is to be trusted, and is kept up with every change.
    whole: Cell<bool>,
    _lock: File,
}

const BOOT_ID: &str = "boot_id";

impl Store {
    /// The store of a network; nothing is read or made yet. `network` is a valid network name,
    /// and so a file name.
    pub(crate) fn new(data_dir: &Path, network: &str) -> Store {
        Store {
            dir: data_dir.join(network),
            indexes: PathBuf::from(index::PLACE),
        }
    }

    /// The same with its index beside the folder, so that nothing outside is touched.
    #[cfg(feature = "fuzz")]
    pub(crate) fn indexed_within(data_dir: &Path, network: &str) -> Store {
        Store {
            dir: data_dir.join(network),
            indexes: data_dir.join(".links"),
        }
    }

    /// Puts bytes where the index lists the owner's files, and says that the index is whole.
    #[cfg(feature = "fuzz")]
    pub(crate) fn mislead(&self, owner: &Owner<'_>, listed: &std::ffi::OsStr) -> io::Result<()> {
        fs::create_dir_all(&self.index().links)?;
        self.index().plant(owner, listed)?;
        self.index().seal();
        Ok(())
    }

    fn index(&self) -> Index<'_> {
        Index::of(&self.dir, &self.indexes)
    }

    /// Waits for the lock; makes the folder where it is missing.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, IpamError> {
        let path = self.dir.join("lock");
        let file = match open_lock(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(&self.dir)
                    .map_err(IpamError::io("create folder", &self.dir))?;
                open_lock(&path)
            }
            other => other,
        }
        .map_err(IpamError::io("open lock", &path))?;
        FileExt::lock_exclusive(&file).map_err(IpamError::io("lock", &path))?;
        Ok(Locked {
            store: self,
            index: self.index(),
            whole: Cell::new(false),
            _lock: file,
        })
    }

    /// The addresses that have a file, whatever is in it. None where the folder is missing.
    pub(crate) fn addresses(&self) -> Result<Vec<IpAddr>, IpamError> {
        let files = self.files()?;
        Ok(files.into_iter().filter_map(|(_, ip)| ip).collect())
    }

    /// The address that was reserved last from a range set. What cannot be read is no address.
    pub(crate) fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        last_reserved(&self.dir, set)
    }

    /// Whether nobody has a file of the address.
    pub(crate) fn is_free(&self, ip: IpAddr) -> bool {
        let meta = fs::symlink_metadata(self.dir.join(ip.to_string()));
        meta.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    }

    /// Who holds the address; None if nobody does.
    pub(crate) fn holder_of(&self, ip: IpAddr) -> Option<Held> {
        read_holder(&self.dir.join(ip.to_string()))
    }

    /// Whether the owner holds any address.
    pub(crate) fn holds_any(&self, owner: &Owner<'_>) -> Result<bool, IpamError> {
        let index = self.index();
        let hinted = index.names(owner);
        let is = |name: &String| read_holder(&self.dir.join(name)).is_some_and(|h| h.is(owner));
        if index.is_whole().unwrap_or(false) && hinted.iter().any(is) {
            return Ok(true);
        }
        Ok(self.held()?.iter().any(|(_, held)| held.is(owner)))
    }

    /// What the owner holds, without reading a file: None where that needs one. An address more
    /// may be among them.
    pub(crate) fn surely_held(&self, owner: &Owner<'_>) -> Option<Vec<IpAddr>> {
        let index = self.index();
        let whole = index.is_whole().unwrap_or(false);
        whole.then(|| {
            index
                .names(owner)
                .iter()
                .flat_map(|name| name.parse())
                .collect()
        })
    }

    /// Whether the owner is sure to hold nothing. Reads no file: where that needs one, it is not
    /// sure.
    pub(crate) fn surely_holds_nothing(&self, owner: &Owner<'_>) -> bool {
        let index = self.index();
        index.is_whole().unwrap_or(false) && index.names(owner).is_empty()
    }

    /// Removes everything that the owner holds, whatever the file's name; nothing to remove is
    /// fine. Legacy files are the owner's only if it has no other, as for host-local.
    ///
    /// Runtimes repeat DEL: one that finds nothing reads no file and takes no lock, unless
    /// somebody else changed the folder.
    pub(crate) fn release(&self, owner: &Owner<'_>) -> Result<(), IpamError> {
        let index = self.index();
        match index.is_whole() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Ok(true) if index.names(owner).is_empty() => return Ok(()),
            _ => {}
        }
        let locked = self.lock()?;
        locked.make_index()?;
        let mut found = locked.held_by(owner)?;
        if found.iter().any(|(_, held)| matches!(held, Held::By(..))) {
            found.retain(|(_, held)| matches!(held, Held::By(..)));
        }
        let mut found = found.iter();
        found.try_for_each(|(name, held)| locked.remove(name, held))
    }

    /// Removes every reservation that says whose it is, unless it is to be `kept`; returns whose
    /// they were.
    pub(crate) fn release_others(
        &self,
        kept: impl Fn(&Held) -> bool,
    ) -> Result<Vec<Held>, IpamError> {
        let mut found = self.held()?;
        found.retain(|(_, held)| !kept(held));
        if found.is_empty() {
            return Ok(vec![]);
        }
        let locked = self.lock()?;
        locked.make_index()?;
        for (name, held) in &found {
            // Since it was read a DEL may have released it, and an ADD reserved it again.
            if read_holder(&self.dir.join(name)).as_ref() == Some(held) {
                locked.remove(name, held)?;
            }
        }
        Ok(found.into_iter().map(|(_, held)| held).collect())
    }

    /// Gives back addresses that this process has just reserved.
    pub(crate) fn give_back(&self, ips: impl IntoIterator<Item = IpAddr>) -> Result<(), IpamError> {
        let locked = self.lock()?;
        locked.make_index()?;
        ips.into_iter().try_for_each(|ip| locked.give_back(ip))
    }

    fn held(&self) -> Result<Vec<(String, Held)>, IpamError> {
        let files = self.files()?.into_iter();
        Ok(files
            .filter_map(|(name, _)| read_holder(&self.dir.join(&name)).map(|held| (name, held)))
            .collect())
    }

    /// The folder's files that could be reservations, and the address that each is named after.
    fn files(&self) -> Result<Vec<(String, Option<IpAddr>)>, IpamError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
            other => other.map_err(IpamError::io("read folder", &self.dir))?,
        };
        let mut files = vec![];
        for entry in entries {
            let entry = entry.map_err(IpamError::io("read folder", &self.dir))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                continue;
            };
            let ours = name == "lock" || name == BOOT_ID || name.starts_with("last_reserved_ip.");
            if !ours {
                files.push((name.to_owned(), name.parse().ok()));
            }
        }
        Ok(files)
    }
}

impl Locked<'_> {
    /// Makes the index whole if it is not, as it is at the first call after a boot: comes before
    /// every look at it and every change.
    pub(crate) fn make_index(&self) -> Result<(), IpamError> {
        let whole = self.index.is_whole().unwrap_or(false) || {
            if let Ok(boot) = Boot::current() {
                self.forget_earlier_boots(&boot)?;
            }
            self.remove_torn()?;
            let held = self.store.held()?;
            let files = held.iter().map(|(name, held)| (name.as_str(), held));
            self.index.rebuild(files).is_ok()
        };
        self.whole.set(whole);
        Ok(())
    }

    /// Removes reservations that name nobody: whoever made them was killed before it wrote them, or
    /// it would still have the lock that we have.
    fn remove_torn(&self) -> Result<(), IpamError> {
        for (name, ip) in self.store.files()? {
            let path = self.store.dir.join(name);
            if ip.is_some() && is_nobodys(&path) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// The files that are the owner's, and those of its container as a whole.
    pub(crate) fn held_by(&self, owner: &Owner<'_>) -> Result<Vec<(String, Held)>, IpamError> {
        let mut found: Vec<(String, Held)> = match self.whole.get() {
            false => self.store.held()?,
            true => (self.index.names(owner).into_iter())
                .filter_map(|name| Some((read_holder(&self.store.dir.join(&name))?, name)))
                .map(|(held, name)| (name, held))
                .collect(),
        };
        found.retain(|(_, held)| held.is(owner));
        Ok(found)
    }

    fn remove(&self, name: &str, held: &Held) -> Result<(), IpamError> {
        remove(&self.store.dir.join(name))?;
        self.keep_up(|index| index.remove(held, name));
        Ok(())
    }

    /// An index that could not be kept up is made anew by the next one.
    fn keep_up(&self, change: impl FnOnce(&Index<'_>) -> io::Result<()>) {
        if self.whole.get() {
            self.whole.set(change(&self.index).is_ok());
        }
    }

    /// Reserves the address, unless it is somebody's. A file that names nobody was left by a process
    /// that was killed between making and writing it, or by a disk that lost it, and is free.
    pub(crate) fn take(&self, ip: IpAddr, owner: &Owner<'_>) -> Result<bool, IpamError> {
        let name = ip.to_string();
        let path = self.store.dir.join(&name);
        let new = OFlag::O_CREAT | OFlag::O_EXCL;
        let open = |how| file::open(&path, OFlag::O_WRONLY | how, 0o600);
        let file = match open(new) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !is_nobodys(&path) {
                    return Ok(false);
                }
                open(OFlag::O_TRUNC)
            }
            other => other,
        };
        file.and_then(|mut file| file.write_all(owner.content().as_bytes()))
            .map_err(IpamError::io("write reservation", &path))?;
        self.keep_up(|index| index.add(&owner.held(), &name));
        Ok(true)
    }

    /// Gives back an address that was just taken.
    pub(crate) fn give_back(&self, ip: IpAddr) -> Result<(), IpamError> {
        let name = ip.to_string();
        match read_holder(&self.store.dir.join(&name)) {
            Some(held) => self.remove(&name, &held),
            None => remove(&self.store.dir.join(&name)),
        }
    }

    /// See [`Store::last_reserved`].
    pub(crate) fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        last_reserved(&self.store.dir, set)
    }

    /// Where the next search starts. A torn file, or one that is none, only makes it start
    /// elsewhere.
    pub(crate) fn set_last_reserved(&self, set: usize, ip: IpAddr) {
        let _ = overwrite(&last_reserved_path(&self.store.dir, set), &ip.to_string());
    }

    /// Frees what was reserved before the machine was started, once per boot: no container of that
    /// time lives.
    ///
    /// A folder without a boot ID is adopted as it is: host-local made it, perhaps just now. For
    /// the same reason only files older than this boot go, even where the ID is another one.
    pub(crate) fn forget_earlier_boots(&self, boot: &Boot) -> Result<(), IpamError> {
        let path = self.store.dir.join(BOOT_ID);
        match file::read_text(&path) {
            Ok(stamp) if stamp.trim() == boot.id => return Ok(()),
            Ok(_) => {
                for (name, ip) in self.store.files()? {
                    let file = self.store.dir.join(name);
                    let old = |meta: fs::Metadata| meta.mtime() < boot.started;
                    if ip.is_some() && fs::metadata(&file).is_ok_and(old) {
                        remove(&file)?;
                    }
                }
            }
            Err(_) => {}
        }
        // Where it cannot be written, the next one that reads the folder looks again.
        let _ = write(&path, &boot.id);
        Ok(())
    }
}

impl Drop for Locked<'_> {
    /// Before the lock goes.
    fn drop(&mut self) {
        if self.whole.get() {
            self.index.seal();
        }
    }
}

fn last_reserved_path(dir: &Path, set: usize) -> PathBuf {
    dir.join(format!("last_reserved_ip.{set}"))
}

fn last_reserved(dir: &Path, set: usize) -> Option<IpAddr> {
    let text = file::read_text(&last_reserved_path(dir, set));
    text.ok()?.parse().ok()
}

/// As host-local opens it: read-only, so that a lock file of whatever mode will do.
fn open_lock(path: &Path) -> io::Result<File> {
    file::open(path, OFlag::O_RDONLY | OFlag::O_CREAT, 0o750)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let how = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
    let mut file = file::open(path, how, 0o600)?;
    file.write_all(text.as_bytes())
}

/// As [`write()`], but without emptying the file first: on ext4 that makes the close wait for the
/// disk to begin writing. Killed between its two steps it leaves the end of the old text behind the
/// new one, which host-local takes for no address, or another one.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = file::open(path, OFlag::O_WRONLY | OFlag::O_CREAT, 0o600)?;
    let length = file.metadata()?.len();
    file.write_all(text.as_bytes())?;
    match length > text.len() as u64 {
        true => file.set_len(text.len() as u64),
        false => Ok(()),
    }
}

fn read_holder(path: &Path) -> Option<Held> {
    // What is no text is a holder that no runtime knows, so that GC takes it away.
    Held::parse(&String::from_utf8_lossy(&file::read(path).ok()?))
}

/// Whether the file can be read, and has nobody in it: a file system that lost its end in a crash
/// leaves zero bytes, as many as there were.
fn is_nobodys(path: &Path) -> bool {
    let is_file = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
    let nobody = |bytes: Vec<u8>| Held::parse(&String::from_utf8_lossy(&bytes)).is_none();
    is_file && file::read(path).is_ok_and(nobody)
}

fn remove(path: &Path) -> Result<(), IpamError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(IpamError::io("remove", path)),
    }
}

#[cfg(test)]
mod tests;
