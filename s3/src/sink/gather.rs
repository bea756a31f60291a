//! The bytes of a file that are not yet in objects of a good size. No I/O: says what to write.
//!
//! ```text
//!  file    | segments of a good size ...  | small | small | not stored |
//!                                         from            stored       end
//! ```
//!
//! What always holds: from `from` on the bytes are here, also those that small segments hold already; so
//! that small ones are replaced by one that isn't, without reading them again.

/// A segment is cut when so much is here.
pub const SEGMENT_BYTES: usize = 8 << 20;
/// A segment that is no smaller stays as it is.
pub const SEGMENT_GOOD_BYTES: usize = 4 << 20;
/// Small segments at the end of a file; then they become one, whatever its size.
pub const SMALL_MAX: usize = 64;

/// What to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Byte of the file.
    pub at: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many of the file's last segments it replaces.
    pub replaces: usize,
}

/// The end of a file.
#[derive(Debug, Default)]
pub(super) struct Gather {
    from: u64,
    bytes: Vec<u8>,
    stored: u64,
    small: usize,
}

impl Gather {
    /// Of a file of which all below `at` is in segments.
    pub fn at(at: u64) -> Self {
        Self { from: at, bytes: Vec::new(), stored: at, small: 0 }
    }

    /// Of a file whose last `small` segments hold these bytes, from `from` on.
    pub fn again(from: u64, bytes: Vec<u8>, small: usize) -> Self {
        let stored = from + bytes.len() as u64;
        Self { from, bytes, stored, small }
    }

    /// All below this byte was brought.
    pub fn end(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }

    /// Whether something of it is in no segment.
    pub fn is_behind(&self) -> bool {
        self.stored < self.end()
    }

    /// Takes bytes at its end; what is to be written, if that is much now.
    pub fn push(&mut self, mut bytes: &[u8], mut write: impl FnMut(Cut)) {
        while !bytes.is_empty() {
            let room = SEGMENT_BYTES.saturating_sub(self.bytes.len()).max(1);
            let (some, rest) = bytes.split_at(room.min(bytes.len()));
            self.bytes.extend_from_slice(some);
            bytes = rest;
            if self.bytes.len() >= SEGMENT_BYTES {
                write(self.cut());
            }
        }
    }

    /// What is to be written so that all of it is in segments: `None`: nothing.
    pub fn settle(&mut self) -> Option<Cut> {
        if !self.is_behind() {
            return None;
        }
        let fresh = (self.end() - self.stored) as usize;
        if fresh >= SEGMENT_GOOD_BYTES || self.small >= SMALL_MAX {
            return Some(self.cut());
        }
        let at = self.stored;
        let bytes = self.bytes[self.bytes.len() - fresh..].to_vec();
        self.stored = self.end();
        self.small += 1;
        Some(Cut { at, bytes, replaces: 0 })
    }

    /// What is to be written at the file's end: one segment in place of all small ones. `None`: there is
    /// nothing, or one small segment that holds it all.
    pub fn finish(&mut self) -> Option<Cut> {
        let needed = self.is_behind() || self.small > 1;
        needed.then(|| self.cut())
    }

    /// Goes on at another byte, behind a hole: all before it is in segments.
    pub fn skip_to(&mut self, at: u64) {
        *self = Self::at(at);
    }

    fn cut(&mut self) -> Cut {
        let (at, replaces) = (self.from, self.small);
        let bytes = std::mem::take(&mut self.bytes);
        *self = Self::at(at + bytes.len() as u64);
        Cut { at, bytes, replaces }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file that is made of cuts.
    #[derive(Default)]
    struct Model {
        segments: Vec<(u64, Vec<u8>)>,
    }

    impl Model {
        fn write(&mut self, cut: Cut) {
            self.segments.truncate(self.segments.len() - cut.replaces);
            let end = self.segments.last().map_or(0, |(at, b)| at + b.len() as u64);
            assert_eq!(cut.at, end, "segments without a hole or overlap");
            self.segments.push((cut.at, cut.bytes));
        }

        fn bytes(&self) -> Vec<u8> {
            self.segments.iter().flat_map(|(_, b)| b.clone()).collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn cuts_hold_what_was_brought_and_few_are_small(
            steps in prop::collection::vec((0..3_u32, 1..5_000_000_usize), 1..24)
        ) {
            let (mut gather, mut model, mut all) = (Gather::at(0), Model::default(), Vec::new());
            for (kind, bytes) in steps {
                if kind == 0 {
                    gather.settle().into_iter().for_each(|cut| model.write(cut));
                    prop_assert_eq!(model.bytes(), all.clone());
                } else {
                    let bytes: Vec<u8> = (0..bytes).map(|i| (all.len() + i) as u8).collect();
                    gather.push(&bytes, |cut| model.write(cut));
                    all.extend(bytes);
                }
            }
            gather.finish().into_iter().for_each(|cut| model.write(cut));
            prop_assert_eq!(model.bytes(), all);
            let small = model.segments.iter().filter(|(_, b)| b.len() < SEGMENT_GOOD_BYTES).count();
            prop_assert!(small <= 1, "{small} small segments");
        }
    }

    #[test]
    fn many_small_ones_become_one() {
        let (mut gather, mut model) = (Gather::at(0), Model::default());
        for i in 0..300_u32 {
            gather.push(&i.to_le_bytes(), |cut| model.write(cut));
            gather.settle().into_iter().for_each(|cut| model.write(cut));
        }
        assert!(model.segments.len() <= SMALL_MAX + 5, "{}", model.segments.len());
        assert_eq!(model.bytes().len(), 1200);
    }
}
