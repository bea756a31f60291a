//! Units as rows: what has to be known of each while its file stays closed. Files and indexes are
//! opened when they are asked for, and held in caches with bounds.
//!
//! What always holds: a file is read only if it is the one that its row was made of; an old copy
//! under the same name is damage, by name (I-12).

use super::History;
use super::cache::Cache;
use crate::catalogue::find_elsewhere;
use crate::error::{Error, Result};
use crate::format::meta::{EpochStart, Merged};
use crate::format::payload::PLAIN;
use crate::format::record::{Kind, Record};
use crate::format::unit_header::UnitHeader;
use crate::pool::{FileName, Found, Places};
use crate::storage::{Access, StoredFile};
use crate::unit::{ScanEnd, UnitContents, read_header, read_unit};
use crate::{Seq, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Name of the directory, beside the units of each member, for files that were released while somebody read.
pub const HELD: &str = "held";
/// Most files that are open at a time, where the process may have many.
const OPEN_FILES_MAX: usize = 256;
/// Fewest that are worth keeping open.
const OPEN_FILES_MIN: usize = 8;
/// Most bytes of indexes in memory; the newest stays, however large.
const INDEX_BYTES_MAX: usize = 64 << 20;

/// Byte offset in its unit and header of each record, sorted by (number, address).
pub type Records = Arc<[(u64, Record)]>;

/// A unit of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unit {
    /// What its file's name says.
    #[serde(with = "file_name")]
    pub name: FileName,
    /// Where its file was when the journal was opened.
    #[serde(skip)]
    pub path: PathBuf,
    /// Its header.
    pub header: UnitHeader,
    /// How its records ended.
    pub end: ScanEnd,
    /// Lowest number of a record in it (0: there is none); if it was merged, in what it replaces.
    pub first_seq: Seq,
    /// Highest number of a record in it, or in what it replaces.
    pub last_seq: Seq,
    /// Wall time of the record with the lowest number, nanoseconds since the Unix epoch.
    pub first_wall_ns: u64,
    /// Wall time of the record with the highest number.
    pub last_wall_ns: u64,
    /// Earliest wall time of a record.
    pub wall_min_ns: u64,
    /// Latest wall time of a record.
    pub wall_max_ns: u64,
    /// Its records, that of kind 12 included.
    pub count: u64,
    /// Bytes of all payloads.
    pub payload_bytes: u64,
    /// Bytes of payload in volumes of which it has compressed records: as stored, and as captured.
    #[serde(default, skip_serializing_if = "is_unpacked")]
    pub packed_bytes: (u64, u64),
    /// Bytes of payload that something at or behind the edge still needs, as far as was counted.
    pub live_bytes: Option<u64>,
    /// Checksum of its index (0: it is not sealed).
    pub index_crc: u32,
    /// What it replaces, if it was merged.
    pub merged: Option<Merged>,
    /// Numbers above this one don't count in it: void, or torn off.
    #[serde(skip)]
    pub(crate) valid_to: Seq,
    /// File and records of one that is not sealed: read once, since a writer may go on in it.
    #[serde(skip)]
    pub(crate) read: Option<ReadUnit>,
}

