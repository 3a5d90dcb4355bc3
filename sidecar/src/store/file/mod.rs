//! The embedded store: a folder on this machine, or on a disk that several machines share.
//!
//! ```text
//! DIR/config               the net-conf
//! DIR/subnets/10.5.20.0-24 a lease: name and content are flannel's etcd key and value
//! DIR/lock                 flock'ed while a lease is taken, renewed or given up
//! ```
//!
//! A lease ends at its file's mtime: the holder sets it to the instant of expiry, so that all
//! daemons agree whatever time to live each of them was given. A file that is touched into the
//! far future is a reservation. Everything is written under a temporary name and renamed, so that
//! readers need no lock.

mod calm;
mod entry;
mod lock;
mod migrate;
mod watch;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use self::entry::{Entry, State};
use crate::atomic_file;
use crate::lease::Lease;
use crate::store::claims::{held_by, overlapping, random_below};
use crate::store::{Held, LeaseEvent, Renewal, Store, StoreError};
use crate::subnet::{Choice, Claim, Decision, Taken, choose};
use crate::subnets::Subnets;

/// How often other nodes may be quicker.
const TRIES: usize = 10;
/// An expiry this far beyond our own time to live was set by somebody who reserves the subnet.
const RESERVATION_SLACK: Duration = Duration::from_secs(60 * 60);
/// Temporary files older than this are a crash's.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// The store.
#[derive(Debug, Clone)]
pub struct FileStore {
    dir: PathBuf,
    ttl: Duration,
    resync: Duration,
}

fn failed(op: &str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let op = format!("{op} {}", path.display());
    move |source| StoreError::Io { op, source }
}

impl FileStore {
    /// A store in `dir`. Leases taken here live `ttl` from each renewal; the folder is looked at
    /// every `resync`, beside what inotify says at once, and its files where that shows a change.
    pub fn new(dir: impl Into<PathBuf>, ttl: Duration, resync: Duration) -> Self {
        Self {
            dir: dir.into(),
            ttl,
            resync,
        }
    }

    fn config_path(&self) -> PathBuf {
        self.dir.join("config")
    }

    fn subnets_dir(&self) -> PathBuf {
        self.dir.join("subnets")
    }

    fn lease_path(&self, subnets: &Subnets) -> PathBuf {
        self.subnets_dir().join(subnets.to_string())
    }

    async fn lock(&self) -> Result<lock::Lock, StoreError> {
        let subnets_dir = self.subnets_dir();
        fs::create_dir_all(&subnets_dir).map_err(failed("create", &subnets_dir))?;
        lock::acquire(&self.dir.join("lock")).await
    }

    /// Everything that claims a subnet. Called with the lock held; removes what has expired.
    fn taken(&self) -> Result<Vec<Taken>, StoreError> {
        let now = SystemTime::now();
        let mut taken = Vec::new();
        for (name, entry) in entry::read_all(&self.subnets_dir())? {
            match entry.state(now) {
                State::Live => {}
                State::Expired => {
                    self.remove(&self.subnets_dir().join(&*name))?;
                    continue;
                }
            }
            // A torn value still claims its subnet; a foreign name claims nothing.
            if let Ok(subnets) = name.parse() {
                let lease = entry.content.ok().map(|(_, lease)| lease);
                taken.push(Taken { subnets, lease });
            }
        }
        Ok(taken)
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(failed("delete", path)),
        }
    }

    /// Writes a lease over what is there, or, if `create`, only where nothing is. Whether it did.
    fn put(&self, subnets: &Subnets, lease: &Lease, create: bool) -> Result<bool, StoreError> {
        let path = self.lease_path(subnets);
        let temporary = self
            .dir
            .join(format!(".lease.{}.{subnets}", std::process::id()));
        let expires = SystemTime::now() + self.ttl;
        let put = || -> io::Result<bool> {
            let file = atomic_file::write_synced(&temporary, lease.render().as_bytes(), 0o644)?;
            file.set_modified(expires)?;
            if create {
                // Unlike a rename, a link never replaces: safe against writers without the lock.
                match fs::hard_link(&temporary, &path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
                    linked => linked?,
                }
            } else {
                fs::rename(&temporary, &path)?;
            }
            atomic_file::sync_dir(&self.subnets_dir())?;
            Ok(true)
        };
        let outcome = put().map_err(failed("write", &path));
        let _ = fs::remove_file(&temporary);
        outcome
    }

    fn clear_abandoned(&self) {
        let Ok(files) = fs::read_dir(&self.dir) else {
            return;
        };
        for file in files.flatten() {
            let ours = file.file_name().to_string_lossy().starts_with(".lease.");
            let changed = file.metadata().and_then(|facts| facts.created());
            let old = changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED));
            if ours && old {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    fn held(&self, subnets: Subnets) -> Result<Held, StoreError> {
        let path = self.lease_path(&subnets);
        let expires = fs::metadata(&path)
            .and_then(|facts| facts.modified())
            .map_err(failed("read", &path))?;
        let reserved = expires > SystemTime::now() + self.ttl + RESERVATION_SLACK;
        Ok(Held {
            subnets,
            expires: (!reserved).then_some(expires),
            found: false,
        })
    }

    /// Makes a lease of what was chosen, unless somebody who knows no locks was quicker.
    fn take(&self, choice: Choice, lease: &Lease) -> Result<Option<Held>, StoreError> {
        let subnets = match choice {
            Choice::Reuse(subnets) => {
                let path = self.lease_path(&subnets);
                if let Some(present) = entry::read(&path)? {
                    return self.extend(subnets, lease, &present).map(Some);
                }
                subnets
            }
            Choice::Previous(subnets) | Choice::Fresh(subnets) => subnets,
        };
        let put = self.put(&subnets, lease, true)?;
        put.then(|| self.held(subnets)).transpose()
    }

    /// Our own lease is there: extends it, and rewrites it if its value is not what we publish.
    fn extend(&self, subnets: Subnets, lease: &Lease, present: &Entry) -> Result<Held, StoreError> {
        let path = self.lease_path(&subnets);
        let reserved = self.held(subnets)?.expires.is_none();
        let same = matches!(&present.content, Ok((_, value)) if value == lease);
        if !same {
            let keep = present.expires;
            self.put(&subnets, lease, false)?;
            if reserved {
                set_expiry(&path, keep)?;
            }
        } else if !reserved {
            set_expiry(&path, SystemTime::now() + self.ttl)?;
        }
        Ok(Held {
            found: true,
            ..self.held(subnets)?
        })
    }
}

