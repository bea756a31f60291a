//! The append path of a journal: reserve, fill, commit.
//!
//! ```text
//!  capture thread            tail lock           keeper, faulter,     syncer thread
//!  reserve ───────────────►  place, frame        sealer               every 200 ms or on
//!  fill straight from        (no I/O inside)     next unit ready,     demand: msync, then
//!  the socket                                    pages faulted in,    a watermark record
//!  commit ────────────────►  number, header      full units sealed
//! ```
//!
//! What always holds:
//! * numbers are given under the tail lock when the record is whole, so when a commit returns,
//!   every record with a lower number is in the page cache too (I-1, I-2);
//! * the durable watermark only grows and never covers what was not synced (I-3);
//! * after any error the journal takes no record more: the one that was lost would be a hole in
//!   the middle of a session. It is opened anew, which starts an epoch.

mod append;
mod background;
mod open;

pub use append::{Draft, Reservation};

use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::layout::Identity;
use crate::unit::MappedUnit;
use crate::{Seq, meta};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a journal is written.
#[derive(Clone)]
pub struct Options {
    /// Size of new units in a journal that is created.
    pub unit_bytes: u64,
    /// Longest age of a record before it is made durable.
    pub sync_interval: Duration,
    /// Longest wait of an append for the next unit; then the journal stops (and capture falls
    /// to the changed-block map) rather than the guest.
    pub unit_wait: Duration,
    /// Longest time without a record: then the journal ticks, so that idle and dead look different.
    pub tick_interval: Duration,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            unit_bytes: 64 << 20,
            sync_interval: Duration::from_millis(200),
            unit_wait: Duration::from_millis(300),
            tick_interval: Duration::from_secs(1),
            clock: Arc::new(SystemClock),
        }
    }
}

/// A journal open for writing. Clones are handles of the same one.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
    _handle: Arc<Handle>,
}

/// Shared by the clones of a [`Journal`] and by nobody else: the last one ends the threads.
struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    identity: Identity,
    epoch: u64,
    mount_id: u64,
    options: Options,
    _lock: File,
    tail: Mutex<Tail>,
    /// A unit was prepared, or the journal stopped.
    unit_ready: Condvar,
    /// The keeper has work.
    keeper_wake: Condvar,
    /// The faulter has work.
    faulter_wake: Condvar,
    /// A full unit has nothing in flight any more.
    sealer_wake: Condvar,
    sync: Mutex<SyncState>,
    sync_wake: Condvar,
    sync_done: Condvar,
    head: AtomicU64,
    durable: AtomicU64,
    /// Bytes of units (allocated), and of records.
    bytes: AtomicU64,
    units: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Tail {
    unit: Arc<MappedUnit>,
    at: u64,
    count: u64,
    next_seq: Seq,
    prefaulted: u64,
    next: Option<Arc<MappedUnit>>,
    full: Vec<(Arc<MappedUnit>, u64)>,
    config: Vec<u8>,
    stopped: Option<Stop>,
    /// Whether the next unit could not be made for want of space.
    no_space: bool,
}

impl Tail {
    /// Full units with nothing in flight: those that only wait for the disk.
    fn idle_full(&self) -> usize {
        self.full.iter().filter(|(u, _)| u.in_flight.load(Ordering::SeqCst) == 0).count()
    }
}

#[derive(Debug, Clone)]
struct Stop {
    why: String,
    space: bool,
}

#[derive(Default)]
struct SyncState {
    wanted: Seq,
    /// The last position that a watermark record names, and that record's own number.
    watermark: Seq,
    watermark_seq: Seq,
    ended: bool,
    /// The head at which the journal ticked or took a record last, and when.
    moved: Option<(Seq, Instant)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held leaves plain values: they are whole at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// The journal's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Its identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The epoch that this opening started (I-9).
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// The newest record's number.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.inner.head.load(Ordering::Acquire)
    }

    /// The durable watermark.
    #[must_use]
    pub fn durable(&self) -> Seq {
        self.inner.durable.load(Ordering::Acquire)
    }

    /// Units in the journal, and the bytes that they take on disk.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        (self.inner.units.load(Ordering::Relaxed), self.inner.bytes.load(Ordering::Relaxed))
    }

    /// Why the journal takes no records any more, if so.
    #[must_use]
    pub fn stopped(&self) -> Option<String> {
        lock(&self.inner.tail).stopped.as_ref().map(|s| s.why.clone())
    }

    /// Whether it stopped for want of space.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        lock(&self.inner.tail).stopped.as_ref().is_some_and(|s| s.space)
    }

    /// Waits until everything committed so far is durable; returns the watermark.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn sync(&self) -> Result<Seq> {
        let head = self.head();
        let inner = &self.inner;
        let mut state = lock(&inner.sync);
        state.wanted = state.wanted.max(head);
        inner.sync_wake.notify_one();
        while inner.durable.load(Ordering::Acquire) < head {
            if state.ended {
                drop(state);
                return Err(self.stop_error());
            }
            state = inner.sync_done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(self.durable())
    }

    /// Appends the group's configuration; it is repeated at the start of each unit from now on.
    ///
    /// # Errors
    /// The journal stopped, or the configuration is too large.
    pub fn set_config(&self, config: &meta::Config) -> Result<Seq> {
        let body = meta::Meta::Config(config.clone());
        self.append_meta(&body)
    }

    /// Closes the journal cleanly: everything is durable and sealed when this returns. Other
    /// handles get errors from then on.
    ///
    /// # Errors
    /// The last records could not be made durable; the next opening recovers.
    pub fn close(self) -> Result<()> {
        self.inner.close()
    }

    fn stop_error(&self) -> Error {
        self.inner.stop_error()
    }
}

impl Inner {
    fn stop_error(&self) -> Error {
        self.stop_error_under(&lock(&self.tail))
    }

    fn stop_error_under(&self, tail: &Tail) -> Error {
        let stop = tail.stopped.as_ref();
        let (why, space) =
            stop.map_or_else(|| ("it was closed".to_owned(), false), |s| (s.why.clone(), s.space));
        Error::Stopped { last_seq: self.head.load(Ordering::Acquire), why, space }
    }

    /// Ends the taking of records; the first reason stays.
    fn stop(&self, tail: &mut Tail, why: String, space: bool) {
        let first = tail.stopped.is_none();
        if first {
            tail.stopped = Some(Stop { why: why.clone(), space });
        }
        self.wake_all();
        // Last: what a log does must not keep anybody waiting, or the stop from being seen.
        if first {
            tracing::error!(journal = %self.dir.display(), %why, "the journal stopped");
        }
    }

    fn wake_all(&self) {
        self.unit_ready.notify_all();
        self.keeper_wake.notify_all();
        self.faulter_wake.notify_all();
        self.sealer_wake.notify_all();
        self.sync_wake.notify_all();
        self.sync_done.notify_all();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.abandon();
        self.inner.join();
    }
}
