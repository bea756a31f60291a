//! Reading a unit's records: from its index when it is sealed, from the records themselves
//! otherwise. Payloads are not read, but for the few that hold metadata.

use crate::error::{Error, Result};
use crate::format::cipher::Origin;
use crate::format::index::{self, FOOTER_BYTES, Footer};
use crate::format::meta::{META_BYTES_MAX, Merged, Meta};
use crate::format::record::{self, Decoded, HEADER_BYTES, Record};
use crate::format::unit_header::{BLOCK_BYTES, FLAG_MERGED, HeaderError, UnitHeader};
use crate::format::{VERSION, align_up, checksum, payload};
use crate::planted;
use crate::pool::{FileName, Found};
use crate::ring::Overlay;
use crate::storage::{Access, Storage, StoredFile};
use crate::unit::overlaid::Overlaid;
use crate::unit::{UNIT_BYTES_MAX, listed, record_bytes_max};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the records of a unit ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScanEnd {
    /// A valid index lists all of them.
    Sealed,
    /// No index: the last records, up to where nothing valid follows.
    Open,
    /// Something that isn't a record lies at these byte offsets, with records behind it, or an
    /// index is damaged.
    Damaged {
        /// Byte offsets of what can't be read.
        at: Vec<u64>,
    },
}

/// A unit's records, without their payloads.
#[derive(Debug)]
pub struct UnitContents {
    /// The file.
    pub path: PathBuf,
    /// It, open; unless it is sealed, with what is in the ring only.
    pub file: Arc<dyn StoredFile>,
    /// Its header.
    pub header: UnitHeader,
    /// Byte offset and header of each record, sorted by (number, address).
    pub records: Vec<(u64, Record)>,
    /// Checksum of its index; 0 unless it is sealed.
    pub index_crc: u32,
    /// How they ended.
    pub end: ScanEnd,
    /// Numbers in the commit words of headers that fail their checksum.
    pub broken: Vec<u64>,
}

/// Opens a unit and reads its header.
///
/// # Errors
/// It can't be read, its header is damaged or newer, or it isn't the unit of this group that its
/// name says.
pub fn read_header(
    storage: &dyn Storage,
    found: &Found,
    group: [u8; 16],
) -> Result<(Arc<dyn StoredFile>, UnitHeader)> {
    let path = &found.path;
    let file = storage.open(path, Access::Read).map_err(|e| Error::io("open unit", path, e))?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    file.read_exact_at(&mut block, 0).map_err(|e| Error::io("read unit", path, e))?;
    let header = UnitHeader::decode(&block).map_err(|e| header_error(path, e))?;
    let merged = matches!(found.name, FileName::Merged(..));
    let named = header.number == found.name.numbers().0;
    if header.group != group || !named || merged != (header.flags & FLAG_MERGED != 0) {
        return Err(Error::Unusable {
            path: path.to_owned(),
            why: "it belongs to another journal, or has another unit's name".into(),
        });
    }
    Ok((file, header))
}

/// Opens a unit and lists its records, those that are in the ring only too.
///
/// # Errors
/// As [`read_header`].
pub fn read_unit(
    storage: &dyn Storage,
    found: &Found,
    group: [u8; 16],
    ring: Option<&Overlay>,
) -> Result<UnitContents> {
    let (file, header) = read_header(storage, found, group)?;
    let path = found.path.clone();
    let length = file.bytes().map_err(|e| Error::io("read unit", &path, e))?;
    let mut unit = UnitContents {
        path,
        file,
        header,
        records: Vec::new(),
        index_crc: 0,
        end: ScanEnd::Open,
        broken: Vec::new(),
    };
    match read_index(&unit, length)? {
        Index::Good(records, crc) => {
            unit.records = records;
            unit.index_crc = crc;
            unit.end = ScanEnd::Sealed;
        }
        Index::Absent => {
            if let Some(ring) = ring {
                let (file, ring) = (Arc::clone(&unit.file), ring.clone());
                unit.file = Arc::new(Overlaid { file, ring, number: unit.header.number });
            }
            scan(&mut unit, length)?;
        }
        Index::Damaged(at) => {
            scan(&mut unit, length)?;
            match &mut unit.end {
                ScanEnd::Damaged { at: all } => all.push(at),
                end => *end = ScanEnd::Damaged { at: vec![at] },
            }
        }
    }
    index::sort(&mut unit.records);
    Ok(unit)
}