/// What was read of a unit that has no sound index.
#[derive(Debug, Clone)]
pub(crate) struct ReadUnit {
    pub(crate) file: Arc<dyn StoredFile>,
    pub(crate) records: Records,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_unpacked(packed_bytes: &(u64, u64)) -> bool {
    *packed_bytes == (0, 0)
}

/// Bytes of payload in volumes of which some records are compressed: as stored, and as captured.
fn packed_bytes(records: &[(u64, Record)]) -> (u64, u64) {
    let records = || records.iter().map(|(_, r)| r);
    let packed = records().filter(|r| r.compression != PLAIN).map(|r| r.volume);
    let packed: BTreeSet<VolumeId> = packed.collect();
    let writes = records().filter(|r| r.kind == Kind::Write && packed.contains(&r.volume));
    writes.fold((0, 0), |(stored, data), r| {
        (stored + u64::from(r.payload_bytes), data + u64::from(r.data_bytes()))
    })
}

mod file_name {
    use crate::pool::FileName;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(name: &FileName, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<FileName, D::Error> {
        let text = String::deserialize(from)?;
        FileName::parse(&text).ok_or_else(|| D::Error::custom("not a unit's name"))
    }
}

impl Unit {
    /// The row of a unit that was read.
    pub(crate) fn of(name: FileName, unit: &UnitContents, merged: Option<Merged>) -> Self {
        let records = || unit.records.iter().map(|(_, r)| r).filter(|r| r.kind != Kind::Merged);
        let mut row = Self {
            name,
            path: unit.path.clone(),
            header: unit.header,
            end: unit.end.clone(),
            first_seq: records().next().map_or(0, |r| r.seq),
            last_seq: records().next_back().map_or(0, |r| r.seq),
            first_wall_ns: records().next().map_or(0, |r| r.wall_ns),
            last_wall_ns: records().next_back().map_or(0, |r| r.wall_ns),
            wall_min_ns: records().map(|r| r.wall_ns).min().unwrap_or(0),
            wall_max_ns: records().map(|r| r.wall_ns).max().unwrap_or(0),
            count: unit.records.len() as u64,
            payload_bytes: unit.records.iter().map(|(_, r)| u64::from(r.payload_bytes)).sum(),
            packed_bytes: packed_bytes(&unit.records),
            live_bytes: None,
            index_crc: unit.index_crc,
            merged,
            valid_to: Seq::MAX,
            read: None,
        };
        if let Some(merged) = row.merged.as_ref().filter(|m| m.last_seq > 0) {
            // It answers for what is gone, too: for the times of it, for one.
            (row.first_seq, row.last_seq) = (merged.first_seq, merged.last_seq);
            (row.first_wall_ns, row.last_wall_ns) = (merged.first_wall_ns, merged.last_wall_ns);
            row.wall_min_ns = merged.first_wall_ns.min(row.wall_min_ns);
            row.wall_max_ns = merged.last_wall_ns.max(row.wall_max_ns);
        }
        if unit.end != ScanEnd::Sealed {
            let records = unit.records.as_slice().into();
            row.read = Some(ReadUnit { file: Arc::clone(&unit.file), records });
        }
        row
    }

    /// Number of the first log unit that it stands for.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.name.numbers().0
    }

    /// Its name and place.
    #[must_use]
    pub fn found(&self) -> Found {
        Found { name: self.name, path: self.path.clone() }
    }

    /// Whether this is the unit that the row was made of.
    fn is(&self, unit: &UnitContents) -> bool {
        self.header == unit.header && self.count == unit.records.len() as u64
    }
}

/// Whether a number doesn't count in a unit of an epoch: it was torn off when a later one began.
pub(crate) fn is_void(epochs: &[EpochStart], epoch: u64, seq: Seq) -> bool {
    seq > void_above(epochs, epoch)
}

/// The last number that counts in units of an epoch.
pub(crate) fn void_above(epochs: &[EpochStart], epoch: u64) -> Seq {
    let later = epochs.iter().filter(|e| e.epoch > epoch);
    later.map(|e| e.prev_last_seq).min().unwrap_or(Seq::MAX)
}

/// What is open and known by heart.
#[derive(Debug)]
pub(super) struct Opened {
    files: Cache<u32, Arc<dyn StoredFile>>,
    indexes: Cache<u32, Records>,
    /// For each unit: the highest number in it and all before, the lowest in it and all behind.
    reach: Vec<(Seq, Seq)>,
}

impl Opened {
    pub(super) fn new(units: &[Unit]) -> Self {
        let mut reach = Vec::with_capacity(units.len());
        let mut high = 0;
        for unit in units {
            high = high.max(unit.last_seq.min(unit.valid_to));
            reach.push((high, Seq::MAX));
        }
        let mut low = Seq::MAX;
        for (unit, reach) in units.iter().zip(&mut reach).rev() {
            if unit.first_seq > 0 && unit.first_seq <= unit.valid_to {
                low = low.min(unit.first_seq);
            }
            reach.1 = low;
        }
        let files = Cache::new(open_files_max(OPEN_FILES_MAX), usize::MAX);
        Self { files, indexes: Cache::new(usize::MAX, INDEX_BYTES_MAX), reach }
    }
}

/// How many of `wanted` files may be kept open: no more than a quarter of what the process may have open.
#[must_use]
pub fn open_files_max(wanted: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
    wanted.min((limit / 4).max(OPEN_FILES_MIN))
}

/// Why a file isn't read that is not its row's.
const ANOTHER: &str = "it is another file than the one that the journal knew";

fn damaged(unit: &Unit, why: &'static str) -> Error {
    Error::Damaged { unit: unit.path.clone(), at: 0, seq: unit.first_seq, why }
}

impl History {
    pub(super) fn unit(&self, unit: u32) -> Result<&Unit> {
        self.units
            .get(unit as usize)
            .ok_or_else(|| Error::Invalid(format!("there is no unit with the index {unit}")))
    }

