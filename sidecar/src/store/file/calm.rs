//! Whether the store's files must be looked at one by one, or the folder says that nothing happened.
//!
//! A lease is written by a rename or a link, and deleted: all of that changes the folder's own times,
//! on every machine that shares it. What does not is a file that somebody writes or touches in its
//! place. On this machine inotify tells of it; another machine's is seen when the lease would have
//! ended, and once in a while.

use std::time::Duration;

use tokio::time::Instant;

use super::entry::Stamp;

/// So coarse may a file system's times be: within it a second change leaves no mark.
const GRAIN: Duration = Duration::from_secs(2);
/// Of so many looks one is at every file.
const SELDOM: u32 = 20;

/// What the folder looked like.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Calm(Option<Seen>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    stamp: Stamp,
    /// Since when it looks so.
    since: Instant,
    /// When the files were looked at while the folder's times could not hide a change behind it.
    files: Option<Instant>,
}

impl Calm {
    /// Whether every file has to be looked at now, which the caller then does. `stamp` is the
    /// folder's, taken before; `resync` the time between two looks.
    pub(super) fn is_over(&mut self, stamp: Option<Stamp>, now: Instant, resync: Duration) -> bool {
        let before = self.0.take().filter(|seen| Some(seen.stamp) == stamp);
        let Some(stamp) = stamp else {
            return true;
        };
        let mut seen = before.unwrap_or(Seen {
            stamp,
            since: now,
            files: None,
        });
        let lasts = |files: Instant| now < files + resync * SELDOM;
        let over = !seen.files.is_some_and(lasts);
        if over && now >= seen.since + GRAIN {
            seen.files = Some(now);
        }
        self.0 = Some(seen);
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESYNC: Duration = Duration::from_secs(30);

    #[test]
    fn files_are_looked_at_until_the_folder_has_been_as_it_is_for_a_while_and_then_seldom() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            Stamp::of(&path).ok()
        });
        let start = Instant::now();
        let mut calm = Calm::default();
        let mut at = |stamp, seconds| {
            let now = start + Duration::from_secs(seconds);
            calm.is_over(stamp, now, RESYNC)
        };
        // The first look may have come between two changes of the same instant.
        assert!(at(one, 0));
        assert!(at(one, 1));
        assert!(at(one, 30));
        assert!(!at(one, 60));
        assert!(!at(one, 629));
        assert!(at(one, 630));
        assert!(!at(one, 660));
        // A name came or went.
        assert!(at(other, 661));
        assert!(at(other, 691));
        assert!(!at(other, 721));
        // A folder that cannot be looked at is for the reader to complain about.
        assert!(at(None, 722));
        assert!(at(other, 723));
        assert!(at(one, 724));
    }
}
