//! The file that a writable export's writes go to: without a name, so that it is gone with its
//! process however that ends.
//!
//! What always holds: on the journal's own file system it leaves [`ROOM_KEPT_BYTES`] free, so that
//! no export starves the capture of the guests (I-10).

use crate::error::{Error, Result};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno as Os;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a scratch layer leaves free on the file system that the journal lies on, in bytes.
pub(super) const ROOM_KEPT_BYTES: u64 = 1 << 30;
/// Bytes written between two looks at the room that is left.
const ROOM_LOOK_BYTES: u64 = 16 << 20;

/// Where scratch files are made unless it is said: `TMPDIR`, else `/var/tmp`, which survives its
/// size better than a `/tmp` in memory.
pub(super) fn default_dir() -> PathBuf {
    match std::env::var_os("TMPDIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from("/var/tmp"),
    }
}

/// Bytes that are free for us on the file system of a file or directory.
fn free_bytes(file: &File) -> io::Result<u64> {
    let stat = rustix::fs::fstatvfs(file)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Checks the directory for scratch files of volumes in the journal at `journal`; gives the bytes
/// that are free there.
///
/// # Errors
/// It is not there, or too full.
pub(super) fn check_dir(dir: &Path, journal: &Path) -> Result<u64> {
    let failed = |e| Error::export("open scratch directory", dir, e);
    let flags = (OFlags::DIRECTORY | OFlags::NONBLOCK).bits() as i32;
    let opened = match OpenOptions::new().read(true).custom_flags(flags).open(dir) {
        Ok(opened) => opened,
        Err(e) if !is_no_dir(&e) => return Err(failed(e)),
        Err(_) => {
            let shown = dir.display();
            return Err(Error::Usage(format!(
                "there is no directory {shown} for the scratch layer: give one with --scratch"
            )));
        }
    };
    let free = free_bytes(&opened).map_err(failed)?;
    if is_beside(&opened, journal) && free <= ROOM_KEPT_BYTES {
        return Err(Error::Usage(format!(
            "{} is on the journal's own file system, and too little is free there ({} MiB; {} MiB \
             are kept for the journal): choose another place with --scratch DIR",
            dir.display(),
            free >> 20,
            ROOM_KEPT_BYTES >> 20
        )));
    }
    Ok(free)
}

fn is_no_dir(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_beside(file: &File, journal: &Path) -> bool {
    let device = |meta: io::Result<std::fs::Metadata>| meta.map(|m| m.dev()).ok();
    device(file.metadata()).is_some_and(|dev| device(std::fs::metadata(journal)) == Some(dev))
}

/// What a scratch layer asks of its file.
pub(super) trait ScratchFile: Send + Sync {
    /// Fills `buf`.
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes some of `bytes`; gives how many.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize>;
    /// Makes a hole.
    fn punch(&self, at: u64, len: u64) -> io::Result<()>;
    /// Takes room for a range.
    fn allocate(&self, at: u64, len: u64) -> io::Result<()>;
    /// Bytes that are free on its file system.
    fn free_bytes(&self) -> io::Result<u64>;
}

impl ScratchFile for File {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, at)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(self, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len)?)
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(self, FallocateFlags::KEEP_SIZE, at, len)?)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        free_bytes(self)
    }
}

/// A write that failed.
#[derive(Debug)]
pub(super) struct Short {
    /// Bytes that were written before: what lies behind them may be written in part.
    pub(super) done: usize,
    pub(super) error: io::Error,
}

/// A scratch file of one volume.
pub(super) struct Scratch {
    file: Box<dyn ScratchFile>,
    /// Whether room is to be left on its file system.
    is_beside_journal: bool,
    until_look_bytes: AtomicU64,
}

impl Scratch {
    /// A sparse file of `bytes` bytes in `dir`, for a volume of the journal at `journal`.
    ///
    /// # Errors
    /// It can't be made, or not that large.
    pub(super) fn new(dir: &Path, bytes: u64, journal: &Path) -> Result<Self> {
        let failed = |e| Error::export("make a scratch file in", dir, e);
        let file = tempfile::tempfile_in(dir).map_err(failed)?;
        file.set_len(bytes).map_err(failed)?;
        let is_beside_journal = is_beside(&file, journal);
        Ok(Self::over(Box::new(file), is_beside_journal))
    }

    /// A scratch layer's file that is open; as large as the volume.
    pub(super) fn over(file: Box<dyn ScratchFile>, is_beside_journal: bool) -> Self {
        Self { file, is_beside_journal, until_look_bytes: AtomicU64::new(0) }
    }

    pub(super) fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }

    /// Writes all of `bytes`, or says how far it came.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> std::result::Result<(), Short> {
        let mut done = 0;
        if let Err(error) = self.check_room(bytes.len() as u64) {
            return Err(Short { done, error });
        }
        while done < bytes.len() {
            match self.file.write_at(&bytes[done..], at + done as u64) {
                Ok(0) => return Err(Short { done, error: io::ErrorKind::WriteZero.into() }),
                Ok(some) => done += some,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Short { done, error }),
            }
        }
        Ok(())
    }

    /// Looks now and then whether what must be left free still is. Several writers at once may
    /// look late by what they write meanwhile, which the kept room has plenty of.
    fn check_room(&self, bytes: u64) -> io::Result<()> {
        if !self.is_beside_journal {
            return Ok(());
        }
        let left = self.until_look_bytes.load(Ordering::Relaxed);
        if let Some(left) = left.checked_sub(bytes).filter(|left| *left > 0) {
            self.until_look_bytes.store(left, Ordering::Relaxed);
            return Ok(());
        }
        if self.file.free_bytes()? <= ROOM_KEPT_BYTES.saturating_add(bytes) {
            self.until_look_bytes.store(0, Ordering::Relaxed);
            return Err(Os::NOSPC.into());
        }
        self.until_look_bytes.store(ROOM_LOOK_BYTES, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a range's room back, where the file system can: what it reads as then is not relied on.
    pub(super) fn release(&self, at: u64, len: u64) {
        if let Err(error) = self.file.punch(at, len) {
            tracing::debug!(%error, "no hole can be made in a scratch file");
        }
    }

    /// Makes a range zero and takes room for it at once; false: the file system can't do that, and
    /// nothing was changed.
    ///
    /// # Errors
    /// No room could be taken: some of the range may be zero, and no byte of it is anything else.
    pub(super) fn allocate_zeroes(&self, at: u64, len: u64) -> io::Result<bool> {
        self.check_room(len)?;
        match self.file.punch(at, len) {
            Ok(()) => {}
            Err(error) if is_unsupported(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        match self.file.allocate(at, len) {
            Err(error) if is_unsupported(&error) => Ok(false),
            done => done.map(|()| true),
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Os::OPNOTSUPP.raw_os_error())
}
