//! What a replica holds, found on its disk: at each opening anew, whoever wrote it.
//!
//! What always holds: what is listed was made durable before; a member of the pool that is away makes the
//! list unknown, not shorter.

use super::claims::Sure;
use super::draft::{self, Draft};
use super::epochs::EpochsHeld;
use super::incoming::Incoming;
use super::{DOUBT_FILE, Replica};
use crate::Seq;
use crate::catalogue::{Catalogue, due, epoch_start, units_of};
use crate::error::{Error, Result};
use crate::format::index::{FOOTER_BYTES, Footer};
use crate::format::unit_header::UnitHeader;
use crate::history::Unit;
use crate::layout;
use crate::merge::release;
use crate::planted;
use crate::pool::settle::settle;
use crate::pool::{FileName, Found, Places};
use crate::storage::{Storage, StoredFile};
use crate::unit::{self, ScanEnd, read_header, read_unit};
use crate::wire::{Extent, Held as HeldFile, Inventory};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Units whose seals may lie in the page cache alone.
const RESEALED_UNITS: usize = 8;

/// The units that are here whole, as ranges, and what is known of all of them.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// First number, and last.
    ranges: BTreeMap<u64, u64>,
    /// Highest epoch of a unit.
    pub epoch: u64,
}

impl Held {
    /// Units are here whole.
    pub fn add(&mut self, first: u64, last: u64) {
        let inside: Vec<u64> = self.ranges.range(first..=last).map(|(f, _)| *f).collect();
        for first in inside {
            self.ranges.remove(&first);
        }
        self.ranges.insert(first, last);
    }

    /// First and last numbers of what is here whole.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(first, last)| (*first, *last))
    }

    /// Whether a unit is, or something that stands for it.
    pub fn covers(&self, number: u64) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, last)| *last >= number)
    }

    /// The same of all from one to another.
    pub fn covers_all(&self, (first, last): (u64, u64)) -> bool {
        let mut next = first;
        while next <= last {
            match self.ranges.range(..=next).next_back() {
                Some((_, end)) if *end >= next => next = end.saturating_add(1),
                _ => return false,
            }
        }
        true
    }

    /// The last unit before the first one that is missing.
    pub fn prefix(&self) -> u64 {
        let mut last = 0;
        for (first, end) in &self.ranges {
            if *first > last + 1 {
                break;
            }
            last = last.max(*end);
        }
        last
    }
}

impl Replica {
    /// Finds out what is here, and makes it durable.
    pub(super) fn load(&mut self) -> Result<()> {
        let Some(identity) = self.identity.clone() else { return Ok(()) };
        let storage = Arc::clone(&self.storage);
        settle(&storage, &self.dir, identity.group)?;
        let places = Places::of(&storage, &self.dir)?;
        if !places.missing().is_empty() {
            let why = format!("what lies here is not known{}", places.missing_text());
            let away = std::io::Error::other(why);
            return Err(Error::io("list the units of", &self.dir, away));
        }
        if self.options.mirror {
            let left = release::leftovers(&places.units()?);
            self.give_up(&left)?;
        }
        self.is_doubted |= storage.exists(&self.dir.join(DOUBT_FILE));
        let is_encrypted = identity.encryption.is_some();
        let group = identity.group.into_bytes();
        self.held = Held::default();
        self.highest = 0;
        self.incoming.clear();
        let mut sealed = Vec::new();
        for found in units_of(&places)? {
            let Some((file, header)) = readable(&*storage, &found, group)? else { continue };
            let (first, last) = found.name.numbers();
            self.held.epoch = self.held.epoch.max(header.epoch);
            if let Some(footer) = sealed_with(&*file, &found, &header)? {
                self.highest = self.highest.max(footer.last_seq);
                self.held.add(first, last);
                sealed.push((found, file));
            } else if let FileName::Unit(number) = found.name {
                let unit = Incoming::open(&*storage, &found, header, is_encrypted)?;
                self.incoming.insert(number, unit);
            }
        }
        // Who was killed may have given a name that a power cut still takes back, or a footer.
        let parent = self.dir.parent().into_iter().map(Path::to_owned);
        for dir in parent.chain(places.dirs().to_vec()).filter(|d| storage.exists(d)) {
            layout::sync_dir_in(&*storage, &dir)?;
        }
        for (found, file) in sealed.iter().rev().take(RESEALED_UNITS) {
            let synced = match (self.is_doubted, found.name) {
                // The page cache may show a footer that the device never took.
                (true, FileName::Unit(_)) => seal_again(&*storage, found, group),
                _ => file.sync_data().map_err(|e| Error::io("sync unit", &found.path, e)),
            };
            if synced.is_err() {
                self.doubt();
            }
            synced?;
        }
        self.settle()?;
        self.load_draft(&places)
    }

