//! Creating a journal, and opening one for writing: recovery, and the start of an epoch.

use super::background;
use super::finals::Finals;
use super::flush::{Flusher, choose};
use super::head_note::HeadNote;
use super::loss::{self, Traces};
use super::prepare::UNITS_AHEAD;
use super::private::Private;
use super::tail::Tail;
use super::unit::OpenUnit;
use super::{Handle, Inner, Journal, Options, whereabouts};
use crate::Seq;
use crate::arrivals::Arrivals;
use crate::error::{Error, Result};
use crate::format::cipher::Cipher;
use crate::format::unit_header::{BLOCK_BYTES, FLAG_EPOCH_START, UnitHeader};
use crate::format::{VERSION, record};
use crate::history::History;
use crate::key;
use crate::layout::{self, Identity};
use crate::planted;
use crate::pool::settle::settle;
use crate::pool::table::{self, Change};
use crate::pool::tails::{self, UNKNOWN_UNITS};
use crate::pool::{FileName, Places};
use crate::ring::{self, Ring};
use crate::storage::{Access, Lock, Storage};
use crate::unit::{self, ScanEnd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use uuid::Uuid;

/// Units whose seals may not have been made durable when a writer ended: the open one, and those that
/// were full or prepared.
const RESEALED_UNITS: u64 = 3 + UNITS_AHEAD as u64;

impl Journal {
    /// Creates a journal in `dir` (made if it isn't there) and opens it.
    ///
    /// # Errors
    /// There is one already, or the directory can't be written, or has no room for a unit.
    pub fn create(dir: &Path, group: Uuid, name: &str, options: Options) -> Result<Self> {
        layout::check_new_name(name)?;
        check_unit_bytes(options.unit_bytes)?;
        let storage = Arc::clone(&options.storage);
        let is_new = !storage.exists(dir);
        storage.make_dir(dir).map_err(|e| Error::io("create directory", dir, e))?;
        let lock = layout::take_lock_in(&*storage, dir)?;
        let path = dir.join("journal.json");
        if storage.exists(&path) {
            let why = "there is a journal already: open it, or purge it first".into();
            return Err(Error::Unusable { path, why });
        }
        let names = storage.list(dir).map_err(|e| Error::io("list", dir, e))?;
        // On other members only what an earlier journal of this name left can lie: it is none of this one.
        if names.iter().any(|name| FileName::parse(name).is_some()) {
            let why = "its units are there, but its identity is not: put back journal.json".into();
            return Err(Error::Unusable { path, why });
        }
        let unit_bytes = options.unit_bytes;
        let encryption = options.key.as_ref().map(key::describe);
        let name = name.to_owned();
        let identity = Identity { format: VERSION, group, name, unit_bytes, encryption };
        let opened = layout::write_identity(&*storage, dir, &identity)
            .and_then(|()| layout::sync_dir_in(&*storage, dir.parent().unwrap_or(Path::new("."))))
            .and_then(|()| Self::open_locked(dir, options, lock));
        if opened.is_err() {
            remove_unborn(&storage, dir, is_new);
        }
        opened.map(|(journal, _)| journal)
    }

    /// Opens a journal for writing: drops a torn tail, starts a new epoch in a new unit, and
    /// returns what it holds. A last unit without any record is replaced.
    ///
    /// # Errors
    /// Another process has it open; it can't be read or written; a newer program wrote it.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, History)> {
        let lock = layout::take_lock_in(&*options.storage, dir)?;
        Self::open_locked(dir, options, lock)
    }

    fn open_locked(dir: &Path, options: Options, lock: Lock) -> Result<(Self, History)> {
        let home = whereabouts::hold(&*options.storage, dir)?;
        let identity = layout::read_identity_in(&*options.storage, dir)?;
        let group = identity.group.into_bytes();
        // First of all: with another key nothing that is written could be read again.
        if let Cipher::Locked = key::cipher(dir, &identity, options.key.as_ref())? {
            return Err(Error::KeyMissing { journal: dir.to_owned() });
        }
        settle(&options.storage, dir, identity.group)?;
        let ring_left = ring::recover(&options.storage, dir, group)?;
        let mut history = History::load_unpinned(&options.storage, dir)?;
        history.unlock(options.key.as_ref())?;
        check_unit_bytes(history.identity.unit_bytes)?;
        check_read(&history)?;
        sync_units(&history)?;
        // What a member that is away holds behind the newest unit that is there is not known.
        let unknown = tails::unknown(&options.storage, dir)?;
        if unknown.is_empty() {
            remove_unused(&history, &options)?;
        }
        let head_note = open_note(&options, group);
        let traces = Traces {
            ring: ring_left,
            noted: head_note.as_ref().and_then(HeadNote::before),
            tail_unknown: !unknown.is_empty(),
            sync_failed: layout::read_distrust_in(&*options.storage, dir)?.is_some(),
        };
        history.loss = loss::judge(&history, &options, &traces);
        let mut header = first_header(&history, &options, !unknown.is_empty());
        let slot = options.allocator.allocate(dir, header.unit_bytes)?;
        header.mount_id = options.storage.mount_id(&slot.dir);
        let path = unit::create(&options.storage, dir, &slot, &header)?;
        remove_replaced(&history, &options, (&path, header.number))?;
        let (device, is_direct) = choose(&options, &path)?;
        let how = (is_direct, options.key.as_ref());
        let first = OpenUnit::new(&*options.storage, header, path, how)?;
        let ring_bytes = options.ring_bytes_with(header.unit_bytes);
        let ring = Ring::open(&*options.storage, dir, (group, header.epoch), ring_bytes)?;
        if let Some(note) = &head_note {
            note.begin(header.epoch, history.head);
        }
        tails::passed(&options.storage, &unknown)?;
        remove_distrust(&*options.storage, dir)?;
        Arrivals::end(&*options.storage, dir)?;
        seal_open_units(&history, &options);
        let (units, bytes) = size(dir, &options)?;
        let tail = Tail::new(Arc::new(first), header.after_seq + 1);
        let flusher = Flusher::new(device, ring_bytes, tail.written);
        let finals = Finals::new(header.number, BLOCK_BYTES, header.after_seq);
        let inner = Arc::new(Inner {
            dir: dir.to_owned(),
            identity: history.identity.clone(),
            epoch: header.epoch,
            _lock: lock,
            home,
            ring: Arc::new(ring),
            head_note,
            is_direct,
            private: Private::default(),
            tail: Mutex::new(tail),
            room: Condvar::new(),
            preparer_wake: Condvar::new(),
            sealer_wake: Condvar::new(),
            flusher_wake: Condvar::new(),
            flusher: Mutex::new(flusher),
            sync_ended: Mutex::default(),
            sync_done: Condvar::new(),
            wanted: AtomicU64::new(0),
            head: AtomicU64::new(header.after_seq),
            // What was found was synced, and the numbers in between are void.
            durable: AtomicU64::new(header.after_seq),
            bytes: AtomicU64::new(bytes),
            units: AtomicU64::new(units),
            on_sealed: OnceLock::new(),
            finals: Arc::new(finals),
            threads: Mutex::new(Vec::new()),
            options,
        });
        inner.begin();
        background::start(&inner).map_err(|e| Error::io("start threads for", dir, e))?;
        let handle = Arc::new(Handle { inner: Arc::clone(&inner) });
        let journal = Self { inner, _handle: handle };
        if let Some(config) = history.config() {
            journal.set_config(config)?;
        }
        Ok((journal, history))
    }
}

