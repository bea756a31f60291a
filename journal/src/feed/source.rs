//! The journal as a feed reads it: from its files, as anybody would.
//!
//! What always holds: it keeps the journal neither open nor from giving files up for long: its pin is held
//! for one file at most, and not always.

use super::line::{Line, Openings};
use super::plan::SourceFile;
use super::whole::Whole;
use crate::Seq;
use crate::catalogue::{find_elsewhere, units_of};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::format::align_up;
use crate::format::cipher::Key;
use crate::format::index::{FOOTER_BYTES, Footer};
use crate::format::record::{HEADER_BYTES, Record};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::history::History;
use crate::key;
use crate::layout::Identity;
use crate::log::{Final, Finals, Journal};
use crate::merge::{Job, Unpaced, extract};
use crate::pool::{FileName, Found, Places};
use crate::replica::told_epoch;
use crate::storage::{Lock, LockKind, Storage, StoredFile};
use crate::unit::{ScanEnd, read_header, read_merged, read_unit};
use crate::window::Stamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest hold of the journal's pin; then a file is read on without it.
const PIN_HELD_MAX: Duration = Duration::from_secs(30);
/// Pause between two holds, in which what was released is given up.
const PIN_PAUSE: Duration = Duration::from_secs(3);

/// See the module.
pub(super) struct Source {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    identity: Identity,
    key: Option<Key>,
    clock: Arc<dyn Clock>,
    pub epoch: u64,
    pub finals: Arc<Finals>,
    /// Headers of files that never change any more.
    headers: BTreeMap<FileName, UnitHeader>,
    /// The openings that files tell of; `None`: one can't be read.
    openings: BTreeMap<FileName, Option<Openings>>,
    pin: Option<Lock>,
    /// When the pin was taken or let go of last.
    pin_at: Option<Instant>,
}

impl Source {
    pub fn new(journal: &Journal) -> Self {
        let options = journal.options();
        Self {
            storage: Arc::clone(&options.storage),
            dir: journal.dir().to_owned(),
            identity: journal.identity().clone(),
            key: options.key.clone(),
            clock: Arc::clone(&options.clock),
            epoch: journal.epoch(),
            finals: journal.finals(),
            headers: BTreeMap::new(),
            openings: BTreeMap::new(),
            pin: None,
            pin_at: None,
        }
    }

    /// As it lies somewhere; `history` keeps it from being given up meanwhile.
    pub fn stored(history: &History) -> Result<Self> {
        let (storage, dir) = (Arc::clone(history.storage()), history.dir.clone());
        let epoch = told_epoch(&*storage, &dir)?.max(history.epoch);
        Ok(Self {
            finals: Arc::new(Finals::fixed(last_final(history)?)),
            identity: history.identity.clone(),
            storage,
            dir,
            key: None,
            clock: Arc::new(SystemClock),
            epoch,
            headers: BTreeMap::new(),
            openings: BTreeMap::new(),
            pin: None,
            pin_at: None,
        })
    }

    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn group(&self) -> [u8; 16] {
        self.identity.group.into_bytes()
    }

    /// The files that count, up to the newest unit of which something is final, ascending.
    pub fn files(&mut self, last: &Final) -> Result<Vec<SourceFile>> {
        let found = units_of(&Places::of(&self.storage, &self.dir)?)?;
        let mut files = Vec::new();
        // Of the newest unit all is final only when a later one is, or when it goes as what it is.
        let is_final = |name: FileName| match name {
            FileName::Unit(number) => number <= last.unit,
            FileName::Merged(_, end) => end < last.unit || (last.ended && end == last.unit),
        };
        for found in found.iter().filter(|f| is_final(f.name)) {
            if !self.headers.contains_key(&found.name) {
                // What can't be read is the journal's damage, not the sink's.
                match read_header(&*self.storage, found, self.group()) {
                    Ok((file, header)) => {
                        let openings = openings(&*file, found, &header)?;
                        self.openings.insert(found.name, openings);
                        self.headers.insert(found.name, header);
                    }
                    Err(Error::Unusable { .. }) => continue,
                    Err(e) => return Err(e),
                }
            }
            let salt = self.headers[&found.name].salt;
            let openings = self.openings.get(&found.name).and_then(Option::as_ref);
            let is_lossy = openings.is_some_and(Openings::is_lossy);
            files.push(SourceFile { name: found.name, salt, is_lossy });
        }
        let there: BTreeSet<FileName> = files.iter().map(|f| f.name).collect();
        self.headers.retain(|name, _| there.contains(name));
        self.openings.retain(|name, _| there.contains(name));
        Ok(files)
    }

    /// The journal's openings, as files that were listed tell of them.
    pub fn line(&self, files: &[SourceFile]) -> Line {
        let openings = |f: &SourceFile| self.openings.get(&f.name).and_then(Option::as_ref);
        Line::of(files.iter().map(|f| (f.name, openings(f))))
    }

