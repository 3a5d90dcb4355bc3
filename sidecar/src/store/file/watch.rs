//! Following the store's folder: inotify says at once which file changed, and a look at intervals
//! finds what inotify cannot see (other machines on a shared disk, lost events). Where no name came,
//! went or was replaced ([`super::calm`]) that is a look at the folder alone; a lease that ends is
//! looked at when it does.
//!
//! A folder that cannot be read gives no event at all: it is tried again, and peers stay.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::calm::Calm;
use super::entry::{self, Entry, Stamp, State};
use crate::store::{LeaseEvent, Record, StoreError};

/// How long to wait before a folder is tried again that could not be watched or read.
const RETRY: Duration = Duration::from_secs(1);

/// Sends events until the receiver is gone.
pub(super) async fn run(dir: &Path, resync: Duration, events: &mpsc::Sender<LeaseEvent>) {
    let mut follower = Follower {
        dir: dir.to_owned(),
        known: BTreeMap::new(),
        calm: Calm::default(),
        in_sync: false,
        trouble: None,
    };
    loop {
        let watched = match ensure_folder(dir).and_then(|()| Watch::start(dir)) {
            Ok(watch) => follower.follow(&watch, resync, events).await,
            Err(error) => Err(error),
        };
        match watched {
            // The receiver is gone.
            Ok(()) => return,
            Err(error) => follower.report(Some(error.to_string())),
        }
        tokio::select! {
            () = events.closed() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// A store that has its configuration but no folder of leases has lost its leases, or never had any:
/// that is a state to tell of, so that our own goes back in. Without the configuration the store
/// itself is not there (a disk that is not mounted), and nothing may be made in its place.
fn ensure_folder(dir: &Path) -> Result<(), StoreError> {
    let store_dir = dir.parent().unwrap_or(dir);
    if dir.exists() || !store_dir.join("config").exists() {
        return Ok(());
    }
    warn!(dir = %dir.display(), "there is no folder of leases, it is made anew");
    std::fs::create_dir_all(dir).map_err(super::failed("create", dir))
}

/// What was last told about each file.
struct Follower {
    dir: PathBuf,
    known: BTreeMap<Box<str>, Known>,
    calm: Calm,
    /// Whether a snapshot has been sent.
    in_sync: bool,
    trouble: Option<String>,
}

/// What is to be told, and why that may not be all. What was read is not told a second time.
type Changes = (Vec<LeaseEvent>, Result<(), StoreError>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    stamp: Stamp,
    /// When it stops to count; `None` for what is no lease.
    expires: Option<SystemTime>,
    /// Whether the receiver has been told of it: an expired lease is known but not told.
    told: bool,
}

impl Follower {
    async fn follow(
        &mut self,
        watch: &Watch,
        resync: Duration,
        events: &mpsc::Sender<LeaseEvent>,
    ) -> Result<(), StoreError> {
        // What happened before there was a watch.
        let mut whole = true;
        loop {
            let (stamp, now) = (Stamp::of(&self.dir).ok(), Instant::now());
            if self.calm.is_over(stamp, now, resync) || whole {
                let (changes, read) = self.read_all()?;
                for event in changes {
                    if events.send(event).await.is_err() {
                        return Ok(());
                    }
                }
                read?;
            }
            self.report(None);
            let resync_at = now + resync;
            loop {
                let now = Instant::now();
                let expiry = now.checked_add(self.until_next_expiry());
                let expiry = expiry.filter(|expiry| *expiry <= resync_at);
                let names = tokio::select! {
                    () = events.closed() => return Ok(()),
                    () = sleep_until(expiry.unwrap_or(resync_at)) => {
                        whole = expiry.is_some();
                        break;
                    }
                    changed = watch.changed() => match changed? {
                        Changed::Names(names) => names,
                        Changed::Unknown => {
                            whole = true;
                            break;
                        }
                    },
                };
                let (changes, read) = self.read_these(names);
                for event in changes {
                    if events.send(event).await.is_err() {
                        return Ok(());
                    }
                }
                read?;
            }
        }
    }

    /// How long the lease lasts that expires first among those told.
    fn until_next_expiry(&self) -> Duration {
        let told = self.known.values().filter(|known| known.told);
        let first = told.filter_map(|known| known.expires).min();
        first.map_or(Duration::MAX, |expires| {
            expires
                .duration_since(SystemTime::now())
                .unwrap_or_default()
        })
    }

    /// A snapshot first; afterwards what differs from what was told.
    fn read_all(&mut self) -> Result<Changes, StoreError> {
        let names = entry::names(&self.dir)?;
        if !self.in_sync {
            let mut records = Vec::with_capacity(names.len());
            self.known.clear();
            for name in names {
                if let Some(LeaseEvent::Put(record)) = self.read_one(&name)? {
                    records.push(record);
                }
            }
            self.in_sync = true;
            return Ok((vec![LeaseEvent::Snapshot(records)], Ok(())));
        }
        let gone: Vec<Box<str>> = self
            .known
            .keys()
            .filter(|name| names.binary_search(name).is_err())
            .cloned()
            .collect();
        Ok(self.read_these(gone.into_iter().chain(names)))
    }

    /// What there is to tell about some files: what goes comes after what takes its place.
    fn read_these(&mut self, names: impl IntoIterator<Item = Box<str>>) -> Changes {
        let mut events = Vec::new();
        let mut read = Ok(());
        for name in names {
            match self.read_one(&name) {
                Ok(event) => events.extend(event),
                Err(error) => {
                    read = Err(error);
                    break;
                }
            }
        }
        events.sort_by_key(|event| matches!(event, LeaseEvent::Removed(_)));
        (events, read)
    }

    /// What there is to tell about one file, if anything.
    fn read_one(&mut self, name: &str) -> Result<Option<LeaseEvent>, StoreError> {
        if entry::is_hidden(name) {
            return Ok(None);
        }
        let path = self.dir.join(name);
        let now = SystemTime::now();
        let before = self.known.get(name).copied();
        let stamp = Stamp::of(&path).ok();
        if let (Some(known), Some(stamp)) = (before, stamp)
            && known.stamp == stamp
            && known.told == known.expires.is_none_or(|expires| expires > now)
        {
            return Ok(None);
        }
        let entry = entry::read(&path)?;
        let (Some(entry), Some(stamp)) = (entry, stamp) else {
            return Ok(self.forget(name));
        };
        let live = entry.state(now) == State::Live;
        let known = Known {
            stamp,
            expires: entry.content.is_ok().then_some(entry.expires),
            told: live,
        };
        self.known.insert(name.into(), known);
        if live {
            let Entry { content, .. } = entry;
            let name = name.into();
            return Ok(Some(LeaseEvent::Put(Record { name, content })));
        }
        let was_told = before.is_some_and(|known| known.told);
        Ok(was_told.then(|| LeaseEvent::Removed(name.into())))
    }

    fn forget(&mut self, name: &str) -> Option<LeaseEvent> {
        let known = self.known.remove(name)?;
        known.told.then(|| LeaseEvent::Removed(name.into()))
    }

    /// Says once when trouble begins, changes, and ends.
    fn report(&mut self, trouble: Option<String>) {
        if trouble == self.trouble {
            return;
        }
        match &trouble {
            Some(reason) => warn!(reason, "lease store cannot be read, peers stay as they are"),
            None => info!(dir = %self.dir.display(), "lease store is read again"),
        }
        self.trouble = trouble;
    }
}

/// inotify on the folder, or on the way to it.
struct Watch(AsyncFd<Fd>);

struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

enum Changed {
    /// These files.
    Names(Vec<Box<str>>),
    /// Too many to say.
    Unknown,
}

impl Watch {
    fn start(dir: &Path) -> Result<Self, StoreError> {
        let start = || -> io::Result<Self> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            // A new lease appears by a link, whole, which is a creation; a renewal by a rename.
            let flags = AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_ATTRIB
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            inotify.add_watch(dir, flags)?;
            // SAFETY: the descriptor belongs to the `Fd` that moves in here; it is closed with the
            // `AsyncFd`, not before, and stays the same one.
            let registered =
                unsafe { AsyncFd::register_with_interest(Fd(inotify), Interest::READABLE) };
            Ok(Self(registered.map_err(io::Error::from)?))
        };
        start().map_err(super::failed("watch", dir))
    }

    async fn changed(&self) -> Result<Changed, StoreError> {
        let read = self
            .0
            .async_io(Interest::READABLE, |fd| match fd.0.read_events() {
                Err(Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
                events => Ok(events?),
            });
        let events = read.await.map_err(|source| StoreError::Io {
            op: "watch the lease store".to_owned(),
            source,
        })?;
        names_of(events)
    }
}

fn names_of(events: Vec<InotifyEvent>) -> Result<Changed, StoreError> {
    let mut names: Vec<Box<str>> = Vec::with_capacity(events.len());
    for event in events {
        let lost = AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_UNMOUNT
            | AddWatchFlags::IN_IGNORED;
        if event.mask.intersects(lost) {
            return Err(StoreError::Io {
                op: "watch the lease store".to_owned(),
                source: io::Error::new(io::ErrorKind::NotFound, "its folder was taken away"),
            });
        }
        match event.name {
            Some(name) => names.push(name.to_string_lossy().into()),
            None if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) => {
                return Ok(Changed::Unknown);
            }
            None => {}
        }
    }
    // Of several changes to a file the last state is all that counts.
    names.sort_unstable();
    names.dedup();
    Ok(Changed::Names(names))
}
