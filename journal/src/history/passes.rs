//! What a clock time means: the positions that were the newest when the clock showed it.
//!
//! A clock that is never set passes each time once. One that is set back passes some times twice, one
//! that is set forward leaves some out. Records are stamped when they get their numbers, and an idle
//! journal ticks every second; how much time really passed between two records of one boot, their
//! monotonic stamps tell.
//!
//! What always holds: a time that was passed more than once is never taken for one of its positions; the
//! time of a checkpoint, to the nanosecond, is that checkpoint's.

use super::{Entry, History};
use crate::Seq;
use crate::error::Result;
use crate::format::record::{self, Decoded, HEADER_BYTES, Record};
use crate::planted;

/// How long a journal that is written to can be without a record: an idle one ticks every second. The
/// newest record at a time counts as the state at that time for so long.
pub(super) const TICK_TOLERANCE_NS: u64 = 3_000_000_000;
/// What a monotonic stamp in whole milliseconds may be short of, in nanoseconds.
const STAMP_NS: u64 = 1_000_000;

/// A time on the clock while one position was the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    /// The position.
    pub(super) seq: Seq,
    /// Its wall time.
    pub(super) wall_ns: u64,
    /// The next position, if the clock was set forward over the time before that.
    pub(super) jumped_to: Option<Seq>,
    /// The time is a checkpoint's own.
    pub(super) is_checkpoint: bool,
}

impl Pass {
    fn new(seq: Seq, wall_ns: u64) -> Self {
        Self { seq, wall_ns, jumped_to: None, is_checkpoint: false }
    }
}

impl History {
    /// The positions that were the newest when the clock showed this time, oldest first.
    ///
    /// # Errors
    /// An index that is needed can't be read.
    pub(super) fn passes(&self, ns: u64) -> Result<Vec<Pass>> {
        let mut found = self.passes_by_records(ns)?;
        let mut others = Vec::new();
        let exact = self.checkpoints.iter().filter(|c| c.wall_ns == ns).map(|c| c.seq);
        let by_records: Vec<Seq> = found.iter().map(|p| p.seq).collect();
        for seq in exact {
            let own = Pass { is_checkpoint: true, ..Pass::new(seq, ns) };
            // What came behind it in the same pass of the clock was still to come at its time.
            match by_records.iter().position(|s| *s >= seq) {
                Some(at) if self.is_one_pass(seq, by_records[at])? => found[at] = own,
                _ => others.push(own),
            }
        }
        found.extend(others);
        found.sort_by_key(|p| p.seq);
        found.dedup_by_key(|p| p.seq);
        Ok(found)
    }

    /// Whether the clock never went back between two positions.
    fn is_one_pass(&self, from: Seq, to: Seq) -> Result<bool> {
        let mut last_ns = 0;
        for entry in self.entries_from(from) {
            let record = entry?.record;
            if record.seq > to {
                break;
            }
            if record.wall_ns < last_ns {
                return Ok(false);
            }
            last_ns = record.wall_ns;
        }
        Ok(true)
    }

    fn passes_by_records(&self, ns: u64) -> Result<Vec<Pass>> {
        let mut found = Vec::new();
        let last_ns = self.wall_ns(self.head);
        let is_newest = (last_ns..=last_ns.saturating_add(TICK_TOLERANCE_NS)).contains(&ns);
        if self.head > 0 && is_newest {
            found.push(Pass::new(self.head, last_ns));
        }
        // The record behind the one that is looked at; the slice behind, of which only its rows may be
        // known.
        let mut next: Option<Entry> = None;
        let mut slice_behind: Option<usize> = None;
        for slice in (0..self.units.len()).rev() {
            let Some((earliest, latest)) = self.wall_range(slice) else { continue };
            let behind = slice_behind.replace(slice);
            let latest_behind = behind.and_then(|b| self.wall_range(b)).map_or(0, |(_, max)| max);
            let is_later = earliest.saturating_sub(TICK_TOLERANCE_NS) > ns;
            let is_earlier = latest.saturating_add(TICK_TOLERANCE_NS).max(latest_behind) <= ns;
            if is_later || is_earlier {
                next = None;
                continue;
            }
            if next.is_none()
                && let Some(behind) = behind
            {
                next = self.slice(behind)?.first().copied();
            }
            for entry in self.slice(slice)?.iter().rev() {
                if let Some(next) = next.replace(*entry) {
                    found.extend(self.pass(ns, entry, &next));
                }
            }
        }
        found.sort_by_key(|p| p.seq);
        Ok(found)
    }

