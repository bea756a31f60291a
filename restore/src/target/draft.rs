//! A file that gets its name when it is whole: `NAME.partial` until then, gone on failure.

use crate::error::{Error, Result};
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file being written. Dropped before [`publish`], it is removed.
#[derive(Debug)]
pub(crate) struct Draft {
    /// It, open, and locked against another restore.
    pub file: File,
    /// Its name until it is whole.
    pub partial: PathBuf,
    /// Its name then.
    pub path: PathBuf,
    published: bool,
}

impl Draft {
    /// Creates `NAME.partial`; what a restore that ended midway left there is replaced.
    pub(crate) fn create(path: &Path, mode: u32) -> Result<Self> {
        if fs::symlink_metadata(path).is_ok() {
            return Err(taken(path));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        remove_abandoned(&partial)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&partial)
            .map_err(|e| Error::target("create", &partial, e))?;
        let draft = Self { file, partial, path: path.to_owned(), published: false };
        match rustix::fs::flock(&draft.file, FlockOperation::NonBlockingLockExclusive) {
            // A file system without locks can't tell; `create_new` still keeps two apart.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK) => Ok(draft),
            Err(e) => Err(Error::target("lock", &draft.partial, e)),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published
            && let Err(e) = fs::remove_file(&self.partial)
        {
            tracing::warn!(file = %self.partial.display(), error = %e, "can't remove");
        }
    }
}

fn taken(path: &Path) -> Error {
    Error::Usage(format!(
        "{} exists and is left as it is: restore to another directory, or move it away",
        path.display()
    ))
}

/// A symbolic link, or a socket.
fn is_foreign(error: &io::Error) -> bool {
    let raw = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(raw, Some(Errno::LOOP | Errno::NXIO))
}

/// Removes what an ended restore left; one that still runs holds the lock.
fn remove_abandoned(partial: &Path) -> Result<()> {
    let foreign = || {
        Error::Usage(format!(
            "{} is no regular file and is left as it is: restore to another directory, or move it away",
            partial.display()
        ))
    };
    // Whoever put a FIFO there must not make this wait for its other end.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(partial) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if is_foreign(&e) => return Err(foreign()),
        Err(e) => return Err(Error::target("open", partial, e)),
    };
    let kind = file.metadata().map_err(|e| Error::target("look at", partial, e))?.file_type();
    if !kind.is_file() {
        return Err(foreign());
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(Error::Usage(format!(
            "another restore is writing {}: wait for it, or restore to another directory",
            partial.display()
        ))),
        // Removed by name, never truncated: the file may have got its final name just now.
        _ => match fs::remove_file(partial) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::target("remove", partial, e))
            }
            _ => Ok(()),
        },
    }
}

/// Gives all their final names, or none.
pub(crate) fn publish(dir: &Path, drafts: &mut [Draft]) -> Result<()> {
    for i in 0..drafts.len() {
        let result = rename(&drafts[i].partial, &drafts[i].path);
        if let Err(e) = result {
            for done in &mut drafts[..i] {
                done.published = false;
                let _ = fs::rename(&done.path, &done.partial);
            }
            return Err(if e.kind() == io::ErrorKind::AlreadyExists {
                taken(&drafts[i].path)
            } else {
                Error::target("name", &drafts[i].path, e)
            });
        }
        drafts[i].published = true;
    }
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::target("sync", dir, e))
}

/// Renames, and never over something that is there.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that doesn't know the flag.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        other => Ok(other?),
    }
}
