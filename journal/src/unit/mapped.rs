//! A unit that is being written, mapped into memory.
//!
//! Writers fill disjoint ranges: [`MappedUnit::range_mut`] is only ever given ranges that the
//! log's tail lock handed out once. Pages ahead of the tail are faulted in by another thread
//! (`docs/decisions/0002-mapped-append.md` has the measurements).

use crate::error::{Error, Result};
use crate::format::index::{self, FOOTER_BYTES};
use crate::format::record::{HEADER_BYTES, Record, SEQ_AT};
use crate::format::unit_header::UnitHeader;
use crate::format::{align_up, record};
use crate::layout;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Free space worth giving back, in bytes.
const RELEASE_BYTES_MIN: u64 = 64 << 10;

/// A unit open for writing.
pub struct MappedUnit {
    /// Its header.
    pub header: UnitHeader,
    path: PathBuf,
    map: MmapRaw,
    file: File,
    /// Reservations that are neither committed nor abandoned.
    pub(crate) in_flight: AtomicU64,
    /// Whether the log has turned away from it: its last reservation lets it be sealed.
    pub(crate) is_full: AtomicBool,
    /// Whether a sync failed. The kernel reports a lost page once per open file: without this,
    /// the second of two threads that sync would be told that all is well.
    failed: Mutex<Option<String>>,
}

impl MappedUnit {
    /// Maps a unit that was just created.
    ///
    /// # Errors
    /// The file is shorter than its header says, or the mapping is refused.
    pub fn new(journal: &Path, header: UnitHeader, file: File) -> Result<Self> {
        let path = layout::unit_path(journal, header.number);
        let bytes = usize::try_from(header.unit_bytes)
            .map_err(|_| Error::Invalid(format!("unit of {} bytes", header.unit_bytes)))?;
        let length = file.metadata().map_err(|e| Error::io("look at unit", &path, e))?.len();
        if length < header.unit_bytes {
            // A mapped write behind the end of a file would kill the process.
            let why = format!("it has {length} bytes instead of {}", header.unit_bytes);
            return Err(Error::Unusable { path, why });
        }
        let map = MmapOptions::new()
            .len(bytes)
            .map_raw(&file)
            .map_err(|e| Error::io("map unit", &path, e))?;
        Ok(Self {
            header,
            path,
            map,
            file,
            in_flight: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            failed: Mutex::new(None),
        })
    }

    /// The unit's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Faults in the pages of a range, writable, so that an append never waits for one.
    pub fn prefault(&self, at: u64, bytes: u64) {
        let start = at.min(self.header.unit_bytes) as usize & !4095;
        let end = (at + bytes).min(self.header.unit_bytes) as usize;
        if start >= end {
            return;
        }
        // SAFETY: the range lies inside the mapping, which lives as long as `self`; populating
        // changes no content. A refusal (an old kernel) only costs the page faults later.
        let _ = unsafe {
            rustix::mm::madvise(
                self.map.as_mut_ptr().add(start).cast(),
                end - start,
                rustix::mm::Advice::LinuxPopulateWrite,
            )
        };
    }

    /// Takes the whole pages of a range out of the mapping; what was written stays in the page
    /// cache, and whoever still writes there faults the page in again. Writing a mapped page to
    /// the disk makes the kernel interrupt every processor that runs a thread of this process,
    /// page by page; out of the mapping, all at once.
    fn unmap(&self, from: u64, to: u64) {
        let (start, end) = ((from as usize).next_multiple_of(4096), to as usize & !4095);
        if start >= end {
            return;
        }
        // SAFETY: the range lies inside the mapping, and for a shared mapping of a file this
        // drops page table entries, no content. A refusal only costs the interrupts.
        let _ = unsafe {
            rustix::mm::madvise(
                self.map.as_mut_ptr().add(start).cast(),
                end - start,
                rustix::mm::Advice::LinuxDontNeed,
            )
        };
    }

