//! Files as the journal sees them: everything that touches a disk goes through [`Storage`], so that
//! tests can bring a disk that loses what was not synced, runs full, or fails.
//!
//! What always holds:
//! * nothing else in this crate opens, renames or removes a file;
//! * a name is durable only after [`Storage::sync_dir`], contents only after
//!   [`StoredFile::sync_data`]; a sync that failed is never repeated and then believed.

mod real;
pub(crate) mod several;

pub use real::{RealStorage, open_plain, read_limited, read_plain};
pub(crate) use real::{is_missing, leads_to};

use crate::planted;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// An existing one, to read.
    Read,
    /// An existing one, to read and write.
    Write,
    /// A new one, or an existing one emptied; to read and write. Mode 0600.
    Replace,
}

/// Who else may hold a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Others that share it.
    Shared,
    /// Nobody.
    Exclusive,
}

/// Room of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All of it.
    pub total_bytes: u64,
    /// What this process may still use.
    pub free_bytes: u64,
}

/// A lock; let go of when dropped.
#[derive(Debug)]
pub struct Lock {
    _held: Box<dyn Held>,
}

/// What a lock holds on to.
pub trait Held: Send + Sync + Debug {}

impl Lock {
    /// A lock that lasts as long as `held`.
    #[must_use]
    pub fn new(held: Box<dyn Held>) -> Self {
        Self { _held: held }
    }
}

/// A disk with directories and files. Errors are the operating system's; the caller names the
/// action and the path.
pub trait Storage: Send + Sync + Debug {
    /// Opens a file.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StoredFile>>;

    /// Opens an existing file to read and write past the page cache: offsets, sizes and memory are
    /// multiples of 4096.
    ///
    /// # Errors
    /// `Unsupported` where that can't be had; or the operating system's.
    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn StoredFile>> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether files lie behind a network: better read once, from start to end, than here and there.
    fn is_far(&self) -> bool {
        false
    }

    /// Names in a directory, in no order.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a directory (0700) and its parents; those that exist are left as they are.
    ///
    /// # Errors
    /// The operating system's.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Gives a file another name, atomically, on the same file system.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The operating system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory. Where directories are only part of names, there is nothing to do.
    ///
    /// # Errors
    /// The operating system's: it isn't empty.
    fn remove_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    /// The one spelling of a path to something that is there.
    ///
    /// # Errors
    /// The operating system's.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_owned())
    }

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// The operating system's.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether there is a file or directory of this name.
    fn exists(&self, path: &Path) -> bool;

    /// Whether a symbolic link has this name.
    fn is_link(&self, _path: &Path) -> bool {
        false
    }

    /// Locks a file, which is made if it isn't there; held across processes.
    ///
    /// # Errors
    /// `WouldBlock` when somebody holds it in a way that excludes this.
    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Lock>;

    /// Room of the file system that a path lies on.
    ///
    /// # Errors
    /// The operating system's.
    fn room(&self, path: &Path) -> io::Result<Room>;

    /// Identity of the mount that a path lies on, within this boot; 0: unknown.
    fn mount_id(&self, path: &Path) -> u64;

    /// Opens a directory, to hold it: as long as it is held no other one is numbered like it. `None` where
    /// directories are only part of names.
    ///
    /// # Errors
    /// The operating system's.
    fn hold_dir(&self, dir: &Path) -> io::Result<Option<File>> {
        let _ = dir;
        Ok(None)
    }
}

/// An open file.
pub trait StoredFile: Send + Sync + Debug {
    /// Reads up to `buffer.len()` bytes at a byte offset; fewer only at the end of the file.
    ///
    /// # Errors
    /// The operating system's.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at a byte offset.
    ///
    /// # Errors
    /// The operating system's; a part may have been written.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes contents and size durable.
    ///
    /// # Errors
    /// The operating system's: whatever was not durable may be lost.
    fn sync_data(&self) -> io::Result<()>;

    /// Size in bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn bytes(&self) -> io::Result<u64>;

    /// Bytes that it takes on the disk.
    ///
    /// # Errors
    /// The operating system's.
    fn allocated_bytes(&self) -> io::Result<u64>;

    /// Allocates blocks for a range, and makes the file as long as its end if it is shorter.
    ///
    /// # Errors
    /// `StorageFull`, or the operating system's.
    fn allocate(&self, from: u64, bytes: u64) -> io::Result<()>;

    /// Makes the file this long.
    ///
    /// # Errors
    /// The operating system's.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;

    /// Gives a range back to the file system; it reads as zeroes. Where that can't be had,
    /// nothing happens.
    fn punch(&self, from: u64, bytes: u64);

    /// The file itself, where there is one: for what only an operating system can do with it.
    fn as_file(&self) -> Option<&File>;

    /// What tells the file from a copy of it, as long as its file system is mounted; 0: unknown.
    fn identity(&self) -> u64 {
        0
    }

    /// When the file was made, nanoseconds since the Unix epoch; 0: unknown. Numbers of files are used
    /// again soon, times of birth are not: a copy that was put in the place of a file has another one.
    fn born_ns(&self) -> u64 {
        0
    }

    /// Reads exactly `buffer.len()` bytes.
    ///
    /// # Errors
    /// As [`StoredFile::read_at`]; `UnexpectedEof` behind the end.
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let got = self.read_at(buffer, at)?;
        if got == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Names in a directory that is made below another: none where it is not there. A link in its place may lead
/// anywhere, and nothing of what lies there is ours to remove.
///
/// # Errors
/// The operating system's.
pub(crate) fn list_own(storage: &dyn Storage, dir: &Path) -> io::Result<Vec<String>> {
    if storage.is_link(dir) && !planted::is("links-are-directories-of-ours") {
        return Ok(Vec::new());
    }
    match storage.list(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        listed => listed,
    }
}

/// Makes a directory below another.
///
/// # Errors
/// A link has its place; or the operating system's.
pub(crate) fn make_own_dir(storage: &dyn Storage, dir: &Path) -> io::Result<()> {
    if storage.is_link(dir) && !planted::is("links-are-directories-of-ours") {
        let why =
            "it is a symbolic link, where a directory of the journal's own belongs: remove it";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    storage.make_dir(dir)
}
