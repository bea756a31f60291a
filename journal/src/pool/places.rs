//! Where a journal's units lie: one directory a member of the pool.
//!
//! What always holds:
//! * a member that is missing, stale or of another pool is never read; its units are missing, by name;
//! * which file is unit N never follows from the order of the directories: of several files of one name the
//!   highest epoch counts, then the one that the unit table names, then the one with records;
//! * a file that contradicts the unit table, or belongs to another journal, is a *stray*: it is not read,
//!   and stays where it is until somebody decides.

use super::description::Description;
use super::name::{FileName, Found};
use super::table::{self, Loaded, Row, UnitTable};
use super::trust::{Home, Missing, judge_read};
use crate::error::{Error, Result, is_exhausted};
use crate::format::index::{FOOTER_BYTES, Footer};
use crate::format::record::{self, Decoded, HEADER_BYTES};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::layout;
use crate::planted;
use crate::storage::{Access, Storage};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// A file under a unit's name that is not the journal's unit of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The name that it has.
    pub name: FileName,
    /// Its path.
    pub path: PathBuf,
    /// What it is, as a clause: "belongs to another journal".
    pub why: &'static str,
    /// It has the same bytes as the unit: a move was broken off, or the unit grew since.
    pub is_copy: bool,
}

/// All files under units' names.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The units' files, by number, each once.
    pub found: Vec<Found>,
    /// Files that don't count.
    pub strays: Vec<Stray>,
}

/// The directories that hold a journal's units, as they were when they were asked for. A unit may
/// move to another member while it is looked for: [`Places::find`] again when it isn't found.
#[derive(Debug, Clone)]
pub struct Places {
    storage: Arc<dyn Storage>,
    /// The journal's own directory.
    journal: PathBuf,
    /// The first is the journal's own.
    dirs: Vec<PathBuf>,
    /// The member of each; [`table::HOME`] for the first.
    members: Vec<Uuid>,
    missing: Vec<Missing>,
    /// Members that are described and can't be used now.
    away: BTreeSet<Uuid>,
}

/// One of several files of a name, as far as it was looked at.
struct Candidate {
    /// Index of its directory.
    dir: usize,
    path: PathBuf,
    /// `None`: there is none that can be used.
    header: Option<UnitHeader>,
}

const FOREIGN: &str = "belongs to another journal";
const CONTRADICTS: &str = "is not the file that the unit table names";
const OLDER: &str = "is older than the unit of the same name elsewhere, or was never used";
const COPY: &str = "is a copy of the unit elsewhere";

