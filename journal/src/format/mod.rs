//! The bytes of format version 1, without I/O. `docs/format.md` draws them.
//!
//! Every structure is little-endian, has a fixed size and a checksum that is salted with the
//! unit's random salt: neither a guest's data nor what a recycled file held before can pass for a
//! record. Decoding never trusts a length before its checksum matched.

pub mod checksum;
pub mod cipher;
pub mod index;
pub mod meta;
pub mod payload;
pub mod record;
pub mod unit_header;

/// The format version that this program writes, and the newest that it reads.
///
/// 1: the first.
pub const VERSION: u32 = 1;

/// Records, payloads and the index start at multiples of this many bytes.
pub const ALIGN_BYTES: u64 = 64;

/// Rounds up to [`ALIGN_BYTES`].
#[must_use]
pub const fn align_up(bytes: u64) -> u64 {
    bytes.div_ceil(ALIGN_BYTES) * ALIGN_BYTES
}
