//! Sealing a unit that another process left open: plain writes, since the blocks behind its records
//! need not exist (a copied journal is sparse), and a mapped write to a full disk kills.

use crate::error::{Error, Result};
use crate::format::align_up;
use crate::format::index::{self, ENTRY_BYTES, FOOTER_BYTES};
use crate::format::record::{HEADER_BYTES, Record};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Seals a unit whose records (with their byte offsets) are durable.
///
/// # Errors
/// There is no room for the index, or it can't be written; the records are untouched.
pub fn seal_file(path: &Path, header: &UnitHeader, mut records: Vec<(u64, Record)>) -> Result<()> {
    let io = |what| move |e: std::io::Error| Error::io(what, path, e);
    let file = OpenOptions::new().write(true).open(path).map_err(io("open unit"))?;
    let length = file.metadata().map_err(io("look at unit"))?.len();
    records.sort_by_key(|(at, _)| *at);
    let tail = records
        .last()
        .map_or(BLOCK_BYTES, |(at, r)| align_up(at + HEADER_BYTES + u64::from(r.payload_bytes)));
    let end = tail + records.len() as u64 * ENTRY_BYTES + FOOTER_BYTES;
    if end > header.unit_bytes || length != header.unit_bytes {
        return Err(Error::Unusable { path: path.to_owned(), why: "no room for the index".into() });
    }
    let (index_at, bytes) = index::area(header, &records);
    // The index, then the footer: a footer without its index is rot, never a torn seal.
    let (index, footer) = bytes.split_at(bytes.len() - FOOTER_BYTES as usize);
    file.write_all_at(index, index_at).map_err(io("write index"))?;
    file.sync_data().map_err(io("sync unit"))?;
    let footer_at = header.unit_bytes - FOOTER_BYTES;
    file.write_all_at(footer, footer_at).map_err(io("write footer"))?;
    file.sync_data().map_err(io("sync unit"))
}
