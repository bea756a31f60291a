//! Deleting a journal.

use afterimage_journal::storage::{LockKind, RealStorage, Storage};
use afterimage_journal::{Error, Result, layout};
use std::io::ErrorKind;
use std::path::Path;
use uuid::Uuid;

/// Deletes a journal that nobody writes to; done as well when there is none.
///
/// # Errors
/// A restore or export reads it (I-7); or it can't be deleted.
pub fn purge(dir: &Path) -> Result<()> {
    if matches!(dir.try_exists(), Ok(false)) {
        return Ok(());
    }
    let path = dir.join("pin");
    let _pin = RealStorage.lock(&path, LockKind::Exclusive).map_err(|e| match e.kind() {
        ErrorKind::WouldBlock => Error::Invalid(format!(
            "a restore reads {}: nothing was deleted; purge it when that has ended",
            dir.display()
        )),
        _ => Error::io("lock", &path, e),
    })?;
    // Out of sight at once and whole, then piece by piece.
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let doomed = dir.with_file_name(format!(".purged-{name}-{}", Uuid::new_v4()));
    std::fs::rename(dir, &doomed).map_err(|e| Error::io("rename", dir, e))?;
    layout::sync_dir(dir.parent().unwrap_or(Path::new(".")))?;
    std::fs::remove_dir_all(&doomed).map_err(|e| Error::io("delete", &doomed, e))
}
