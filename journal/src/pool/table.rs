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

mod bytes;

pub use bytes::decode;
use bytes::{ROW_BYTES, VERSION, encode_header, encode_row};

use crate::Seq;
use crate::catalogue::epoch_start;
use crate::error::{Error, Result};
use crate::format::unit_header::{BLOCK_BYTES, FLAG_MERGED, UnitHeader};
use crate::layout;
use crate::meta::{EpochStart, Merged};
use crate::planted;
use crate::pool::description::MemberFile;
use crate::pool::name::FileName;
use crate::storage::{Access, Storage, StoredFile};
use crate::unit;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// Its name in the journal's directory.
pub const NAME: &str = "units";
/// Largest table that is read, in bytes: four million rows.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// The member of a unit in the journal's own directory.
pub const HOME: Uuid = Uuid::nil();

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
    /// An epoch begins: numbers that it makes void stay void while its first unit is away.
    Begins(EpochStart),
    /// What lies before the window's edge may have been merged, and nothing below the floor is restorable,
    /// also while the merged unit that says so is away.
    Edge(Seq, Seq),
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
    /// The epochs that began, by number, whether their first units are there or not.
    pub epochs: BTreeMap<u64, EpochStart>,
    /// The highest edge that a merged unit was made for; see [`Change::Edge`].
    pub edge: Seq,
    /// The highest floor, likewise.
    pub floor: Seq,
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
            Change::Made(name, row) => {
                self.forget_epochs_of(*name, row.epoch);
                self.rows.insert(*name, *row);
            }
            Change::Gone(name) => {
                self.forget_epochs_of(*name, u64::MAX);
                self.rows.remove(name);
            }
            Change::Known(member) => drop(self.known.insert(*member)),
            Change::Begins(start) => drop(self.epochs.insert(start.epoch, *start)),
            Change::Edge(edge, floor) => {
                (self.edge, self.floor) = (self.edge.max(*edge), self.floor.max(*floor));
            }
        }
    }

    /// Forgets the epochs below `epoch` that began in a unit which was replaced, and was never used.
    fn forget_epochs_of(&mut self, name: FileName, epoch: u64) {
        if let FileName::Unit(number) = name {
            self.epochs.retain(|_, start| start.unit != Some(number) || start.epoch >= epoch);
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
        let mut bytes = encode_header(self.group, self.id).to_vec();
        let known = self.known.iter().map(|member| Change::Known(*member));
        let begun = self.epochs.values().map(|start| Change::Begins(*start));
        let edge = (self.edge > 0).then_some(Change::Edge(self.edge, self.floor));
        let made = self.rows.iter().map(|(name, row)| Change::Made(*name, *row));
        known
            .chain(begun)
            .chain(edge)
            .chain(made)
            .for_each(|change| bytes.extend(encode_row(&self.id, &change)));
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
    let mut changes = changes_of(&**storage, path, (name, header), member);
    if changes.len() > 2 {
        // A merged unit lists all the epochs again that others before it did.
        let table = load(&**storage, journal)?;
        let known = |epoch: u64| table.table().is_some_and(|t| t.epochs.contains_key(&epoch));
        changes.retain(|c| !matches!(c, Change::Begins(start) if known(start.epoch)));
    }
    append(&**storage, journal, &changes)
}

/// What a unit's file adds to a table: its row, behind what has to be known while it is away.
pub(super) fn changes_of(
    storage: &dyn Storage,
    path: &Path,
    (name, header): (FileName, &UnitHeader),
    member: Uuid,
) -> Vec<Change> {
    let mut changes = Vec::new();
    match name {
        _ if planted::is("forget-what-absent-units-say") => {}
        FileName::Unit(_) => changes.extend(epoch_start(header).map(Change::Begins)),
        FileName::Merged(..) => {
            // One that can't be read is damage, and shows as that.
            if let Some(merged) = merged_of(storage, path, header) {
                changes.extend(merged.epochs.iter().copied().map(Change::Begins));
                changes.push(Change::Edge(merged.edge, merged.floor()));
            }
        }
    }
    changes.push(Change::Made(name, Row::new(header, member)));
    changes
}

fn merged_of(storage: &dyn Storage, path: &Path, header: &UnitHeader) -> Option<Merged> {
    let file = storage.open(path, Access::Read).ok()?;
    unit::read_merged(&*file, path, header).ok()
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