    /// The highest number in a sealed file; 0: it is not sealed, or can't be read.
    pub fn last_seq_of(&self, name: FileName) -> Seq {
        let read = || -> Option<Seq> {
            let found = self.find(name).ok()??;
            let (file, header) = read_header(&*self.storage, &found, self.group()).ok()?;
            let mut bytes = [0; FOOTER_BYTES as usize];
            file.read_exact_at(&mut bytes, header.unit_bytes.checked_sub(FOOTER_BYTES)?).ok()?;
            Footer::decode(&header.salt, header.unit_bytes, &bytes).map(|footer| footer.last_seq)
        };
        read().unwrap_or(0)
    }

    /// Epoch of a file that was listed; 0: it was not.
    pub fn epoch_of(&self, name: FileName) -> u64 {
        self.headers.get(&name).map_or(0, |h| h.epoch)
    }

    /// Size of a file that was listed; 0: it was not.
    pub fn file_bytes(&self, name: FileName) -> u64 {
        self.headers.get(&name).map_or(0, |h| h.unit_bytes)
    }

    /// Where a file lies, also one that was released while it is read.
    pub fn find(&self, name: FileName) -> Result<Option<Found>> {
        let places = Places::of(&self.storage, &self.dir)?;
        let path = find_elsewhere(&*self.storage, &places, name);
        Ok(path.map(|path| Found { name, path }))
    }

    /// Keeps files from being used anew while one is read, if that can be had now.
    pub fn hold(&mut self) {
        let is_due = self.pin_at.is_none_or(|at| at.elapsed() >= PIN_PAUSE);
        if self.pin.is_none() && is_due {
            // Without it a file that goes away is noticed.
            self.pin = self.storage.lock(&self.dir.join("pin"), LockKind::Shared).ok();
            self.pin_at = Some(Instant::now());
        }
    }

    /// Lets go of the pin, or only if it was held for long.
    pub fn let_go(&mut self, only_if_long: bool) {
        let is_long = self.pin_at.is_some_and(|at| at.elapsed() >= PIN_HELD_MAX);
        if self.pin.is_some() && (is_long || !only_if_long) {
            self.pin = None;
            self.pin_at = Some(Instant::now());
        }
    }

    /// Opens a file to send all of it.
    pub fn whole(&self, found: &Found, at: u64, is_doubted: bool) -> Result<Whole> {
        Whole::open(&*self.storage, found, self.group(), (at, is_doubted))
    }

    /// Makes what a merged unit has above a number, and opens that.
    pub fn delta(&self, from: &Found, name: FileName, above: Seq) -> Result<Whole> {
        let cipher = key::cipher(&self.dir, &self.identity, self.key.as_ref())?;
        let salt = self.clock.salt();
        let draft_name = format!("{name}.{}.tmp", uuid::Uuid::from_bytes(salt).simple());
        let draft = self.dir.join(draft_name);
        let none = BTreeSet::new();
        let job = Job {
            storage: &self.storage,
            group: self.identity.group,
            into: &self.dir,
            edge: 0,
            floor: 0,
            kept: &[],
            kept_memory: &[],
            memory_volumes: &none,
            epochs: &[],
            unit_bytes_max: self.identity.unit_bytes,
            salt,
            cipher: &cipher,
            now: Stamp::now(&*self.clock),
            mount_id: self.storage.mount_id(&self.dir),
            pace: &Unpaced,
        };
        extract(&job, from, (name, above), &draft)?;
        let found = Found { name, path: draft };
        let opened = self.whole(&found, 0, false).map(Whole::of_draft);
        if opened.is_err() {
            let _ = self.storage.remove(&found.path);
        }
        opened
    }
}

/// What a file says of the journal's openings; `None`: it is damaged there.
fn openings(file: &dyn StoredFile, found: &Found, header: &UnitHeader) -> Result<Option<Openings>> {
    if let FileName::Unit(_) = found.name {
        return Ok(Some(Openings::of(header, None)));
    }
    match read_merged(file, &found.path, header) {
        Ok(merged) => Ok(Some(Openings::of(header, Some(merged)))),
        // The journal's damage, not the sink's.
        Err(Error::Unusable { .. } | Error::Damaged { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// How far a journal goes that nobody writes to: to the end of its newest unit's records.
fn last_final(history: &History) -> Result<Final> {
    let newest = history.units.iter().rfind(|unit| unit.count > 0);
    let Some(newest) = newest else { return Ok(Final { ended: true, ..Final::default() }) };
    let (name, number) = (newest.name, newest.name.numbers().1);
    let group = history.identity.group.into_bytes();
    let found = Found { name, path: newest.path.clone() };
    let contents = read_unit(&**history.storage(), &found, group, None)?;
    let end = |(at, record): &(u64, Record)| {
        align_up(at + HEADER_BYTES + u64::from(record.payload_bytes))
    };
    let at = contents.records.iter().map(end).max().unwrap_or(BLOCK_BYTES);
    let is_open = matches!(name, FileName::Unit(_)) && contents.end != ScanEnd::Sealed;
    let sealed = number - u64::from(is_open);
    Ok(Final { unit: number, at, watermark: history.head, sealed, ended: true })
}

/// What is told of a file that is gone from the list that a plan was made of.
pub(super) fn gone(name: FileName) -> Error {
    Error::Invalid(format!(
        "{name} was merged before all of it was sent: begin anew from what the sink holds"
    ))
}
