//! A unit that arrives: whole records, each checked before it is written, at the offsets that it has at the
//! source.
//!
//! What always holds: nothing is written outside of the unit's records, nor anything that its salt and
//! checksums don't prove to be a record of it; `end` is where the next one begins, and all below it was
//! checked, whoever wrote it.

use super::Taken;
use crate::Seq;
use crate::error::{Error, Result};
use crate::format::record::{self, Decoded, HEADER_BYTES, Kind, Record};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::format::{align_up, checksum, index};
use crate::planted;
use crate::pool::{Found, Places};
use crate::storage::{Access, Storage, StoredFile};
use crate::unit::{self, fits, record_bytes_max};
use crate::wire::SinkError;
use std::sync::Arc;

/// See the module.
pub(super) struct Incoming {
    pub found: Found,
    pub header: UnitHeader,
    file: Arc<dyn StoredFile>,
    /// Byte at which the next record goes.
    pub end: u64,
    /// Committed records below it with their byte offsets, ascending.
    pub records: Vec<(u64, Record)>,
    /// All below this byte is durable.
    durable_end: u64,
    /// Whether its data is encrypted.
    is_encrypted: bool,
}

fn broken(header: &UnitHeader, at: u64, why: &str) -> SinkError {
    SinkError::Broken(format!("unit {}, byte {at}: {why}", header.number))
}

/// What lies at byte `at` of a unit, in its bytes from there on: a record (`None`: one that was given
/// up) and the bytes that it takes.
///
/// # Errors
/// Why it is nothing that may be there.
pub(crate) fn parse(
    header: &UnitHeader,
    at: u64,
    bytes: &[u8],
) -> std::result::Result<(Option<Record>, u64), &'static str> {
    let head = bytes.first_chunk().ok_or("a record's header is cut off")?;
    let (record, payload_bytes) = match record::decode(&header.salt, at, head) {
        Decoded::Record(record) => (Some(record), record.payload_bytes),
        Decoded::Reserved { payload_bytes } => (None, payload_bytes),
        Decoded::Broken { .. } => return Err("a record's header doesn't match its checksum"),
        Decoded::None => return Err("there is no record"),
    };
    if u64::from(payload_bytes) > record_bytes_max(header.unit_bytes) {
        return Err("a record is longer than any may be");
    }
    let taken = align_up(HEADER_BYTES + u64::from(payload_bytes));
    if taken > bytes.len() as u64 {
        return Err(CUT_OFF);
    }
    if let Some(record) = &record {
        let payload = &bytes[HEADER_BYTES as usize..][..payload_bytes as usize];
        if checksum::crc32c(payload) != record.payload_crc {
            return Err("a record's data doesn't match its checksum");
        }
    }
    Ok((record, taken))
}

/// The number up to which a record says that all is durable.
fn watermark_of(record: &Record) -> u64 {
    if record.kind == Kind::Watermark { record.addr } else { 0 }
}

/// A record that goes on behind the bytes that are there.
pub(crate) const CUT_OFF: &str = "a record is cut off";

impl Incoming {
    /// Opens a unit that is there and not sealed, and finds where its sound records end.
    ///
    /// # Errors
    /// It can't be read.
    pub fn open(
        storage: &dyn Storage,
        found: &Found,
        header: UnitHeader,
        is_encrypted: bool,
    ) -> Result<Self> {
        let io = |e| Error::io("open unit", &found.path, e);
        let file = storage.open(&found.path, Access::Write).map_err(io)?;
        let mut unit = Self {
            found: found.clone(),
            header,
            file,
            end: BLOCK_BYTES,
            records: Vec::new(),
            durable_end: BLOCK_BYTES,
            is_encrypted,
        };
        unit.find_end()?;
        Ok(unit)
    }

    /// Reads on from `end` for as long as there are sound records. What was given up behind the last of them
    /// comes again: it looks like a header that was torn.
    fn find_end(&mut self) -> Result<()> {
        let length = self.file.bytes().map_err(|e| Error::io("read unit", &self.found.path, e))?;
        let limit = length.min(self.header.unit_bytes);
        let window_bytes = (HEADER_BYTES + record_bytes_max(self.header.unit_bytes)).max(1 << 20);
        let (mut bytes, mut next) = (Vec::new(), self.end);
        loop {
            bytes.resize(align_up(window_bytes).min(limit.saturating_sub(next)) as usize, 0);
            let read = self.file.read_exact_at(&mut bytes, next);
            read.map_err(|e| Error::io("read unit", &self.found.path, e))?;
            let mut at = 0;
            while let Ok((record, taken)) = parse(&self.header, next, &bytes[at..]) {
                if record.is_some_and(|r| self.refused(&r).is_some()) {
                    return Ok(());
                }
                self.records.extend(record.map(|r| (next, r)));
                next += taken;
                at += taken as usize;
                self.end = if record.is_some() { next } else { self.end };
            }
            if at == 0 {
                return Ok(());
            }
        }
    }