impl Places {
    /// Those of the journal in `dir`: on every member of its pool that can be trusted. Where the
    /// pool's description is lost, the journal's own directory is all.
    ///
    /// # Errors
    /// A newer program wrote the pool's description, or this process can open no file.
    pub fn of(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Self> {
        let mut places = Self {
            storage: Arc::clone(storage),
            journal: dir.to_owned(),
            dirs: vec![dir.to_owned()],
            members: vec![table::HOME],
            missing: Vec::new(),
            away: BTreeSet::new(),
        };
        let (Some(home), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(places) };
        match Home::read(storage, home)? {
            Home::Alone => {}
            Home::Lost(why) => {
                let why = format!("and maybe others are not known: {why}");
                places.missing.push(Missing { path: home.to_owned(), why });
            }
            Home::Described(described) => {
                for entry in described.members.iter().skip(1) {
                    let member = Description::dir_of(home, entry);
                    match judge_read(storage, home, &described, entry)?.why() {
                        None => {
                            places.dirs.push(member.join(name));
                            places.members.push(entry.uuid);
                        }
                        Some(why) => {
                            places.missing.push(Missing { path: member, why: why.to_owned() });
                            places.away.insert(entry.uuid);
                        }
                    }
                }
            }
        }
        Ok(places)
    }

    /// The directories; the first is the journal's own. Others need not exist.
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The directories other than the journal's own, with their members.
    pub(crate) fn others(&self) -> impl Iterator<Item = (Uuid, &Path)> {
        self.members.iter().copied().zip(self.dirs.iter().map(PathBuf::as_path)).skip(1)
    }

    /// The members that are described and can't be used now.
    pub(crate) fn away(&self) -> &BTreeSet<Uuid> {
        &self.away
    }

    /// The members that can't be used, and why: units that are not found may lie there.
    #[must_use]
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// The missing members as a clause to put behind what is missed: empty, or
    /// ` (member /mnt/b is not there)`.
    #[must_use]
    pub fn missing_text(&self) -> String {
        let each: Vec<_> = self.missing.iter().map(ToString::to_string).collect();
        if each.is_empty() { String::new() } else { format!(" ({})", each.join("; ")) }
    }

    /// The journal's unit table as it is now; absent for one behind a network, whose units lie in one place.
    ///
    /// # Errors
    /// A newer program wrote it, or it can't be read.
    pub(crate) fn table(&self) -> Result<Loaded> {
        if self.storage.is_far() {
            return Ok(Loaded::Absent);
        }
        table::load(&*self.storage, &self.journal)
    }

    /// All units' files, by number, each once: while a unit moves it may be found on two members,
    /// and both are the same.
    ///
    /// # Errors
    /// The journal's own directory or unit table can't be read. Another member that can't be is as good as
    /// missing.
    pub fn units(&self) -> Result<Vec<Found>> {
        self.listing().map(|listing| listing.found)
    }

    /// All files under units' names, those that don't count too.
    ///
    /// # Errors
    /// As [`Places::units`].
    pub fn listing(&self) -> Result<Listing> {
        let first = self.look()?;
        if self.dirs.len() == 1 {
            return Ok(first);
        }
        // A unit that moves from a directory that wasn't looked at yet to one that was is in neither: a
        // second look finds it.
        let mut listing = self.look()?;
        let names: BTreeSet<FileName> = listing.found.iter().map(|f| f.name).collect();
        let missed = first.found.into_iter().filter(|f| !names.contains(&f.name));
        let missed = missed.filter_map(|f| Some(Found { path: self.find(f.name)?, ..f }));
        listing.found.extend(missed);
        listing.found.sort_by_key(|f| (f.name.numbers(), f.name));
        Ok(listing)
    }

    /// One look at each directory, one after the other.
    fn look(&self) -> Result<Listing> {
        // Before the directories: what it names had its name by then.
        let table = self.table()?;
        let mut all: BTreeMap<FileName, Vec<usize>> = BTreeMap::new();
        for (i, dir) in self.dirs.iter().enumerate() {
            let names = match self.storage.list(dir) {
                Ok(names) => names,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) if i == 0 => return Err(Error::io("list journal", dir, e)),
                Err(e) if is_exhausted(&e) => return Err(Error::io("list journal", dir, e)),
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "a member can't be read");
                    continue;
                }
            };
            for name in names.iter().filter_map(|n| FileName::parse(n)) {
                all.entry(name).or_default().push(i);
            }
        }
        let mut listing = Listing::default();
        let mut group = None;
        for (name, dirs) in all {
            let path = self.choose(name, &dirs, table.table(), &mut group, &mut listing.strays)?;
            listing.found.extend(path.map(|path| Found { name, path }));
        }
        listing.found.sort_by_key(|f| (f.name.numbers(), f.name));
        Ok(listing)
    }

    /// The file of this name, if it is there.
    #[must_use]
    pub fn find(&self, name: FileName) -> Option<PathBuf> {
        let text = name.to_string();
        if self.dirs.len() == 1 {
            return self.dirs.first().map(|d| d.join(&text)).filter(|p| self.storage.exists(p));
        }
        // Twice, as for all units.
        (0..2).find_map(|_| {
            let table = self.table().ok()?;
            let is_there = |i: &usize| self.storage.exists(&self.dirs[*i].join(&text));
            let dirs: Vec<usize> = (0..self.dirs.len()).filter(is_there).collect();
            self.choose(name, &dirs, table.table(), &mut None, &mut Vec::new()).ok()?
        })
    }

    /// Which of the files of a name is the unit: `dirs` are the directories that have one.
    #[allow(clippy::option_option)]
    fn choose(
        &self,
        name: FileName,
        dirs: &[usize],
        table: Option<&UnitTable>,
        group: &mut Option<Option<[u8; 16]>>,
        strays: &mut Vec<Stray>,
    ) -> Result<Option<PathBuf>> {
        let text = name.to_string();
        if planted::is("first-directory-wins") {
            return Ok(dirs.first().map(|i| self.dirs[*i].join(&text)));
        }
        let row = table.and_then(|t| t.rows.get(&name)).copied();
        if let [only] = dirs {
            let is_named = row.is_some_and(|row| row.member == self.members[*only]);
            // Without a row, what lies in the journal's own directory is the journal's.
            if is_named || (row.is_none() && *only == 0) {
                return Ok(Some(self.dirs[*only].join(&text)));
            }
        }
        let wanted = group.get_or_insert_with(|| self.group_of(table)).to_owned();
        let mut candidates: Vec<Candidate> = Vec::new();
        for &dir in dirs {
            let path = self.dirs[dir].join(&text);
            match table::header_of(&*self.storage, &path) {
                Ok(header) => candidates.push(Candidate { dir, path, header }),
                // It was removed, or moved.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) if is_exhausted(&e) => return Err(Error::io("read unit", &path, e)),
                Err(_) => candidates.push(Candidate { dir, path, header: None }),
            }
        }
        let mut set_aside = |path: &Path, why, is_copy| {
            strays.push(Stray { name, path: path.to_owned(), why, is_copy });
        };
        candidates.retain(|c| match (&c.header, row) {
            (Some(header), _) if wanted.is_some_and(|group| header.group != group) => {
                set_aside(&c.path, FOREIGN, false);
                false
            }
            (_, Some(row)) if self.contradicts(c, &row) => {
                set_aside(&c.path, CONTRADICTS, false);
                false
            }
            _ => true,
        });
        let best = candidates.iter().max_by_key(|c| self.rank(c, row.as_ref()));
        let Some(best) = best else { return Ok(None) };
        for other in candidates.iter().filter(|c| c.dir != best.dir) {
            let salt = |c: &Candidate| c.header.as_ref().map(|h| h.salt);
            let is_copy = salt(other).is_some() && salt(other) == salt(best);
            set_aside(&other.path, if is_copy { COPY } else { OLDER }, is_copy);
        }
        Ok(Some(best.path.clone()))
    }

    /// Whether a file can't be the unit that the table names: neither that one, nor a later one of the same
    /// number. What can't be read stays what it is: damage at the place that the table names, or where the
    /// unit lies there no more.
    fn contradicts(&self, c: &Candidate, row: &Row) -> bool {
        let is_there = self.members[c.dir] == row.member;
        match &c.header {
            // While its member is away, a copy may lack what was written since.
            Some(header) if header.salt == row.salt && self.away.contains(&row.member) => {
                !is_there && !is_sealed(&*self.storage, &c.path, header)
            }
            Some(header) => header.salt != row.salt && header.epoch <= row.epoch,
            None => !is_there && self.away.contains(&row.member),
        }
    }

    /// What decides between files of one name: the highest counts.
    fn rank(&self, candidate: &Candidate, row: Option<&Row>) -> impl Ord + use<> {
        let is_there = row.is_some_and(|row| row.member == self.members[candidate.dir]);
        let header = candidate.header.as_ref();
        let is_named = header.is_some_and(|h| row.is_some_and(|row| row.salt == h.salt));
        let epoch = header.map(|h| h.epoch);
        let has_records = header.is_some_and(|h| has_records(&*self.storage, &candidate.path, h));
        let made = header.map(|h| h.wall_ns);
        (epoch, is_named, is_there, has_records, made, std::cmp::Reverse(candidate.dir))
    }

    /// The journal's group; `None`: nothing says so.
    fn group_of(&self, table: Option<&UnitTable>) -> Option<[u8; 16]> {
        let identity = || layout::read_identity_in(&*self.storage, &self.journal).ok();
        table.map(|t| t.group).or_else(|| Some(identity()?.group.into_bytes()))
    }
}

/// Whether a unit's file has a footer: it never changes any more.
fn is_sealed(storage: &dyn Storage, path: &Path, header: &UnitHeader) -> bool {
    let mut bytes = [0; FOOTER_BYTES as usize];
    let Some(at) = header.unit_bytes.checked_sub(FOOTER_BYTES) else { return false };
    let read = storage.open(path, Access::Read).and_then(|f| f.read_exact_at(&mut bytes, at));
    read.is_ok() && Footer::decode(&header.salt, header.unit_bytes, &bytes).is_some()
}

/// Whether anything was ever placed in a unit's file, or it is a merged one.
pub(super) fn has_records(storage: &dyn Storage, path: &Path, header: &UnitHeader) -> bool {
    let mut bytes = [0; HEADER_BYTES as usize];
    let read =
        storage.open(path, Access::Read).and_then(|f| f.read_exact_at(&mut bytes, BLOCK_BYTES));
    read.is_ok() && !matches!(record::decode(&header.salt, BLOCK_BYTES, &bytes), Decoded::None)
}
