//! The way that the journal does not take: appends as stores to a shared mapping of the unit itself,
//! kept to be measured beside it. So that it loses nothing to carelessness, it does what made it
//! fastest when it was the journal's: units allocated ahead, pages faulted in ahead of the tail by a
//! thread of their own, a range taken out of the mapping before it is synced, group commit.
//!
//! What always holds: stores happen under the tail lock, to a range that is handed out once; a file
//! is mapped only with all of its blocks there, and nobody else has it, so that no store is a SIGBUS.
//! It is no journal: no index, no epoch, no recovery, which all would only make it slower.

use afterimage_journal::format::record::{HEADER_BYTES, Kind, Record, encode};
use afterimage_journal::format::{align_up, checksum};
use anyhow::{Context, Result, bail};
use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

const UNIT_BYTES: u64 = 64 << 20;
/// How far ahead of the tail pages are faulted in, and how many bytes by one call.
const FAULT_AHEAD_BYTES: u64 = 16 << 20;
const FAULT_STEP_BYTES: u64 = 1 << 20;
const SYNC_EVERY: Duration = Duration::from_millis(200);
/// Full units that may wait for a sync.
const UNSYNCED_UNITS_MAX: usize = 4;
const PAGE_BYTES: u64 = 4096;
const SALT: [u8; 16] = [0x5a; 16];

/// A mapped unit; the mapping keeps the file.
struct Unit {
    map: MmapRaw,
}

/// A part of a unit that is not durable yet.
struct Dirty {
    unit: Arc<Unit>,
    from: u64,
    to: u64,
}

struct Tail {
    unit: Arc<Unit>,
    /// Byte of the unit at which the next record goes.
    at: u64,
    /// Bytes of the unit that are handed to the syncer, and that are faulted in.
    synced_at: u64,
    faulted_at: u64,
    next: Receiver<Result<Unit>>,
    seq: u64,
    /// Full units that nobody has synced.
    full: Vec<Dirty>,
    durable: u64,
    wanted: u64,
    is_stopped: bool,
    failed: Option<String>,
}

struct Shared {
    tail: Mutex<Tail>,
    syncer_wake: Condvar,
    faulter_wake: Condvar,
    moved: Condvar,
}

/// A log of mapped units; dropped, it ends its threads.
pub struct MappedLog {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

fn unit(path: &Path) -> Result<Unit> {
    let open = || -> std::io::Result<Unit> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        fallocate(&file, FallocateFlags::empty(), 0, UNIT_BYTES)?;
        let unit = Unit { map: MmapOptions::new().map_raw(&file)? };
        unit.fault(0, FAULT_AHEAD_BYTES)?;
        Ok(unit)
    };
    open().with_context(|| format!("map {}", path.display()))
}

impl Unit {
    fn fault(&self, from: u64, bytes: u64) -> std::io::Result<()> {
        self.map.advise_range(Advice::PopulateWrite, from as usize, bytes as usize)
    }

    fn sync(&self, from: u64, to: u64) -> std::io::Result<()> {
        let first = from / PAGE_BYTES * PAGE_BYTES;
        let whole = (to / PAGE_BYTES * PAGE_BYTES).saturating_sub(first);
        if whole > 0 {
            // SAFETY: a shared mapping of a file loses nothing by it: the pages are faulted in
            // again, from the page cache, when they are touched.
            unsafe {
                let (first, whole) = (first as usize, whole as usize);
                self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, first, whole)?;
            }
        }
        self.map.flush_range(from as usize, (to - from) as usize)
    }
}

impl Tail {
    /// The range of the present unit that is not durable.
    fn open_range(&self) -> Dirty {
        Dirty { unit: Arc::clone(&self.unit), from: self.synced_at, to: self.at }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: &std::io::Error) {
        let mut tail = self.lock();
        tail.failed = Some(error.to_string());
        tail.is_stopped = true;
        self.moved.notify_all();
    }

