//! What the threads of a data path have in common, and how they wait.

use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;

use super::counters::{Counters, Tally};
use super::drops::{self, Forged};
use super::peers::Peers;

#[derive(Debug)]
pub(crate) struct Shared {
    /// Looked up once for a batch, which is less often than it would take to earn a crate for it.
    peers: RwLock<Arc<Peers>>,
    pub(crate) counters: Counters,
    /// The last packet from the wrong host.
    forged: Mutex<Option<Forged>>,
    /// Wakes whoever tells of drops.
    dropped: Notify,
    /// Its other end is closed when the threads are to stop.
    stop: PipeReader,
}

impl Shared {
    pub(crate) fn new(peers: Peers, stop: PipeReader) -> Self {
        Self {
            peers: RwLock::new(Arc::new(peers)),
            counters: Counters::default(),
            forged: Mutex::default(),
            dropped: Notify::new(),
            stop,
        }
    }

    /// The table of now.
    pub(crate) fn peers(&self) -> Arc<Peers> {
        // The table is swapped whole, so a thread that panicked cannot have left half of one.
        let table = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&table)
    }

    pub(crate) fn set_peers(&self, peers: Peers) {
        let mut table = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        *table = Arc::new(peers);
    }

    /// Takes over what a batch came to, and empties the tally.
    pub(crate) fn count(&self, tally: &mut Tally) {
        let to_tell = drops::has_any(tally);
        self.counters.take(tally);
        if let Some(forged) = tally.forged.take() {
            let mut last = self.forged.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(forged);
        }
        if to_tell {
            self.dropped.notify_one();
        }
    }

    /// Returns when something was dropped since it returned last.
    pub(crate) async fn dropped(&self) {
        self.dropped.notified().await;
    }

    pub(crate) fn forged(&self) -> Option<Forged> {
        *self.forged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to read; false when it is time to stop.
    pub(crate) fn wait(&self, from: &impl AsFd) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => return Ok(!fds[1].any().unwrap_or(true)),
            }
        }
    }
}
