//! The log's end, read back from the units' files: whole records, each checked before it leaves.
//!
//! What always holds: nothing is read at or above what is final (I-3); a record that fails its checksum does
//! not leave the journal (I-12).

use crate::Seq;
use crate::error::{Error, Result};
use crate::format::align_up;
use crate::format::index::{FOOTER_BYTES, Footer};
use crate::format::record::{HEADER_BYTES, Record};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::pool::Found;
use crate::replica::{CUT_OFF, parse};
use crate::storage::{Storage, StoredFile};
use crate::unit::{read_header, read_index};
use crate::wire::OP_BYTES_MAX;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of an op, unless one record is larger.
const OP_BYTES_USUAL: usize = 1 << 20;
/// Tries to read what the page cache may show as it was before the flusher wrote past it.
const READS_MAX: usize = 3;

/// A unit of the log that is being sent.
pub(super) struct Unit {
    pub header: UnitHeader,
    path: PathBuf,
    file: Arc<dyn StoredFile>,
    /// Its footer, once it was seen.
    footer: Option<Footer>,
}

/// Bytes of a unit: whole records.
pub(super) struct Piece {
    pub bytes: Vec<u8>,
    /// Wall time of the newest record in it.
    pub wall_ns: u64,
}

impl Unit {
    /// Opens one.
    ///
    /// # Errors
    /// It is not there, or its header can't be read.
    pub fn open(storage: &dyn Storage, found: &Found, group: [u8; 16]) -> Result<Self> {
        let (file, header) = read_header(storage, found, group)?;
        Ok(Self { header, path: found.path.clone(), file, footer: None })
    }

    fn io(&self) -> impl Fn(std::io::Error) -> Error + '_ {
        |e| Error::io("read unit", &self.path, e)
    }

    /// Its footer, if it is sealed.
    ///
    /// # Errors
    /// It can't be read.
    pub fn footer(&mut self) -> Result<Option<Footer>> {
        if self.footer.is_none() {
            let mut bytes = [0; FOOTER_BYTES as usize];
            let at = self.header.unit_bytes.saturating_sub(FOOTER_BYTES);
            self.file.read_exact_at(&mut bytes, at).map_err(self.io())?;
            self.footer = Footer::decode(&self.header.salt, self.header.unit_bytes, &bytes);
        }
        Ok(self.footer)
    }

    /// The records from byte `at` on, below `limit`; empty: there are none. With `is_whole`, all up to the
    /// limit must be records.
    ///
    /// # Errors
    /// It can't be read, or is damaged.
    pub fn read(&self, at: u64, limit: u64, is_whole: bool) -> Result<Piece> {
        let mut tried = 0;
        loop {
            match self.try_read(at, limit, is_whole) {
                Err(Error::Damaged { .. }) if tried < READS_MAX => {
                    tried += 1;
                    self.forget_pages();
                }
                read => return read,
            }
        }
    }

    fn try_read(&self, at: u64, limit: u64, is_whole: bool) -> Result<Piece> {
        let limit = limit.min(self.header.unit_bytes);
        let left = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(OP_BYTES_USUAL)];
        self.file.read_exact_at(&mut bytes, at).map_err(self.io())?;
        if let Err(CUT_OFF) = parse(&self.header, at, &bytes)
            && left > bytes.len()
        {
            // One record that is larger.
            bytes.resize(left.min(OP_BYTES_MAX), 0);
            self.file.read_exact_at(&mut bytes, at).map_err(self.io())?;
        }
        let (mut end, mut wall_ns) = (0, 0);
        let mut why = None;
        while end < bytes.len() {
            match parse(&self.header, at + end as u64, &bytes[end..]) {
                Ok((record, taken)) => {
                    wall_ns = record.map_or(wall_ns, |r| r.wall_ns.max(wall_ns));
                    end += taken as usize;
                }
                Err(e) => {
                    why = Some(e);
                    break;
                }
            }
            if end >= OP_BYTES_USUAL {
                break;
            }
        }
        if let Some(why) = why.filter(|_| is_whole && end == 0) {
            return Err(Error::Damaged { unit: self.path.clone(), at, seq: 0, why });
        }
        bytes.truncate(end);
        Ok(Piece { bytes, wall_ns })
    }

    /// Whether a sealed unit is no more than its records in a row: what can be sent as such, and sealed at
    /// the sink. Where some are void, or torn off, it can't.
    ///
    /// # Errors
    /// It can't be read.
    pub fn is_plain(&mut self) -> Result<bool> {
        let Some(footer) = self.footer()? else { return Ok(true) };
        let mut listed: Vec<(u64, Seq)> =
            self.index(&footer)?.iter().map(|(at, r)| (*at, r.seq)).collect();
        listed.sort_unstable();
        let mut listed = listed.into_iter();
        let mut at = BLOCK_BYTES;
        loop {
            let piece = self.read(at, footer.index_at, false)?;
            let mut end = 0;
            while end < piece.bytes.len() {
                let here = at + end as u64;
                let Ok((record, taken)) = parse(&self.header, here, &piece.bytes[end..]) else {
                    return Ok(false);
                };
                if let Some(record) = record
                    && listed.next() != Some((here, record.seq))
                {
                    return Ok(false);
                }
                end += taken as usize;
            }
            if end == 0 {
                return Ok(listed.next().is_none());
            }
            at += end as u64;
        }
    }

    fn index(&self, footer: &Footer) -> Result<Vec<(u64, Record)>> {
        let read = read_index(&*self.file, &self.header, footer).map_err(self.io())?;
        read.ok_or_else(|| {
            let why = "its index is damaged".into();
            Error::Unusable { path: self.path.clone(), why }
        })
    }

    /// Whether all records that its index has lie below a byte.
    ///
    /// # Errors
    /// It can't be read.
    pub fn ends_below(&self, footer: &Footer, at: u64) -> Result<bool> {
        let records = self.index(footer)?;
        let end =
            |(at, r): &(u64, Record)| align_up(at + HEADER_BYTES + u64::from(r.payload_bytes));
        Ok(records.iter().map(end).max().unwrap_or(BLOCK_BYTES) <= at)
    }

    /// What was read once is of no use in the page cache.
    pub fn forget_pages(&self) {
        if let Some(file) = self.file.as_file() {
            // Advice: that it isn't taken harms nobody.
            let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}
