//! Creating a journal, and opening one for writing: recovery, and the start of an epoch.

use super::background;
use super::{Inner, Journal, Options, SyncState, Tail};
use crate::Seq;
use crate::error::{Error, Result};
use crate::format::unit_header::{BLOCK_BYTES, FLAG_EPOCH_START, UnitHeader};
use crate::format::{VERSION, index, record};
use crate::history::History;
use crate::layout::{self, Identity};
use crate::unit::{self, MappedUnit, ScanEnd};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use uuid::Uuid;

/// Name of the marker that says from where on records were lost to a failed sync.
const DISTRUST: &str = "distrust";

impl Journal {
    /// Creates a journal in `dir` (made if it isn't there) and opens it.
    ///
    /// # Errors
    /// There is one already, or the directory can't be written, or has no room for a unit.
    pub fn create(dir: &Path, group: Uuid, name: &str, options: Options) -> Result<Self> {
        layout::check_name(name)?;
        check_unit_bytes(options.unit_bytes)?;
        layout::make_dir(dir)?;
        let path = dir.join("journal.json");
        if path.exists() {
            return Err(Error::Unusable {
                path,
                why: "there is a journal already: open it, or purge it first".into(),
            });
        }
        let identity = Identity {
            format: VERSION,
            group,
            name: name.to_owned(),
            unit_bytes: options.unit_bytes,
        };
        let json = serde_json::to_vec_pretty(&identity)
            .map_err(|e| Error::Invalid(format!("encode identity: {e}")))?;
        layout::replace_file(&path, &json)?;
        let opened = Self::open(dir, options).map(|(journal, _)| journal);
        if opened.is_err() {
            // Nothing was ever in it: a later try must not find half a journal.
            let _ = std::fs::remove_file(&path);
        }
        opened
    }

    /// Opens a journal for writing: drops a torn tail, starts a new epoch in a new unit, and
    /// returns what it holds. A last unit without any record is replaced.
    ///
    /// # Errors
    /// Another process has it open; it can't be read or written; a newer program wrote it.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, History)> {
        let lock = take_lock(dir)?;
        let mut history = History::load(dir)?;
        check_unit_bytes(history.identity.unit_bytes)?;
        let distrust = dir.join(DISTRUST);
        let last = match read_distrust(&distrust)? {
            Some(bound) => bound.min(history.head),
            None => history.head,
        };
        let header = first_header(&history, &options, last);
        let file = unit::create(dir, &header)?;
        let map = MappedUnit::new(dir, header, file)?;
        if distrust.exists() {
            std::fs::remove_file(&distrust).map_err(|e| Error::io("remove", &distrust, e))?;
            layout::sync_dir(dir)?;
        }
        seal_open_units(&history, last)?;
        if last < history.head {
            history = History::load(dir)?;
        }
        let bytes = allocated_bytes(dir)?;
        let units = layout::units(dir)?.len() as u64;
        let inner = Arc::new(Inner {
            dir: dir.to_owned(),
            identity: history.identity.clone(),
            epoch: header.epoch,
            _lock: lock,
            tail: Mutex::new(Tail {
                unit: Arc::new(map),
                at: BLOCK_BYTES,
                count: 0,
                next_seq: header.after_seq + 1,
                prefaulted: 0,
                next: None,
                full: Vec::new(),
                config: Vec::new(),
                stopped: None,
                closing: false,
            }),
            unit_ready: Condvar::new(),
            keeper_wake: Condvar::new(),
            sync: Mutex::new(SyncState::default()),
            sync_wake: Condvar::new(),
            sync_done: Condvar::new(),
            head: AtomicU64::new(header.after_seq),
            durable: AtomicU64::new(header.after_seq.min(history.watermark)),
            bytes: AtomicU64::new(bytes),
            units: AtomicU64::new(units),
            threads: Mutex::new(Vec::new()),
            options,
        });
        background::start(&inner).map_err(|e| Error::io("start threads for", dir, e))?;
        let journal = Self { inner };
        if let Some(config) = history.config() {
            journal.set_config(config)?;
        }
        Ok((journal, history))
    }
}

