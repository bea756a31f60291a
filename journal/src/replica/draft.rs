//! A file that arrives in pieces, from its first byte to its last: a draft until all of it was checked.
//!
//! What always holds: there is one at a time; its name is none that a reader looks at; it gets its own only
//! when header, index and every record in it passed their checks, and all of it is durable.

use super::{Taken, sink_error};
use crate::error::{Error, Result};
use crate::format::align_up;
use crate::format::index::{ENTRY_BYTES, FOOTER_BYTES, Footer};
use crate::format::record::{self, Decoded, HEADER_BYTES, Kind, Record};
use crate::format::unit_header::{BLOCK_BYTES, FLAG_MERGED, UnitHeader};
use crate::pool::{FileName, Found};
use crate::storage::{Access, Storage, StoredFile};
use crate::unit::{ScanEnd, UNIT_BYTES_MAX, UnitContents, read_merged, read_payload};
use crate::unit::{read_unit, record_bytes_max};
use crate::wire::SinkError;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the name of a draft begins and ends.
const PREFIX: &str = "put-";
const SUFFIX: &str = ".tmp";
/// Largest index that is looked at, in bytes: that of some eleven million records.
const INDEX_BYTES_MAX: u64 = 512 << 20;

/// The file that a draft's name is of.
pub(super) fn name_of(draft: &str) -> Option<FileName> {
    FileName::parse(draft.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?)
}

/// A piece, as it came.
pub(super) struct Piece<'a> {
    pub name: FileName,
    pub file_bytes: u64,
    pub at: u64,
    pub bytes: &'a [u8],
    pub len: u64,
}

/// What a whole file has to be.
pub(super) struct Wanted {
    pub group: [u8; 16],
    pub index_crc: u32,
    pub epoch_max: u64,
    pub is_encrypted: bool,
}

/// See the module.
pub(super) struct Draft {
    pub name: FileName,
    pub dir: PathBuf,
    path: PathBuf,
    file: Arc<dyn StoredFile>,
    /// All below this byte came.
    pub end: u64,
    /// Size that it is to have; 0: not told since the replica was opened.
    file_bytes: u64,
}

fn broken(name: FileName, why: &str) -> SinkError {
    SinkError::Broken(format!("{name}: {why}"))
}

impl Draft {
    /// Begins one in a directory.
    pub fn begin(storage: &dyn Storage, dir: &Path, name: FileName) -> Result<Self> {
        let path = dir.join(format!("{PREFIX}{name}{SUFFIX}"));
        let opened = storage.open(&path, Access::Replace);
        let file = opened.map_err(|e| Error::io("create", &path, e))?;
        Ok(Self { name, dir: dir.to_owned(), path, file, end: 0, file_bytes: 0 })
    }

    /// Goes on with one that is there: what came of it is durable then.
    pub fn resume(storage: &dyn Storage, dir: &Path, name: FileName) -> Result<Self> {
        let path = dir.join(format!("{PREFIX}{name}{SUFFIX}"));
        let io = |e| Error::io("open", &path, e);
        let file = storage.open(&path, Access::Write).map_err(io)?;
        file.sync_data().map_err(|e| Error::io("sync", &path, e))?;
        let end = file.bytes().map_err(io)?;
        Ok(Self { name, dir: dir.to_owned(), path, file, end, file_bytes: 0 })
    }

    /// Removes it; one that stays counts for nothing.
    pub fn discard(self, storage: &dyn Storage) {
        let _ = storage.remove(&self.path);
    }