fn header_error(path: &Path, error: HeaderError) -> Error {
    let path = path.to_owned();
    match error {
        HeaderError::Version(found) => Error::NewerFormat { path, found, supported: VERSION },
        HeaderError::Magic => Error::Unusable { path, why: "it isn't a unit of a journal".into() },
        HeaderError::Checksum => {
            Error::Unusable { path, why: "its header's checksum doesn't match".into() }
        }
    }
}

/// Reads what a merged unit replaces.
///
/// # Errors
/// Its first record isn't that, or is damaged.
pub fn read_merged(file: &dyn StoredFile, path: &Path, header: &UnitHeader) -> Result<Merged> {
    let unusable = |why: &str| Error::Unusable { path: path.to_owned(), why: why.into() };
    let mut bytes = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut bytes, BLOCK_BYTES).map_err(|e| Error::io("read unit", path, e))?;
    let Decoded::Record(record) = record::decode(&header.salt, BLOCK_BYTES, &bytes) else {
        return Err(unusable("what it was merged from can't be read"));
    };
    if record.payload_bytes as usize > META_BYTES_MAX {
        return Err(unusable("what it was merged from is too large"));
    }
    let mut payload = vec![0; record.payload_bytes as usize];
    read_payload(file, path, BLOCK_BYTES, &record, &mut payload)?;
    match Meta::decode(record.kind, &payload) {
        Some(Ok(Meta::Merged(merged))) if merged.first == header.number => Ok(merged),
        _ => Err(unusable("its first record doesn't say what it was merged from")),
    }
}

enum Index {
    Good(Vec<(u64, Record)>, u32),
    Absent,
    Damaged(u64),
}

fn read_index(unit: &UnitContents, length: u64) -> Result<Index> {
    let unit_bytes = unit.header.unit_bytes;
    let sizes = BLOCK_BYTES + FOOTER_BYTES..=UNIT_BYTES_MAX;
    if length < unit_bytes || !sizes.contains(&unit_bytes) {
        return Ok(Index::Absent);
    }
    let footer_at = unit_bytes - FOOTER_BYTES;
    let mut bytes = [0; FOOTER_BYTES as usize];
    let io = |e| Error::io("read unit", &unit.path, e);
    unit.file.read_exact_at(&mut bytes, footer_at).map_err(io)?;
    if bytes == [0; FOOTER_BYTES as usize] {
        return Ok(Index::Absent);
    }
    let Some(footer) = Footer::decode(&unit.header.salt, unit_bytes, &bytes) else {
        return Ok(Index::Damaged(footer_at));
    };
    Ok(match listed::read_index(&*unit.file, &unit.header, &footer).map_err(io)? {
        Some(records) => Index::Good(records, footer.index_crc),
        None => Index::Damaged(footer.index_at),
    })
}

/// Bytes read at a time: large enough to be sequential, small enough to stop early.
const WINDOW_BYTES: usize = 256 << 10;

struct Window<'a> {
    unit: &'a UnitContents,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// The 64 bytes at `at`, or `None` behind the end.
    fn header(&mut self, at: u64, limit: u64) -> Result<Option<&[u8; HEADER_BYTES as usize]>> {
        if at + HEADER_BYTES > limit {
            return Ok(None);
        }
        let end = self.start + self.bytes.len() as u64;
        if at < self.start || at + HEADER_BYTES > end {
            self.start = at;
            self.bytes.resize(WINDOW_BYTES.min((limit - at) as usize), 0);
            self.unit
                .file
                .read_exact_at(&mut self.bytes, at)
                .map_err(|e| Error::io("read unit", &self.unit.path, e))?;
        }
        let offset = (at - self.start) as usize;
        Ok(self.bytes[offset..].first_chunk())
    }
}

