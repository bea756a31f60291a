//! Which blocks of a volume its scratch layer holds.
//!
//! What always holds: two bits a block of [`BLOCK_BYTES`], so the map of a disk takes a 16384th of
//! the disk's size at most; its pages cost memory only once something near them was written.

use std::sync::{PoisonError, RwLock};

/// Granularity of the layer, in bytes.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// What of a block is in the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing: it is as it was at the point.
    Base,
    /// Its bytes.
    Data,
    /// That it is zero; the scratch file has a hole there.
    Zero,
}

struct Bits {
    /// The block is in the layer.
    ours: Vec<u64>,
    /// And it is zero.
    zero: Vec<u64>,
}

/// The map of one volume's layer.
pub(super) struct Written {
    bits: RwLock<Bits>,
    blocks: u64,
}

impl Written {
    /// The map of a volume of that size, of which nothing is written.
    pub(super) fn new(bytes: u64) -> Self {
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        let words = blocks.div_ceil(64) as usize;
        // Memory that the system hands out zeroed and page by page.
        let bits = Bits { ours: vec![0; words], zero: vec![0; words] };
        Self { bits: RwLock::new(bits), blocks }
    }

    /// The state of a block, and the block behind the last one of the same state in a row, at most
    /// `behind`.
    pub(super) fn run(&self, block: u64, behind: u64) -> (State, u64) {
        let bits = self.bits.read().unwrap_or_else(PoisonError::into_inner);
        let behind = behind.min(self.blocks);
        let state = bits.state(block);
        let mut at = block + 1;
        while at < behind {
            if at.is_multiple_of(64) && behind - at >= 64 && bits.is_word_of(at, state) {
                at += 64;
            } else if bits.state(at) == state {
                at += 1;
            } else {
                break;
            }
        }
        (state, at)
    }

    /// Says what the blocks `from..behind` are now.
    pub(super) fn mark(&self, from: u64, behind: u64, state: State) {
        let mut bits = self.bits.write().unwrap_or_else(PoisonError::into_inner);
        set(&mut bits.ours, from, behind, state != State::Base);
        set(&mut bits.zero, from, behind, state == State::Zero);
    }
}

impl Bits {
    fn state(&self, block: u64) -> State {
        let bit = |words: &[u64]| words[(block / 64) as usize] >> (block % 64) & 1 == 1;
        match (bit(&self.ours), bit(&self.zero)) {
            (false, _) => State::Base,
            (true, false) => State::Data,
            (true, true) => State::Zero,
        }
    }

    /// Whether all 64 blocks from one at a word's start are in that state.
    fn is_word_of(&self, block: u64, state: State) -> bool {
        let word = (block / 64) as usize;
        let wanted = match state {
            State::Base => (0, 0),
            State::Data => (u64::MAX, 0),
            State::Zero => (u64::MAX, u64::MAX),
        };
        (self.ours[word], self.zero[word]) == wanted
    }
}

fn set(words: &mut [u64], from: u64, behind: u64, on: bool) {
    let mut at = from;
    while at < behind {
        let word = &mut words[(at / 64) as usize];
        let count = (64 - at % 64).min(behind - at);
        let mask = (u64::MAX >> (64 - count)) << (at % 64);
        // Untouched pages stay untouched.
        if on {
            *word |= mask;
        } else if *word & mask != 0 {
            *word &= !mask;
        }
        at += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 300;

    proptest! {
        #[test]
        fn runs_are_what_was_marked_last(
            marks in prop::collection::vec((0..BLOCKS, 1..BLOCKS, 0..3_u8), 0..30),
            window in (0..BLOCKS, 1..BLOCKS),
        ) {
            let written = Written::new(BLOCKS * BLOCK_BYTES - 100);
            let mut model = [State::Base; BLOCKS as usize];
            for (from, count, state) in marks {
                let behind = (from + count).min(BLOCKS);
                let state = [State::Base, State::Data, State::Zero][usize::from(state)];
                written.mark(from, behind, state);
                model[from as usize..behind as usize].fill(state);
            }
            let behind = (window.0 + window.1).min(BLOCKS);
            let mut at = window.0;
            while at < behind {
                let (state, end) = written.run(at, behind);
                prop_assert!(at < end && end <= behind);
                for block in at..end {
                    prop_assert_eq!(model[block as usize], state);
                }
                prop_assert!(end == behind || model[end as usize] != state);
                at = end;
            }
        }
    }
}