    /// The file of a unit (index into [`History::units`]), open for reading.
    ///
    /// # Errors
    /// It is not where the journal says, nor held for readers; or it is another file.
    pub fn file(&self, unit: u32) -> Result<Arc<dyn StoredFile>> {
        let row = self.unit(unit)?;
        if let Some(read) = &row.read {
            return Ok(Arc::clone(&read.file));
        }
        if let Some(file) = self.opened.files.get(&unit) {
            return Ok(file);
        }
        let file = self.open_again(row)?;
        self.opened.files.put(unit, Arc::clone(&file), 1);
        Ok(file)
    }

    /// The records of a unit that count, sorted by (number, address).
    ///
    /// # Errors
    /// Its index can't be read, or the file is another one.
    pub fn records(&self, unit: u32) -> Result<Records> {
        let row = self.unit(unit)?;
        if let Some(records) = self.opened.indexes.get(&unit) {
            return Ok(records);
        }
        self.records_of(unit, row)
    }

    /// Reads a unit's index into the caches.
    fn records_of(&self, unit: u32, row: &Unit) -> Result<Records> {
        let counts = |r: &Record| r.seq <= row.valid_to && r.kind != Kind::Merged;
        if let Some(read) = &row.read {
            let records: Records = match row.last_seq <= row.valid_to {
                true => Arc::clone(&read.records),
                false => read.records.iter().filter(|(_, r)| counts(r)).copied().collect(),
            };
            let bytes = size_of_val::<[(u64, Record)]>(&records);
            self.opened.indexes.put(unit, Arc::clone(&records), bytes);
            return Ok(records);
        }
        let mut contents = self.open_unit(row)?;
        contents.records.retain(|(_, r)| counts(r));
        let records: Records = contents.records.into();
        let bytes = size_of_val::<[(u64, Record)]>(&records);
        self.opened.indexes.put(unit, Arc::clone(&records), bytes);
        self.opened.files.put(unit, contents.file, 1);
        Ok(records)
    }

    /// Reads a unit where it was, or where it went since.
    fn find<T>(&self, row: &Unit, read: impl Fn(&Found) -> Result<T>) -> Result<T> {
        let read = |path: PathBuf| read(&Found { name: row.name, path });
        let is_gone = |e: &Error| match e {
            Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        };
        let mut unit = read(row.path.clone());
        if unit.as_ref().is_err_and(is_gone)
            && let (Some(dir), Some(name)) = (row.path.parent(), row.path.file_name())
        {
            unit = read(dir.join(HELD).join(name));
        }
        if unit.as_ref().is_err_and(is_gone) {
            // It moved to another member, and may have been released there.
            let places = Places::of(&self.storage, &self.dir)?;
            if let Some(path) = find_elsewhere(&*self.storage, &places, row.name) {
                unit = read(path);
            }
        }
        unit
    }