fn set_expiry(path: &Path, expires: SystemTime) -> Result<(), StoreError> {
    fs::File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_modified(expires))
        .map_err(failed("extend", path))
}

impl Store for FileStore {
    fn describe(&self) -> String {
        format!("folder {}", self.dir.display())
    }

    fn config_advice(&self) -> String {
        format!(
            "write {} with, for example, {}, or start twilld with --network 10.244.0.0/16",
            self.config_path().display(),
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#
        )
    }

    async fn config(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.config_path();
        match fs::read(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    async fn init_config(&self, config: &[u8]) -> Result<bool, StoreError> {
        let _lock = self.lock().await?;
        if self.config().await?.is_some() {
            return Ok(false);
        }
        let path = self.config_path();
        atomic_file::write(&path, config).map_err(failed("write", &path))?;
        Ok(true)
    }

    async fn acquire(&self, claim: &Claim) -> Result<Held, StoreError> {
        for _ in 0..TRIES {
            let _lock = self.lock().await?;
            self.clear_abandoned();
            let taken = self.taken()?;
            let Decision { choice, release } = choose(claim, &taken, random_below)?;
            if let Some(held) = self.take(choice, &claim.lease)? {
                // After what comes in its place, which may have the same addresses: peers see no
                // moment without a lease for them.
                for subnets in release.iter().filter(|old| **old != held.subnets) {
                    self.remove(&self.lease_path(subnets))?;
                }
                return Ok(held);
            }
        }
        Err(StoreError::Raced { tries: TRIES })
    }

    async fn renew(&self, claim: &Claim) -> Result<Renewal, StoreError> {
        let Some(subnets) = claim.previous else {
            return self.acquire(claim).await.map(Renewal::TakenBack);
        };
        let _lock = self.lock().await?;
        let now = SystemTime::now();
        let present = entry::read(&self.lease_path(&subnets))?;
        if let Some(present) = &present {
            match &present.content {
                Ok((_, lease)) if claim.owns(&subnets, lease) => {
                    let held = self.extend(subnets, &claim.lease, present)?;
                    return Ok(Renewal::Renewed(held));
                }
                Ok((_, lease)) if matches!(present.state(now), State::Live) => {
                    let holder = held_by(&subnets, lease);
                    return Ok(Renewal::Lost { holder });
                }
                // Expired, or damaged: nobody's.
                _ => {}
            }
        }
        if let Some(holder) = overlapping(claim, &subnets, &self.taken()?) {
            return Ok(Renewal::Lost { holder });
        }
        self.put(&subnets, &claim.lease, false)?;
        self.held(subnets).map(Renewal::TakenBack)
    }

    async fn watch(self, events: mpsc::Sender<LeaseEvent>) {
        watch::run(&self.subnets_dir(), self.resync, &events).await;
    }
}

#[cfg(test)]
mod tests;
