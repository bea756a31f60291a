//! Reading a sealed unit's index.
//!
//! What always holds: memory grows with the entries that were read and decoded, never with what a footer
//! says: a sparse file of zeroes that claims a large index costs one piece of it.

use crate::format::checksum::Crc32c;
use crate::format::index::{self, ENTRY_BYTES, Footer};
use crate::format::record::Record;
use crate::format::unit_header::{FLAG_MERGED, UnitHeader};
use crate::storage::StoredFile;
use std::io;

/// Entries that are read at a time.
const PIECE_ENTRIES: u64 = 4096;

/// A unit's records with their byte offsets, as its index lists them; `None`: it is damaged.
///
/// # Errors
/// It can't be read.
pub(crate) fn read_index(
    file: &dyn StoredFile,
    header: &UnitHeader,
    footer: &Footer,
) -> io::Result<Option<Vec<(u64, Record)>>> {
    let mut records = Vec::new();
    let mut crc = Crc32c::new();
    let mut bytes = Vec::new();
    let mut next = 0;
    while next < footer.count {
        let count = PIECE_ENTRIES.min(footer.count - next);
        bytes.resize((count * ENTRY_BYTES) as usize, 0);
        file.read_exact_at(&mut bytes, footer.index_at + next * ENTRY_BYTES)?;
        crc.update(&bytes);
        for entry in bytes.chunks_exact(ENTRY_BYTES as usize) {
            match index::decode_entry(entry, header.unit_bytes) {
                Some(found) => records.push(found),
                None => return Ok(None),
            }
        }
        next += count;
    }
    Ok((crc.finish() == footer.index_crc).then_some(records))
}

/// Size of the units that a unit's records were written to: a merged one may be smaller than its own.
pub(super) fn size_of_records(header: &UnitHeader) -> u64 {
    match header.flags & FLAG_MERGED {
        0 => header.unit_bytes,
        _ => super::UNIT_BYTES_MAX,
    }
}