    /// Group commit: all that is there, each time somebody waits or the interval has passed.
    fn sync_loop(&self) {
        let mut synced = Instant::now();
        loop {
            let mut tail = self.lock();
            while !tail.is_stopped && tail.wanted <= tail.durable && synced.elapsed() < SYNC_EVERY {
                let left = SYNC_EVERY.saturating_sub(synced.elapsed());
                let waited = self.syncer_wake.wait_timeout(tail, left);
                tail = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if tail.is_stopped {
                return;
            }
            synced = Instant::now();
            let mut work = std::mem::take(&mut tail.full);
            work.push(tail.open_range());
            tail.synced_at = tail.at;
            let seq = tail.seq;
            drop(tail);
            for dirty in work.iter().filter(|dirty| dirty.to > dirty.from) {
                if let Err(error) = dirty.unit.sync(dirty.from, dirty.to) {
                    return self.fail(&error);
                }
            }
            drop(work);
            self.lock().durable = seq;
            self.moved.notify_all();
        }
    }

    /// Page faults, taken away from the appending thread.
    fn fault_loop(&self) {
        loop {
            let mut tail = self.lock();
            let due = |t: &Tail| t.faulted_at < (t.at + FAULT_AHEAD_BYTES).min(UNIT_BYTES);
            while !tail.is_stopped && !due(&tail) {
                tail = self.faulter_wake.wait(tail).unwrap_or_else(PoisonError::into_inner);
            }
            if tail.is_stopped {
                return;
            }
            let (unit, from) = (Arc::clone(&tail.unit), tail.faulted_at);
            tail.faulted_at += FAULT_STEP_BYTES;
            drop(tail);
            if let Err(error) = unit.fault(from, FAULT_STEP_BYTES) {
                return self.fail(&error);
            }
        }
    }
}

/// Makes units until nobody takes them.
fn prepare_loop(dir: &Path, made: &SyncSender<Result<Unit>>) {
    for number in 2u64.. {
        if made.send(unit(&dir.join(format!("mapped-{number}")))).is_err() {
            return;
        }
    }
}

impl MappedLog {
    /// Begins one in a new directory.
    pub fn begin(dir: &Path) -> Result<Self> {
        std::fs::create_dir(dir).with_context(|| format!("create {}", dir.display()))?;
        let (made, next) = sync_channel(1);
        let tail = Tail {
            unit: Arc::new(unit(&dir.join("mapped-1"))?),
            at: PAGE_BYTES,
            synced_at: PAGE_BYTES,
            faulted_at: FAULT_AHEAD_BYTES,
            next,
            seq: 0,
            full: Vec::new(),
            durable: 0,
            wanted: 0,
            is_stopped: false,
            failed: None,
        };
        let shared = Arc::new(Shared {
            tail: Mutex::new(tail),
            syncer_wake: Condvar::new(),
            faulter_wake: Condvar::new(),
            moved: Condvar::new(),
        });
        let (syncer, faulter) = (Arc::clone(&shared), Arc::clone(&shared));
        let dir: PathBuf = dir.to_owned();
        let threads = vec![
            std::thread::spawn(move || syncer.sync_loop()),
            std::thread::spawn(move || faulter.fault_loop()),
            std::thread::spawn(move || prepare_loop(&dir, &made)),
        ];
        Ok(Self { shared, threads })
    }

    /// Appends one write of this payload.
    pub fn append(&self, payload: &[u8]) -> Result<u64> {
        let payload_crc = checksum::crc32c(payload);
        let bytes = align_up(HEADER_BYTES + payload.len() as u64);
        let mut tail = self.shared.lock();
        if tail.at + bytes > UNIT_BYTES {
            tail = self.turn(tail)?;
        }
        let at = tail.at;
        tail.at += bytes;
        tail.seq += 1;
        let record = record(tail.seq, payload.len() as u32, payload_crc);
        let header = encode(&SALT, at, &record);
        // SAFETY: inside of the mapping, whose file has that length; the tail lock is held, and
        // nothing from `at` on was handed out.
        unsafe {
            let place = tail.unit.map.as_mut_ptr().add(at as usize);
            place.copy_from_nonoverlapping(header.as_ptr(), header.len());
            let behind = place.add(header.len());
            behind.copy_from_nonoverlapping(payload.as_ptr(), payload.len());
        }
        let seq = tail.seq;
        let is_low =
            tail.faulted_at < UNIT_BYTES && tail.at + FAULT_AHEAD_BYTES / 2 > tail.faulted_at;
        drop(tail);
        if is_low {
            self.shared.faulter_wake.notify_one();
        }
        Ok(seq)
    }

    fn turn<'a>(&'a self, mut tail: MutexGuard<'a, Tail>) -> Result<MutexGuard<'a, Tail>> {
        while tail.full.len() >= UNSYNCED_UNITS_MAX && tail.failed.is_none() {
            tail.wanted = tail.seq;
            self.shared.syncer_wake.notify_one();
            tail = self.shared.moved.wait(tail).unwrap_or_else(PoisonError::into_inner);
        }
        let next = tail.next.recv().context("no thread makes units any more")??;
        let full = tail.open_range();
        tail.full.push(full);
        tail.unit = Arc::new(next);
        (tail.at, tail.synced_at, tail.faulted_at) = (PAGE_BYTES, PAGE_BYTES, FAULT_AHEAD_BYTES);
        Ok(tail)
    }

    /// Waits until all that was appended is durable.
    pub fn sync(&self) -> Result<()> {
        let mut tail = self.shared.lock();
        let seq = tail.seq;
        tail.wanted = tail.wanted.max(seq);
        self.shared.syncer_wake.notify_one();
        while tail.durable < seq {
            if let Some(failed) = &tail.failed {
                bail!("sync a mapped unit: {failed}");
            }
            tail = self.shared.moved.wait(tail).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl Drop for MappedLog {
    fn drop(&mut self) {
        let mut tail = self.shared.lock();
        tail.is_stopped = true;
        // The preparer ends when nobody listens.
        let (_, nobody) = sync_channel(1);
        tail.next = nobody;
        drop(tail);
        self.shared.syncer_wake.notify_all();
        self.shared.faulter_wake.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What a record of the journal says, its time included.
fn record(seq: u64, payload_bytes: u32, payload_crc: u32) -> Record {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Record {
        kind: Kind::Write,
        flags: 0,
        volume: 1,
        addr: 0,
        len: payload_bytes,
        scope: 0,
        mono_ms: 0,
        wall_ns: since.as_nanos() as u64,
        payload_crc,
        payload_bytes,
        compression: 0,
        encrypted: false,
        seq,
    }
}