    /// What is not sealed is durable when this returns, whatever failed before.
    fn settle(&mut self) -> Result<()> {
        let mut synced = Ok(());
        for unit in self.incoming.values_mut() {
            let settle = if self.is_doubted { unit.write_again() } else { unit.sync_all() };
            synced = synced.and(settle);
        }
        if let Err(e) = synced {
            self.doubt();
            return Err(e);
        }
        let path = self.dir.join(DOUBT_FILE);
        if self.is_doubted && self.storage.exists(&path) {
            self.storage.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
            layout::sync_dir_in(&*self.storage, &self.dir)?;
        }
        self.is_doubted = false;
        Ok(())
    }

    /// The draft that somebody left, if it is of use; others go.
    fn load_draft(&mut self, places: &Places) -> Result<()> {
        self.draft = None;
        for dir in places.dirs().iter().filter(|d| self.storage.exists(d)) {
            let mut names =
                self.storage.list(dir).map_err(|e| Error::io("list journal", dir, e))?;
            names.sort();
            for name in names.iter().filter_map(|n| draft::name_of(n)) {
                let draft = Draft::resume(&*self.storage, dir, name)?;
                let is_of_use = draft.salt().is_some()
                    && self.draft.is_none()
                    && (self.options.mirror || !self.held.covers_all(name.numbers()));
                match is_of_use {
                    true => self.draft = Some(draft),
                    false => draft.discard(&*self.storage),
                }
            }
        }
        Ok(())
    }

    /// What is here, as the sender is told.
    pub(super) fn inventory(&mut self) -> Result<Inventory> {
        self.sure = Sure::default();
        let Some(identity) = self.identity.clone() else { return Ok(Inventory::default()) };
        let places = Places::of(&self.storage, &self.dir)?;
        let found = units_of(&places)?;
        let group = identity.group.into_bytes();
        let (mut files, mut epochs) = (Vec::new(), EpochsHeld::default());
        for found in &found {
            let Some((file, header)) = readable(&*self.storage, found, group)? else { continue };
            let (first, _) = found.name.numbers();
            let extent = match self.incoming.get(&first) {
                Some(unit) if unit.found.name == found.name => Extent::Open(unit.end),
                _ if self.held.covers_all(found.name.numbers()) => Extent::Whole,
                _ => continue,
            };
            let (name, salt, epoch) = (found.name, header.salt, header.epoch);
            let lowest = match extent {
                Extent::Open(_) => self.incoming.get(&first).map_or(0, Incoming::lowest),
                Extent::Whole | Extent::Part(_) => 0,
            };
            files.push(HeldFile { name, salt, extent, epoch, lowest });
            let has_records = match extent {
                Extent::Open(_) => self.incoming.get(&first).is_some_and(|u| !u.records.is_empty()),
                Extent::Whole | Extent::Part(_) => true,
            };
            epochs.add((found, &*file), &header, has_records)?;
            if has_records {
                self.sure.add(name, &header, extent == Extent::Whole);
            }
        }
        if let Some(draft) = &self.draft
            && let Some(salt) = draft.salt()
        {
            let extent = match planted::is("put-counts-before-its-end") {
                true => Extent::Whole,
                false => Extent::Part(draft.end),
            };
            files.push(HeldFile { name: draft.name, salt, extent, epoch: 0, lowest: 0 });
        }
        files.sort_by_key(|f| {
            let (first, last) = f.name.numbers();
            (first, std::cmp::Reverse(last), matches!(f.name, FileName::Unit(_)))
        });
        let table = places.table()?;
        let placed = (&places, table.table());
        let catalogue = Catalogue::fresh(&self.storage, &self.dir, &identity, placed, &found)?;
        let (watermark, edge) = (self.watermark(&catalogue), catalogue.edge());
        self.sure.begin(epochs.starts.values().copied());
        self.sure.tell(watermark, self.arrivals.acknowledged(), catalogue.floor());
        Ok(Inventory { files, epochs: epochs.newest(), watermark, edge })
    }

