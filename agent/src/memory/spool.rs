//! Where changed pages wait for the end of their stream: a nameless file.
//!
//! Pages lie in it in the order in which they came, so that it is written front to back in large
//! pieces; their places are kept by who gave them ([`super::pages`]). What always holds:
//! * nobody can open it by a name, its mode is 0600, and it is gone with its handle or its process;
//! * it never grows past its limit, and never leaves its file system less than
//!   [`FREE_BYTES_MIN`] or a twentieth of its size, whichever is less: the journal may lie there;
//! * after an error nothing more is taken in.
//!
//! Guest memory holds keys. All bytes pass [`Spool::write_out`] and [`Spooled::read`] in whole
//! pages and nothing else touches the file: what encrypts it sits in these two.

use super::{Error, PAGE_BYTES, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes that a file system of the spool keeps free, or a twentieth of it when that is less.
pub const FREE_BYTES_MIN: u64 = 1 << 30;
/// Bytes that are written at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// Bytes between two looks at the free space: less than what is kept free, by far.
const LOOK_BYTES: u64 = 16 << 20;

/// Where a spool lies, and how large it may get.
#[derive(Debug, Clone)]
pub struct SpoolAt {
    /// The directory: made when it isn't there, 0700.
    pub dir: PathBuf,
    /// Most bytes of it; `None`: as much as the guest has RAM.
    pub spool_bytes_max: Option<u64>,
}

/// A page's place in the spool: its number in the order of coming.
pub type Slot = u32;

/// A spool that is written.
pub struct Spool {
    file: File,
    dir: PathBuf,
    limit_bytes: u64,
    /// Bytes in the file.
    written_bytes: u64,
    /// At how many bytes the free space is looked at.
    look_at_bytes: u64,
    buffer: Vec<u8>,
}

/// A spool that is complete.
pub struct Spooled {
    file: File,
    dir: PathBuf,
    bytes: u64,
}

impl Spool {
    /// An empty spool of at most `limit_bytes`.
    ///
    /// # Errors
    /// The directory or the file can't be made.
    pub fn create(dir: &Path, limit_bytes: u64) -> Result<Self> {
        let failed = |doing, error| Error::Spool { doing, dir: dir.to_owned(), error };
        make_dir(dir).map_err(|e| failed("make the directory of", e))?;
        let file = nameless(dir).map_err(|e| failed("create", e))?;
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        let dir = dir.to_owned();
        Ok(Self { file, dir, limit_bytes, written_bytes: 0, look_at_bytes: 0, buffer })
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.written_bytes + self.buffer.len() as u64
    }

    /// Takes in a page.
    ///
    /// # Errors
    /// The limit is reached, the file system has too little room, or a write failed.
    pub fn push(&mut self, page: &[u8]) -> Result<Slot> {
        let at = self.bytes();
        let slot = Slot::try_from(at / PAGE_BYTES as u64).ok();
        let fits = at + PAGE_BYTES as u64 <= self.limit_bytes && page.len() == PAGE_BYTES;
        let Some(slot) = slot.filter(|_| fits) else {
            return Err(Error::SpoolFull { limit_bytes: self.limit_bytes });
        };
        self.buffer.extend_from_slice(page);
        if self.buffer.len() == BUFFER_BYTES {
            self.write_out()?;
        }
        Ok(slot)
    }

    /// No page comes any more.
    ///
    /// # Errors
    /// As [`Spool::push`].
    pub fn finish(mut self) -> Result<Spooled> {
        self.write_out()?;
        Ok(Spooled { file: self.file, dir: self.dir, bytes: self.written_bytes })
    }

    fn write_out(&mut self) -> Result<()> {
        if self.written_bytes + self.buffer.len() as u64 > self.look_at_bytes {
            self.keep_room()?;
            self.look_at_bytes = self.written_bytes + LOOK_BYTES;
        }
        let written = self.file.write_all_at(&self.buffer, self.written_bytes);
        written.map_err(|error| self.failed("write", error))?;
        self.written_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn keep_room(&self) -> Result<()> {
        let found = rustix::fs::fstatvfs(&self.file);
        let found = found.map_err(|e| self.failed("find the free space beside", e.into()))?;
        let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
        let floor_bytes = floor_bytes(found.f_blocks.saturating_mul(found.f_frsize));
        if free_bytes < floor_bytes + LOOK_BYTES {
            return Err(Error::NoRoom { dir: self.dir.clone(), free_bytes, floor_bytes });
        }
        Ok(())
    }

    fn failed(&self, doing: &'static str, error: io::Error) -> Error {
        Error::Spool { doing, dir: self.dir.clone(), error }
    }
}

impl Spooled {
    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the pages from a place on.
    ///
    /// # Errors
    /// They can't be read.
    pub fn read(&self, from: Slot, pages: &mut [u8]) -> Result<()> {
        let at = u64::from(from) * PAGE_BYTES as u64;
        let failed = |error| Error::Spool { doing: "read", dir: self.dir.clone(), error };
        self.file.read_exact_at(pages, at).map_err(failed)
    }
}

/// What has to stay free of a file system of this size, in bytes.
fn floor_bytes(size_bytes: u64) -> u64 {
    FREE_BYTES_MIN.min(size_bytes / 20)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn nameless(dir: &Path) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, dir, flags | OFlags::TMPFILE | OFlags::EXCL, mode) {
        Ok(file) => Ok(file.into()),
        // Not every file system can do that.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = dir.join(format!("spool-{}", uuid::Uuid::new_v4()));
            let file = rustix::fs::openat(CWD, &path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
            rustix::fs::unlinkat(CWD, &path, AtFlags::empty())?;
            Ok(file.into())
        }
        Err(error) => Err(error.into()),
    }
}
