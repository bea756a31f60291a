//! Appending guest memory: pages that a checkpoint found changed.
//!
//! What always holds: it comes second. Pages are compressed outside of any lock, and wait while the ring
//! is filled beyond a quarter, so that most of it is there for captured writes; they never take the last
//! unit that is prepared, nor begin one while others wait to be sealed. What they wait for is bounded, and
//! that it doesn't come stops the checkpoint, never the journal.

use super::append::Reservation;
use super::tail::{Placed, Tail, page_down, page_up};
use super::{Draft, Inner, Journal, lock};
use crate::error::{Error, Result};
use crate::format::align_up;
use crate::format::payload::{PACKED_LEN_BYTES_MAX, PLAIN, Packer};
use crate::format::record::{HEADER_BYTES, Kind};
use crate::planted;
use crate::unit::fits;
use crate::{Seq, VolumeId};
use std::cell::RefCell;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Memory fills at most this part of the ring.
const RING_DIVISOR: u64 = 4;
/// Prepared units that memory leaves to captured writes.
const UNITS_LEFT_MIN: usize = 1;
/// Full units that are not sealed yet, at most, where memory begins another.
const FULL_UNITS_MAX: usize = 1;

/// Appends memory for one thread, which compresses with it; made by [`Journal::memory_appender`].
pub struct MemoryAppender {
    journal: Journal,
    packer: Packer,
}

impl MemoryAppender {
    /// Appends pages of a RAM volume, or bytes of a device state, at a byte address; gives the number of
    /// the last record. What comes before an error is in the journal, and does no harm.
    ///
    /// # Errors
    /// The journal stopped. [`crate::ErrorKind::FreeSpace`]: the pool has no room for more than what captured
    /// writes may need; [`crate::ErrorKind::Retry`]: the disk was busy with those for
    /// [`super::Options::memory_wait`].
    pub fn append(&mut self, volume: VolumeId, addr: u64, bytes: &[u8]) -> Result<Seq> {
        append(&self.journal.inner, &mut self.packer, (volume, addr), bytes)
    }

    /// Appends that a range of a RAM volume reads as zeroes.
    ///
    /// # Errors
    /// As [`MemoryAppender::append`].
    pub fn append_zero(&mut self, volume: VolumeId, addr: u64, len: u32) -> Result<Seq> {
        self.journal.append_memory_zero(volume, addr, len)
    }
}

thread_local! {
    /// For those who have no appender of their own.
    static PACKER: RefCell<Option<Packer>> = const { RefCell::new(None) };
}

impl Journal {
    /// A way to append much memory from one thread.
    ///
    /// # Errors
    /// There is no memory to compress with.
    pub fn memory_appender(&self) -> Result<MemoryAppender> {
        Ok(MemoryAppender { journal: self.clone(), packer: packer()? })
    }

    /// As [`MemoryAppender::append`].
    ///
    /// # Errors
    /// As there.
    pub fn append_memory(&self, volume: VolumeId, addr: u64, bytes: &[u8]) -> Result<Seq> {
        PACKER.with_borrow_mut(|held| {
            let packer = match held {
                Some(packer) => packer,
                None => held.insert(packer()?),
            };
            append(&self.inner, packer, (volume, addr), bytes)
        })
    }

    /// As [`MemoryAppender::append_zero`].
    ///
    /// # Errors
    /// As [`MemoryAppender::append`].
    pub fn append_memory_zero(&self, volume: VolumeId, addr: u64, len: u32) -> Result<Seq> {
        let draft = Draft { volume, addr, len, ..Draft::of(Kind::Zero) };
        append_one(&self.inner, &draft, (PLAIN, &[]))
    }
}

fn packer() -> Result<Packer> {
    Packer::new().map_err(|e| Error::Invalid(format!("no memory to compress with: {e}")))
}

