//! Where changed pages wait for the end of their stream: a nameless file.
//!
//! Pages lie in it in the order in which they came, so that it is written front to back in large
//! pieces; their places are kept by who gave them ([`super::pages`]). A thread of its own writes
//! them, up to [`BUFFER_COUNT_MAX`] buffers behind: a disk that stands still for a moment is not
//! felt by who brings pages. What always holds:
//! * nobody can open it by a name, its mode is 0600, and it is gone with its handle or its process;
//! * its pages never grow past its limit, and it never leaves its file system less than
//!   [`FREE_BYTES_MIN`] or a twentieth of its size, whichever is less: the journal may lie there;
//! * after an error nothing more is taken in.
//!
//! Guest memory holds keys. All bytes pass `Writer::write` and [`Spooled::read`] in whole pages and
//! nothing else touches the file. Where the guest's journal is encrypted these two encrypt each page, with a
//! random key that is nowhere but in this process, and dies with the spool.

use super::intake::{TICK, spawn};
use super::{Error, PAGE_BYTES, Result};
use afterimage_journal::format::cipher::{ScratchKey, TAG_BYTES};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Bytes that a file system of the spool keeps free, or a twentieth of it when that is less.
pub const FREE_BYTES_MIN: u64 = 1 << 30;
/// Bytes that an encrypted page takes.
const SEALED_BYTES: usize = PAGE_BYTES + TAG_BYTES as usize;
/// Bytes that are taken at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// Buffers: what the disk may be behind, 32 MiB.
pub const BUFFER_COUNT_MAX: usize = 32;
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

/// How long whoever brings pages waits for the disk.
#[derive(Debug, Clone)]
pub struct Patience {
    /// At most so long, without anything being written.
    pub stall_limit: Duration,
    /// And no longer than until this is set.
    pub is_cancelled: Arc<AtomicBool>,
}

/// A spool that is written.
pub struct Spool {
    dir: PathBuf,
    limit_bytes: u64,
    patience: Patience,
    /// Bytes that were handed to the writer.
    handed_bytes: u64,
    buffer: Vec<u8>,
    buffer_count: usize,
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    /// What the writer ends with.
    outcome: Receiver<Result<File>>,
    key: Option<Arc<ScratchKey>>,
    /// Bytes that are in the file.
    written_bytes: Arc<AtomicU64>,
}

/// What the spool's thread has.
struct Writer {
    file: File,
    key: Option<Arc<ScratchKey>>,
    /// Pages that were encrypted, and memory for the next ones.
    pages: u64,
    sealed: Vec<u8>,
    dir: PathBuf,
    at_bytes: u64,
    /// At how many bytes the free space is looked at.
    look_at_bytes: u64,
    written_bytes: Arc<AtomicU64>,
}

/// A spool that is complete.
pub struct Spooled {
    file: File,
    key: Option<Arc<ScratchKey>>,
    dir: PathBuf,
    bytes: u64,
}

impl Spool {
    /// An empty spool of at most `limit_bytes` of pages, encrypted or not.
    ///
    /// # Errors
    /// The directory, the file, a key or the thread can't be made.
    pub fn create(
        dir: &Path,
        limit_bytes: u64,
        patience: Patience,
        is_encrypted: bool,
    ) -> Result<Self> {
        let failed = |doing, error| Error::Spool { doing, dir: dir.to_owned(), error };
        make_dir(dir).map_err(|e| failed("make the directory of", e))?;
        let file = nameless(dir).map_err(|e| failed("create", e))?;
        let key = is_encrypted.then(ScratchKey::new).transpose();
        let key = key.map_err(|why| failed("make a key for", io::Error::other(why)))?;
        let key = key.map(Arc::new);
        let (full, to_write) = sync_channel::<Vec<u8>>(BUFFER_COUNT_MAX);
        let (give_back, empty) = sync_channel(BUFFER_COUNT_MAX);
        let (tell, outcome) = sync_channel(1);
        let written_bytes = Arc::new(AtomicU64::new(0));
        let shared = Arc::clone(&written_bytes);
        let dir = dir.to_owned();
        let writer = Writer {
            file,
            key: key.clone(),
            pages: 0,
            sealed: Vec::new(),
            dir: dir.clone(),
            at_bytes: 0,
            look_at_bytes: 0,
            written_bytes: shared,
        };
        spawn("memory-spool", move || {
            let _ = tell.send(writer.run(&to_write, &give_back));
        })?;
        Ok(Self {
            dir,
            limit_bytes,
            patience,
            handed_bytes: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            buffer_count: 1,
            full,
            empty,
            outcome,
            key,
            written_bytes,
        })
    }

    /// Takes in a page.
    ///
    /// # Errors
    /// The limit is reached, the file system has too little room, a write failed, or the disk took
    /// nothing for too long.
    pub fn push(&mut self, page: &[u8]) -> Result<Slot> {
        let at = self.handed_bytes + self.buffer.len() as u64;
        let slot = Slot::try_from(at / PAGE_BYTES as u64).ok();
        let fits = at + PAGE_BYTES as u64 <= self.limit_bytes && page.len() == PAGE_BYTES;
        let Some(slot) = slot.filter(|_| fits) else {
            return Err(Error::SpoolFull { limit_bytes: self.limit_bytes });
        };
        self.buffer.extend_from_slice(page);
        if self.buffer.len() == BUFFER_BYTES {
            let next = self.next_buffer()?;
            self.hand_over(next)?;
        }
        Ok(slot)
    }

