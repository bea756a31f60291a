//! Finding one record of a sealed unit with two or three small reads, without its whole index: for
//! single reads all over a journal, whose indexes together are larger than any cache.
//!
//! What always holds: the checksum over the index isn't looked at here, so an entry is believed only
//! when the record's own header, which has a checksum, says the same; whoever gets no answer has to
//! read the whole index.

use super::{Entry, History, Unit};
use crate::Seq;
use crate::format::index::{self, ENTRY_BYTES, FOOTER_BYTES};
use crate::format::record::{self, Decoded, HEADER_BYTES, Kind, Record};
use crate::format::{ALIGN_BYTES, unit_header::UnitHeader};
use crate::storage::StoredFile;
use crate::unit::ScanEnd;

/// Entries that are read at a time: less than 4 KiB.
const PAGE_ENTRIES: u64 = 84;
/// Reads after which the whole index is the better way.
const PROBES_MAX: usize = 12;

/// What is left of an index: the entry that is sought is among those from `low` on, before `high`,
/// or the one before them.
struct Span {
    low: u64,
    high: u64,
    /// Numbers that the entries at both ends have, or about that.
    seqs: (Seq, Seq),
}

impl Span {
    /// Where to look next. Numbers grow about evenly; where they don't, halving ends it.
    fn guess(&self, seq: Seq, probe: usize) -> u64 {
        let entries = self.high - self.low;
        let (first, last) = self.seqs;
        if probe % 2 == 1 || last <= first {
            return self.low + entries / 2;
        }
        let part = u128::from(seq.clamp(first, last) - first) * u128::from(entries);
        self.low + (part / u128::from(last - first)) as u64
    }
}

impl History {
    /// The record that holds a byte of the range of record `wanted.0`, if it lies in this unit and
    /// is found quickly.
    pub(super) fn glance(&self, unit: u32, row: &Unit, wanted: (Seq, u64)) -> Option<Entry> {
        if row.read.is_some() || row.end != ScanEnd::Sealed || wanted.0 > row.valid_to {
            return None;
        }
        let file = self.file(unit).ok()?;
        let (at, record) = floor(&*file, row, wanted)?;
        let end = record.addr.saturating_add(record.len.max(1).into());
        let holds = record.seq == wanted.0 && wanted.1 < end && record.kind != Kind::Merged;
        (holds && confirms(&*file, &row.header, at, &record)).then_some(Entry { unit, at, record })
    }
}

/// The last entry at or before a number and address, as far as the index can be believed.
fn floor(file: &dyn StoredFile, row: &Unit, wanted: (Seq, u64)) -> Option<(u64, Record)> {
    let unit_bytes = row.header.unit_bytes;
    let index_bytes = row.count.checked_mul(ENTRY_BYTES)?;
    let index_at = unit_bytes.checked_sub(FOOTER_BYTES)?.checked_sub(index_bytes)?;
    let index_at = index_at / ALIGN_BYTES * ALIGN_BYTES;
    let mut left = Span { low: 0, high: row.count, seqs: (row.first_seq, row.last_seq) };
    // The entry before `left.low`.
    let mut before = None;
    let mut page = [0; (PAGE_ENTRIES * ENTRY_BYTES) as usize];
    for probe in 0..PROBES_MAX {
        if left.low >= left.high {
            return before;
        }
        let count = PAGE_ENTRIES.min(left.high - left.low);
        let middle = left.guess(wanted.0, probe).saturating_sub(count / 2);
        let from = middle.clamp(left.low, left.high - count);
        let page = &mut page[..(count * ENTRY_BYTES) as usize];
        file.read_exact_at(page, index_at + from * ENTRY_BYTES).ok()?;
        let (entries, _) = page.as_chunks::<{ ENTRY_BYTES as usize }>();
        let (first, last) = (index::key(entries.first()?)?, index::key(entries.last()?)?);
        if first > wanted {
            (left.high, left.seqs.1) = (from, first.0);
            continue;
        }
        let behind = entries.partition_point(|e| index::key(e).is_some_and(|k| k <= wanted));
        before = index::decode_entry(entries.get(behind.checked_sub(1)?)?, unit_bytes);
        if behind < entries.len() {
            return before;
        }
        (left.low, left.seqs.0) = (from + count, last.0);
    }
    None
}

/// Whether a record's own header says what the index does, which has no monotonic time.
fn confirms(file: &dyn StoredFile, unit: &UnitHeader, at: u64, record: &Record) -> bool {
    let mut bytes = [0; HEADER_BYTES as usize];
    if file.read_exact_at(&mut bytes, at).is_err() {
        return false;
    }
    let Decoded::Record(found) = record::decode(&unit.salt, at, &bytes) else { return false };
    Record { mono_ms: record.mono_ms, ..found } == *record
}