fn append(
    inner: &Arc<Inner>,
    packer: &mut Packer,
    (volume, addr): (VolumeId, u64),
    bytes: &[u8],
) -> Result<Seq> {
    let mut last = None;
    for (index, part) in bytes.chunks(PACKED_LEN_BYTES_MAX as usize).enumerate() {
        let addr = addr + index as u64 * u64::from(PACKED_LEN_BYTES_MAX);
        let draft = Draft { volume, addr, len: part.len() as u32, ..Draft::of(Kind::Write) };
        last = Some(append_one(inner, &draft, packer.pack(part))?);
    }
    last.ok_or_else(|| Error::Invalid("there is no memory to append".into()))
}

fn append_one(inner: &Arc<Inner>, draft: &Draft, payload: (u8, &[u8])) -> Result<Seq> {
    let (compression, stored) = payload;
    let payload_bytes = stored.len() as u32;
    let stored_bytes = inner.stored_bytes(draft.kind, payload_bytes);
    let place = inner.place_second(stored_bytes)?;
    let mut space = Reservation::new(inner, place, (payload_bytes, stored_bytes));
    space.payload_mut().copy_from_slice(stored);
    space.commit_and(draft, compression, |_| {})
}

/// Why memory has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// What was placed is not written yet.
    Ring,
    /// The next units are not there, or the full ones not sealed.
    Units,
}

impl Inner {
    /// A place for a record of memory; waits a bounded time until captured writes don't need it.
    fn place_second(&self, payload_bytes: u32) -> Result<Placed> {
        let deadline = Instant::now() + self.options.memory_wait;
        let mut tail = lock(&self.tail);
        loop {
            self.check(&tail)?;
            if tail.is_short {
                let what = "the pool has no room for another unit: memory is not taken in, so that \
                            what is left is there for the guests' writes; free space, raise the \
                            limit, or add a member to the pool";
                return Err(Error::NoRoom(what.into()));
            }
            let behind = match self.behind(&tail, payload_bytes) {
                None if self.make_room(&mut tail, payload_bytes).is_none() => {
                    return Ok(self.place(&mut tail, payload_bytes));
                }
                None => Behind::Ring,
                Some(behind) => behind,
            };
            if self.options.inline {
                drop(tail);
                self.catch_up(behind)?;
                tail = lock(&self.tail);
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Busy { waited: self.options.memory_wait });
            }
            self.preparer_wake.notify_one();
            self.sealer_wake.notify_one();
            // Less than a chunk is not written until somebody asks for it.
            if page_up(tail.placed()) - page_down(tail.written) <= self.ring.bytes() / 8 {
                tail.room_wanted = true;
                self.flusher_wake.notify_one();
            }
            tail = self.room.wait_timeout(tail, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What has to come first.
    fn behind(&self, tail: &Tail, payload_bytes: u32) -> Option<Behind> {
        if planted::is("memory-comes-first") {
            return None;
        }
        let record_bytes = align_up(HEADER_BYTES + u64::from(payload_bytes));
        let turns = !fits(self.identity.unit_bytes, tail.at + record_bytes, tail.count + 1);
        let is_ahead = tail.next.len() >= UNITS_LEFT_MIN + usize::from(turns);
        if !is_ahead || (turns && tail.full.len() > FULL_UNITS_MAX) {
            return Some(Behind::Units);
        }
        let held_bytes = page_up(tail.placed() + record_bytes) - page_down(tail.written);
        (held_bytes > self.ring.bytes() / RING_DIVISOR).then_some(Behind::Ring)
    }

    /// Does what the threads would do, where there are none.
    fn catch_up(&self, behind: Behind) -> Result<()> {
        let before = self.room_now();
        lock(&self.tail).room_wanted = true;
        self.flush_inline();
        self.seal_ready();
        if behind == Behind::Units {
            self.prepare_ahead(UNITS_LEFT_MIN + 1)?;
        }
        if self.room_now() == before && lock(&self.tail).stopped.is_none() {
            return Err(Error::Busy { waited: Duration::ZERO });
        }
        Ok(())
    }

    fn room_now(&self) -> (u64, usize, usize) {
        let tail = lock(&self.tail);
        (tail.written, tail.next.len(), tail.full.len())
    }
}
