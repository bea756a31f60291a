//! Units that are lost for good: a merged unit that has no record stands for them and says what is missing,
//! so that history on both sides of them ages, is merged, and goes.
//!
//! What always holds:
//! * units count as lost only where no member of the pool is away, the host could read all that there is,
//!   [`WAITING_UNITS`](super::WAITING_UNITS) sealed ones follow, and two looks agree, with a step between
//!   them behind which the keeper's thread waits; never at a site, which is sent them again;
//! * what is missing stays known in every merged unit that takes in such a one: positions that need it are
//!   not restorable until all disks were copied whole behind it;
//! * a file under a lost unit's name is set aside, and not removed.

use super::{Keeper, WAITING_UNITS};
use crate::Seq;
use crate::catalogue::{self, due, find_elsewhere, units_of};
use crate::error::{Error, Result};
use crate::format::cipher::Cipher;
use crate::format::meta::{EpochStart, Lost, Merged};
use crate::history::{Unit, void_above};
use crate::merge::{self, Job, Outcome};
use crate::planted;
use crate::pool::{FileName, Found, Places, strays, table};
use crate::unit::{ScanEnd, UnitContents, read_header, read_unit};
use crate::window::Stamp;
use std::collections::BTreeSet;

/// Sealed units behind the lost ones in which their numbers are looked for.
const UNITS_READ_MAX: usize = 8;
/// Of these, the ones whose numbers all have to be there: those of neighbors overlap.
const UNITS_JUDGED_MAX: usize = 4;

/// Units that are lost, between two that are there.
struct Hole {
    first: u64,
    last: u64,
    /// Files under their names that can't be used.
    bad: Vec<Found>,
    lost: Lost,
    /// The epochs that are known to have begun in them.
    epochs: Vec<EpochStart>,
}

impl Keeper {
    /// Puts a merged unit in the place of lost ones that the catalogue waits for; `false`: it waits for none,
    /// or they may still come.
    pub(super) fn pass_hole(&mut self) -> Result<bool> {
        let next = self.catalogue.last_unit() + 1;
        let waits = self.refused_at == self.sealed && self.sealed >= next + WAITING_UNITS;
        if !waits || self.looked_at == self.sealed {
            return Ok(false);
        }
        self.looked_at = self.sealed;
        let is_kept_out = self.is_site()? || matches!(self.cipher, Cipher::Locked);
        if is_kept_out || planted::is("a-hole-stops-the-window") {
            return Ok(false);
        }
        if !self.sees_all()? {
            self.suspected = None;
            return Ok(false);
        }
        let Some(hole) = self.hole(next)? else { return Ok(false) };
        let found = (hole.first, hole.last);
        // Another look follows a pause: for good is more than once.
        let (before, has_waited) = self.suspected.unwrap_or(((0, 0), false));
        let is_sure = before == found && has_waited;
        // A member may have gone while its units were looked for.
        if !is_sure || !self.sees_all()? {
            self.suspected = Some((found, is_sure));
            self.looked_at = 0;
            return Ok(false);
        }
        self.suspected = None;
        self.stand_in(&hole)?;
        self.note_damage(hole.lost.what);
        // The next step takes it in.
        (self.refused_at, self.looked_at) = (0, 0);
        Ok(true)
    }

    /// Whether a unit of the catalogue is nowhere any more, and no member of the pool is away.
    pub(super) fn lacks_units(&mut self) -> Result<bool> {
        if !self.sees_all()? || planted::is("a-hole-stops-the-window") {
            return Ok(false);
        }
        let storage = &self.setup.storage;
        let there: BTreeSet<FileName> = self.places.units()?.iter().map(|f| f.name).collect();
        let names = self.catalogue.units().iter().map(|u| u.name);
        let is_gone = |name: FileName| {
            !there.contains(&name) && find_elsewhere(&**storage, &self.places, name).is_none()
        };
        Ok(names.into_iter().any(is_gone))
    }

    /// Nothing is made, or given up, where the journal's directory was removed, replaced or mounted over.
    pub(super) fn check_home(&self) -> Result<()> {
        let identity = self.setup.dir.join("journal.json");
        if self.setup.storage.exists(&identity) {
            return Ok(());
        }
        let why = "it is not there: put the journal's directory back, or unmount what lies over it"
            .into();
        Err(Error::Unusable { path: identity, why })
    }

    /// Whether no member of the pool is away, and all that lies on them can be listed: looked at anew.
    fn sees_all(&mut self) -> Result<bool> {
        self.places = Places::of(&self.setup.storage, &self.setup.dir)?;
        let is_whole = self.places.missing().is_empty() || planted::is("away-is-lost");
        Ok(is_whole && self.lists_all())
    }