impl Inner {
    /// Begins the first unit.
    fn begin(&self) {
        let mut tail = super::lock(&self.tail);
        let position = tail.written;
        self.enter(&mut tail, position);
    }

    /// Leaves word that records above the durable watermark may be lost, for the next opening:
    /// the page cache may show them though the device never took them. The watermark stays there:
    /// what the word leaves out, nobody may be told to be durable.
    pub(super) fn leave_distrust(&self, why: &str) {
        let mut end = super::lock(&self.sync_ended);
        end.distrusted.get_or_insert_with(|| why.to_owned());
        leave_distrust(&*self.options.storage, &self.dir, self.durable.load(Ordering::Acquire));
    }
}

/// Opens the note of the newest number; without one, other evidence has to do.
fn open_note(options: &Options, group: [u8; 16]) -> Option<HeadNote> {
    let dir = options.notes_dir.as_ref()?;
    let opened = HeadNote::open(dir, group);
    opened
        .inspect_err(|error| {
            tracing::warn!(dir = %dir.display(), %error, "can't note the journal's newest number");
        })
        .ok()
}

fn leave_distrust(storage: &dyn Storage, dir: &Path, bound: Seq) {
    if planted::is("forget-failed-sync") {
        return;
    }
    let path = dir.join(layout::DISTRUST);
    if let Err(e) = layout::replace_file_in(storage, &path, format!("{bound}\n").as_bytes()) {
        tracing::error!(error = %e, "can't leave word of the failed sync");
    }
}

