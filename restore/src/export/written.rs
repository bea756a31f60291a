//! Which blocks of a volume its scratch layer holds.
//!
//! What always holds: two bits a block of [`BLOCK_BYTES`], in chunks that are there only where something was
//! written: memory grows with that, a 16384th of it at most, whatever size the journal gives a disk.

use std::collections::BTreeMap;
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
    /// That it is zero, whatever the scratch file has there.
    Zero,
}

/// Blocks of a chunk: 128 MiB of the disk.
const CHUNK_BLOCKS: u64 = 64 * CHUNK_WORDS as u64;
const CHUNK_WORDS: usize = 512;

/// The bits of neighbouring blocks.
struct Chunk {
    /// The block is in the layer.
    ours: [u64; CHUNK_WORDS],
    /// And it is zero.
    zero: [u64; CHUNK_WORDS],
}

/// Chunks by number; in one that isn't there, nothing was written.
type Chunks = BTreeMap<u64, Box<Chunk>>;

/// The map of one volume's layer.
pub(super) struct Written {
    chunks: RwLock<Chunks>,
    blocks: u64,
}

impl Written {
    /// The map of a volume of that size, of which nothing is written.
    pub(super) fn new(bytes: u64) -> Self {
        Self { chunks: RwLock::default(), blocks: bytes.div_ceil(BLOCK_BYTES) }
    }

    /// The state of a block, and the block behind the last one of the same state in a row, at most
    /// `behind`.
    pub(super) fn run(&self, block: u64, behind: u64) -> (State, u64) {
        let chunks = self.chunks.read().unwrap_or_else(PoisonError::into_inner);
        let behind = behind.min(self.blocks);
        let state = chunks.get(&(block / CHUNK_BLOCKS)).map_or(State::Base, |c| c.state(block));
        let mut at = block + 1;
        while at < behind {
            let number = at / CHUNK_BLOCKS;
            match chunks.get(&number) {
                None if state == State::Base => {
                    let next = chunks.range(number..).next().map(|(n, _)| n * CHUNK_BLOCKS);
                    at = next.unwrap_or(behind).min(behind);
                }
                Some(chunk)
                    if at.is_multiple_of(64)
                        && behind - at >= 64
                        && chunk.is_word_of(at, state) =>
                {
                    at += 64;
                }
                Some(chunk) if chunk.state(at) == state => at += 1,
                _ => break,
            }
        }
        (state, at)
    }

    /// Says what the blocks `from..behind` are now.
    pub(super) fn mark(&self, from: u64, behind: u64, state: State) {
        let mut chunks = self.chunks.write().unwrap_or_else(PoisonError::into_inner);
        let mut at = from;
        while at < behind {
            let number = at / CHUNK_BLOCKS;
            let end = behind.min((number + 1) * CHUNK_BLOCKS);
            let chunk = match state {
                State::Base => chunks.get_mut(&number),
                State::Data | State::Zero => Some(chunks.entry(number).or_insert_with(|| {
                    Box::new(Chunk { ours: [0; CHUNK_WORDS], zero: [0; CHUNK_WORDS] })
                })),
            };
            if let Some(chunk) = chunk {
                set(&mut chunk.ours, at, end, state != State::Base);
                set(&mut chunk.zero, at, end, state == State::Zero);
            }
            at = end;
        }
    }
}

/// The word of a block in its chunk.
fn word_of(block: u64) -> usize {
    (block % CHUNK_BLOCKS / 64) as usize
}

impl Chunk {
    fn state(&self, block: u64) -> State {
        let bit = |words: &[u64]| words[word_of(block)] >> (block % 64) & 1 == 1;
        match (bit(&self.ours), bit(&self.zero)) {
            (false, _) => State::Base,
            (true, false) => State::Data,
            (true, true) => State::Zero,
        }
    }

    /// Whether all 64 blocks from one at a word's start are in that state.
    fn is_word_of(&self, block: u64, state: State) -> bool {
        let word = word_of(block);
        let wanted = match state {
            State::Base => (0, 0),
            State::Data => (u64::MAX, 0),
            State::Zero => (u64::MAX, u64::MAX),
        };
        (self.ours[word], self.zero[word]) == wanted
    }
}

/// Sets the bits of blocks of one chunk.
fn set(words: &mut [u64], from: u64, behind: u64, on: bool) {
    let mut at = from;
    while at < behind {
        let word = &mut words[word_of(at)];
        let count = (64 - at % 64).min(behind - at);
        let mask = (u64::MAX >> (64 - count)) << (at % 64);
        if on {
            *word |= mask;
        } else {
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

    #[test]
    fn the_largest_disk_costs_what_is_written_of_it() {
        let written = Written::new(u64::MAX);
        let blocks = u64::MAX.div_ceil(BLOCK_BYTES);
        assert_eq!(written.run(0, blocks), (State::Base, blocks));
        written.mark(blocks - 3, blocks, State::Data);
        written.mark(1 << 40, (1 << 40) + CHUNK_BLOCKS, State::Zero);
        assert_eq!(written.run(0, blocks), (State::Base, 1 << 40));
        assert_eq!(written.run(1 << 40, blocks), (State::Zero, (1 << 40) + CHUNK_BLOCKS));
        assert_eq!(written.run((1 << 40) + CHUNK_BLOCKS, blocks), (State::Base, blocks - 3));
        assert_eq!(written.run(blocks - 3, blocks), (State::Data, blocks));
    }

    proptest! {
        #[test]
        fn runs_are_what_was_marked_last(
            marks in prop::collection::vec((0..BLOCKS, 1..BLOCKS, 0..3_u8), 0..30),
            window in (0..BLOCKS, 1..BLOCKS),
        ) {
            // Some lie in one chunk, some in the next.
            let first = CHUNK_BLOCKS - BLOCKS / 2;
            let written = Written::new((first + BLOCKS) * BLOCK_BYTES - 100);
            let mut model = [State::Base; BLOCKS as usize];
            for (from, count, state) in marks {
                let behind = (from + count).min(BLOCKS);
                let state = [State::Base, State::Data, State::Zero][usize::from(state)];
                written.mark(first + from, first + behind, state);
                model[from as usize..behind as usize].fill(state);
            }
            let behind = (window.0 + window.1).min(BLOCKS);
            let mut at = window.0;
            while at < behind {
                let (state, end) = written.run(first + at, first + behind);
                let end = end - first;
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
