//! Sealing a unit: its index, then its footer, each durable before the next.

use crate::error::{Error, Result};
use crate::format::align_up;
use crate::format::index::{self, ENTRY_BYTES, FOOTER_BYTES};
use crate::format::record::{HEADER_BYTES, Record};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::storage::{Access, Storage, StoredFile};
use std::path::Path;

/// Free space worth giving back, in bytes.
const RELEASE_BYTES_MIN: u64 = 64 << 10;

/// Seals a unit whose records (with their byte offsets, ascending) end at byte `tail` and are in its
/// file; nobody writes to it any more. They are made durable first.
///
/// # Errors
/// The device failed.
pub fn seal(
    file: &dyn StoredFile,
    path: &Path,
    header: &UnitHeader,
    records: &[(u64, Record)],
    tail: u64,
) -> Result<()> {
    let io = |what| move |e: std::io::Error| Error::io(what, path, e);
    // The data first: a footer proves that all before it is durable.
    file.sync_data().map_err(io("sync unit"))?;
    let (index_at, bytes) = index::area(header, records);
    if index_at < tail {
        return Err(Error::Unusable { path: path.to_owned(), why: "no room for the index".into() });
    }
    // The free space of a unit that is sealed early.
    let (from, to) = (tail.next_multiple_of(4096), index_at & !4095);
    if to.saturating_sub(from) >= RELEASE_BYTES_MIN {
        file.punch(from, to - from);
    }
    // Then the index, then the footer: a footer without its index is rot, never a torn seal.
    let (index, footer) = bytes.split_at(bytes.len() - FOOTER_BYTES as usize);
    file.write_all_at(index, index_at).map_err(io("write index"))?;
    file.sync_data().map_err(io("sync unit"))?;
    let footer_at = header.unit_bytes - FOOTER_BYTES;
    file.write_all_at(footer, footer_at).map_err(io("write footer"))?;
    file.sync_data().map_err(io("sync unit"))
}

/// Seals a unit that another process left open.
///
/// # Errors
/// There is no room for the index, or it can't be written; the records are untouched.
pub fn seal_file(
    storage: &dyn Storage,
    path: &Path,
    header: &UnitHeader,
    mut records: Vec<(u64, Record)>,
) -> Result<()> {
    let io = |what| move |e: std::io::Error| Error::io(what, path, e);
    let file = storage.open(path, Access::Write).map_err(io("open unit"))?;
    let length = file.bytes().map_err(io("look at unit"))?;
    records.sort_by_key(|(at, _)| *at);
    let tail = records
        .last()
        .map_or(BLOCK_BYTES, |(at, r)| align_up(at + HEADER_BYTES + u64::from(r.payload_bytes)));
    let end = tail + records.len() as u64 * ENTRY_BYTES + FOOTER_BYTES;
    if end > header.unit_bytes || length != header.unit_bytes {
        return Err(Error::Unusable { path: path.to_owned(), why: "no room for the index".into() });
    }
    seal(&*file, path, header, &records, tail)
}