    /// Earliest and latest wall time of a slice's records, by its units' rows.
    fn wall_range(&self, slice: usize) -> Option<(u64, u64)> {
        let rows = &self.units[self.slice_units(slice)];
        let earliest = rows.iter().map(|u| u.wall_min_ns).min()?;
        Some((earliest, rows.iter().map(|u| u.wall_max_ns).max()?))
    }

    /// Whether the clock showed a time between a record and the next.
    fn pass(&self, ns: u64, entry: &Entry, next: &Entry) -> Option<Pass> {
        let (from_ns, to_ns) = (entry.record.wall_ns, next.record.wall_ns);
        let mut pass = Pass::new(entry.record.seq, from_ns);
        if to_ns < from_ns {
            // Set back at some time before the next record: till then it went on, and then up to that.
            let is_near =
                |(a, b): (u64, u64)| b.checked_sub(a).is_some_and(|d| d <= TICK_TOLERANCE_NS);
            if !(is_near((from_ns, ns)) || (ns < to_ns && is_near((ns, to_ns)))) {
                return None;
            }
            let went_on = self.elapsed_ns(entry, next).unwrap_or(TICK_TOLERANCE_NS);
            let was_shown = match ns.checked_sub(from_ns) {
                Some(behind_ns) => behind_ns <= went_on,
                None => ns < to_ns && to_ns - ns <= went_on,
            };
            return (was_shown && !planted::is("time-that-came-twice")).then_some(pass);
        }
        if !(from_ns..to_ns).contains(&ns) {
            return None;
        }
        let is_silent = to_ns - from_ns > TICK_TOLERANCE_NS && ns > from_ns;
        if is_silent && let Some(elapsed_ns) = self.elapsed_ns(entry, next) {
            // Set forward at some time: behind the one or before the other it went on.
            let was_shown = ns - from_ns <= elapsed_ns || to_ns - ns <= elapsed_ns;
            let is_jump = to_ns - from_ns > elapsed_ns.saturating_add(TICK_TOLERANCE_NS);
            pass.jumped_to = (is_jump && !was_shown).then_some(next.record.seq);
        }
        Some(pass)
    }

    /// The most time that lies between two records, nanoseconds; `None` where their stamps don't tell.
    fn elapsed_ns(&self, from: &Entry, to: &Entry) -> Option<u64> {
        let (a, b) = (self.stamp(from)?, self.stamp(to)?);
        (a.0 == b.0).then(|| b.1.saturating_sub(a.1).saturating_add(STAMP_NS))
    }

    /// Boot and monotonic time of a record. Indexes don't have it, its own header does, except in a
    /// merged unit.
    fn stamp(&self, entry: &Entry) -> Option<([u8; 16], u64)> {
        let row = self.units.get(entry.unit as usize).filter(|row| row.merged.is_none())?;
        let found = self.header_of(entry, &row.header.salt)?;
        let since_ns = u64::from(found.mono_ms) * STAMP_NS;
        Some((row.header.boot_id, row.header.mono_ns.saturating_add(since_ns)))
    }

    fn header_of(&self, entry: &Entry, salt: &[u8; 16]) -> Option<Record> {
        let mut bytes = [0; HEADER_BYTES as usize];
        self.file(entry.unit).ok()?.read_exact_at(&mut bytes, entry.at).ok()?;
        match record::decode(salt, entry.at, &bytes) {
            Decoded::Record(found) if found.seq == entry.record.seq => Some(found),
            _ => None,
        }
    }
}