    /// The bytes of a range.
    ///
    /// # Safety
    /// The caller is the only one that touches this range while the slice lives: it was handed
    /// out once, under the tail lock, and is not committed yet.
    #[expect(clippy::mut_from_ref, reason = "disjoint ranges of one mapping, see the contract")]
    pub(crate) unsafe fn range_mut(&self, at: u64, bytes: u64) -> &mut [u8] {
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.header.unit_bytes));
        // SAFETY: in bounds by the assertion; exclusive by this function's contract.
        unsafe {
            std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(at as usize), bytes as usize)
        }
    }

    /// Writes the frame of a reservation; the caller holds the tail lock and owns the range.
    pub(crate) fn write_frame(&self, at: u64, payload_bytes: u32) {
        let frame = record::encode_frame(&self.header.salt, at, payload_bytes);
        // SAFETY: the tail lock is held and `at` was not handed out to anybody yet.
        let header = unsafe { self.range_mut(at, HEADER_BYTES) };
        header.fill(0);
        header[..frame.len()].copy_from_slice(&frame);
    }

    /// Commits a record: everything but the number first, the number last.
    pub(crate) fn write_commit(&self, at: u64, record: &Record) {
        let bytes = record::encode(&self.header.salt, at, record);
        // SAFETY: this header belongs to the caller's reservation until the number is in.
        let header = unsafe { self.range_mut(at, HEADER_BYTES) };
        header[record::FRAME_BYTES..SEQ_AT].copy_from_slice(&bytes[record::FRAME_BYTES..SEQ_AT]);
        // SAFETY: 64-byte aligned records put the number on an 8-byte boundary inside the
        // mapping; a scan by another process reads it as bytes, and the release store orders
        // everything above before it.
        let seq = unsafe { AtomicU64::from_ptr(header.as_mut_ptr().add(SEQ_AT).cast()) };
        seq.store(record.seq.to_le(), Ordering::Release);
    }

    /// Makes a range durable.
    ///
    /// # Errors
    /// The device failed, now or at an earlier sync of this unit; what was in the range may be
    /// lost (never retry and go on).
    pub fn sync(&self, from: u64, to: u64) -> Result<()> {
        let to = to.min(self.header.unit_bytes);
        if from >= to {
            return Ok(());
        }
        // Held over the call: whoever comes second waits for the verdict of the first.
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &*failed {
            let source = std::io::Error::other(why.clone());
            return Err(Error::io("sync unit (it failed before)", &self.path, source));
        }
        self.unmap(from, to);
        self.map.flush_range(from as usize, (to - from) as usize).map_err(|e| {
            *failed = Some(e.to_string());
            Error::io("sync unit", &self.path, e)
        })
    }

    /// Seals the unit: writes the index of its records up to `tail` and the footer, durably.
    /// Nothing may be in flight.
    ///
    /// # Errors
    /// The device failed.
    pub fn seal(&self, tail: u64) -> Result<()> {
        // The data first: a footer proves that all before it is durable.
        self.sync(0, tail)?;
        let (index_at, bytes) = index::area(&self.header, &self.committed(tail));
        assert!(index_at >= tail, "the tail lock leaves room for the index");
        self.release(tail, index_at);
        // SAFETY: the area behind the tail is never handed out once a unit is full, and the only
        // sealer is the log's own thread.
        let end = unsafe { self.range_mut(index_at, self.header.unit_bytes - index_at) };
        // Then the index, then the footer: a footer without its index is rot, never a torn seal.
        let footer_at = bytes.len() - FOOTER_BYTES as usize;
        end[..footer_at].copy_from_slice(&bytes[..footer_at]);
        self.sync(index_at, self.header.unit_bytes)?;
        end[footer_at..].copy_from_slice(&bytes[footer_at..]);
        self.sync(index_at, self.header.unit_bytes)
    }

    /// Gives the free space of a unit that is sealed early back to the file system.
    fn release(&self, from: u64, to: u64) {
        let (from, to) = (from.next_multiple_of(4096), to & !4095);
        if to.saturating_sub(from) >= RELEASE_BYTES_MIN {
            let flags =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            // A file system without holes keeps the space: nothing else depends on it.
            let _ = rustix::fs::fallocate(&self.file, flags, from, to - from);
        }
    }

    fn committed(&self, tail: u64) -> Vec<(u64, Record)> {
        let mut records = Vec::new();
        let mut at = crate::format::unit_header::BLOCK_BYTES;
        while at < tail {
            let mut header = [0; HEADER_BYTES as usize];
            // SAFETY: headers below the tail are committed or abandoned: nobody writes them.
            header.copy_from_slice(unsafe { self.range_mut(at, HEADER_BYTES) });
            let payload_bytes = match record::decode(&self.header.salt, at, &header) {
                record::Decoded::Record(r) => {
                    records.push((at, r));
                    r.payload_bytes
                }
                record::Decoded::Reserved { payload_bytes }
                | record::Decoded::Broken { payload_bytes, .. } => payload_bytes,
                record::Decoded::None => break,
            };
            at = align_up(at + HEADER_BYTES + u64::from(payload_bytes));
        }
        records
    }
}
