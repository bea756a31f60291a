//! The reader's lock: held before anything is read, so that what is listed stays (I-7).

use crate::error::{Error, Result, is_exhausted};
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
            // Whoever goes on without a lock may read a file that is given up and used anew meanwhile.
            Err(e) if is_host(&e) => return Err(Error::io("lock", &path, e)),
            Err(e) => {
                tracing::debug!(pin = %path.display(), error = %e, "reading without a lock");
                return Ok(None);
            }
        }
    }
}

/// Whether the lock is missing for a reason that says nothing of the medium.
fn is_host(error: &std::io::Error) -> bool {
    is_exhausted(error) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
