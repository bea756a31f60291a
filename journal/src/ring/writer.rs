//! The writer's side of a ring.
//!
//! What always holds: ranges are handed out by the log, under its tail lock, each to one owner; a
//! slot's `flushed` is raised before any byte below it can be handed out again.

use super::header::{FLUSHED_AT, PLACED_AT, RingHeader, SLOT_BYTES, SLOTS, SLOTS_AT, Slot};
use super::map::DoubleMap;
use super::{HEADER_BYTES, NAME, Place};
use crate::error::{Error, Result};
use crate::storage::{Access, Storage, StoredFile};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const PAGE_BYTES: usize = 4096;

/// A ring open for writing.
pub(crate) struct Ring {
    map: DoubleMap,
    ring_bytes: u64,
    opening: [u8; 16],
}

/// A range of a ring that is to be written to a file.
#[derive(Clone)]
pub(crate) struct Span {
    ring: Arc<Ring>,
    position: u64,
    bytes: usize,
    /// Nobody writes to this many bytes of it, from its start on, any more.
    whole_bytes: usize,
}

impl Ring {
    /// Opens the ring of the journal in `dir`, empty. What another writer left in it is in the
    /// units' files: see [`super::recover`].
    ///
    /// # Errors
    /// No space for it, or it can't be mapped.
    pub(crate) fn open(
        storage: &dyn Storage,
        dir: &Path,
        (group, epoch): ([u8; 16], u64),
        ring_bytes: u64,
    ) -> Result<Self> {
        let path = dir.join(NAME);
        let io = |what| move |e: io::Error| Error::io(what, &dir.join(NAME), e);
        let length = HEADER_BYTES + ring_bytes;
        // One that is there is warm.
        let found = storage.open(&path, Access::Write).ok();
        let file = match found.filter(|f| f.bytes().is_ok_and(|bytes| bytes == length)) {
            Some(file) => file,
            None => storage.open(&path, Access::Replace).map_err(io("create ring"))?,
        };
        // Blocks that exist: a store to a mapped page can then not run out of space.
        file.allocate(0, length).map_err(io("allocate ring"))?;
        let map = Self::map(&*file, ring_bytes).map_err(io("map ring"))?;
        let place = Place::of(storage, dir, &*file);
        let header = RingHeader {
            group,
            boot_id: place.boot_id,
            mount_id: place.mount_id,
            file_id: place.file_id,
            file_born_ns: place.file_born_ns,
            epoch,
            ring_bytes,
            opening: uuid::Uuid::new_v4().into_bytes(),
        };
        let ring = Self { map, ring_bytes, opening: header.opening };
        ring.write_header(&header);
        Ok(ring)
    }

    fn map(file: &dyn StoredFile, ring_bytes: u64) -> io::Result<DoubleMap> {
        if let Some(file) = file.as_file() {
            return DoubleMap::new(file, ring_bytes);
        }
        // A storage without real files: what is not flushed ends with the process.
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let memory = File::from(rustix::fs::memfd_create(NAME, flags)?);
        memory.set_len(HEADER_BYTES + ring_bytes)?;
        DoubleMap::new(&memory, ring_bytes)
    }