fn remove_distrust(storage: &dyn Storage, dir: &Path) -> Result<()> {
    let path = dir.join(layout::DISTRUST);
    match storage.remove(&path) {
        Ok(()) => layout::sync_dir_in(storage, dir),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", &path, e)),
    }
}

/// Takes back what a failed creation left: nothing was ever in it, and a later try must not find
/// half a journal.
fn remove_unborn(storage: &Arc<dyn Storage>, dir: &Path, is_new: bool) {
    // The identity goes last: without it, what is left would be units of nobody.
    let units = Places::of(storage, dir).and_then(|places| places.units());
    for unit in units.unwrap_or_default() {
        let _ = storage.remove(&unit.path);
    }
    for name in ["journal.json", ring::NAME, table::NAME, "lock"] {
        let _ = storage.remove(&dir.join(name));
    }
    if is_new {
        let _ = storage.remove_dir(dir);
    }
}

/// A new epoch voids what was not found. What a device failed to read may be there at the next try, so that
/// nothing is given up for it unless a person says so.
fn check_read(history: &History) -> Result<()> {
    let Some(damage) = history.damage.iter().find(|d| d.unread) else { return Ok(()) };
    let why = format!(
        "{}; the journal is not opened, so that no record is given up: repair the disk, or move the unit's \
         file away if it can't be read any more (its records are lost then)",
        damage.what
    );
    Err(Error::Unusable { path: history.dir.clone(), why })
}

/// Makes what was found durable: the next epoch's first header says up to where it counts, and
/// the next watermark covers it.
fn sync_units(history: &History) -> Result<()> {
    if planted::is("open-without-sync") {
        return Ok(());
    }
    for (i, unit) in history.units.iter().enumerate().filter(|(_, u)| u.end != ScanEnd::Sealed) {
        if let Err(e) = history.file(i as u32)?.sync_data() {
            let bound = history.watermark.min(history.head);
            leave_distrust(&**history.storage(), &history.dir, bound);
            return Err(Error::io("sync unit", &unit.path, e));
        }
    }
    Ok(())
}

fn check_unit_bytes(unit_bytes: u64) -> Result<()> {
    let whole = unit_bytes.is_multiple_of(4096);
    if whole && (unit::UNIT_BYTES_MIN..=unit::UNIT_BYTES_MAX).contains(&unit_bytes) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "units of {unit_bytes} bytes: use a multiple of 4096 from {} to {}",
        unit::UNIT_BYTES_MIN,
        unit::UNIT_BYTES_MAX
    )))
}

/// The header of the epoch's first unit, without its mount. Where records may be lost, the numbers that
/// they may have had are skipped: at most those of three units (the last one and those prepared behind
/// it), and three units' worth for each unit that can't be read, which may have begun an epoch itself.
fn first_header(history: &History, options: &Options, tail_unknown: bool) -> UnitHeader {
    let clock = &options.clock;
    let behind = if tail_unknown { UNKNOWN_UNITS } else { 0 };
    let unread = history.units_unreadable + behind;
    let replaced = if tail_unknown { None } else { replaced_unit(history) };
    let seen = history.seen_seq.max(history.head);
    let per_unit = history.identity.unit_bytes / record::HEADER_BYTES;
    let skipped = match history.loss.is_none() || planted::is("reuse-numbers") {
        true => 0,
        false => per_unit * (1 + UNITS_AHEAD as u64 + 3 * unread),
    };
    UnitHeader {
        group: history.identity.group.into_bytes(),
        salt: clock.salt(),
        number: replaced.unwrap_or(history.unit_number_max + 1 + behind),
        unit_bytes: history.identity.unit_bytes,
        epoch: history.epoch + 1 + unread,
        flags: FLAG_EPOCH_START,
        after_seq: seen + skipped,
        prev_last_seq: history.head,
        wall_ns: clock.wall_ns(),
        mono_ns: clock.mono_ns(),
        boot_id: clock.boot_id(),
        mount_id: 0,
    }
}

