//! Finding many records, asked for in the order of their numbers: a unit's index is read once as it
//! lies on the disk, and only what is asked for is decoded.
//!
//! What always holds: nothing is taken from an index before the checksum over all of it matched the
//! one that the journal knows; memory is [`INDEXES_MAX`] indexes, however many units there are.

use super::{Entry, History, Records, Unit};
use crate::Seq;
use crate::error::Result;
use crate::format::checksum;
use crate::format::index::{self, ENTRY_BYTES, FOOTER_BYTES, Footer};
use crate::format::record::{Kind, Record};
use crate::storage::StoredFile;
use crate::unit::ScanEnd;

/// Indexes that are held: neighbouring units overlap in numbers at their border.
const INDEXES_MAX: usize = 4;

/// See the module; made by [`History::locator`].
#[derive(Debug)]
pub struct Locator<'h> {
    history: &'h History,
    /// The one that was used last is the last.
    indexes: Vec<(u32, Index)>,
}

#[derive(Debug)]
enum Index {
    /// As on the disk: checked, sorted.
    Raw { bytes: Vec<u8>, unit_bytes: u64 },
    /// Of a unit that is not sealed, or whose index isn't sorted or sound.
    Decoded(Records),
}

impl Index {
    /// The last record at or before a number and address.
    fn floor(&self, wanted: (Seq, u64)) -> Option<(u64, Record)> {
        match self {
            Self::Decoded(records) => {
                let behind = records.partition_point(|(_, r)| (r.seq, r.addr) <= wanted);
                records[..behind].last().copied()
            }
            Self::Raw { bytes, unit_bytes } => {
                let (entries, _) = bytes.as_chunks::<{ ENTRY_BYTES as usize }>();
                let behind =
                    entries.partition_point(|e| index::key(e).is_some_and(|k| k <= wanted));
                entries[..behind].last().and_then(|e| index::decode_entry(e, *unit_bytes))
            }
        }
    }
}

/// Largest index that is held as it lies on the disk, in bytes: of any other the records are read.
const RAW_BYTES_MAX: u64 = 64 << 20;

impl History {
    /// A way to find many records.
    #[must_use]
    pub fn locator(&self) -> Locator<'_> {
        Locator { history: self, indexes: Vec::new() }
    }

    /// A sealed unit's index as it lies on the disk; `None`: the unit has to be read whole, which
    /// tells too what is wrong with it.
    fn raw_index(&self, unit: u32, row: &Unit) -> Option<Index> {
        if row.read.is_some() || row.end != ScanEnd::Sealed {
            return None;
        }
        let file = self.file(unit).ok()?;
        let footer = footer(&*file, row)?;
        let index_bytes = footer.count.checked_mul(ENTRY_BYTES)?;
        if index_bytes > RAW_BYTES_MAX {
            return None;
        }
        let mut bytes = vec![0; index_bytes as usize];
        file.read_exact_at(&mut bytes, footer.index_at).ok()?;
        let entries = bytes.chunks_exact(ENTRY_BYTES as usize);
        let sound =
            checksum::crc32c(&bytes) == row.index_crc && entries.map(index::key).is_sorted();
        sound.then_some(Index::Raw { bytes, unit_bytes: row.header.unit_bytes })
    }
}

/// The footer of a sealed unit, if it is the one that the journal knows.
fn footer(file: &dyn StoredFile, row: &Unit) -> Option<Footer> {
    let unit_bytes = row.header.unit_bytes;
    let mut bytes = [0; FOOTER_BYTES as usize];
    let at = unit_bytes.saturating_sub(FOOTER_BYTES);
    file.read_exact_at(&mut bytes, at).ok()?;
    let footer = Footer::decode(&row.header.salt, unit_bytes, &bytes);
    footer.filter(|f| f.index_crc == row.index_crc && f.count == row.count)
}

impl Locator<'_> {
    /// As [`History::locate`]; quick when asked in the order of numbers.
    ///
    /// # Errors
    /// As there.
    pub fn locate(&mut self, seq: Seq, addr: u64) -> Result<Entry> {
        for unit in self.history.units_of(seq) {
            let valid_to = self.history.unit(unit)?.valid_to;
            let Some((at, record)) = self.index(unit)?.floor((seq, addr)) else { continue };
            let end = record.addr.saturating_add(record.len.max(1).into());
            let counts = record.kind != Kind::Merged && seq <= valid_to;
            if record.seq == seq && addr < end && counts {
                return Ok(Entry { unit, at, record });
            }
        }
        // What an entry that can't be one stands for, the unit's own records may tell.
        self.history.locate(seq, addr)
    }

    fn index(&mut self, unit: u32) -> Result<&Index> {
        let found = self.indexes.iter().position(|(u, _)| *u == unit);
        let held = match found {
            Some(i) => self.indexes.remove(i),
            None => {
                let row = self.history.unit(unit)?;
                let index = match self.history.raw_index(unit, row) {
                    Some(raw) => raw,
                    None => Index::Decoded(self.history.records(unit)?),
                };
                (unit, index)
            }
        };
        if self.indexes.len() >= INDEXES_MAX {
            self.indexes.remove(0);
        }
        self.indexes.push(held);
        let last = self.indexes.len() - 1;
        Ok(&self.indexes[last].1)
    }
}