    fn write_header(&self, header: &RingHeader) {
        let bytes = header.encode();
        // SAFETY: nobody else has a pointer to the header page yet. A magic of zero first: a reader
        // beside us, or the next opening if we are killed here, sees no ring.
        unsafe {
            self.word(0).store(0, Ordering::Release);
            self.map.header(0).write_bytes(0, HEADER_BYTES as usize);
            let rest = bytes.as_ptr().add(8);
            self.map.header(8).copy_from_nonoverlapping(rest, bytes.len() - 8);
        }
        let magic = bytes.first_chunk().copied().unwrap_or_default();
        self.word(0).store(u64::from_ne_bytes(magic), Ordering::Release);
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8));
        // SAFETY: an aligned word of the mapped header page, which lives as long as `self`; this
        // process touches it as an atomic only, but for `write_header`, before anybody else.
        unsafe { AtomicU64::from_ptr(self.map.header(at).cast()) }
    }

    /// Bytes of data that it holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.ring_bytes
    }

    fn address(&self, position: u64, bytes: usize) -> *mut u8 {
        self.map.data((position % self.ring_bytes) as usize, bytes)
    }

    /// The bytes at a position.
    ///
    /// # Safety
    /// The caller is the only one that touches this range while the slice lives: it was handed out
    /// once, under the tail lock, and is neither committed nor given up.
    #[expect(clippy::mut_from_ref, reason = "disjoint ranges of one mapping, see the contract")]
    pub(crate) unsafe fn range_mut(&self, position: u64, bytes: u64) -> &mut [u8] {
        let bytes = bytes as usize;
        // SAFETY: in bounds, which `address` checks; exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.address(position, bytes), bytes) }
    }

    /// A range to be written; all in its first `whole_bytes` is committed or given up.
    pub(crate) fn span(self: &Arc<Self>, position: u64, bytes: u64, whole_bytes: u64) -> Span {
        let (bytes, whole_bytes) = (bytes as usize, whole_bytes.min(bytes) as usize);
        Span { ring: Arc::clone(self), position, bytes, whole_bytes }
    }

    fn slot_at(index: usize) -> usize {
        assert!(index < SLOTS);
        SLOTS_AT + index * SLOT_BYTES
    }

    /// Names a unit whose bytes are placed in the ring from now on.
    pub(crate) fn begin_unit(&self, index: usize, slot: &Slot) {
        let at = Self::slot_at(index);
        let bytes = slot.encode(&self.opening);
        self.word(at).store(0, Ordering::Release);
        // The number last: without it, the slot is empty.
        for (i, word) in bytes.as_chunks::<8>().0.iter().enumerate().rev() {
            self.word(at + 8 * i).store(u64::from_ne_bytes(*word), Ordering::Release);
        }
    }

    /// Everything of the unit below this position is in its file.
    pub(crate) fn set_flushed(&self, index: usize, position: u64) {
        self.word(Self::slot_at(index) + FLUSHED_AT).store(position.to_le(), Ordering::Release);
    }

    /// Space of the unit is handed out up to this position.
    pub(crate) fn set_placed(&self, index: usize, position: u64) {
        self.word(Self::slot_at(index) + PLACED_AT).store(position.to_le(), Ordering::Release);
    }

    /// The unit's file has everything.
    pub(crate) fn end_unit(&self, index: usize) {
        self.word(Self::slot_at(index)).store(0, Ordering::Release);
    }
}

impl Span {
    /// Its size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its address; valid as long as the span lives. Others may write to it: for a system call to
    /// read, never to make a reference of.
    pub(crate) fn address(&self) -> *const u8 {
        self.ring.address(self.position, self.bytes)
    }

    /// Hands its bytes to `take`, in pieces with their offsets in it; address, offset and size of
    /// each are multiples of 4096 if the span's are.
    pub(crate) fn each_piece(
        &self,
        mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.whole_bytes > 0 {
            // SAFETY: in bounds; all its owners are gone, and the log hands none of it out again
            // before it was told that this is written.
            take(0, unsafe { std::slice::from_raw_parts(self.address(), self.whole_bytes) })?;
        }
        let rest_bytes = self.bytes - self.whole_bytes;
        if rest_bytes == 0 {
            return Ok(());
        }
        let mut copy = vec![0u8; rest_bytes + PAGE_BYTES];
        let start = copy.as_ptr().align_offset(PAGE_BYTES);
        let copy = &mut copy[start..start + rest_bytes];
        for (i, word) in copy.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            // SAFETY: in bounds, and aligned as pages are. Somebody may be filling this very word: it
            // is taken as it is, and written again when that is done.
            let now = unsafe {
                self.address().add(self.whole_bytes).cast::<u64>().add(i).read_volatile()
            };
            *word = now.to_ne_bytes();
        }
        take(self.whole_bytes as u64, copy)
    }
}