    /// Opens a sealed unit, and makes sure that it is the one that the row was made of.
    fn open_unit(&self, row: &Unit) -> Result<UnitContents> {
        let group = self.identity.group.into_bytes();
        let unit = self.find(row, |found| read_unit(&*self.storage, found, group, None))?;
        let sealed = unit.end == ScanEnd::Sealed;
        if !row.is(&unit) || (sealed && row.index_crc != unit.index_crc) {
            return Err(damaged(row, ANOTHER));
        }
        // Without its index, all its records were found by their own headers.
        Ok(unit)
    }

    /// Opens a sealed unit by a look at its header alone: its index is checked where it is read.
    fn open_again(&self, row: &Unit) -> Result<Arc<dyn StoredFile>> {
        let group = self.identity.group.into_bytes();
        let (file, header) = self.find(row, |found| read_header(&*self.storage, found, group))?;
        if header == row.header { Ok(file) } else { Err(damaged(row, ANOTHER)) }
    }

    /// Whether a unit's file is still the one that its row was made of. Without the pin it may be released
    /// while it is read, and be another unit's then: what was read of it says nothing.
    #[must_use]
    pub fn is_there(&self, unit: u32) -> bool {
        self.is_pinned() || self.unit(unit).is_ok_and(|row| self.open_again(row).is_ok())
    }

    /// Indexes of the units that may hold a number.
    pub(super) fn units_of(&self, seq: Seq) -> impl Iterator<Item = u32> + use<> {
        let first = self.opened.reach.partition_point(|(high, _)| *high < seq);
        let behind = self.opened.reach.partition_point(|(_, low)| *low <= seq);
        (first as u32)..(behind as u32)
    }

    /// The record that holds a byte of the range of record `seq`. After merging, pieces of one
    /// record may lie apart: ask again where the one that was found ends.
    ///
    /// # Errors
    /// No unit has it, or one that may can't be read.
    pub fn locate(&self, seq: Seq, addr: u64) -> Result<super::Entry> {
        for unit in self.units_of(seq) {
            if self.opened.indexes.get(&unit).is_some() {
                break;
            }
            if let Some(entry) = self.glance(unit, self.unit(unit)?, (seq, addr)) {
                return Ok(entry);
            }
        }
        for unit in self.units_of(seq) {
            let records = self.records(unit)?;
            let behind = records.partition_point(|(_, r)| (r.seq, r.addr) <= (seq, addr));
            let Some((at, record)) = records[..behind].last() else { continue };
            let end = record.addr.saturating_add(record.len.max(1).into());
            if record.seq == seq && addr < end {
                return Ok(super::Entry { unit, at: *at, record: *record });
            }
        }
        Err(Error::Missing { seq, addr })
    }

    /// The first record with this number; `None` when there is none.
    ///
    /// # Errors
    /// A unit that may hold it can't be read.
    pub fn entry(&self, seq: Seq) -> Result<Option<super::Entry>> {
        for unit in self.units_of(seq) {
            let records = self.records(unit)?;
            let first = records.partition_point(|(_, r)| r.seq < seq);
            if let Some((at, record)) = records.get(first).filter(|(_, r)| r.seq == seq) {
                return Ok(Some(super::Entry { unit, at: *at, record: *record }));
            }
        }
        Ok(None)
    }

    /// Highest number in a unit and all before it, lowest in it and all behind it.
    pub(super) fn reach(&self, unit: usize) -> Option<(Seq, Seq)> {
        self.opened.reach.get(unit).copied()
    }
}

/// Opens a file for reading by its path.
pub(crate) fn open_file(
    storage: &dyn crate::storage::Storage,
    row: &Unit,
) -> Result<Arc<dyn StoredFile>> {
    match &row.read {
        Some(read) => Ok(Arc::clone(&read.file)),
        None => {
            storage.open(&row.path, Access::Read).map_err(|e| Error::io("open unit", &row.path, e))
        }
    }
}
