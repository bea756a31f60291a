//! The unit table, `units` in a journal's own directory: on which member each unit's file lies.
//!
//! ```text
//! | header | row | row | row ...        64 bytes each, appended one by one, each with a CRC
//! ```
//!
//! What always holds:
//! * a journal has a table before its first unit goes to a member other than the home; without one, all of
//!   its units lie in the home, or an older version wrote it;
//! * a unit's row is durable before the first record goes into the unit: a file that contradicts the row
//!   of its name never held a record that counts;
//! * a row of zeroes at the end was never durable, so nothing was written to its unit; any other row that
//!   fails its CRC makes the table *partial*: what it doesn't name is not known then.

use crate::error::{Error, Result};
use crate::format::checksum::crc32c;
use crate::format::unit_header::{BLOCK_BYTES, FLAG_MERGED, UnitHeader};
use crate::layout;
use crate::pool::description::MemberFile;
use crate::pool::name::FileName;
use crate::storage::{Access, Storage, StoredFile};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Its name in the journal's directory.
pub const NAME: &str = "units";
/// Version of its format.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"AIMGUNTS";
/// Bytes of the header, and of a row.
const ROW_BYTES: usize = 64;
/// Largest table that is read, in bytes: four million rows.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// The member of a unit in the journal's own directory.
pub const HOME: Uuid = Uuid::nil();

const KIND_UNIT: u32 = 1;
const KIND_GONE: u32 = 2;
const KIND_KNOWN: u32 = 3;
const KIND_MERGED: u32 = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    group: [u8; 16],
    id: [u8; 16],
    reserved: [u8; 16],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRow {
    kind: U32,
    crc: U32,
    first: U64,
    /// Of a merged unit its last number; of a unit of the log `after_seq`.
    second: U64,
    epoch: U64,
    salt: [u8; 16],
    member: [u8; 16],
}

const _: () = assert!(size_of::<RawHeader>() == ROW_BYTES && size_of::<RawRow>() == ROW_BYTES);

/// What the table says of a unit's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The salt in its header, which no other unit has.
    pub salt: [u8; 16],
    /// Its epoch.
    pub epoch: u64,
    /// The newest number that had been given out when it was made (0 for a merged one): known while it
    /// is away.
    pub after_seq: u64,
    /// The member that it lies on; [`HOME`] for the journal's own directory.
    pub member: Uuid,
}

/// The highest numbers that a table's rows name; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newest {
    /// Of a unit.
    pub number: u64,
    /// Of an epoch.
    pub epoch: u64,
    /// Of a record, as far as it had been given out when a unit was made.
    pub seq: u64,
}

impl Row {
    /// The row of a unit with this header on a member.
    #[must_use]
    pub fn new(header: &UnitHeader, member: Uuid) -> Self {
        let is_merged = header.flags & FLAG_MERGED != 0;
        let after_seq = if is_merged { 0 } else { header.after_seq };
        Self { salt: header.salt, epoch: header.epoch, after_seq, member }
    }
}

/// A change of the table, in the order in which they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A unit's file is there, or has moved to this member.
    Made(FileName, Row),
    /// The unit of this name is going to be removed, and was never used.
    Gone(FileName),
    /// From here on every unit of the journal on this member has a row.
    Known(Uuid),
}

/// The table of a journal, as it was when it was read.
#[derive(Debug, Clone, Default)]
pub struct UnitTable {
    /// The journal's group.
    pub group: [u8; 16],
    /// The units by name.
    pub rows: BTreeMap<FileName, Row>,
    /// Members of which every unit has a row.
    pub known: BTreeSet<Uuid>,
    /// Rows could not be read: units may be missing in it.
    pub is_partial: bool,
    /// Rows in the file, outdated ones too.
    pub rows_in_file: usize,
    id: [u8; 16],
}

/// What there is of a journal's table.
#[derive(Debug, Clone)]
pub enum Loaded {
    /// None: the journal has never had a unit outside of its home, or an older version wrote it.
    Absent,
    /// It can't be used: the text says why.
    Damaged(String),
    /// It, maybe a partial one.
    Table(UnitTable),
}

impl Loaded {
    /// The table, if it can be used.
    #[must_use]
    pub fn table(&self) -> Option<&UnitTable> {
        if let Self::Table(table) = self { Some(table) } else { None }
    }
}

impl UnitTable {
    /// An empty one for a group.
    #[must_use]
    pub fn new(group: [u8; 16]) -> Self {
        Self { group, id: Uuid::new_v4().into_bytes(), ..Self::default() }
    }

    /// What its rows say of the newest units, whether they are there or not.
    #[must_use]
    pub fn newest(&self) -> Newest {
        let rows = || self.rows.values();
        Newest {
            number: self.rows.keys().map(|name| name.numbers().1).max().unwrap_or(0),
            epoch: rows().map(|row| row.epoch).max().unwrap_or(0),
            seq: rows().map(|row| row.after_seq).max().unwrap_or(0),
        }
    }

