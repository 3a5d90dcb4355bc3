//! Waits a moment for a file that another program is about to write: at a node's boot the runtime
//! starts its first pods while the daemon is still claiming a subnet.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::{Duration, Instant};

use kernel::file;
use nix::libc;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Reads a file; if there is none, reads it as soon as there is, if that is not later than
/// `patience`. Fails as the last attempt did.
pub(crate) fn read(path: &Path, patience: Duration) -> io::Result<Vec<u8>> {
    let first = file::read(path);
    if patience.is_zero() || !is_missing(&first) {
        return first;
    }
    let deadline = Instant::now() + patience;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    loop {
        // The folder may be missing too; then what is above it changes first.
        let folders = path.ancestors().skip(1);
        let folders = folders.map(|folder| match folder.as_os_str() == OsStr::new("") {
            true => Path::new("."),
            false => folder,
        });
        let watched = folders.map(|folder| watch.add_watch(folder, changes()));
        watched.into_iter().find(Result::is_ok);
        // It may have come before the watch.
        let read = file::read(path);
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !is_missing(&read) {
            return read;
        }
        wait(&watch, left)?;
        while watch.read_events().is_ok() {}
    }
}

fn changes() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE
}

fn is_missing<T>(read: &io::Result<T>) -> bool {
    matches!(read, Err(error) if error.kind() == ErrorKind::NotFound)
}

fn wait(watch: &Inotify, left: Duration) -> io::Result<()> {
    let mut ready = libc::pollfd {
        fd: watch.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = left.as_millis().clamp(1, 60_000) as libc::c_int;
    // SAFETY: `ready` is one pollfd, and its descriptor is open for as long as `watch`.
    match unsafe { libc::poll(&mut ready, 1, milliseconds) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_comes_while_we_wait_is_read_even_with_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/subnet.env");
        let reader = {
            let path = path.clone();
            std::thread::spawn(move || read(&path, Duration::from_secs(30)))
        };
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let temporary = dir.path().join("a/b/new");
        fs::write(&temporary, "here").unwrap();
        fs::rename(&temporary, &path).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), b"here");
    }

    #[test]
    fn patience_ends() {
        let dir = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let read = read(&dir.path().join("never"), Duration::from_millis(30));
        assert!(is_missing(&read));
        assert!(begin.elapsed() >= Duration::from_millis(30));
    }
}
