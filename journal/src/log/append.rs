//! Reserve, fill, commit: what a capture thread runs for each write.

use super::{Inner, Journal, Tail, background, lock};
use crate::error::{Error, Result};
use crate::format::record::{HEADER_BYTES, Kind, Record};
use crate::format::unit_header::BLOCK_BYTES;
use crate::format::{align_up, checksum};
use crate::meta::{META_BYTES_MAX, Meta};
use crate::unit::{MappedUnit, fits, payload_bytes_max, record_bytes_max};
use crate::{Seq, VolumeId};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

/// Full units that wait to be sealed; with more, the disk is too slow and appends wait.
const FULL_UNITS_MAX: usize = 4;

/// What a record is about, before it has a number.
#[derive(Debug, Clone, Copy)]
pub struct Draft {
    /// What it says.
    pub kind: Kind,
    /// [`crate::format::record::FLAG_COPIED`] or 0.
    pub flags: u8,
    /// The volume, for data.
    pub volume: VolumeId,
    /// Byte address in the volume.
    pub addr: u64,
    /// Bytes of the volume that it covers.
    pub len: u32,
    /// Session or copy id.
    pub scope: u32,
}

impl Draft {
    /// A record of a kind that is not about a volume.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self { kind, flags: 0, volume: 0, addr: 0, len: 0, scope: 0 }
    }
}

/// Space for one record. Dropped without [`Reservation::commit`], it stays an uncommitted
/// reservation, which every scan steps over.
pub struct Reservation {
    journal: Arc<Inner>,
    unit: Arc<MappedUnit>,
    at: u64,
    payload_bytes: u32,
}

impl Journal {
    /// Largest payload of one record, in bytes; larger writes become several records.
    #[must_use]
    pub fn payload_bytes_max(&self) -> u64 {
        payload_bytes_max(self.inner.identity.unit_bytes)
    }

    /// Reserves space for a record with a payload of this size.
    ///
    /// # Errors
    /// The journal stopped, or there is no space for another unit (it stops then).
    pub fn reserve(&self, payload_bytes: u32) -> Result<Reservation> {
        let limit_bytes = record_bytes_max(self.inner.identity.unit_bytes);
        if u64::from(payload_bytes) > limit_bytes {
            return Err(Error::TooLarge { bytes: payload_bytes.into(), limit_bytes });
        }
        let inner = &self.inner;
        let mut tail = inner.tail_with_room(payload_bytes)?;
        let (unit, at) = inner.place(&mut tail, payload_bytes);
        drop(tail);
        Ok(Reservation { journal: Arc::clone(inner), unit, at, payload_bytes })
    }

    /// Appends a whole record.
    ///
    /// # Errors
    /// As [`Journal::reserve`].
    pub fn append(&self, draft: &Draft, payload: &[u8]) -> Result<Seq> {
        let bytes = u32::try_from(payload.len()).map_err(|_| Error::TooLarge {
            bytes: payload.len() as u64,
            limit_bytes: self.payload_bytes_max(),
        })?;
        let mut space = self.reserve(bytes)?;
        space.payload_mut().copy_from_slice(payload);
        space.commit(draft)
    }

    /// Appends a record that carries metadata.
    ///
    /// # Errors
    /// As [`Journal::reserve`].
    pub fn append_meta(&self, body: &Meta) -> Result<Seq> {
        let payload = body.encode().map_err(|e| Error::Invalid(format!("encode record: {e}")))?;
        if payload.len() > META_BYTES_MAX {
            let limit_bytes = META_BYTES_MAX as u64;
            return Err(Error::TooLarge { bytes: payload.len() as u64, limit_bytes });
        }
        let mut draft = Draft::of(body.kind());
        match body {
            Meta::Copy(copy) => {
                draft.volume = copy.volume;
                draft.scope = copy.id;
            }
            Meta::Session(session) => draft.scope = session.id,
            Meta::Config(_) | Meta::Mark(_) => {}
        }
        let mut space = self.reserve(payload.len() as u32)?;
        space.payload_mut().copy_from_slice(&payload);
        let config = matches!(body, Meta::Config(_)).then_some(payload);
        space.commit_and(&draft, |tail| {
            // Under the same lock: a unit begun in between would repeat the old one behind it.
            if let Some(config) = config {
                tail.config = config;
            }
        })
    }
}

impl Reservation {
    /// The payload's place in the unit: fill it straight from the socket.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        // SAFETY: this range was handed out once, to this reservation, which is borrowed mutably.
        unsafe { self.unit.range_mut(self.at + HEADER_BYTES, self.payload_bytes.into()) }
    }

    /// Gives the record its number. When this returns, it and every record with a lower number
    /// survive the end of this process (I-1).
    ///
    /// # Errors
    /// The journal stopped meanwhile.
    pub fn commit(self, draft: &Draft) -> Result<Seq> {
        self.commit_and(draft, |_| {})
    }

    fn commit_and(mut self, draft: &Draft, with: impl FnOnce(&mut Tail)) -> Result<Seq> {
        let payload_crc = checksum::crc32c(self.payload_mut());
        let inner = &self.journal;
        let mut tail = lock(&inner.tail);
        inner.check(&tail)?;
        let bytes = self.payload_bytes;
        let seq = inner.commit(&mut tail, &self.unit, self.at, bytes, payload_crc, draft);
        with(&mut tail);
        Ok(seq)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // The last one out of a full unit lets it be sealed. Either this sees the unit full,
        // or the sealer, which looks after it was marked so, sees nothing in flight.
        let last = self.unit.in_flight.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.unit.is_full.load(Ordering::SeqCst) {
            let _tail = lock(&self.journal.tail);
            self.journal.sealer_wake.notify_one();
        }
    }
}