    /// Whether the journal's directory on each member can be read. One that is not there has nothing.
    fn lists_all(&self) -> bool {
        self.places.dirs().iter().all(|dir| match self.setup.storage.list(dir) {
            Ok(_) => true,
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        })
    }

    /// Whether an error is about a unit of the catalogue whose header can't be used any more.
    pub(super) fn lost_its_header(&self, error: &Error) -> bool {
        let Error::Unusable { path, .. } = error else { return false };
        let name = path.file_name().and_then(|n| n.to_str()).and_then(FileName::parse);
        let Some(name) = name.filter(|n| self.catalogue.units().iter().any(|u| u.name == *n))
        else {
            return false;
        };
        let found = Found { name, path: path.clone() };
        let group = self.identity.group.into_bytes();
        let read = read_header(&*self.setup.storage, &found, group);
        read.is_err_and(|e| is_damage(&e)) && !planted::is("a-hole-stops-the-window")
    }

    /// Begins anew, from the units that are there.
    pub(super) fn reopen(&mut self) -> Result<()> {
        let (sealed, stopped) = (self.sealed, self.stopped);
        let (storage, dir) = (&*self.setup.storage, &self.setup.dir);
        match storage.remove(&dir.join(catalogue::NAME)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove catalogue", dir, e));
            }
            _ => {}
        }
        let damage = std::mem::take(&mut self.occupancy.damage);
        *self = Self::open(self.setup.clone())?;
        self.sealed = self.sealed.max(sealed);
        self.stopped = stopped;
        damage.into_iter().for_each(|what| self.note_damage(what));
        Ok(())
    }

    /// The lost units from this one on; `None`: it is there, or nothing proves that it is lost.
    fn hole(&self, next: u64) -> Result<Option<Hole>> {
        let group = self.identity.group.into_bytes();
        let found = units_of(&self.places)?;
        let mut behind = found.into_iter().filter(|f| f.name.numbers().0 >= next);
        let (mut bad, mut why) = (Vec::new(), None);
        let first_there = loop {
            let Some(found) = behind.next() else { return Ok(None) };
            match read_unit(&*self.setup.storage, &found, group, None) {
                Ok(unit) => break (found, unit),
                Err(e @ Error::NewerFormat { .. }) => return Err(e),
                // It moves, or the host can't read it.
                Err(e) if !is_damage(&e) => return Ok(None),
                Err(e) => {
                    why.get_or_insert_with(|| e.to_string());
                    bad.push(found);
                }
            }
        };
        let last = first_there.0.name.numbers().0 - 1;
        if last < next || self.sealed < last + WAITING_UNITS {
            return Ok(None);
        }
        // One that moved meanwhile is found by a second look.
        let is_lost =
            |f: &Found| f.name.numbers().0 > last || bad.contains(f) || f.name.numbers().1 < next;
        if !units_of(&self.places)?.iter().all(is_lost) {
            return Ok(None);
        }
        let table = self.places.table()?;
        let began: Vec<EpochStart> = table.table().map_or_else(Vec::new, |table| {
            let starts = table.epochs.values();
            starts.filter(|e| e.unit.is_some_and(|u| (next..=last).contains(&u))).copied().collect()
        });
        let mut read = vec![first_there];
        for found in behind.take(UNITS_READ_MAX - 1) {
            let follows =
                read.last().is_some_and(|(f, _)| f.name.numbers().1 + 1 == found.name.numbers().0);
            match read_unit(&*self.setup.storage, &found, group, None) {
                Ok(unit) if follows && unit.end == ScanEnd::Sealed => read.push((found, unit)),
                Err(e) if e.is_host() => return Err(e),
                _ => break,
            }
        }
        let before = self.catalogue.units().iter().map(reach).max().unwrap_or(0);
        let from = self.catalogue.settled_below().min(before + 1).max(1);
        // None is missing where the next epoch began without them: they are void.
        let mut upto = self.last_missing(&read, &began).unwrap_or(0).max(from - 1);
        if from <= self.catalogue.edge() {
            upto = upto.max(self.catalogue.edge());
        }
        let units =
            if next == last { format!("unit {next}") } else { format!("units {next} to {last}") };
        let why = why.unwrap_or_else(|| "no file is there".into());
        let lost = Lost {
            from,
            last: upto,
            epochs: self.unknown_epochs(&read[0].1, &began),
            what: format!("{units} lost: {why}"),
        };
        Ok(Some(Hole { first: next, last, bad, lost, epochs: began }))
    }

    /// The last number that is not there, up to where the units that were read have all numbers.
    fn last_missing(&self, read: &[(Found, UnitContents)], began: &[EpochStart]) -> Option<Seq> {
        let mut epochs = self.epochs();
        epochs.extend(began);
        epochs.sort_by_key(|e| e.epoch);
        epochs.dedup_by_key(|e| e.epoch);
        let numbers = |(_, unit): &(Found, UnitContents)| -> Vec<Seq> {
            let valid = void_above(&epochs, unit.header.epoch);
            unit.records.iter().map(|(_, r)| r.seq).filter(|seq| *seq <= valid).collect()
        };
        let later = read.iter().skip(UNITS_JUDGED_MAX).flat_map(numbers).min().unwrap_or(Seq::MAX);
        let mut all: BTreeSet<Seq> = read.iter().flat_map(numbers).collect();
        all.extend(self.catalogue.border.iter().map(|b| b.record.seq));
        let mut expected = self.catalogue.settled_below().max(self.catalogue.edge() + 1);
        let mut missing = None;
        for seq in all.into_iter().take_while(|seq| *seq < later) {
            if seq > due(&epochs, expected, seq) {
                // Numbers between two epochs were never given out.
                let start = epochs.iter().rev().find(|e| e.first_seq <= seq);
                let start = start.filter(|e| expected <= e.prev_last_seq && e.first_seq == seq);
                missing = Some(start.map_or(seq - 1, |e| e.prev_last_seq));
            }
            expected = expected.max(seq + 1);
        }
        missing
    }

    /// Epochs above the first of these, up to the second, may have begun in lost units before `next`.
    fn unknown_epochs(&self, next: &UnitContents, began: &[EpochStart]) -> (u64, u64) {
        let before = self.catalogue.units().last().map_or(0, |u| u.header.epoch);
        let own = crate::catalogue::epoch_start(&next.header).is_some();
        let upto = next.header.epoch.saturating_sub(u64::from(own));
        let known = |epoch: u64| began.iter().any(|e| e.epoch == epoch);
        match (before + 1..=upto).all(known) {
            true => (upto, upto),
            false => (before, upto.max(before)),
        }
    }

    fn stand_in(&self, hole: &Hole) -> Result<()> {
        let (storage, dir) = (&self.setup.storage, &self.setup.dir);
        let into = self.setup.ground.place(dir, crate::unit::UNIT_BYTES_MIN)?;
        let none = BTreeSet::new();
        let job = Job {
            storage,
            group: self.identity.group,
            into: &into,
            edge: self.catalogue.edge(),
            floor: self.catalogue.floor(),
            kept: &[],
            kept_memory: &[],
            memory_volumes: &none,
            epochs: &[],
            unit_bytes_max: self.identity.unit_bytes,
            salt: self.setup.clock.salt(),
            cipher: &self.cipher,
            now: Stamp::now(self.setup.clock.as_ref()),
            mount_id: storage.mount_id(&into),
            pace: self.setup.pace.as_ref(),
        };
        let (edge, floor) = (self.catalogue.edge(), self.catalogue.floor());
        let merged = Merged {
            edge,
            epochs: hole.epochs.clone(),
            floor: (floor < edge).then_some(floor),
            lost: vec![hole.lost.clone()],
            ..Merged::nothing(hole.first, hole.last)
        };
        let before = self.catalogue.units().last().map(|u| &u.header);
        // First: it may have the very name. Nothing is lost with it that was not before.
        for found in &hole.bad {
            strays::set_aside(storage, &found.path)?;
        }
        let Outcome::Written(written) = merge::stand_in(&job, merged, before)? else {
            return Err(Error::Invalid(format!("{} fits no unit", hole.lost.what)));
        };
        table::note_made(storage, dir, &written.found.path, (written.found.name, &written.header))?;
        let what = &hole.lost.what;
        tracing::error!(journal = %dir.display(), what, "given up: history goes on without them");
        Ok(())
    }

    /// Whether the journal is a site's.
    fn is_site(&self) -> Result<bool> {
        let told = crate::replica::told_epoch(&*self.setup.storage, &self.setup.dir)?;
        let written = self.epochs().iter().map(|e| e.epoch).max().unwrap_or(0);
        Ok(self.arrivals.is_some() || (told > 0 && told >= written))
    }
}

/// Whether an error says that a file is there and can't be used, whoever reads it.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::UnexpectedEof,
        Error::Unusable { .. } | Error::Damaged { .. } => true,
        _ => false,
    }
}

/// The highest number that is known to lie before what comes behind a unit.
fn reach(unit: &Unit) -> Seq {
    match unit.name {
        FileName::Unit(_) => unit.last_seq.max(unit.header.after_seq),
        FileName::Merged(..) => unit.last_seq,
    }
}