    /// Applies a change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Made(name, row) => drop(self.rows.insert(*name, *row)),
            Change::Gone(name) => drop(self.rows.remove(name)),
            Change::Known(member) => drop(self.known.insert(*member)),
        }
    }

    /// Forgets the units that a merged one in the table stands for.
    pub fn drop_merged(&mut self) {
        let merged = self.rows.keys().filter(|name| matches!(name, FileName::Merged(..)));
        let merged: Vec<(u64, u64)> = merged.map(|name| name.numbers()).collect();
        // They ascend by their first number: the furthest that any up to here reaches.
        let mut reach = Vec::with_capacity(merged.len());
        for (_, last) in &merged {
            reach.push(reach.last().copied().unwrap_or(0).max(*last));
        }
        self.rows.retain(|name, _| {
            let (first, last) = name.numbers();
            let below = |count: usize| count.checked_sub(1).map_or(0, |i| reach[i]);
            let before = below(merged.partition_point(|m| m.0 < first));
            let beside = below(merged.partition_point(|m| m.0 <= first));
            let is_unit = matches!(name, FileName::Unit(_));
            before < last && (if is_unit { beside < last } else { beside <= last })
        });
    }

    fn encode(&self) -> Vec<u8> {
        let mut header = RawHeader {
            magic: MAGIC,
            version: VERSION.into(),
            crc: 0.into(),
            group: self.group,
            id: self.id,
            reserved: [0; 16],
        };
        header.crc = crc32c(header.as_bytes()).into();
        let mut bytes = header.as_bytes().to_vec();
        let known = self.known.iter().map(|member| Change::Known(*member));
        let made = self.rows.iter().map(|(name, row)| Change::Made(*name, *row));
        known.chain(made).for_each(|change| bytes.extend(encode_row(&self.id, &change)));
        bytes
    }

    /// Writes all of it in place of the one that is there, durably.
    ///
    /// # Errors
    /// A write, sync or rename failed: the old one or the new one is there.
    pub fn write(&self, storage: &dyn Storage, journal: &Path) -> Result<()> {
        let _one = one_writer();
        layout::replace_file_in(storage, &journal.join(NAME), &self.encode())
    }
}

fn encode_row(id: &[u8; 16], change: &Change) -> [u8; ROW_BYTES] {
    let none = Row { salt: [0; 16], epoch: 0, after_seq: 0, member: HOME };
    let (kind, name, row) = match change {
        Change::Made(name @ FileName::Unit(_), row) => (KIND_UNIT, Some(*name), *row),
        Change::Made(name, row) => (KIND_MERGED, Some(*name), *row),
        Change::Gone(name) => (KIND_GONE, Some(*name), none),
        Change::Known(member) => (KIND_KNOWN, None, Row { member: *member, ..none }),
    };
    let (first, second) = match name {
        Some(FileName::Unit(number)) => (number, row.after_seq),
        Some(FileName::Merged(first, last)) => (first, last),
        None => (0, 0),
    };
    let mut raw = RawRow {
        kind: kind.into(),
        crc: 0.into(),
        first: first.into(),
        second: second.into(),
        epoch: row.epoch.into(),
        salt: row.salt,
        member: row.member.into_bytes(),
    };
    raw.crc = row_crc(id, &raw).into();
    let mut bytes = [0; ROW_BYTES];
    bytes.copy_from_slice(raw.as_bytes());
    bytes
}

fn row_crc(id: &[u8; 16], raw: &RawRow) -> u32 {
    let mut clean = *raw;
    clean.crc = 0.into();
    crc32c(&[id.as_slice(), clean.as_bytes()].concat())
}

/// `None`: it is no row that this version knows.
fn decode_row(id: &[u8; 16], bytes: &[u8]) -> Option<Change> {
    let raw = RawRow::read_from_bytes(bytes).ok()?;
    if raw.crc.get() != row_crc(id, &raw) {
        return None;
    }
    let (first, second) = (raw.first.get(), raw.second.get());
    let (epoch, member) = (raw.epoch.get(), Uuid::from_bytes(raw.member));
    let row = |after_seq| Row { salt: raw.salt, epoch, after_seq, member };
    match raw.kind.get() {
        KIND_UNIT if first > 0 => Some(Change::Made(FileName::Unit(first), row(second))),
        KIND_MERGED if first > 0 && first <= second => {
            Some(Change::Made(FileName::Merged(first, second), row(0)))
        }
        KIND_GONE if first > 0 => Some(Change::Gone(FileName::Unit(first))),
        KIND_KNOWN => Some(Change::Known(member)),
        _ => None,
    }
}

