//! Network namespaces, by the file that names them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::fstatfs;

use crate::file;
use crate::socket::Socket;

/// `f_type` of a namespace file (`NSFS_MAGIC`) and of procfs, whose `/proc/PID/ns/net` older
/// kernels serve themselves (CNI's plugins accept both).
const NSFS_MAGIC: i64 = 0x6e73_6673;
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// The calling thread's.
const OWN: &str = "/proc/thread-self/ns/net";

mod ioctl {
    #![allow(
        missing_docs,
        reason = "the macro makes a public function; what it does: linux/sockios.h"
    )]
    nix::ioctl_none_bad!(namespace, 0x894c);
    nix::ioctl_none_bad!(kind_of_namespace, 0xb703); // linux/nsfs.h
}

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

/// A namespace could not be opened or entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The file is not there.
    #[error("network namespace {0:?} does not exist", path.display())]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// The file is something else, e.g. the mount point that a crash left behind.
    #[error("{0:?} is not a network namespace (file system type {magic:x})", path.display())]
    NotANamespace {
        /// The path asked for.
        path: PathBuf,
        /// The type of the file system it is on (`statfs.f_type`).
        magic: i64,
    },
    /// Anything else.
    #[error("{op} network namespace {0:?}: {source}", path.display())]
    Io {
        /// `open` or `enter`.
        op: &'static str,
        /// The path asked for.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl Netns {
    /// Opens the namespace that a file names, e.g. `/run/netns/pod` or `/proc/123/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> Result<Netns, NetnsError> {
        let path = path.as_ref().to_owned();
        let file = match file::open(&path, OFlag::O_RDONLY, 0) {
            Ok(file) => file,
            Err(error) if is_missing(&error) => return Err(NetnsError::Missing { path }),
            Err(source) => {
                return Err(NetnsError::Io {
                    op: "open",
                    path,
                    source,
                });
            }
        };
        let magic = match fstatfs(&file) {
            #[allow(
                clippy::unnecessary_cast,
                reason = "unsigned with musl, signed with glibc"
            )]
            Ok(stat) => stat.filesystem_type().0 as i64,
            Err(errno) => {
                return Err(NetnsError::Io {
                    op: "open",
                    path,
                    source: errno.into(),
                });
            }
        };
        if magic != NSFS_MAGIC && magic != PROC_SUPER_MAGIC {
            return Err(NetnsError::NotANamespace { path, magic });
        }
        // SAFETY: NS_GET_NSTYPE takes no argument.
        let kind = unsafe { ioctl::kind_of_namespace(file.as_raw_fd()) };
        // Of another kind; kernels before 4.11 do not say.
        if kind.is_ok_and(|kind| kind != CloneFlags::CLONE_NEWNET.bits()) {
            return Err(NetnsError::NotANamespace { path, magic });
        }
        Ok(Netns { file, path })
    }

    /// The namespace that a socket belongs to. By the socket itself: the way through `/proc` is ten
    /// times as long, and open to kernels without this request (before Linux 4.9) all the same.
    pub fn of(socket: &Socket) -> Result<Netns, NetnsError> {
        // SAFETY: SIOCGSKNS takes no argument.
        match unsafe { ioctl::namespace(socket.fd().as_raw_fd()) } {
            Ok(fd) => Ok(Netns {
                // SAFETY: the kernel has just opened this descriptor, for us alone.
                file: unsafe { File::from_raw_fd(fd) },
                path: PathBuf::from(OWN),
            }),
            Err(_) => Netns::current(),
        }
    }

    /// The calling thread's own namespace.
    pub fn current() -> Result<Netns, NetnsError> {
        Netns::open(OWN)
    }

    /// Whether both are the same namespace, by whatever path.
    pub fn is(&self, other: &Netns) -> Result<bool, NetnsError> {
        let of = |ns: &Netns| {
            let meta = ns.file.metadata().map_err(|source| NetnsError::Io {
                op: "open",
                path: ns.path.clone(),
                source,
            })?;
            Ok((meta.dev(), meta.ino()))
        };
        Ok(of(self)? == of(other)?)
    }

    /// Runs `f` with the calling thread in this namespace, and comes back to `home`.
    ///
    /// Only the thread moves: never across an await, and never with work for other threads in
    /// `f`. Sockets opened inside keep belonging to this namespace. If the way back is barred the
    /// process is in a state that nobody can reason about, and ends.
    pub fn enter<T>(&self, home: &Netns, f: impl FnOnce() -> T) -> Result<T, NetnsError> {
        self.become_current()?;
        let result = f();
        if let Err(error) = home.become_current() {
            panic!("cannot return from {}: {error}", self.path.display());
        }
        Ok(result)
    }

    fn become_current(&self) -> Result<(), NetnsError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Io {
            op: "enter",
            path: self.path.clone(),
            source: errno.into(),
        })
    }

    /// The descriptor, for requests that create something in this namespace.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A process that is gone answers ESRCH, a path that leads through a file ENOTDIR; and of a name that
/// no file can have there is none.
fn is_missing(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
        || matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::ESRCH | Errno::ENOTDIR | Errno::ENAMETOOLONG)
        )
}