impl Inner {
    pub(super) fn check(&self, tail: &Tail) -> Result<()> {
        if tail.stopped.is_some() { Err(self.stop_error_under(tail)) } else { Ok(()) }
    }

    fn place(&self, tail: &mut Tail, payload_bytes: u32) -> (Arc<MappedUnit>, u64) {
        let at = tail.at;
        let unit = Arc::clone(&tail.unit);
        unit.in_flight.fetch_add(1, Ordering::SeqCst);
        unit.write_frame(at, payload_bytes);
        tail.at = align_up(at + HEADER_BYTES + u64::from(payload_bytes));
        tail.count += 1;
        if tail.at + background::PREFAULT_LOW_BYTES > tail.prefaulted
            && tail.prefaulted < unit.header.unit_bytes
        {
            self.faulter_wake.notify_one();
        }
        (unit, at)
    }

    fn commit(
        &self,
        tail: &mut Tail,
        unit: &MappedUnit,
        at: u64,
        payload_bytes: u32,
        payload_crc: u32,
        draft: &Draft,
    ) -> Seq {
        let seq = tail.next_seq;
        let clock = &self.options.clock;
        let age_ns = clock.mono_ns().saturating_sub(unit.header.mono_ns);
        let record = Record {
            kind: draft.kind,
            flags: draft.flags,
            volume: draft.volume,
            addr: draft.addr,
            len: draft.len,
            scope: draft.scope,
            mono_ms: u32::try_from(age_ns / 1_000_000).unwrap_or(u32::MAX),
            wall_ns: clock.wall_ns(),
            payload_crc,
            payload_bytes,
            seq,
        };
        unit.write_commit(at, &record);
        tail.next_seq = seq + 1;
        self.head.store(seq, Ordering::Release);
        seq
    }

    /// Appends a record without a payload; for the threads inside, which hold no [`Journal`].
    pub(super) fn append_bare(&self, draft: &Draft) -> Result<Seq> {
        let mut tail = self.tail_with_room(0)?;
        Ok(self.append_under(&mut tail, draft))
    }

    /// The tail lock, with room for a payload of this size in the current unit.
    pub(super) fn tail_with_room(&self, payload_bytes: u32) -> Result<MutexGuard<'_, Tail>> {
        let mut tail = lock(&self.tail);
        loop {
            self.check(&tail)?;
            let end = align_up(tail.at + HEADER_BYTES + u64::from(payload_bytes));
            if fits(self.identity.unit_bytes, end, tail.count + 1) {
                return Ok(tail);
            }
            tail = self.turn_to_next_unit(tail)?;
        }
    }

    /// Appends a record without a payload where there is room for it.
    pub(super) fn append_under(&self, tail: &mut Tail, draft: &Draft) -> Seq {
        let (unit, at) = self.place(tail, 0);
        let seq = self.commit(tail, &unit, at, 0, checksum::crc32c(&[]), draft);
        unit.in_flight.fetch_sub(1, Ordering::SeqCst);
        seq
    }

    /// Makes the prepared unit the current one; waits a bounded time for it.
    fn turn_to_next_unit<'a>(
        &'a self,
        mut tail: MutexGuard<'a, Tail>,
    ) -> Result<MutexGuard<'a, Tail>> {
        let seen = tail.unit.header.number;
        let deadline = Instant::now() + self.options.unit_wait;
        while tail.next.is_none() || tail.idle_full() >= FULL_UNITS_MAX {
            self.check(&tail)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let tail_space = tail.no_space;
                let cause = if tail_space { "has no space left" } else { "is too slow" };
                let why = format!(
                    "the next unit was not ready within {:?}: the disk of {} {cause}",
                    self.options.unit_wait,
                    self.dir.display()
                );
                self.stop(&mut tail, why, tail_space);
                return Err(self.stop_error_under(&tail));
            }
            self.keeper_wake.notify_one();
            self.sealer_wake.notify_one();
            tail =
                self.unit_ready.wait_timeout(tail, left).unwrap_or_else(PoisonError::into_inner).0;
            if tail.unit.header.number != seen {
                return Ok(tail);
            }
        }
        if let Some(next) = tail.next.take() {
            let (old, at) = (std::mem::replace(&mut tail.unit, next), tail.at);
            old.is_full.store(true, Ordering::SeqCst);
            tail.full.push((old, at));
            tail.at = BLOCK_BYTES;
            tail.count = 0;
            tail.prefaulted = BLOCK_BYTES + background::PREFAULT_BYTES;
            self.write_config(&mut tail);
            self.keeper_wake.notify_one();
            self.sealer_wake.notify_one();
        }
        Ok(tail)
    }

    /// Repeats the configuration at the start of a unit, so that it needs no older one.
    pub(super) fn write_config(&self, tail: &mut Tail) {
        if tail.config.is_empty() {
            return;
        }
        let config = std::mem::take(&mut tail.config);
        let payload_bytes = config.len() as u32;
        let (unit, at) = self.place(tail, payload_bytes);
        // SAFETY: just placed, under the tail lock.
        unsafe { unit.range_mut(at + HEADER_BYTES, payload_bytes.into()) }.copy_from_slice(&config);
        let crc = checksum::crc32c(&config);
        self.commit(tail, &unit, at, payload_bytes, crc, &Draft::of(Kind::Config));
        unit.in_flight.fetch_sub(1, Ordering::SeqCst);
        tail.config = config;
    }
}
