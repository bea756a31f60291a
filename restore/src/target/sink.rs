//! The file that an image is written to: long stretches past the page cache, several at a time, and
//! the rest through it.

use crate::direct::{self, GRAIN_BYTES};
use crate::runs;
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shortest stretch for which waiting for the disk is worth it, in bytes.
const DIRECT_BYTES_MIN: usize = 256 << 10;
/// Bytes written at a time past the page cache.
const PART_BYTES: usize = 2 << 20;

/// See the module.
pub(super) struct Sink {
    file: File,
    direct: Option<File>,
    /// Nothing is written past the page cache any more.
    refused: AtomicBool,
}

impl Sink {
    pub(super) fn new(file: File) -> Self {
        let direct = direct::reopen(&file, true);
        Self { file, direct, refused: AtomicBool::new(false) }
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Writes bytes at an offset; past the page cache only what lies in memory as it will lie in
    /// the file.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let head = at.next_multiple_of(GRAIN_BYTES as u64) - at;
        let Ok(head) = usize::try_from(head) else { return self.file.write_all_at(bytes, at) };
        let long = bytes.len() >= DIRECT_BYTES_MIN && !self.refused.load(Ordering::Relaxed);
        let fits = long && (bytes.as_ptr() as usize + head).is_multiple_of(GRAIN_BYTES);
        let Some(file) = self.direct.as_ref().filter(|_| fits) else {
            return self.file.write_all_at(bytes, at);
        };
        let (head, rest) = bytes.split_at(head);
        let (middle, tail) = rest.split_at(rest.len() / GRAIN_BYTES * GRAIN_BYTES);
        let from = at + head.len() as u64;
        self.file.write_all_at(head, at)?;
        self.file.write_all_at(tail, from + middle.len() as u64)?;
        let parts = (from..).step_by(PART_BYTES).zip(middle.chunks(PART_BYTES));
        runs::try_in_parallel(parts.collect(), |(at, part)| {
            file.write_all_at(part, at).or_else(|_| {
                // A file system that can't; or what is wrong shows again.
                self.refused.store(true, Ordering::Relaxed);
                self.file.write_all_at(part, at)
            })
        })
    }

    /// Has the disk begin with what of a range (in bytes) is in the page cache alone.
    pub(super) fn begin_sync(&self, from: u64, to: u64) {
        let Some(bytes) = NonZeroU64::new(to.saturating_sub(from)) else { return };
        // The system begins to write what it is told isn't needed any more, and waits for nothing.
        // Where it doesn't, the sync at the end takes longer.
        let _ = fadvise(&self.file, from, Some(bytes), Advice::DontNeed);
    }
}