/// Reads the bytes of a table.
///
/// # Errors
/// The version that it has, when this program doesn't know it; else why it can't be used.
pub fn decode(bytes: &[u8]) -> std::result::Result<UnitTable, (Option<u32>, String)> {
    let damaged = |why: &str| Err((None, why.to_owned()));
    let Ok((mut raw, rows)) = RawHeader::read_from_prefix(bytes) else {
        return damaged("it is too short");
    };
    if raw.magic != MAGIC {
        return damaged("it is not a table of units");
    }
    if raw.version.get() != VERSION {
        return Err((Some(raw.version.get()), "it is of another version".into()));
    }
    let crc = raw.crc.get();
    raw.crc = 0.into();
    if crc != crc32c(raw.as_bytes()) {
        return damaged("its header's checksum doesn't match");
    }
    let mut table = UnitTable { group: raw.group, id: raw.id, ..UnitTable::default() };
    for row in rows.chunks_exact(ROW_BYTES) {
        table.rows_in_file += 1;
        match decode_row(&raw.id, row) {
            Some(change) => table.apply(&change),
            // A row lies within one sector: it is there or it isn't.
            None => table.is_partial |= row.iter().any(|byte| *byte != 0),
        }
    }
    if table.is_partial {
        table.known.clear();
    }
    Ok(table)
}

/// Reads the table of the journal in `journal`.
///
/// # Errors
/// A newer program wrote it, or it can't be read though it is there.
pub fn load(storage: &dyn Storage, journal: &Path) -> Result<Loaded> {
    let path = journal.join(NAME);
    let file = match storage.open(&path, Access::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Absent),
        Err(e) => return Err(Error::io("open", &path, e)),
    };
    let length = file.bytes().map_err(|e| Error::io("look at", &path, e))?;
    if length > FILE_BYTES_MAX {
        let why = format!("it has {length} bytes, more than {FILE_BYTES_MAX}");
        return Ok(Loaded::Damaged(why));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| Error::io("read", &path, e))?;
    match decode(&bytes) {
        Ok(table) => Ok(Loaded::Table(table)),
        Err((Some(found), _)) => Err(Error::NewerFormat { path, found, supported: VERSION }),
        Err((None, why)) => Ok(Loaded::Damaged(why)),
    }
}

/// Rows are appended by several threads of one process: units are made, merged and moved. They are rare,
/// and no thread that a guest waits for is among them.
fn one_writer() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Appends changes to a journal's table, durably; the caller is the journal's writer. Without a table there
/// is nothing to do: all units lie in the home.
///
/// # Errors
/// It can't be written, or is damaged: the next opening of the journal makes it anew.
pub fn append(storage: &dyn Storage, journal: &Path, changes: &[Change]) -> Result<()> {
    let _one = one_writer();
    let path = journal.join(NAME);
    let io = |what| {
        let path = path.clone();
        move |e| Error::io(what, &path, e)
    };
    let file = match storage.open(&path, Access::Write) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("open", &path, e)),
    };
    let id = id_of(&*file, &path)?;
    let rows: Vec<u8> = changes.iter().flat_map(|change| encode_row(&id, change)).collect();
    // Behind what a failed append may have left: zeroes there are skipped.
    let end = file.bytes().map_err(io("look at"))?.next_multiple_of(ROW_BYTES as u64);
    file.write_all_at(&rows, end).map_err(io("write"))?;
    file.sync_data().map_err(io("sync"))
}

fn id_of(file: &dyn StoredFile, path: &Path) -> Result<[u8; 16]> {
    let mut header = [0; ROW_BYTES];
    file.read_exact_at(&mut header, 0).map_err(|e| Error::io("read", path, e))?;
    let table = decode(&header).map_err(|(_, why)| {
        let why = format!("{why}; open the journal anew: that makes its table of units anew");
        Error::Unusable { path: path.to_owned(), why }
    })?;
    Ok(table.id)
}

/// Notes that a unit's file got its name, or moved, if the journal has a table.
///
/// # Errors
/// The table can't be written, or the member's own word can't be read.
pub fn note_made(
    storage: &Arc<dyn Storage>,
    journal: &Path,
    path: &Path,
    (name, header): (FileName, &UnitHeader),
) -> Result<()> {
    if !storage.exists(&journal.join(NAME)) {
        return Ok(());
    }
    let dir = path.parent().unwrap_or(journal);
    let member = member_of(storage, journal, dir)?;
    let row = Row::new(header, member);
    append(&**storage, journal, &[Change::Made(name, row)])
}

/// The member that a directory of a journal's units belongs to.
fn member_of(storage: &Arc<dyn Storage>, journal: &Path, dir: &Path) -> Result<Uuid> {
    let Some(member) = dir.parent().filter(|_| dir != journal) else { return Ok(HOME) };
    let word = MemberFile::read(storage, member)?;
    word.map(|word| word.member).ok_or_else(|| Error::Unusable {
        path: member.to_owned(),
        why: "it is no member of a pool: a unit can't be placed there".into(),
    })
}

/// The header of a unit's file; `None`: it has none that can be used.
///
/// # Errors
/// It can't be read.
pub fn header_of(storage: &dyn Storage, path: &Path) -> io::Result<Option<UnitHeader>> {
    let file = storage.open(path, Access::Read)?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    match file.read_exact_at(&mut block, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    Ok(UnitHeader::decode(&block).ok())
}