/// The lowest of the newest units, when no record was ever in any of them: those that were prepared.
/// One that began an epoch is the lowest: its header alone says which numbers may have been seen, and
/// stays until the next epoch's has its name.
fn replaced_unit(history: &History) -> Option<u64> {
    if history.torn || !history.is_sound() {
        return None;
    }
    let mut expected = history.unit_number_max;
    let mut lowest = None;
    for (i, unit) in history.units.iter().enumerate().rev() {
        let is_used = || history.records(i as u32).map_or(true, |r| !r.is_empty());
        if unit.number() != expected || unit.end != ScanEnd::Open || is_used() {
            break;
        }
        lowest = Some(unit.number());
        if unit.header.flags & FLAG_EPOCH_START != 0 && !planted::is("forget-what-was-seen") {
            break;
        }
        expected -= 1;
    }
    lowest
}

/// Removes the units behind the one that is replaced, newest first: killed in between, no number is
/// missing below another.
fn remove_unused(history: &History, options: &Options) -> Result<()> {
    let Some(lowest) = replaced_unit(history) else { return Ok(()) };
    let unused = || history.units.iter().rev().filter(|u| u.number() > lowest);
    let gone: Vec<Change> = unused().map(|u| Change::Gone(u.name)).collect();
    if gone.is_empty() {
        return Ok(());
    }
    // First of all: a file that is named and not there is missed.
    table::append(&*options.storage, &history.dir, &gone)?;
    for unit in unused() {
        let (storage, dir) = (&options.storage, unit.path.parent().unwrap_or(&history.dir));
        storage.remove(&unit.path).map_err(|e| Error::io("remove unused unit", &unit.path, e))?;
        storage.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))?;
    }
    Ok(())
}

/// Removes the file of the unit that was replaced, where the new one lies elsewhere.
fn remove_replaced(
    history: &History,
    options: &Options,
    (path, number): (&Path, u64),
) -> Result<()> {
    let old = history.units.iter().find(|u| u.number() == number && u.path != path);
    let Some(old) = old.filter(|_| !planted::is("first-directory-wins")) else { return Ok(()) };
    let (storage, dir) = (&options.storage, old.path.parent().unwrap_or(&history.dir));
    storage.remove(&old.path).map_err(|e| Error::io("remove replaced unit", &old.path, e))?;
    storage.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))
}

/// Seals what the last writer left open, so that it is never scanned again, and units that it had
/// prepared and that are not replaced, so that the catalogue passes them. Its last seals are written
/// again: if a sync of one failed, the page cache shows what the device never took, and a later sync
/// would say that all is well. Where something is damaged, a unit with anything unreadable in it stays
/// as it is: it is evidence. Where nothing is, what can't be read is what a power cut tore off, or an
/// index that can be made again.
fn seal_open_units(history: &History, options: &Options) {
    let torn_only = history.is_sound();
    let replaced = replaced_unit(history).unwrap_or(u64::MAX);
    for (i, unit) in history.units.iter().enumerate() {
        let is_gone = unit.number() >= replaced;
        let is_sure = unit.end == ScanEnd::Sealed
            && (unit.merged.is_some()
                || unit.header.epoch < history.epoch
                || unit.number() + RESEALED_UNITS <= history.unit_number_max);
        let is_evidence = matches!(unit.end, ScanEnd::Damaged { .. }) && !torn_only;
        if is_sure || is_gone || is_evidence {
            continue;
        }
        let records = match history.records(i as u32) {
            Ok(records) => records.to_vec(),
            Err(e) => {
                tracing::warn!(unit = %unit.path.display(), error = %e, "left unsealed");
                continue;
            }
        };
        if let Err(e) = unit::seal_file(&*options.storage, &unit.path, &unit.header, records) {
            // Its records are durable, and it can be scanned again.
            tracing::warn!(unit = %unit.path.display(), error = %e, "left unsealed");
        }
    }
}

/// Units of the journal, and the bytes that they take on disk.
fn size(dir: &Path, options: &Options) -> Result<(u64, u64)> {
    let (mut units, mut bytes) = (0, 0);
    for found in Places::of(&options.storage, dir)?.units()? {
        let file = options.storage.open(&found.path, Access::Read);
        let taken = file.and_then(|file| file.allocated_bytes());
        bytes += taken.map_err(|e| Error::io("look at unit", &found.path, e))?;
        units += 1;
    }
    Ok((units, bytes))
}
