//! A file that never changes any more, in pieces.
//!
//! What always holds: what is not header, record, index or footer goes as zeroes: a file that was another
//! group's before may have anything there; a file that was given up meanwhile and is used anew is not
//! taken for what it was.

use crate::error::{Error, Result};
use crate::format::record::HEADER_BYTES;
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::format::{align_up, index};
use crate::pool::{FileName, Found};
use crate::storage::{Storage, StoredFile};
use crate::unit::{ScanEnd, read_payload, read_unit};
use crate::wire::Op;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of a piece.
const PIECE_BYTES: u64 = 1 << 20;

/// See the module.
pub(super) struct Whole {
    name: FileName,
    path: PathBuf,
    file: Arc<dyn StoredFile>,
    salt: [u8; 16],
    file_bytes: u64,
    at: u64,
    /// What lies between records and index.
    gap: (u64, u64),
    index_crc: u32,
    /// The file was made for this alone.
    is_draft: bool,
}

impl Whole {
    /// Opens a sealed file to send it as `name` from byte `at` on; with `is_doubted`, all its records are
    /// checked first.
    ///
    /// # Errors
    /// It is not there, not sealed, or damaged.
    pub fn open(
        storage: &dyn Storage,
        found: &Found,
        group: [u8; 16],
        (at, is_doubted): (u64, bool),
    ) -> Result<Self> {
        let unit = read_unit(storage, found, group, None)?;
        let unusable = |why: &str| Error::Unusable { path: found.path.clone(), why: why.into() };
        if unit.end != ScanEnd::Sealed {
            return Err(unusable("it has no sound index, so it can't be sent whole"));
        }
        let ends = unit
            .records
            .iter()
            .map(|(at, r)| align_up(at + HEADER_BYTES + u64::from(r.payload_bytes)));
        let end = ends.max().unwrap_or(BLOCK_BYTES);
        let (index_at, _) = index::area(&unit.header, &unit.records);
        if is_doubted {
            let mut payload = Vec::new();
            for (at, record) in &unit.records {
                payload.resize(record.payload_bytes as usize, 0);
                read_payload(&*unit.file, &found.path, *at, record, &mut payload)?;
            }
        }
        Ok(Self {
            name: found.name,
            path: found.path.clone(),
            salt: unit.header.salt,
            file_bytes: unit.header.unit_bytes,
            file: unit.file,
            at: at.min(unit.header.unit_bytes),
            gap: (end.min(index_at), index_at),
            index_crc: unit.index_crc,
            is_draft: false,
        })
    }

    /// It was made for this alone: it is removed with [`Whole::discard`].
    pub fn of_draft(self) -> Self {
        Self { is_draft: true, ..self }
    }

    /// The name under which it goes.
    pub fn name(&self) -> FileName {
        self.name
    }

    /// Its salt.
    pub fn salt(&self) -> [u8; 16] {
        self.salt
    }

    /// Bytes that were not sent.
    pub fn left_bytes(&self) -> u64 {
        self.file_bytes - self.at
    }

    /// The next piece, then the end; whether it is that.
    ///
    /// # Errors
    /// It can't be read any more; [`Error::Unusable`] if it is another file now.
    pub fn next(&mut self) -> Result<(Op, bool)> {
        let name = self.name;
        if self.at >= self.file_bytes {
            return Ok((Op::PutEnd { name, index_crc: self.index_crc }, true));
        }
        let len = PIECE_BYTES.min(self.file_bytes - self.at);
        let mut bytes = vec![0; len as usize];
        let io = |e| Error::io("read", &self.path, e);
        self.file.read_exact_at(&mut bytes, self.at).map_err(io)?;
        self.check_salt()?;
        let within = |at: u64| (at.clamp(self.at, self.at + len) - self.at) as usize;
        bytes[within(self.gap.0)..within(self.gap.1)].fill(0);
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        // The header is told whole: by it the sink knows one file from another.
        let used = if self.at == 0 { used.max(BLOCK_BYTES as usize) } else { used };
        bytes.truncate(used.min(len as usize));
        let op = Op::Put { name, file_bytes: self.file_bytes, at: self.at, bytes, len };
        self.at += len;
        Ok((op, false))
    }

    /// What was read is of the file only if that is there still: one that is used anew has its new header
    /// before any of its new data.
    fn check_salt(&self) -> Result<()> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        let io = |e| Error::io("read", &self.path, e);
        self.file.read_exact_at(&mut block, 0).map_err(io)?;
        match UnitHeader::decode(&block) {
            Ok(header) if header.salt == self.salt => Ok(()),
            _ => {
                let why = "it was given up while it was sent".into();
                Err(Error::Unusable { path: self.path.clone(), why })
            }
        }
    }

    /// Ends with it.
    pub fn discard(self, storage: &dyn Storage) {
        if self.is_draft {
            // One that stays counts for nothing; the keeper clears it away.
            let _ = storage.remove(&self.path);
        } else if let Some(file) = self.file.as_file() {
            // What was read once is of no use in the page cache, where the guests' data may be.
            let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}
