//! What a reader is given and gives: limits and a sink, parts.

use crate::Block;

/// Takes what a stream says of memory.
pub trait Sink {
    /// Why it doesn't.
    type Error;

    /// The RAM blocks, once, before the first page.
    ///
    /// # Errors
    /// They are not taken; the reader gives up.
    fn blocks(&mut self, blocks: &[Block]) -> Result<(), Self::Error>;

    /// A page of `blocks[block]` at `offset` bytes: [`crate::PAGE_BYTES`] of `data`, which may be zeroes
    /// too. The same page may come more than once: the last one counts.
    ///
    /// # Errors
    /// It is not taken; the reader gives up.
    fn page(&mut self, block: usize, offset: u64, data: &[u8]) -> Result<(), Self::Error>;

    /// A page of zeroes.
    ///
    /// # Errors
    /// It is not taken; the reader gives up.
    fn zero(&mut self, block: usize, offset: u64) -> Result<(), Self::Error>;
}

/// How much a stream may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the head.
    pub head_bytes_max: usize,
    /// Bytes of the tail: QEMU's devices take 0.3 MB, a display adapter's state up to some MB more.
    pub tail_bytes_max: usize,
    /// RAM blocks. QEMU's hot-plugged memory has at most 256 slots.
    pub block_count_max: usize,
    /// Bytes of a name whose length is not one byte: the machine type's.
    pub name_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head_bytes_max: 64 << 10,
            tail_bytes_max: 64 << 20,
            block_count_max: 1024,
            name_bytes_max: 255,
        }
    }
}

/// What a stream holds beside its pages: with those all that a [`crate::Writer`] needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Everything before the list of blocks, and the footer behind it: see [`crate::Head`].
    pub head: Vec<u8>,
    /// The RAM blocks, in the stream's order.
    pub blocks: Vec<Block>,
    /// Everything behind the last section of memory.
    pub tail: Vec<u8>,
}