    /// The salt in its header, if that came.
    pub fn salt(&self) -> Option<[u8; 16]> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        self.file.read_exact_at(&mut block, 0).ok()?;
        UnitHeader::decode(&block).ok().map(|header| header.salt)
    }

    /// Whether a piece is the beginning of another file of this name.
    pub fn is_other(&self, piece: &Piece<'_>) -> bool {
        let mut there = vec![0; piece.bytes.len().min(BLOCK_BYTES as usize)];
        let same =
            self.file.read_exact_at(&mut there, 0).is_ok() && piece.bytes.starts_with(&there);
        piece.at == 0 && !same
    }

    /// Takes a piece; what is there already is left as it is.
    pub fn take(&mut self, piece: &Piece<'_>) -> Taken<()> {
        if self.file_bytes > 0 && self.file_bytes != piece.file_bytes {
            return Err(broken(self.name, "its size changed between two pieces"));
        }
        self.file_bytes = piece.file_bytes;
        let end = piece.at + piece.len;
        if piece.at > self.end {
            return Err(broken(self.name, "a piece before this one is missing"));
        }
        if end <= self.end {
            return Ok(());
        }
        let known = usize::try_from(self.end - piece.at).unwrap_or(usize::MAX);
        let io = |e| sink_error(Error::io("write", &self.path, e));
        if let Some(bytes) = piece.bytes.get(known..).filter(|b| !b.is_empty()) {
            self.file.write_all_at(bytes, self.end).map_err(io)?;
        }
        // What is left out is zeroes: a hole.
        self.file.set_bytes(end).map_err(io)?;
        self.end = end;
        Ok(())
    }

    /// Checks all of it, and makes it durable.
    pub fn check(&self, storage: &dyn Storage, wanted: &Wanted) -> Taken<UnitContents> {
        if self.file_bytes > 0 && self.end != self.file_bytes {
            return Err(broken(self.name, "pieces at its end are missing"));
        }
        self.check_size()?;
        let found = Found { name: self.name, path: self.path.clone() };
        let unit = read_unit(storage, &found, wanted.group, None).map_err(unfit)?;
        let header = &unit.header;
        if unit.end != ScanEnd::Sealed || unit.index_crc != wanted.index_crc {
            return Err(broken(self.name, "its index is not the one that the source has"));
        }
        let highest = unit.records.iter().map(|(_, r)| r.seq).max().unwrap_or(0);
        if highest.max(header.after_seq).max(header.prev_last_seq) > super::NUMBER_MAX {
            return Err(broken(self.name, "it names a number that is too high"));
        }
        if header.epoch > wanted.epoch_max {
            return Err(broken(self.name, "it is of an epoch that has not begun"));
        }
        if let FileName::Merged(..) = self.name {
            let merged = read_merged(&*unit.file, &self.path, header).map_err(unfit)?;
            if (merged.first, merged.last) != self.name.numbers() {
                return Err(broken(self.name, "its name and what it says to replace differ"));
            }
            let numbers = merged.epochs.iter().map(|e| e.first_seq.max(e.prev_last_seq));
            let numbers = numbers.chain([merged.edge, merged.floor(), merged.last_seq]);
            let highest = numbers.chain(merged.made.map(|m| m.after_seq)).max();
            if highest > Some(super::NUMBER_MAX) {
                return Err(broken(self.name, "it names a number that is too high"));
            }
        }
        self.check_records(&unit, wanted.is_encrypted)?;
        self.file.sync_data().map_err(|e| sink_error(Error::io("sync", &self.path, e)))?;
        Ok(unit)
    }

    /// Before anything is allocated for what it says of itself.
    fn check_size(&self) -> Taken<()> {
        let io = |e| sink_error(Error::io("read", &self.path, e));
        let mut block = vec![0; BLOCK_BYTES as usize];
        self.file.read_exact_at(&mut block, 0).map_err(io)?;
        let header = UnitHeader::decode(&block).map_err(|_| broken(self.name, "a bad header"))?;
        if header.unit_bytes != self.end || self.end < BLOCK_BYTES + FOOTER_BYTES {
            return Err(broken(self.name, "it has another size than its header says"));
        }
        let mut bytes = [0; FOOTER_BYTES as usize];
        self.file.read_exact_at(&mut bytes, self.end - FOOTER_BYTES).map_err(io)?;
        let footer = Footer::decode(&header.salt, header.unit_bytes, &bytes)
            .ok_or_else(|| broken(self.name, "its footer is not one"))?;
        // Each record takes a header, too.
        let least = footer.count.saturating_mul(ENTRY_BYTES + HEADER_BYTES);
        if least > self.end || footer.count * ENTRY_BYTES > INDEX_BYTES_MAX {
            return Err(broken(self.name, "its index is larger than it can be"));
        }
        Ok(())
    }

    /// Every record that the index names, against its own header and checksum.
    fn check_records(&self, unit: &UnitContents, is_encrypted: bool) -> Taken<()> {
        let mut records: Vec<&(u64, Record)> = unit.records.iter().collect();
        records.sort_unstable_by_key(|(at, _)| *at);
        let mut free = BLOCK_BYTES;
        let mut payload = Vec::new();
        for &&(at, entry) in &records {
            let bytes = u64::from(entry.payload_bytes);
            if at < free || bytes > record_bytes_max(UNIT_BYTES_MAX) {
                return Err(broken(self.name, "records lie over each other, or are too long"));
            }
            free = align_up(at + HEADER_BYTES + bytes);
            let mut head = [0; HEADER_BYTES as usize];
            let read = unit.file.read_exact_at(&mut head, at);
            read.map_err(|e| sink_error(Error::io("read", &self.path, e)))?;
            let same = match record::decode(&unit.header.salt, at, &head) {
                Decoded::Record(mut own) => {
                    own.mono_ms = entry.mono_ms;
                    own == entry
                }
                _ => false,
            };
            let is_merged = unit.header.flags & FLAG_MERGED != 0;
            let is_data = entry.kind == Kind::Write && bytes > 0;
            if !same
                || (entry.kind == Kind::Merged && !is_merged)
                || (is_data && entry.encrypted != is_encrypted)
            {
                return Err(broken(self.name, "a record is not the one that its index names"));
            }
            payload.resize(bytes as usize, 0);
            read_payload(&*unit.file, &self.path, at, &entry, &mut payload).map_err(unfit)?;
        }
        Ok(())
    }

    /// Gives it its own name, durably, and says where it lies.
    ///
    /// # Errors
    /// It can't be renamed.
    pub fn name(self, storage: &dyn Storage) -> Result<Found> {
        let path = self.dir.join(self.name.to_string());
        storage.rename(&self.path, &path).map_err(|e| Error::io("rename to", &path, e))?;
        storage.sync_dir(&self.dir).map_err(|e| Error::io("sync directory", &self.dir, e))?;
        Ok(Found { name: self.name, path })
    }
}

/// What was sent is not what it should be; or it can't be read here.
fn unfit(error: Error) -> SinkError {
    match error {
        Error::Io { .. } => sink_error(error),
        other => SinkError::Broken(other.to_string()),
    }
}
