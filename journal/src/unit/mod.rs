//! A unit: one preallocated file of the log.
//!
//! ```text
//! 0      4096                                  index_at            size-64   size
//! | header | record | record | ... | free ...   | index (when sealed) | footer |
//! ```
//!
//! A unit's file appears under its name only when its header and its space are durable. Records
//! never span units. The index and the footer are written when the unit is sealed; after that
//! the file never changes.

mod create;
mod listed;
mod overlaid;
mod scan;
mod seal;

pub use create::create;
pub(crate) use listed::read_index;
pub use scan::{
    ScanEnd, UnitContents, read_data, read_header, read_merged, read_payload, read_unit,
};
pub use seal::{seal, seal_file};

use crate::format::ALIGN_BYTES;
use crate::format::index::{ENTRY_BYTES, FOOTER_BYTES};
use crate::format::meta::META_BYTES_MAX;
use crate::format::record::PAYLOAD_BYTES_MAX;
use crate::format::unit_header::BLOCK_BYTES;

/// Smallest size of a unit.
pub const UNIT_BYTES_MIN: u64 = 1 << 20;
/// Largest size of a unit: the index counts in steps of 64 bytes in 32 bits.
pub const UNIT_BYTES_MAX: u64 = 1 << 36;

/// Whether `count` records that end at byte `end` leave room for their index.
#[must_use]
pub const fn fits(unit_bytes: u64, end: u64, count: u64) -> bool {
    end + count * ENTRY_BYTES + FOOTER_BYTES + ALIGN_BYTES <= unit_bytes
}

/// Largest payload that a record in units of this size can have, those of metadata included.
#[must_use]
pub const fn record_bytes_max(unit_bytes: u64) -> u64 {
    let data = payload_bytes_max(unit_bytes);
    if data < META_IN_UNIT_BYTES_MAX { META_IN_UNIT_BYTES_MAX } else { data }
}

/// What the smallest unit takes of metadata in one record, in bytes.
pub const META_IN_UNIT_BYTES_MAX: u64 = META_BYTES_MAX as u64 / 8;

/// Largest payload of one data record in units of this size: an eighth of it, so that little is left
/// empty at a unit's end, and at most [`PAYLOAD_BYTES_MAX`].
#[must_use]
pub const fn payload_bytes_max(unit_bytes: u64) -> u64 {
    let eighth = unit_bytes.saturating_sub(BLOCK_BYTES) / 8;
    let most = PAYLOAD_BYTES_MAX as u64;
    if eighth < most { eighth } else { most }
}

const _: () = assert!(META_IN_UNIT_BYTES_MAX <= PAYLOAD_BYTES_MAX as u64);
