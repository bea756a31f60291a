//! The reader's lock: held before anything is read, so that what is listed stays (I-7).

use crate::error::{Error, Result};
use crate::storage::{Lock, LockKind, Storage};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait while another process deletes parts of the journal.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Pause between two tries: the lock has no wait with a time limit.
const RETRY: Duration = Duration::from_millis(20);

/// Takes the shared lock on `JOURNAL/pin`. A medium that can't be written has no deleter either.
pub(super) fn take(storage: &dyn Storage, dir: &Path) -> Result<Option<Lock>> {
    let path = dir.join("pin");
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        match storage.lock(&path, LockKind::Shared) {
            Ok(lock) => return Ok(Some(lock)),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(RETRY);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(Error::Locked { path }),
            Err(e) => {
                tracing::debug!(pin = %path.display(), error = %e, "reading without a lock");
                return Ok(None);
            }
        }
    }
}