/// Walks the records. Where no frame is valid, looks on at every 64-byte boundary: the salt makes
/// it certain that what is found was written as a record, so that rot in the middle is told from
/// a tail (I-3).
fn scan(unit: &mut UnitContents, length: u64) -> Result<()> {
    let limit = length.min(unit.header.unit_bytes).min(UNIT_BYTES_MAX);
    let payload_bytes_max = record_bytes_max(listed::size_of_records(&unit.header).max(limit));
    let salt = unit.header.salt;
    let mut records = Vec::new();
    let mut broken = Vec::new();
    let mut holes = Vec::new();
    let mut hole = None;
    let mut at = BLOCK_BYTES;
    let mut window = Window { unit, start: 0, bytes: Vec::new() };
    while let Some(bytes) = window.header(at, limit)? {
        let decoded = record::decode(&salt, at, bytes);
        let payload_bytes = match decoded {
            Decoded::None => None,
            Decoded::Record(r) => Some(r.payload_bytes),
            Decoded::Reserved { payload_bytes } | Decoded::Broken { payload_bytes, .. } => {
                Some(payload_bytes)
            }
        };
        // A length that no writer gives out is not stepped over, nor ever allocated.
        let end = payload_bytes
            .filter(|bytes| u64::from(*bytes) <= payload_bytes_max)
            .map(|bytes| align_up(at + HEADER_BYTES + u64::from(bytes)))
            .filter(|end| *end <= limit);
        let Some(end) = end else {
            hole.get_or_insert(at);
            at += crate::format::ALIGN_BYTES;
            continue;
        };
        match decoded {
            Decoded::Record(r) => records.push((at, r)),
            Decoded::Broken { seq, .. } => {
                broken.push(seq);
                holes.push(at);
            }
            _ => {}
        }
        holes.extend(hole.take());
        at = end;
    }
    unit.records = records;
    unit.broken = broken;
    if !holes.is_empty() {
        unit.end = ScanEnd::Damaged { at: holes };
    }
    Ok(())
}

/// Reads and checks a record's whole payload as it was captured into `buffer`, which must have
/// [`Record::data_bytes`].
///
/// # Errors
/// It can't be read, its checksum doesn't match, or it can't be unpacked or decrypted.
pub fn read_data(
    file: &dyn StoredFile,
    path: &Path,
    origin: &Origin<'_>,
    record: &Record,
    buffer: &mut [u8],
) -> Result<()> {
    let at = origin.at;
    let failed = |why| Error::Damaged { unit: path.to_owned(), at, seq: record.seq, why };
    if payload::is_as_captured(origin, record).map_err(failed)? {
        return read_payload(file, path, at, record, buffer);
    }
    let mut stored = vec![0; record.payload_bytes as usize];
    read_payload(file, path, at, record, &mut stored)?;
    payload::unpack_into(origin, record, &stored, buffer).map_err(failed)
}

/// Reads and checks a record's whole payload as it is stored into `buffer`, which must have its size.
///
/// # Errors
/// It can't be read, or its checksum doesn't match.
pub fn read_payload(
    file: &dyn StoredFile,
    path: &Path,
    at: u64,
    record: &Record,
    buffer: &mut [u8],
) -> Result<()> {
    file.read_exact_at(buffer, at + HEADER_BYTES).map_err(|e| Error::io("read unit", path, e))?;
    if checksum::crc32c(buffer) == record.payload_crc || planted::is("read-completes-on-error") {
        return Ok(());
    }
    Err(Error::Damaged {
        unit: path.to_owned(),
        at,
        seq: record.seq,
        why: "its data doesn't match its checksum",
    })
}