    /// No page comes any more: waits until all are written.
    ///
    /// # Errors
    /// As [`Spool::push`].
    pub fn finish(mut self) -> Result<Spooled> {
        self.hand_over(Vec::new())?;
        let Self { dir, handed_bytes, patience, full, outcome, key, written_bytes, .. } = self;
        drop(full);
        let file = patience.wait(&outcome, &written_bytes)?.unwrap_or_else(|| Err(fell()))?;
        Ok(Spooled { file, key, dir, bytes: handed_bytes })
    }

    fn hand_over(&mut self, next: Vec<u8>) -> Result<()> {
        let buffer = std::mem::replace(&mut self.buffer, next);
        self.handed_bytes += buffer.len() as u64;
        self.full.send(buffer).map_err(|_| self.end())
    }

    /// A used buffer, or a new one while there are less than the limit.
    fn next_buffer(&mut self) -> Result<Vec<u8>> {
        if let Ok(buffer) = self.empty.try_recv() {
            return Ok(buffer);
        }
        if self.buffer_count < BUFFER_COUNT_MAX {
            self.buffer_count += 1;
            return Ok(Vec::with_capacity(BUFFER_BYTES));
        }
        let waited = self.patience.wait(&self.empty, &self.written_bytes)?;
        waited.ok_or_else(|| self.end())
    }

    /// Why the writer ended.
    fn end(&self) -> Error {
        self.outcome.recv().ok().and_then(Result::err).unwrap_or_else(fell)
    }
}

fn fell() -> Error {
    Error::Thread("to the spool fell: report this".into())
}

impl Patience {
    /// What comes, or `None` when nothing can any more. Each byte that is written begins the time
    /// anew.
    fn wait<T>(&self, from: &Receiver<T>, written_bytes: &AtomicU64) -> Result<Option<T>> {
        let (mut written, mut began) = (0, Instant::now());
        loop {
            match from.recv_timeout(TICK) {
                Ok(what) => return Ok(Some(what)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.is_cancelled.load(Ordering::Acquire) {
                return Err(Error::Cancelled);
            }
            let now = written_bytes.load(Ordering::Relaxed);
            if now != written {
                (written, began) = (now, Instant::now());
            }
            if began.elapsed() >= self.stall_limit {
                let limit = self.stall_limit;
                return Err(Error::Stalled { what: "the spool's disk took nothing", limit });
            }
        }
    }
}

impl Writer {
    fn run(mut self, full: &Receiver<Vec<u8>>, give_back: &SyncSender<Vec<u8>>) -> Result<File> {
        while let Ok(mut buffer) = full.recv() {
            self.write(&buffer)?;
            buffer.clear();
            // Nobody may want it any more.
            let _ = give_back.try_send(buffer);
        }
        Ok(self.file)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.at_bytes + bytes.len() as u64 > self.look_at_bytes {
            self.keep_room()?;
            self.look_at_bytes = self.at_bytes + LOOK_BYTES;
        }
        self.seal(bytes)?;
        let stored = if self.key.is_some() { &self.sealed } else { bytes };
        let written = self.file.write_all_at(stored, self.at_bytes);
        written.map_err(|error| self.failed("write", error))?;
        self.at_bytes += stored.len() as u64;
        self.written_bytes.store(self.at_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Encrypts pages, if there is a key.
    fn seal(&mut self, pages: &[u8]) -> Result<()> {
        let Some(key) = &self.key else { return Ok(()) };
        self.sealed.resize(pages.len() / PAGE_BYTES * SEALED_BYTES, 0);
        let room = self.sealed.chunks_exact_mut(SEALED_BYTES);
        let mut numbered = (self.pages..).zip(pages.chunks_exact(PAGE_BYTES).zip(room));
        let done = numbered.try_for_each(|(number, (page, stored))| key.seal(number, page, stored));
        self.pages += (pages.len() / PAGE_BYTES) as u64;
        done.map_err(|why| self.failed("write", io::Error::other(why)))
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
    /// They can't be read, or were changed.
    pub fn read(&self, from: Slot, pages: &mut [u8]) -> Result<()> {
        let failed = |error| Error::Spool { doing: "read", dir: self.dir.clone(), error };
        if let Some(key) = &self.key {
            let mut sealed = vec![0; pages.len() / PAGE_BYTES * SEALED_BYTES];
            let at = u64::from(from) * SEALED_BYTES as u64;
            self.file.read_exact_at(&mut sealed, at).map_err(failed)?;
            let stored = sealed.chunks_exact(SEALED_BYTES);
            let numbered = (u64::from(from)..).zip(stored);
            for (page, (number, stored)) in pages.chunks_exact_mut(PAGE_BYTES).zip(numbered) {
                let opened = key.open(number, stored, page);
                opened.map_err(|why| failed(io::Error::other(why)))?;
            }
            return Ok(());
        }
        let at = u64::from(from) * PAGE_BYTES as u64;
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