    /// Why a record can't be one of this unit.
    fn refused(&self, record: &Record) -> Option<&'static str> {
        let is_data = record.kind == Kind::Write && record.payload_bytes > 0;
        match () {
            () if record.kind == Kind::Merged => Some("only a merged unit says what it replaces"),
            () if record.seq.max(watermark_of(record)) > super::NUMBER_MAX => {
                Some("a number that is too high")
            }
            () if record.seq <= self.header.after_seq => {
                Some("a number that is older than the unit")
            }
            () if is_data && record.encrypted != self.is_encrypted => {
                Some("data that is not stored as the journal's is")
            }
            () => None,
        }
    }

    /// Takes bytes from `at` on; those that are there already are left as they are.
    pub fn take(&mut self, at: u64, bytes: &[u8]) -> Taken<()> {
        if at > self.end {
            return Err(broken(&self.header, at, "bytes before it are missing"));
        }
        let known = usize::try_from(self.end - at).unwrap_or(usize::MAX);
        let Some(bytes) = bytes.get(known..).filter(|b| !b.is_empty()) else { return Ok(()) };
        let mut new = Vec::new();
        let mut end = self.end;
        let mut left = bytes;
        while !left.is_empty() {
            let (record, taken) =
                parse(&self.header, end, left).map_err(|why| broken(&self.header, end, why))?;
            if let Some(record) = record {
                if let Some(why) = self.refused(&record) {
                    return Err(broken(&self.header, end, why));
                }
                new.push((end, record));
            }
            end += taken;
            left = &left[taken as usize..];
            let count = (self.records.len() + new.len()) as u64;
            if !fits(self.header.unit_bytes, end, count) {
                return Err(broken(&self.header, end, "more than the unit can hold"));
            }
        }
        let wrote = self.file.write_all_at(bytes, self.end);
        wrote
            .map_err(|e| Error::io("write unit", &self.found.path, e))
            .map_err(super::sink_error)?;
        self.end = end;
        self.records.extend(new);
        Ok(())
    }

    /// Goes on with the file where it lies now, if it is not where it was: the same, and durable.
    ///
    /// # Errors
    /// It is nowhere, or can't be opened.
    pub fn follow(&mut self, storage: &dyn Storage, places: &Places) -> Result<()> {
        if storage.exists(&self.found.path) {
            return Ok(());
        }
        let path = places.find(self.found.name).ok_or_else(|| {
            Error::io("find unit", &self.found.path, std::io::ErrorKind::NotFound)
        })?;
        let opened = storage.open(&path, Access::Write);
        self.file = opened.map_err(|e| Error::io("open unit", &path, e))?;
        self.found.path = path;
        Ok(())
    }

    /// What tells its file from another one.
    pub fn identity(&self) -> u64 {
        self.file.identity()
    }

    /// The lowest number in it; 0: it has none.
    pub fn lowest(&self) -> Seq {
        self.records.iter().map(|(_, record)| record.seq).min().unwrap_or(0)
    }

    /// Makes what came durable.
    ///
    /// # Errors
    /// The sync failed: what came since the last may be lost.
    pub fn sync(&mut self) -> Result<()> {
        if self.durable_end < self.end { self.sync_all() } else { Ok(()) }
    }

    /// As [`Incoming::sync`], whoever wrote it.
    ///
    /// # Errors
    /// As there.
    pub fn sync_all(&mut self) -> Result<()> {
        let end = self.end;
        self.file.sync_data().map_err(|e| Error::io("sync unit", &self.found.path, e))?;
        self.durable_end = end;
        Ok(())
    }

    /// CRC of the index that it would be sealed with.
    pub fn index_crc(&self) -> u32 {
        let mut records = self.records.clone();
        index::sort(&mut records);
        checksum::crc32c(&index::encode(&records))
    }

    /// Writes its index and footer, durably.
    ///
    /// # Errors
    /// The device failed.
    pub fn seal(&self) -> Result<()> {
        unit::seal(&*self.file, &self.found.path, &self.header, &self.records, self.end)
    }

    /// Writes all of it again, durably: the page cache may show what the device never took.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write_again(&mut self) -> Result<()> {
        let mut at = BLOCK_BYTES;
        while at < self.end && !planted::is("believe-failed-sync") {
            let mut bytes = vec![0; (self.end - at).min(1 << 20) as usize];
            let again = self.file.read_exact_at(&mut bytes, at);
            let again = again.and_then(|()| self.file.write_all_at(&bytes, at));
            again.map_err(|e| Error::io("write unit again", &self.found.path, e))?;
            at += bytes.len() as u64;
        }
        self.sync_all()
    }
}
