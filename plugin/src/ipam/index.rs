//! Which files an owner holds, without reading them all: a symbolic link for each owner whose
//! target lists the names of its files. The links are in `/run`: there they cost a tenth of what
//! they would beside the folder, and the first ADD or DEL after a boot, which finds none, knows
//! by that to look for what an earlier boot left.
//!
//! The folder's own modification time says whether the index is whole: twill sets it to
//! [`SEALED`] after every change of its own, and whatever host-local makes or removes there sets
//! it to now. A folder that is not sealed is read as a whole, once, and its index made anew.
//! A link is only a hint: what a file says is what counts. Both are changed under the lock.
//!
//! An index is its folder's by the folder's inode. By its path it would be another's as well:
//! what is there before a file system is mounted over it, and in other mount namespaces that see
//! the same `/run`; and two paths to one folder would make two.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::{Boot, Held, Owner};
use crate::attachment;

/// Seconds since the epoch: no change of today has this time. (1 was the seal of indexes that were
/// named after paths.)
const SEALED: i64 = 2;
/// The indexes of all networks' folders.
pub(super) const PLACE: &str = "/run/twill/owners";
/// Separates names in a link's target; no name has one.
const SEPARATOR: &str = "/";

/// The index of one network.
#[derive(Debug)]
pub(super) struct Index<'a> {
    /// What is indexed.
    folder: &'a Path,
    /// The index.
    pub(super) links: PathBuf,
}

impl<'a> Index<'a> {
    /// The index of the folder as it is now, among those in `place`; that of a folder that is not
    /// there is never whole.
    pub(super) fn of(folder: &'a Path, place: &Path) -> Self {
        let identity = fs::metadata(folder).map(|meta| (meta.dev(), meta.ino()));
        let (device, inode) = identity.unwrap_or_default();
        Index {
            folder,
            links: place.join(format!("{device:x}-{inode:x}")),
        }
    }
}

impl Index<'_> {
    /// Whether every file in the folder is in the index. Fails where there is no folder.
    pub(super) fn is_whole(&self) -> io::Result<bool> {
        let meta = fs::metadata(self.folder)?;
        if meta.mtime() != SEALED || meta.mtime_nsec() != 0 {
            return Ok(false);
        }
        // Should `/run` outlive a boot, its index does not.
        let began = Boot::began()?;
        Ok(fs::metadata(&self.links).is_ok_and(|links| links.mtime() >= began))
    }

    /// Says that it is.
    pub(super) fn seal(&self) {
        let time = TimeSpec::new(SEALED, 0);
        // Without it the next one reads the folder.
        let _ = utimensat(
            AT_FDCWD,
            self.folder,
            &time,
            &time,
            UtimensatFlags::FollowSymlink,
        );
    }

    /// The files that may be the owner's, and those that may be its container's as a whole.
    pub(super) fn names(&self, owner: &Owner<'_>) -> Vec<String> {
        let mut names = self.read(&self.link(owner.container_id, owner.ifname));
        names.extend(self.read(&self.link(owner.container_id, "")));
        names
    }

    /// Notes that a file is the holder's.
    pub(super) fn add(&self, held: &Held, name: &str) -> io::Result<()> {
        let link = self.link_of(held);
        match symlink(name, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut names = self.read(&link);
                names.retain(|known| known != name);
                names.push(name.to_owned());
                self.write(&link, &names)
            }
            other => other,
        }
    }

    /// Notes that it is not any more.
    pub(super) fn remove(&self, held: &Held, name: &str) -> io::Result<()> {
        let link = self.link_of(held);
        let mut names = self.read(&link);
        names.retain(|known| known != name);
        self.write(&link, &names)
    }

    /// Makes the index of these files in the place of what is there.
    pub(super) fn rebuild<'a>(
        &self,
        files: impl Iterator<Item = (&'a str, &'a Held)>,
    ) -> io::Result<()> {
        let mut owners: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for (name, held) in files {
            let names = owners.entry(self.link_of(held)).or_default();
            names.push(name.to_owned());
        }
        match fs::remove_dir_all(&self.links) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&self.links)?,
        }
        let mut owners = owners.into_iter();
        owners.try_for_each(|(link, names)| symlink(names.join(SEPARATOR), link))
    }

    fn write(&self, link: &Path, names: &[String]) -> io::Result<()> {
        match fs::remove_file(link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match names {
            [] => Ok(()),
            names => symlink(names.join(SEPARATOR), link),
        }
    }

    fn read(&self, link: &Path) -> Vec<String> {
        let target = fs::read_link(link).unwrap_or_default();
        let names = target.to_str().unwrap_or_default().split(SEPARATOR);
        let names = names.filter(|name| !["", ".", ".."].contains(name));
        names.map(str::to_owned).collect()
    }

    /// A link whose target may be anything.
    #[cfg(feature = "fuzz")]
    pub(super) fn plant(&self, owner: &Owner<'_>, listed: &std::ffi::OsStr) -> io::Result<()> {
        symlink(listed, self.link(owner.container_id, owner.ifname))
    }

    fn link_of(&self, held: &Held) -> PathBuf {
        match held {
            Held::By(id, ifname) => self.link(id, ifname),
            Held::ByContainer(id) => self.link(id, ""),
        }
    }

    /// Two owners may have one link: then it lists the files of both.
    fn link(&self, container_id: &str, ifname: &str) -> PathBuf {
        let hash = attachment::hash(&[container_id.as_bytes(), ifname.as_bytes()]);
        self.links.join(format!("{hash:016x}"))
    }
}
