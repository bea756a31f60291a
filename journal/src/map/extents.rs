//! Which record holds each byte of a volume: an interval map, later insertions win.
//!
//! Ranges are in bytes, since guests write in 512-byte sectors; neighbours are never merged,
//! as each extent names the record that its data lies in.

use std::collections::BTreeMap;

/// A piece of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent<T> {
    /// Byte address of its start.
    pub start: u64,
    /// Byte address behind its end.
    pub end: u64,
    /// Where it comes from.
    pub source: T,
    /// How far into the source's own range it starts, in bytes.
    pub skip: u64,
}

/// The map.
#[derive(Debug, Clone)]
pub struct ExtentMap<T> {
    extents: BTreeMap<u64, Extent<T>>,
}

impl<T> Default for ExtentMap<T> {
    fn default() -> Self {
        Self { extents: BTreeMap::new() }
    }
}

impl<T: Copy> ExtentMap<T> {
    /// Number of extents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Maps `start..start + len` to `source`, over whatever was there.
    pub fn insert(&mut self, start: u64, len: u64, source: T) {
        let end = start.saturating_add(len);
        if start >= end {
            return;
        }
        self.clear(start, end);
        self.extents.insert(start, Extent { start, end, source, skip: 0 });
    }

    fn clear(&mut self, start: u64, end: u64) {
        if let Some((_, &before)) = self.extents.range(..start).next_back()
            && before.end > start
        {
            self.extents.insert(before.start, Extent { end: start, ..before });
            if before.end > end {
                let skip = before.skip + (end - before.start);
                self.extents.insert(end, Extent { start: end, skip, ..before });
            }
        }
        while let Some((&at, &inside)) = self.extents.range(start..end).next() {
            self.extents.remove(&at);
            if inside.end > end {
                let skip = inside.skip + (end - inside.start);
                self.extents.insert(end, Extent { start: end, skip, ..inside });
            }
        }
    }

    /// All extents, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Extent<T>> {
        self.extents.values()
    }

    /// The extents that overlap `start..end`, ascending, cut to it.
    pub fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = Extent<T>> + '_ {
        let first = self
            .extents
            .range(..start)
            .next_back()
            .filter(|(_, e)| e.end > start && start < end)
            .map_or(start, |(at, _)| *at);
        self.extents.range(first..end.max(first)).map(move |(_, e)| {
            let (from, to) = (e.start.max(start), e.end.min(end));
            Extent { start: from, end: to, source: e.source, skip: e.skip + (from - e.start) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_byte_belongs_to_the_last_insertion(
            writes in prop::collection::vec((0u64..300, 1u64..60), 0..60),
            window in (0u64..300, 0u64..100),
        ) {
            let mut map = ExtentMap::default();
            let mut model = vec![None; 512];
            for (id, (at, len)) in writes.iter().enumerate() {
                map.insert(*at, *len, id);
                for b in *at..*at + *len {
                    model[b as usize] = Some((id, b - at));
                }
            }
            let mut seen = vec![None; 512];
            for e in map.iter() {
                for b in e.start..e.end {
                    prop_assert!(seen[b as usize].is_none());
                    seen[b as usize] = Some((e.source, e.skip + (b - e.start)));
                }
            }
            prop_assert_eq!(&seen, &model);
            let (from, to) = (window.0, window.0 + window.1);
            let mut cut = vec![None; 512];
            for e in map.overlapping(from, to) {
                prop_assert!(e.start >= from && e.end <= to && e.start < e.end);
                for b in e.start..e.end {
                    cut[b as usize] = Some((e.source, e.skip + (b - e.start)));
                }
            }
            for b in 0..512u64 {
                let inside = (from..to).contains(&b);
                let expected = if inside { model[b as usize] } else { None };
                prop_assert_eq!(cut[b as usize], expected);
            }
        }
    }
}
