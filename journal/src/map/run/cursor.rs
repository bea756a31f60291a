//! Reading on through a run: the first blocks one by one, then ever more at once.

use super::format::{self, BLOCK_BYTES, Block, KEYS_MAX, Key};
use super::{Checked, Run, first_behind};
use crate::error::Result;
use crate::map::mem::clip;
use crate::map::piece::Placed;
use std::collections::VecDeque;
use std::sync::Arc;

/// Blocks that are read at once, at most: 64 KiB.
const AHEAD_BLOCKS_MAX: u64 = 16;
/// Blocks of a short range, which are kept for the next one.
const SHORT_BLOCKS_MAX: u64 = 2;

/// Pieces from one key to another, cut to it.
#[derive(Debug)]
pub(crate) struct Cursor {
    run: Arc<Run>,
    from: Key,
    to: Key,
    /// The data block that is read next; before the first read `None`.
    next_data: Option<u64>,
    blocks_done: u64,
    ready: VecDeque<(u64, Arc<Checked>)>,
    /// Index of the next piece in the first of `ready`.
    index: usize,
    ended: bool,
}

impl Cursor {
    pub(crate) fn new(run: Arc<Run>, from: Key, to: Key) -> Self {
        let ended = from >= to;
        let ready = VecDeque::new();
        Self { run, from, to, next_data: None, blocks_done: 0, ready, index: 0, ended }
    }

    fn fill(&mut self) -> Result<()> {
        let Some(data) = self.next_data else {
            let data = self.run.locate(self.from)?.unwrap_or(0);
            self.next_data = Some(data);
            if data < self.run.totals.data_blocks() {
                self.short(data)?;
                self.index = self.ready.front().map_or(0, |(_, b)| first_behind(b, self.from));
            }
            return Ok(());
        };
        if self.blocks_done < SHORT_BLOCKS_MAX {
            return self.short(data);
        }
        // Up to the next index block: data blocks lie side by side only until there.
        let group_end = (data / KEYS_MAX as u64 + 1) * KEYS_MAX as u64;
        let end = group_end.min(self.run.totals.data_blocks());
        let count = (end - data).min(self.blocks_done).min(AHEAD_BLOCKS_MAX);
        let first = format::data_at(data);
        let mut bytes = vec![0; count as usize * BLOCK_BYTES];
        self.run.read(first, &mut bytes)?;
        let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
        for (i, block) in (0..).zip(blocks) {
            let block: &Block = block;
            self.ready.push_back((data + i, Arc::new(self.run.checked(first + i, block)?)));
        }
        self.next_data = Some(data + count);
        self.blocks_done += count;
        Ok(())
    }

    fn short(&mut self, data: u64) -> Result<()> {
        self.ready.push_back((data, self.run.data_block(data)?));
        self.next_data = Some(data + 1);
        self.blocks_done += 1;
        Ok(())
    }

    fn step(&mut self) -> Result<Option<Placed>> {
        while !self.ended {
            let Some((data, block)) = self.ready.front() else {
                if self.next_data.is_some_and(|d| d >= self.run.totals.data_blocks()) {
                    break;
                }
                self.fill()?;
                continue;
            };
            match self.run.piece(block, *data, self.index)? {
                Some(placed) => {
                    self.index += 1;
                    if (placed.0, placed.1.start) >= self.to {
                        break;
                    }
                    if let Some(placed) = clip(placed, self.from, self.to) {
                        return Ok(Some(placed));
                    }
                }
                None => {
                    self.ready.pop_front();
                    self.index = 0;
                }
            }
        }
        self.ended = true;
        self.ready.clear();
        Ok(None)
    }
}

impl Iterator for Cursor {
    type Item = Result<Placed>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        self.ended |= step.is_err();
        step.transpose()
    }
}
