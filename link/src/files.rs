//! Small files with secrets: 0600 in a 0700 directory, replaced whole and durably, changed by one at a
//! time.

use crate::error::{Error, Result};
use afterimage_journal::storage::{Lock, open_plain, read_limited};
use afterimage_journal::{Error as JournalError, layout};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How long another process may hold the lock: it writes some small files.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Makes a directory that only its owner can use.
///
/// # Errors
/// It can't be made.
pub fn make_dir(dir: &Path) -> Result<()> {
    layout::make_dir(dir).map_err(|e| Error::Local(e.to_string()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        .map_err(|e| Error::io("set the mode of", dir, e))
}

/// Reads a JSON file; `None`: there is none. One that others can use is refused: its secrets are
/// theirs too.
///
/// # Errors
/// It can't be read, or is damaged.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let file = match open_plain(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let meta = file.metadata().map_err(|e| Error::io("look at", path, e))?;
    if meta.mode() & 0o077 != 0 {
        return Err(Error::Local(format!(
            "{} can be used by others (mode {:o}): its secrets may be known. If they are not, \
             `chmod 600` it",
            path.display(),
            meta.mode() & 0o777
        )));
    }
    let bytes = read_limited(file, FILE_BYTES_MAX).map_err(|e| Error::io("read", path, e))?;
    let value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::Local(format!("{} is damaged: {e}", path.display())))?;
    Ok(Some(value))
}

/// Replaces a JSON file; after a crash the old or the new one is there. To be called with the lock of
/// its directory held.
///
/// # Errors
/// It can't be written; the old one is there.
pub fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Local(format!("encode {}: {e}", path.display())))?;
    layout::replace_file(path, &json).map_err(|e| Error::Local(e.to_string()))
}

/// Takes the lock of a directory's files, across processes, waiting for a bounded time; held until it is
/// dropped.
///
/// # Errors
/// Somebody else holds it all the time.
pub fn lock(dir: &Path) -> Result<Lock> {
    let begin = Instant::now();
    loop {
        match layout::take_lock(dir) {
            Err(JournalError::Locked { .. }) if begin.elapsed() < LOCK_LIMIT => {
                std::thread::sleep(LOCK_PAUSE);
            }
            taken => return taken.map_err(|e| Error::Local(e.to_string())),
        }
    }
}

/// What tells one version of a file from the next: it is replaced whole. Of one that isn't there: zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp(u64, i64, i64, u64);

impl Stamp {
    /// That of the file as it is now.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        fs::symlink_metadata(path)
            .map_or(Self::default(), |m| Self(m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(read::<u32>(&at("none")).unwrap(), None);
        write(&at("one"), &1_u32).unwrap();
        assert_eq!(read::<u32>(&at("one")).unwrap(), Some(1));
        std::os::unix::fs::symlink(at("one"), at("link")).unwrap();
        let fifo =
            std::process::Command::new("mkfifo").args(["-m", "600"]).arg(at("fifo")).status();
        assert!(fifo.unwrap().success());
        fs::File::create(at("large")).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        fs::set_permissions(at("large"), fs::Permissions::from_mode(0o600)).unwrap();
        for (name, why) in [("link", "symbolic link"), ("fifo", "FIFO"), ("large", "limit")] {
            let error = read::<u32>(&at(name)).unwrap_err().to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
    }
}