impl Inner {
    /// Leaves word that records above the durable watermark may be lost, for the next opening:
    /// the page cache may show them though the device never took them.
    pub(super) fn leave_distrust(&self) {
        let bound = self.durable.load(Ordering::Acquire);
        let path = self.dir.join(DISTRUST);
        if let Err(e) = layout::replace_file(&path, format!("{bound}\n").as_bytes()) {
            tracing::error!(error = %e, "can't leave word of the failed sync");
        }
    }
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

fn take_lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Error::io("open journal for writing", &path, e))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked { path }),
        Err(e) => Err(Error::io("lock", &path, e)),
    }
}

fn read_distrust(path: &Path) -> Result<Option<Seq>> {
    match std::fs::read_to_string(path) {
        // Unreadable word is word all the same: then nothing above 0 is proved.
        Ok(text) => Ok(Some(text.trim().parse().unwrap_or(0))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// The header of the epoch's first unit. Numbers that a lost record may have had are skipped:
/// after anything but a clean close or a mere end of the process, that is all that two units
/// (the last one and the one prepared behind it) can hold.
fn first_header(history: &History, options: &Options, last: Seq) -> UnitHeader {
    let clock = &options.clock;
    let boot_id = clock.boot_id();
    let newest = history.units.last();
    let same_boot = newest.is_none_or(|u| u.boot_id == boot_id && boot_id != [0; 16]);
    let whole = last == history.head && !history.torn && history.damage.is_empty();
    let seen = history.seen_seq.max(last);
    let after_seq = if whole && (history.closed || same_boot) {
        seen
    } else {
        seen + 2 * history.identity.unit_bytes / record::HEADER_BYTES
    };
    let empty = newest.filter(|u| {
        u.end == ScanEnd::Open
            && !history.entries.iter().any(|e| history.units[e.unit as usize].number == u.number)
    });
    let number = match (empty, newest) {
        (Some(unit), _) if whole => unit.number,
        (_, Some(unit)) => unit.number + 1,
        (_, None) => 1,
    };
    UnitHeader {
        group: history.identity.group.into_bytes(),
        salt: Uuid::new_v4().into_bytes(),
        number,
        unit_bytes: history.identity.unit_bytes,
        epoch: history.epoch + 1,
        flags: FLAG_EPOCH_START,
        after_seq,
        prev_last_seq: last,
        wall_ns: clock.wall_ns(),
        mono_ns: clock.mono_ns(),
        boot_id,
    }
}

/// Seals what the last writer left open, so that it is never scanned again. A unit with anything
/// unreadable in it stays as it is: it is evidence.
fn seal_open_units(history: &History, last: Seq) -> Result<()> {
    for (i, unit) in history.units.iter().enumerate() {
        if unit.end != ScanEnd::Open {
            continue;
        }
        let records: Vec<_> = history
            .entries
            .iter()
            .filter(|e| e.unit as usize == i && e.record.seq <= last)
            .map(|e| (e.at, e.record))
            .collect();
        if records.is_empty() {
            continue;
        }
        if let Err(e) = seal_file(&unit.path, history.identity.group, unit.number, &records) {
            tracing::warn!(unit = %unit.path.display(), error = %e, "left unsealed");
            // The new epoch's watermark will cover these records: they must be durable.
            unit.file.sync_all().map_err(|e| Error::io("sync unit", &unit.path, e))?;
        }
    }
    Ok(())
}

fn seal_file(
    path: &Path,
    group: Uuid,
    number: u64,
    records: &[(u64, record::Record)],
) -> Result<()> {
    let contents = unit::read_unit(path, group.into_bytes(), number)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| Error::io("open unit", path, e))?;
    let journal = path.parent().unwrap_or(Path::new("."));
    let map = MappedUnit::new(journal, contents.header, file)?;
    let mut ordered = records.to_vec();
    ordered.sort_by_key(|(at, _)| *at);
    let tail = ordered.last().map_or(BLOCK_BYTES, |(at, r)| {
        crate::format::align_up(at + record::HEADER_BYTES + u64::from(r.payload_bytes))
    });
    let end = tail + ordered.len() as u64 * index::ENTRY_BYTES + index::FOOTER_BYTES;
    if end > contents.header.unit_bytes {
        return Err(Error::Invalid("no room for the index".into()));
    }
    map.seal_records(tail, &ordered)
}

fn allocated_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for number in layout::units(dir)? {
        let path = layout::unit_path(dir, number);
        let meta = std::fs::metadata(&path).map_err(|e| Error::io("look at unit", &path, e))?;
        bytes += meta.blocks() * 512;
    }
    Ok(bytes)
}
