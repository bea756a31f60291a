//! Reserve, fill, commit: what a capture thread runs for each write.
//!
//! What always holds: of an encrypted journal, data is encrypted when its number is known, under the tail
//! lock, from private memory into the ring: nothing else of it is ever in a file.

use super::tail::{Placed, Tail};
use super::{Inner, Journal, lock};
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::format::cipher::TAG_BYTES;
use crate::format::payload::PLAIN;
use crate::format::record::{HEADER_BYTES, Kind, Record};
use crate::history::Point;
use crate::meta::{META_BYTES_MAX, Meta};
use crate::unit::{payload_bytes_max, record_bytes_max};
use crate::{Seq, VolumeId};
use std::sync::Arc;
use std::sync::atomic::Ordering;

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

/// What a guest's writes are multiples of, in bytes.
const SECTOR_BYTES: u64 = 512;

/// What is stored behind a header; the checksum of one that is encrypted comes with its number.
struct Payload {
    bytes: u32,
    crc: u32,
    compression: u8,
}

/// Space for one record. Dropped without [`Reservation::commit`], it stays an uncommitted
/// reservation, which every scan steps over. The ring's space behind it is not used again while it
/// lives: whoever may have to wait for the payload gives it up after a bounded time.
pub struct Reservation {
    journal: Arc<Inner>,
    place: Placed,
    payload_bytes: u32,
    /// Where the payload is until it is encrypted.
    private: Option<Vec<u8>>,
    is_ended: bool,
}

impl Journal {
    /// Largest payload of one record, in bytes; larger writes become several records.
    #[must_use]
    pub fn payload_bytes_max(&self) -> u64 {
        let most = payload_bytes_max(self.inner.identity.unit_bytes);
        // Whole sectors: what is longer is cut there.
        if self.inner.is_encrypted() { most - SECTOR_BYTES } else { most }
    }

    /// Reserves space for a write with a payload of this size.
    ///
    /// # Errors
    /// The journal stopped, or there is no space for another unit (it stops then).
    pub fn reserve(&self, payload_bytes: u32) -> Result<Reservation> {
        self.reserve_for(Kind::Write, payload_bytes)
    }

    fn reserve_for(&self, kind: Kind, payload_bytes: u32) -> Result<Reservation> {
        let inner = &self.inner;
        let stored_bytes = inner.stored_bytes(kind, payload_bytes);
        let limit_bytes = record_bytes_max(inner.identity.unit_bytes);
        if u64::from(stored_bytes) > limit_bytes {
            return Err(Error::TooLarge { bytes: stored_bytes.into(), limit_bytes });
        }
        let mut tail = inner.tail_with_room(stored_bytes)?;
        let place = inner.place(&mut tail, stored_bytes);
        drop(tail);
        Ok(Reservation::new(inner, place, (payload_bytes, stored_bytes)))
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
        let mut space = self.reserve_for(draft.kind, bytes)?;
        space.payload_mut().copy_from_slice(payload);
        space.commit(draft)
    }

    /// The newest record of this opening: its number and wall time (0: there is none yet).
    #[must_use]
    pub fn newest(&self) -> Point {
        let tail = lock(&self.inner.tail);
        Point { seq: tail.next_seq.saturating_sub(1), wall_ns: tail.newest_wall_ns }
    }

    /// Appends a record that carries metadata.
    ///
    /// # Errors
    /// As [`Journal::reserve`].
    pub fn append_meta(&self, body: &Meta) -> Result<Seq> {
        self.append_meta_stamped(body).map(|point| point.seq)
    }

    /// As [`Journal::append_meta`]; gives the record's wall time, too.
    ///
    /// # Errors
    /// As [`Journal::reserve`].
    pub fn append_meta_stamped(&self, body: &Meta) -> Result<Point> {
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
            Meta::Merged(_) => {
                return Err(Error::Invalid("only merging writes what a unit replaces".into()));
            }
        }
        let mut space = self.reserve_for(draft.kind, payload.len() as u32)?;
        space.payload_mut().copy_from_slice(&payload);
        let config = matches!(body, Meta::Config(_)).then_some(payload);
        let mut wall_ns = 0;
        let seq = space.commit_and(&draft, PLAIN, |tail| {
            wall_ns = tail.newest_wall_ns;
            // Under the same lock: a unit begun in between would repeat the old one behind it.
            if let Some(config) = config {
                tail.config = config;
            }
        })?;
        Ok(Point { seq, wall_ns })
    }
}

impl Reservation {
    /// Of a place that was just handed out.
    pub(super) fn new(
        inner: &Arc<Inner>,
        place: Placed,
        (payload_bytes, stored_bytes): (u32, u32),
    ) -> Self {
        let is_private = stored_bytes != payload_bytes;
        let private = is_private.then(|| inner.private.take(payload_bytes as usize));
        Self { journal: Arc::clone(inner), place, payload_bytes, private, is_ended: false }
    }

