//! The store's lock: flock on one file, by which daemons take turns at changing leases.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use fs2::FileExt;
use tokio::time::{Instant, sleep};

use super::failed;
use crate::store::StoreError;

/// How long others may hold it: their work takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Held until dropped; the kernel frees it when the process dies.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing the file frees the lock")] File);

/// Waits for the lock without holding up the rest of the program.
pub(super) async fn acquire(path: &Path) -> Result<Lock, StoreError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed("open", path))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // `FileExt::` because std's File has methods of the same names, with other errors.
        match FileExt::try_lock_exclusive(&file) {
            Ok(()) => return Ok(Lock(file)),
            Err(error) if error.kind() != fs2::lock_contended_error().kind() => {
                return Err(failed("lock", path)(error));
            }
            Err(_) if Instant::now() >= deadline => {
                return Err(StoreError::Locked {
                    path: path.display().to_string(),
                    seconds: PATIENCE.as_secs(),
                });
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