    /// The number up to which nothing is missing, from the first unit on.
    fn watermark(&self, catalogue: &Catalogue) -> Seq {
        let newest = catalogue.units().iter().map(|u| u.last_seq).max().unwrap_or(0);
        if catalogue.settled_below() > newest + 1 {
            // Numbers up to the edge are not judged, and units up to it are still missing: what was given
            // out before the last one was made lies in those that are here.
            let made = |u: &Unit| u.merged.as_ref().and_then(|m| m.made).map(|m| m.after_seq);
            let last = catalogue.units().last();
            return last.map_or(0, |u| made(u).unwrap_or(u.header.after_seq));
        }
        let mut seqs: Vec<Seq> = catalogue.border.iter().map(|b| b.record.seq).collect();
        let mut epochs = catalogue.epochs.clone();
        let mut next_unit = catalogue.last_unit() + 1;
        while let Some(unit) = self.incoming.get(&next_unit) {
            seqs.extend(unit.records.iter().map(|(_, r)| r.seq));
            epochs.extend(epoch_start(&unit.header).filter(|s| epochs.last() != Some(s)));
            next_unit += 1;
        }
        seqs.sort_unstable();
        let mut next = catalogue.settled_below().max(1);
        for seq in seqs {
            next = due(&epochs, next, seq);
            if seq > next {
                break;
            }
            next = next.max(seq + 1);
        }
        next - 1
    }

    /// Gives files up that nothing needs any more; what readers still have is held (I-7). What the
    /// catalogue says of them is gone first: it is made again from the units.
    pub(super) fn give_up(&self, files: &[PathBuf]) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let path = self.dir.join(crate::catalogue::NAME);
        if self.options.mirror && self.storage.exists(&path) {
            self.storage.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
            layout::sync_dir_in(&*self.storage, &self.dir)?;
        }
        let ground = &*self.options.ground;
        release::release(&self.storage, &self.dir, ground, files).map(drop)
    }

    /// The files here that lie within a range of units, but for one.
    pub(super) fn within(
        &self,
        (first, last): (u64, u64),
        but: FileName,
    ) -> Result<(Vec<Found>, Vec<Found>)> {
        let all = Places::of(&self.storage, &self.dir)?.units()?;
        let near = all.into_iter().filter(|f| {
            let (a, b) = f.name.numbers();
            f.name != but && a <= last && b >= first
        });
        Ok(near.partition(|f| first <= f.name.numbers().0 && f.name.numbers().1 <= last))
    }
}

/// A unit's file and header; `None`: that is damaged, and what it held is sent again.
fn readable(
    storage: &dyn Storage,
    found: &Found,
    group: [u8; 16],
) -> Result<Option<(Arc<dyn StoredFile>, UnitHeader)>> {
    match read_header(storage, found, group) {
        Ok(read) => Ok(Some(read)),
        Err(Error::Unusable { path, why }) => {
            tracing::error!(unit = %path.display(), why, "it is asked for again");
            Ok(None)
        }
        // A device that is away makes nothing less.
        Err(e) => Err(e),
    }
}

/// Writes a unit's index and footer again, durably.
fn seal_again(storage: &dyn Storage, found: &Found, group: [u8; 16]) -> Result<()> {
    let unit = read_unit(storage, found, group, None)?;
    match unit.end {
        ScanEnd::Sealed => unit::seal_file(storage, &found.path, &unit.header, unit.records),
        // It is damaged, and stays as it is: it is evidence.
        ScanEnd::Open | ScanEnd::Damaged { .. } => Ok(()),
    }
}

/// The footer, if there is one: what it says was durable before it was written.
fn sealed_with(
    file: &dyn StoredFile,
    found: &Found,
    header: &UnitHeader,
) -> Result<Option<Footer>> {
    let mut bytes = [0; FOOTER_BYTES as usize];
    let Some(at) = header.unit_bytes.checked_sub(FOOTER_BYTES) else { return Ok(None) };
    match file.read_exact_at(&mut bytes, at).map_err(|e| Error::io("read unit", &found.path, e)) {
        Ok(()) => Ok(Footer::decode(&header.salt, header.unit_bytes, &bytes)),
        Err(e) if e.is_host() => Err(e),
        Err(_) => Ok(None),
    }
}
