//! Reserve, fill, commit: what a capture thread runs for each write.

use super::tail::{Placed, Tail};
use super::{Inner, Journal, lock};
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::format::payload::PLAIN;
use crate::format::record::{HEADER_BYTES, Kind, Record};
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

/// What is stored behind a header.
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
    is_ended: bool,
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
        let place = inner.place(&mut tail, payload_bytes);
        drop(tail);
        Ok(Reservation::new(inner, place, payload_bytes))
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
            Meta::Merged(_) => {
                return Err(Error::Invalid("only merging writes what a unit replaces".into()));
            }
        }
        let mut space = self.reserve(payload.len() as u32)?;
        space.payload_mut().copy_from_slice(&payload);
        let config = matches!(body, Meta::Config(_)).then_some(payload);
        space.commit_and(&draft, PLAIN, |tail| {
            // Under the same lock: a unit begun in between would repeat the old one behind it.
            if let Some(config) = config {
                tail.config = config;
            }
        })
    }
}

impl Reservation {
    /// Of a place that was just handed out.
    pub(super) fn new(inner: &Arc<Inner>, place: Placed, payload_bytes: u32) -> Self {
        Self { journal: Arc::clone(inner), place, payload_bytes, is_ended: false }
    }

    /// The payload's place in the ring: fill it straight from the socket.
    pub fn payload_mut(&mut self) -> &mut [u8] {
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
        let payload_crc = checksum::crc32c(self.payload_mut());
        let inner = &self.journal;
        let mut tail = lock(&inner.tail);
        inner.check(&tail)?;
        let payload = Payload { bytes: self.payload_bytes, crc: payload_crc, compression };
        let seq = inner.commit(&mut tail, &self.place, &payload, draft);
        with(&mut tail);
        self.is_ended = true;
        Ok(seq)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_ended {
            let mut tail = lock(&self.journal.tail);
            self.journal.end(&mut tail, self.place.ticket);
        }
    }
}

impl Inner {
    pub(super) fn check(&self, tail: &Tail) -> Result<()> {
        if tail.stopped.is_some() { Err(self.stop_error_under(tail)) } else { Ok(()) }
    }

    /// A reservation is committed or given up.
    fn end(&self, tail: &mut Tail, ticket: u64) {
        tail.reserved.end(ticket);
        if tail.ready() >= tail.flush_at {
            tail.flush_at = u64::MAX;
            self.flusher_wake.notify_one();
        }
    }

    fn commit(&self, tail: &mut Tail, place: &Placed, payload: &Payload, draft: &Draft) -> Seq {
        let seq = tail.next_seq;
        let clock = &self.options.clock;
        let age_ns = clock.mono_ns().saturating_sub(place.unit.header.mono_ns);
        let record = Record {
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
            seq,
        };
        place.unit.write_commit(&self.ring, place.at, &record);
        tail.next_seq = seq + 1;
        self.head.store(seq, Ordering::Release);
        self.end(tail, place.ticket);
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
        self.commit(tail, &place, &payload, draft)
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
        self.commit(tail, &place, &payload, &Draft::of(Kind::Config));
        tail.config = config;
    }
}
