//! A piece: a range of a volume, and the record that counts there.
//!
//! A piece names its record by sequence number, never by file and offset, so that it stays true
//! when units are merged. The record's bytes may since lie in several places: ask for them by
//! number and address.

use crate::format::record::{FLAG_COPIED, Kind, Record};
use crate::planted;
use crate::{Seq, VolumeId};

/// A range of a volume, in bytes, and what counts there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Byte address of its start.
    pub start: u64,
    /// Byte address behind its end.
    pub end: u64,
    /// Where it ranks: its own number, or that of its copy's start (I-5).
    pub rank: Seq,
    /// The record that holds it.
    pub seq: Seq,
    /// It reads as zeroes; no payload is needed.
    pub zero: bool,
}

/// A piece and the volume that it lies in.
pub type Placed = (VolumeId, Piece);

impl Piece {
    /// What decides between pieces of one byte: the higher one counts.
    #[must_use]
    pub fn precedence(&self) -> (Seq, Seq) {
        (self.rank, self.seq)
    }

    /// Its part within `from..to`.
    #[must_use]
    pub fn cut(&self, from: u64, to: u64) -> Option<Self> {
        let (start, end) = (self.start.max(from), self.end.min(to));
        (start < end).then_some(Self { start, end, ..*self })
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// The pieces of data records, in their order. `as_of` gives the number of a copy's start record;
/// copied records of a copy that it doesn't know don't count.
pub fn record_pieces<'r>(
    records: impl IntoIterator<Item = &'r Record>,
    as_of: impl Fn(u32) -> Option<Seq>,
) -> impl Iterator<Item = Placed> {
    records.into_iter().filter_map(move |record| {
        let zero = match record.kind {
            Kind::Write => false,
            Kind::Zero => true,
            _ => return None,
        };
        let copied = record.flags & FLAG_COPIED != 0 && !planted::is("copied-over-newer");
        let rank = if copied { as_of(record.scope)? } else { record.seq };
        let end = record.addr.checked_add(record.len.into())?;
        let piece = Piece { start: record.addr, end, rank, seq: record.seq, zero };
        (record.len > 0).then_some((record.volume, piece))
    })
}
