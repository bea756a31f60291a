//! The records in the order of their numbers, from the units' indexes, a bounded part at a time.
//!
//! Units are in the order of their numbers but for their borders, where a record that was begun
//! in one may be numbered behind the first ones of the next. So the numbers are cut into
//! *slices*, one a unit: what is above all units before it, up to its own highest.

use super::History;
use crate::Seq;
use crate::error::Result;
use crate::format::record::Record;

/// One record: where it lies, and its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Index into [`History::units`].
    pub unit: u32,
    /// Byte offset in the unit.
    pub at: u64,
    /// The header.
    pub record: Record,
}

/// All records by (number, address); see [`History::entries`].
pub struct Entries<'h> {
    history: &'h History,
    slice: usize,
    loaded: std::vec::IntoIter<Entry>,
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.loaded.next() {
                return Some(Ok(entry));
            }
            if self.slice >= self.history.units.len() {
                return None;
            }
            self.slice += 1;
            match self.history.slice(self.slice - 1) {
                Ok(entries) => self.loaded = entries.into_iter(),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

impl History {
    /// All records in the order of their numbers, those of one unit in memory at a time. A unit
    /// that can't be read is one error; what others hold follows.
    #[must_use]
    pub fn entries(&self) -> Entries<'_> {
        Entries { history: self, slice: 0, loaded: Vec::new().into_iter() }
    }

    /// As [`History::entries`], from a number on.
    pub fn entries_from(&self, seq: Seq) -> impl Iterator<Item = Result<Entry>> + use<'_> {
        let slice = self.slice_of(seq);
        let entries = Entries { history: self, slice, loaded: Vec::new().into_iter() };
        entries.skip_while(move |e| e.as_ref().is_ok_and(|e| e.record.seq < seq))
    }

    /// The records of a unit, in the order in which they lie in its file.
    ///
    /// # Errors
    /// Its index can't be read, or the file is another one.
    pub fn unit_entries(&self, unit: u32) -> Result<Vec<Entry>> {
        let records = self.records(unit)?;
        let mut all: Vec<Entry> =
            records.iter().map(|(at, record)| Entry { unit, at: *at, record: *record }).collect();
        all.sort_unstable_by_key(|e| e.at);
        Ok(all)
    }

    /// The numbers of a slice: above the first, up to the second.
    fn slice_range(&self, slice: usize) -> (Seq, Seq) {
        let high = |i: usize| self.reach(i).map_or(0, |(high, _)| high);
        (slice.checked_sub(1).map_or(0, high), high(slice))
    }

    /// The units that hold records of a slice.
    pub(super) fn slice_units(&self, slice: usize) -> std::ops::Range<usize> {
        let (low, high) = self.slice_range(slice);
        let mut behind = slice;
        while low < high && self.reach(behind).is_some_and(|(_, lowest)| lowest <= high) {
            behind += 1;
        }
        slice..behind
    }

    pub(super) fn slice(&self, slice: usize) -> Result<Vec<Entry>> {
        let (low, high) = self.slice_range(slice);
        let mut all = Vec::new();
        for unit in self.slice_units(slice) {
            let unit = unit as u32;
            let records = self.records(unit)?;
            let first = records.partition_point(|(_, r)| r.seq <= low);
            let behind = records.partition_point(|(_, r)| r.seq <= high);
            let part = &records[first..behind];
            all.extend(part.iter().map(|(at, record)| Entry { unit, at: *at, record: *record }));
        }
        all.sort_by_key(|e| (e.record.seq, e.record.addr));
        Ok(all)
    }

    /// The slice that a number lies in; the last one when it lies behind all.
    fn slice_of(&self, seq: Seq) -> usize {
        let mut first = 0;
        let mut behind = self.units.len();
        while first < behind {
            let middle = first + (behind - first) / 2;
            match self.slice_range(middle).1 < seq {
                true => first = middle + 1,
                false => behind = middle,
            }
        }
        first.min(self.units.len().saturating_sub(1))
    }

    /// Wall time of the newest record at or before a position (0: there is none, or its unit
    /// can't be read).
    #[must_use]
    pub fn wall_ns(&self, seq: Seq) -> u64 {
        let mut slice = self.slice_of(seq);
        loop {
            let (low, high) = self.slice_range(slice);
            // The newest of a unit that nothing reaches into is known without its index.
            if let Some(row) = self.units.get(slice)
                && high <= seq
                && low < high
                && row.last_seq == high
            {
                return row.last_wall_ns;
            }
            if let Ok(entries) = self.slice(slice) {
                let behind = entries.partition_point(|e| e.record.seq <= seq);
                if let Some(entry) = entries[..behind].last() {
                    return entry.record.wall_ns;
                }
            }
            match slice.checked_sub(1) {
                Some(before) => slice = before,
                None => return 0,
            }
        }
    }

    /// Wall time of the first record (0: there is none).
    pub(super) fn first_wall_ns(&self) -> u64 {
        self.units.iter().find(|u| u.first_seq > 0).map_or(0, |u| u.first_wall_ns)
    }
}
