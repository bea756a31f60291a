//! What is known of a journal's sealed units without reading them: one row a unit, and what their
//! records say, reduced. Kept in the file `catalogue` in the journal's directory.
//!
//! What always holds:
//! * it is derived: lost, damaged or stale, everything is made out from the units again;
//! * it covers units from the first on without a gap, all sealed, and nothing that is damaged or
//!   may still be torn off: what is not yet settled at the last unit's border is kept as such.

pub(crate) mod facts;
mod file;
mod fold;
mod outline;

pub use file::{NAME, save};
pub(crate) use fold::{due, epoch_start, pass_lost};

use crate::error::Result;
use crate::format::meta::EpochStart;
use crate::format::record::Record;
use crate::history::Unit;
use crate::layout::{self, Identity};
use crate::pool::table::UnitTable;
use crate::pool::{FileName, Found, Places};
use crate::storage::{Storage, several};
use crate::unit::read_merged;
use crate::{Seq, unit};
use facts::Facts;
use outline::outline;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Catalogue {
    /// The units, by number.
    pub(crate) units: Vec<Unit>,
    /// The epochs that began in them.
    pub(crate) epochs: Vec<EpochStart>,
    /// The window's edge: every position from here on is restorable.
    pub(crate) edge: Seq,
    /// Where the base ends, if that is below the edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) floor: Option<Seq>,
    /// The positions between floor and edge that stay restorable, ascending. `None`: those for which
    /// the merged units lost nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kept: Option<Vec<Seq>>,
    /// The numbers of the records that commit the memory of positions in `kept`, ascending: there
    /// memory volumes stay as they are. Counts only with `kept`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) kept_memory: Vec<Seq>,
    /// Every number below this one was found, is void, or lies at or below the edge.
    pub(crate) next: Seq,
    /// Records at or above `next`: numbers in between may come with the next unit.
    pub(crate) border: Vec<Border>,
    /// What the records below `next` say.
    pub(crate) facts: Facts,
    /// The last unit that the file had when it was read or written: those behind it may be sealed in
    /// the page cache alone.
    #[serde(skip)]
    pub(crate) saved_last: u64,
}

/// A record that is not settled yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Border {
    /// Number of its unit.
    pub(crate) unit: u64,
    /// Its byte offset there.
    pub(crate) at: u64,
    pub(crate) record: Record,
}

/// What an attempt to add a unit came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extended {
    /// It is in.
    Added,
    /// It can't be told yet, or only from all units: it isn't sealed, something is missing or
    /// damaged. The reason is for the log.
    NotYet(String),
}

