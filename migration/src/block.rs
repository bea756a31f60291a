//! RAM blocks, and what a list of them may hold: the same for reader and writer.

use crate::{Fault, PAGE_BYTES};

/// Bytes of the longest id of a block: its length is one byte.
pub const ID_BYTES_MAX: usize = 255;

/// A RAM block of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// QEMU's id of it, like `pc.ram`; of 1 to [`ID_BYTES_MAX`] bytes.
    pub id: String,
    /// Its used length in bytes, a multiple of [`crate::PAGE_BYTES`].
    pub bytes: u64,
}

/// Whether `block` can follow `blocks` in a list with `left` bytes to go.
pub(crate) fn check(
    blocks: &[Block],
    block: &Block,
    left: u64,
    count_max: usize,
) -> Result<(), Fault> {
    let Block { id, bytes } = block;
    let why = if id.is_empty() || id.len() > ID_BYTES_MAX {
        "its id has no or too many bytes"
    } else if *bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES as u64) {
        "no multiple of 4096 bytes"
    } else if *bytes > left {
        "more than the list's total leaves"
    } else if blocks.iter().any(|other| other.id == *id) {
        "it is in the list twice"
    } else if blocks.len() >= count_max {
        return Err(Fault::Limit { what: "RAM blocks", max: count_max as u64 });
    } else {
        return Ok(());
    };
    Err(Fault::Block { id: id.clone(), bytes: *bytes, why })
}