    /// The payload's place: fill it straight from the socket. It is in the ring, or in private memory if
    /// it is going to be encrypted.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        if let Some(private) = &mut self.private {
            return &mut private[..self.payload_bytes as usize];
        }
        let position = self.place.unit.position(self.place.at + HEADER_BYTES);
        // SAFETY: this range was handed out once, to this reservation, which is borrowed mutably.
        unsafe { self.journal.ring.range_mut(position, self.payload_bytes.into()) }
    }

    /// Gives the record its number. When this returns, it and every record with a lower number
    /// survive the end of this process (I-1).
    ///
    /// # Errors
    /// The journal stopped meanwhile.
    pub fn commit(self, draft: &Draft) -> Result<Seq> {
        self.commit_and(draft, PLAIN, |_| {})
    }

    pub(super) fn commit_and(
        mut self,
        draft: &Draft,
        compression: u8,
        with: impl FnOnce(&mut Tail),
    ) -> Result<Seq> {
        let is_private = self.private.is_some();
        if is_private && draft.kind != Kind::Write {
            return Err(Error::Invalid("space for a write was filled with something else".into()));
        }
        let crc = if is_private { 0 } else { checksum::crc32c(self.payload_mut()) };
        let bytes = self.journal.stored_bytes(draft.kind, self.payload_bytes);
        let payload = Payload { bytes, crc, compression };
        let inner = &self.journal;
        let mut tail = lock(&inner.tail);
        inner.check(&tail)?;
        let mut record = inner.record(&tail, &self.place, &payload, draft);
        if let Some(private) = &self.private {
            let clear = &private[..self.payload_bytes as usize];
            self.place.unit.encrypt(&inner.ring, self.place.at, &mut record, clear)?;
        }
        let seq = inner.commit(&mut tail, &self.place, &record);
        with(&mut tail);
        self.is_ended = true;
        Ok(seq)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(private) = self.private.take() {
            self.journal.private.give(private);
        }
        if !self.is_ended {
            let mut tail = lock(&self.journal.tail);
            self.journal.end(&mut tail, self.place.ticket, Seq::MAX);
        }
    }
}

impl Inner {
    pub(super) fn check(&self, tail: &Tail) -> Result<()> {
        if tail.stopped.is_some() { Err(self.stop_error_under(tail)) } else { Ok(()) }
    }

    /// A reservation is committed or given up.
    fn end(&self, tail: &mut Tail, ticket: u64, seq: Seq) {
        tail.reserved.end(ticket, seq);
        if tail.ready() >= tail.flush_at {
            tail.flush_at = u64::MAX;
            self.flusher_wake.notify_one();
        }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.options.key.is_some()
    }

    /// Bytes that are stored of a payload.
    pub(super) fn stored_bytes(&self, kind: Kind, payload_bytes: u32) -> u32 {
        let is_sealed = self.is_encrypted() && kind == Kind::Write && payload_bytes > 0;
        if is_sealed { payload_bytes.saturating_add(TAG_BYTES) } else { payload_bytes }
    }

    /// The record that comes next, of what is placed.
    fn record(&self, tail: &Tail, place: &Placed, payload: &Payload, draft: &Draft) -> Record {
        let clock = &self.options.clock;
        let age_ns = clock.mono_ns().saturating_sub(place.unit.header.mono_ns);
        Record {
            kind: draft.kind,
            flags: draft.flags,
            volume: draft.volume,
            addr: draft.addr,
            len: draft.len,
            scope: draft.scope,
            mono_ms: u32::try_from(age_ns / 1_000_000).unwrap_or(u32::MAX),
            wall_ns: clock.wall_ns(),
            payload_crc: payload.crc,
            payload_bytes: payload.bytes,
            compression: payload.compression,
            encrypted: false,
            seq: tail.next_seq,
        }
    }

    fn commit(&self, tail: &mut Tail, place: &Placed, record: &Record) -> Seq {
        let seq = record.seq;
        place.unit.write_commit(&self.ring, place.at, record);
        tail.next_seq = seq + 1;
        tail.newest_wall_ns = record.wall_ns;
        if let Some(note) = &self.head_note {
            note.raise(seq);
        }
        self.head.store(seq, Ordering::Release);
        self.end(tail, place.ticket, seq);
        seq
    }

    /// Appends a record without a payload, if that takes no waiting; for the flusher, for which
    /// everybody else waits.
    pub(super) fn append_at_once(&self, draft: &Draft) -> Option<Seq> {
        let mut tail = self.tail_if_room(0)?;
        Some(self.append_under(&mut tail, draft))
    }

    /// Appends a record without a payload where there is room for it.
    pub(super) fn append_under(&self, tail: &mut Tail, draft: &Draft) -> Seq {
        let place = self.place(tail, 0);
        let payload = Payload { bytes: 0, crc: checksum::crc32c(&[]), compression: PLAIN };
        let record = self.record(tail, &place, &payload, draft);
        self.commit(tail, &place, &record)
    }

    /// Repeats the configuration at the start of a unit, so that it needs no older one.
    pub(super) fn write_config(&self, tail: &mut Tail) {
        if tail.config.is_empty() {
            return;
        }
        let config = std::mem::take(&mut tail.config);
        let payload_bytes = config.len() as u32;
        let place = self.place(tail, payload_bytes);
        let position = place.unit.position(place.at + HEADER_BYTES);
        // SAFETY: just placed, under the tail lock.
        unsafe { self.ring.range_mut(position, payload_bytes.into()) }.copy_from_slice(&config);
        let crc = checksum::crc32c(&config);
        let payload = Payload { bytes: payload_bytes, crc, compression: PLAIN };
        let record = self.record(tail, &place, &payload, &Draft::of(Kind::Config));
        self.commit(tail, &place, &record);
        tail.config = config;
    }
}