impl Catalogue {
    /// The catalogue of a journal: the saved one when it can be trusted, made up to the newest
    /// sealed unit.
    ///
    /// # Errors
    /// There is no journal, or a newer program wrote it.
    pub fn open(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Self> {
        let identity = layout::read_identity_in(&**storage, dir)?;
        let places = Places::of(storage, dir)?;
        let table = places.table()?;
        let found = units_of(&places)?;
        Self::fresh(storage, dir, &identity, (&places, table.table()), &found)
    }

    /// The catalogue made from the units alone.
    ///
    /// # Errors
    /// As [`Catalogue::open`].
    pub fn rebuild(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Self> {
        let identity = layout::read_identity_in(&**storage, dir)?;
        let places = Places::of(storage, dir)?;
        let table = places.table()?;
        Self::from_units(storage, &identity, table.table(), &units_of(&places)?)
    }

    /// One made from the units, up to the last that is settled.
    pub(crate) fn from_units(
        storage: &Arc<dyn Storage>,
        identity: &Identity,
        table: Option<&UnitTable>,
        found: &[Found],
    ) -> Result<Self> {
        let mut catalogue = Self::default();
        catalogue.catch_up(&**storage, identity, table, found)?;
        Ok(catalogue)
    }

    /// The saved one if it fits the units that there are, else one from the units; made up to the
    /// last unit that is settled.
    pub(crate) fn fresh(
        storage: &Arc<dyn Storage>,
        dir: &Path,
        identity: &Identity,
        (places, table): (&Places, Option<&UnitTable>),
        found: &[Found],
    ) -> Result<Self> {
        let saved = file::load(&**storage, dir, identity)?;
        let placed = saved.and_then(|mut c| c.place(&**storage, places, found).then_some(c));
        if let Some(mut catalogue) = placed {
            if catalogue.catch_up(&**storage, identity, table, found)? {
                return Ok(catalogue);
            }
            tracing::debug!(dir = %dir.display(), "a later epoch took back what the catalogue has");
        }
        Self::from_units(storage, identity, table, found)
    }

    /// Notes where the units lie now; `false`: one is nowhere.
    fn place(&mut self, storage: &dyn Storage, places: &Places, found: &[Found]) -> bool {
        let there: BTreeMap<FileName, &Path> =
            found.iter().map(|f| (f.name, f.path.as_path())).collect();
        self.units.iter_mut().all(|unit| {
            let path = match there.get(&unit.name) {
                Some(path) => Some(path.to_path_buf()),
                None => find_elsewhere(storage, places, unit.name),
            };
            if path.is_none() {
                tracing::debug!(unit = %unit.name, "in the catalogue, but not there");
            }
            path.map(|path| unit.path = path).is_some()
        })
    }

    /// Adds the units behind it for as long as they are settled. `false`: an epoch that began
    /// there took back what it has.
    fn catch_up(
        &mut self,
        storage: &dyn Storage,
        identity: &Identity,
        table: Option<&UnitTable>,
        found: &[Found],
    ) -> Result<bool> {
        let group = identity.group.into_bytes();
        let behind: Vec<&Found> = self.behind(found).collect();
        let mut outline = match outline(storage, group, &behind) {
            Ok(outline) => outline,
            Err(e) if e.is_starved() => return Err(e),
            // What an epoch there took back is not known: nothing more is added.
            Err(error) => {
                tracing::debug!(%error, "a unit's header can't be read");
                return Ok(true);
            }
        };
        if let Some(table) = table {
            outline.take_table(table, self.epochs.last().map_or(0, |e| e.epoch));
        }
        let settled = self.next.saturating_sub(1);
        if outline.epochs.iter().any(|e| e.prev_last_seq < settled && e.prev_last_seq >= self.edge)
        {
            return Ok(false);
        }
        self.raise(outline.edge, outline.floor);
        for portion in behind.chunks(several::portion(storage)) {
            let read = |found: &&Found| (found.name, unit::read_unit(storage, found, group, None));
            for (name, unit) in several::map(storage, portion, read) {
                let unit = match unit {
                    Ok(unit) => unit,
                    Err(e @ crate::Error::NewerFormat { .. }) => return Err(e),
                    Err(e) if e.is_starved() => return Err(e),
                    Err(_) => return Ok(true),
                };
                if let Extended::NotYet(why) = self.fold(storage, name, &unit, &outline.epochs) {
                    tracing::debug!(unit = %name, why, "not in the catalogue");
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// The units behind the last one that it has.
    pub(crate) fn behind<'f>(
        &self,
        found: &'f [Found],
    ) -> impl Iterator<Item = &'f Found> + use<'f> {
        let last = self.last_unit();
        found.iter().filter(move |f| f.name.numbers().0 > last)
    }

    /// Number of the last unit that it covers (0: there is none).
    #[must_use]
    pub fn last_unit(&self) -> u64 {
        self.units.last().map_or(0, |u| u.name.numbers().1)
    }

    /// Adds a unit that was sealed: the one behind the last. The epochs that began behind it must
    /// not have taken back any of its numbers, which holds for the newest one.
    ///
    /// # Errors
    /// It can't be read.
    pub fn extend(
        &mut self,
        storage: &dyn Storage,
        identity: &Identity,
        found: &Found,
    ) -> Result<Extended> {
        let unit = unit::read_unit(storage, found, identity.group.into_bytes(), None)?;
        Ok(self.fold(storage, found.name, &unit, &[]))
    }

    /// Puts a merged unit in the place of those that it replaces. What their records said stays.
    ///
    /// # Errors
    /// It can't be read, or it doesn't stand for whole units of the catalogue.
    pub fn replace(
        &mut self,
        storage: &dyn Storage,
        identity: &Identity,
        found: &Found,
    ) -> Result<()> {
        let unit = unit::read_unit(storage, found, identity.group.into_bytes(), None)?;
        let merged = read_merged(&*unit.file, &unit.path, &unit.header)?;
        let (first, last) = found.name.numbers();
        let from = self.units.partition_point(|u| u.name.numbers().1 < first);
        let behind = self.units.partition_point(|u| u.name.numbers().0 <= last);
        let covered = self.units.get(from).map(|u| u.name.numbers().0) == Some(first)
            && behind.checked_sub(1).and_then(|i| self.units.get(i)).map(|u| u.name.numbers().1)
                == Some(last);
        let unsettled = self.border.iter().any(|b| (first..=last).contains(&b.unit));
        if !covered || unsettled || unit.end != unit::ScanEnd::Sealed {
            let why = "it doesn't stand for whole units that are settled".into();
            return Err(crate::Error::Unusable { path: found.path.clone(), why });
        }
        self.raise(merged.edge, merged.floor());
        self.units.splice(from..behind, [Unit::of(found.name, &unit, Some(merged))]);
        Ok(())
    }

    /// The units, by number.
    #[must_use]
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The window's edge: every position from here on is restorable.
    #[must_use]
    pub fn edge(&self) -> Seq {
        self.edge
    }

    /// Where the base ends: nothing below it is restorable.
    #[must_use]
    pub fn floor(&self) -> Seq {
        self.floor.unwrap_or(self.edge).min(self.edge)
    }

    /// The positions between floor and edge that stay restorable, ascending; `None`: not known.
    #[must_use]
    pub fn kept(&self) -> Option<&[Seq]> {
        self.kept.as_deref()
    }

    /// The numbers of the records that commit the memory of such positions, ascending; count only with
    /// [`Catalogue::kept`].
    #[must_use]
    pub fn kept_memory(&self) -> &[Seq] {
        &self.kept_memory
    }

    /// Every number below this one is settled: durable, in a sealed unit.
    #[must_use]
    pub fn settled_below(&self) -> Seq {
        self.next
    }

    /// Moves edge and floor forward.
    pub(crate) fn raise(&mut self, edge: Seq, floor: Seq) {
        let floor = self.floor().max(floor);
        let before = self.edge;
        self.edge = before.max(edge).max(floor);
        self.keep_checkpoints_from(before);
        self.floor = (floor < self.edge).then_some(floor);
        if let Some(kept) = &mut self.kept {
            kept.retain(|seq| *seq >= floor);
        }
        self.kept_memory.retain(|seq| *seq >= floor);
    }

    /// The edge moved beyond what was chosen here, with a merged unit that a site was sent: the checkpoints
    /// that the window had stay. (Where that unit lost something, its own word counts as well.)
    fn keep_checkpoints_from(&mut self, before: Seq) {
        let Some(kept) = self.kept.as_mut().filter(|_| self.edge > before) else { return };
        let window = self.facts.checkpoints.iter().filter(|c| (before..self.edge).contains(&c.seq));
        for point in window {
            kept.push(point.seq);
            self.kept_memory.extend(point.is_warm().then_some(point.committed));
        }
        for all in [kept, &mut self.kept_memory] {
            all.sort_unstable();
            all.dedup();
        }
    }

    /// Moves the base's end forward; it is the last number of a unit.
    pub fn set_floor(&mut self, floor: Seq) {
        self.raise(floor, floor);
        self.next = self.next.max(self.edge + 1);
        self.drop_checkpoints();
    }

    /// Moves the edge forward (it is the last number of a unit), and says which positions between floor
    /// and edge stay restorable: of those before the present edge, none that was given up. `memory` has
    /// the numbers of the records that commit theirs.
    pub fn thin(&mut self, edge: Seq, kept: Vec<Seq>, memory: Vec<Seq>) {
        let before = (self.kept.take().unwrap_or_default(), self.edge);
        let memory_before = std::mem::take(&mut self.kept_memory);
        self.raise(edge, 0);
        self.next = self.next.max(self.edge + 1);
        let floor = self.floor();
        let judged = |(kept, edge): (&[Seq], Seq), u: &Unit| {
            crate::window::keep::judges(kept, edge, u.first_seq, u.last_seq)
        };
        let (after, memory_after) = ((kept.as_slice(), self.edge), (memory.as_slice(), self.edge));
        for unit in self.units.iter_mut().filter(|u| u.last_seq > floor) {
            // What is still needed of it has to be counted anew.
            if unit.last_seq > before.1
                || judged((&before.0, before.1), unit) != judged(after, unit)
                || judged((&memory_before, before.1), unit) != judged(memory_after, unit)
            {
                unit.live_bytes = None;
            }
        }
        self.kept = Some(kept);
        self.kept_memory = memory;
        self.drop_checkpoints();
    }

    /// Those that can't be restored any more are of no use; that no number of theirs is given again is
    /// seen to elsewhere.
    fn drop_checkpoints(&mut self) {
        let (edge, kept) = (self.edge, self.kept.as_deref().unwrap_or_default());
        if self.floor.is_some() && self.kept.is_none() {
            return;
        }
        self.facts.checkpoints.retain(|c| c.seq >= edge || kept.binary_search(&c.seq).is_ok());
    }

    /// Notes how many bytes of a unit's payloads are still needed.
    pub fn set_live_bytes(&mut self, name: FileName, bytes: u64) {
        if let Some(unit) = self.units.iter_mut().find(|u| u.name == name) {
            unit.live_bytes = Some(bytes);
        }
    }
}

/// The units that count: of those that lie within a merged one, the merged one alone.
pub(crate) fn units_of(places: &Places) -> Result<Vec<Found>> {
    let mut all = places.units()?;
    // A merged unit may stand for one alone: it comes before what it replaces, too.
    all.sort_by_key(|f| {
        let (first, last) = f.name.numbers();
        (first, std::cmp::Reverse(last), matches!(f.name, FileName::Unit(_)))
    });
    let mut covered = 0;
    all.retain(|f| {
        let (_, last) = f.name.numbers();
        let counts = last > covered;
        covered = covered.max(last);
        counts
    });
    Ok(all)
}

/// Where a unit lies that is not listed among those that count: within a merged one, or released
/// while somebody read.
pub(crate) fn find_elsewhere(
    storage: &dyn Storage,
    places: &Places,
    name: FileName,
) -> Option<PathBuf> {
    let held = |dir: &PathBuf| dir.join(crate::history::HELD).join(name.to_string());
    places.find(name).or_else(|| places.dirs().iter().map(held).find(|path| storage.exists(path)))
}
