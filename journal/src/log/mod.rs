//! The append path of a journal: reserve, fill, commit.
//!
//! ```text
//!  capture thread            tail lock             threads of the journal
//!  reserve ───────────────►  place, frame          preparer: the next units, ahead
//!  fill straight from        (no I/O inside)       flusher:  ring -> units' files in large pieces,
//!  the socket into the ring                                  every 200 ms or on demand a sync, then
//!  commit ────────────────►  number, header                  a watermark record
//!                                                  sealer:   index and footer of full units
//! ```
//!
//! What always holds:
//! * numbers are given under the tail lock when the record is whole, so when a commit returns,
//!   every record with a lower number is in shared memory or in a file too (I-1, I-2);
//! * the durable watermark only grows and never covers what was not synced (I-3);
//! * ring space is handed out again only when its bytes are in the unit's file;
//! * after any error the journal takes no record more: the one that was lost would be a hole in
//!   the middle of a session. It is opened anew, which starts an epoch.

mod append;
mod background;
mod finals;
mod flush;
mod head_note;
mod loss;
mod memory;
mod open;
mod prepare;
mod private;
mod seal;
mod tail;
mod unit;
mod whereabouts;

pub use append::{Draft, Reservation};
pub use finals::Final;
pub(crate) use finals::Finals;
pub use flush::Backend;
pub use head_note::forget_head_note;
pub use loss::Loss;
pub use memory::MemoryAppender;

use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::format::cipher::Key;
use crate::format::record::HEADER_BYTES;
use crate::history::History;
use crate::layout::Identity;
use crate::pool::{Allocate, HomeAllocator};
use crate::ring::Ring;
use crate::storage::{Lock, RealStorage, Storage};
use crate::unit::record_bytes_max;
use crate::{Seq, meta};
use flush::Flusher;
use head_note::HeadNote;
use private::Private;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tail::{Ending, PAGE_BYTES, Tail};

/// How a journal is written.
#[derive(Clone)]
pub struct Options {
    /// Size of new units in a journal that is created.
    pub unit_bytes: u64,
    /// Longest age of a record before it is made durable.
    pub sync_interval: Duration,
    /// Longest wait of an append for the next unit or for space in the ring; then the journal stops
    /// (and capture falls to the changed-block map) rather than the guest.
    pub unit_wait: Duration,
    /// Longest wait of a record of memory until captured writes have room enough; then that record is
    /// not taken, and the journal goes on.
    pub memory_wait: Duration,
    /// Longest time without a record: then the journal ticks, so that idle and dead look different.
    pub tick_interval: Duration,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Files.
    pub storage: Arc<dyn Storage>,
    /// How bytes get from the ring into the units' files.
    pub backend: Backend,
    /// Size of the ring, in bytes; see [`Options::ring_bytes_with`].
    pub ring_bytes: u64,
    /// Where the next unit goes.
    pub allocator: Arc<dyn Allocate>,
    /// What data is encrypted with: of a journal that is created, from then on; of one that is opened, the
    /// very key that it began with. `None`: it is not encrypted.
    pub key: Option<Key>,
    /// Where the newest number is noted outside of the journal's directory, in memory that ends with the
    /// boot (a directory below `/run`): by that an older copy of the journal that was put back is known.
    /// `None`: nowhere.
    pub notes_dir: Option<PathBuf>,
    /// No threads: what they would do is done by the caller, in `append` when the next unit or ring
    /// space is wanted, in `sync` and in `close`; no ticks, no timers. For simulation.
    pub inline: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            unit_bytes: 64 << 20,
            sync_interval: Duration::from_millis(200),
            unit_wait: Duration::from_millis(300),
            memory_wait: Duration::from_secs(10),
            tick_interval: Duration::from_secs(1),
            clock: Arc::new(SystemClock),
            storage: RealStorage::shared(),
            backend: Backend::Auto,
            ring_bytes: 32 << 20,
            allocator: Arc::new(HomeAllocator),
            key: None,
            notes_dir: None,
            inline: false,
        }
    }
}

/// Fewest of the largest records that the ring has room for.
const RECORDS_IN_RING_MIN: u64 = 4;

impl Options {
    /// Size of the ring's file for units of a size, in bytes: what is asked for, but room for a few of the
    /// largest records.
    #[must_use]
    pub fn ring_bytes_with(&self, unit_bytes: u64) -> u64 {
        let record_bytes = record_bytes_max(unit_bytes) + HEADER_BYTES;
        let data = self.ring_bytes.max(RECORDS_IN_RING_MIN * record_bytes);
        data.next_multiple_of(PAGE_BYTES)
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

/// What becomes of the durable watermark.
#[derive(Debug, Default)]
struct SyncEnd {
    /// The flusher has ended.
    ended: bool,
    /// Why a file named `distrust` was left: what is above the watermark counts as lost.
    distrusted: Option<String>,
}

#[derive(Debug, Clone)]
struct Stop {
    why: String,
    ending: Ending,
}

/// What hears of each unit that was sealed.
type OnSealed = Box<dyn Fn(u64) + Send + Sync>;

struct Inner {
    dir: PathBuf,
    identity: Identity,
    epoch: u64,
    options: Options,
    _lock: Lock,
    /// Its directory, held open.
    home: Option<File>,
    ring: Arc<Ring>,
    /// The newest number, outside of the journal's directory.
    head_note: Option<HeadNote>,
    /// Whether units are written past the page cache.
    is_direct: bool,
    /// Memory for what is going to be encrypted.
    private: Private,
    tail: Mutex<Tail>,
    /// A unit was prepared or sealed, ring space was given back, or the journal stopped.
    room: Condvar,
    /// The preparer has work.
    preparer_wake: Condvar,
    /// A full unit is in its file.
    sealer_wake: Condvar,
    /// The flusher has work.
    flusher_wake: Condvar,
    /// Held by the flusher's thread as long as it runs, else by whoever does its work.
    flusher: Mutex<Flusher>,
    /// Whether the watermark can still grow; for those who wait for it.
    sync_ended: Mutex<SyncEnd>,
    sync_done: Condvar,
    /// Highest number that somebody waits for to be durable.
    wanted: AtomicU64,
    head: AtomicU64,
    durable: AtomicU64,
    /// Bytes of units (allocated), and units.
    bytes: AtomicU64,
    units: AtomicU64,
    on_sealed: OnceLock<OnSealed>,
    /// What may leave the journal.
    finals: Arc<Finals>,
    threads: Mutex<Vec<JoinHandle<()>>>,
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

    /// What it holds, read from its files as anybody would, with its key if it is encrypted.
    ///
    /// # Errors
    /// As [`History::load`].
    pub fn history(&self) -> Result<History> {
        let mut history = History::load_in(&self.inner.options.storage, &self.inner.dir)?;
        history.unlock(self.inner.options.key.as_ref())?;
        Ok(history)
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
        lock(&self.inner.tail).stopped.as_ref().is_some_and(|s| s.ending == Ending::Space)
    }

    /// Waits until everything committed so far is durable; returns the watermark.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn sync(&self) -> Result<Seq> {
        self.inner.sync_upto(self.head())
    }

    /// Has `hear` called with the number of each unit that is sealed from now on, by the thread that
    /// sealed it: it must not wait for anything. Only the first call counts.
    pub fn on_sealed(&self, hear: impl Fn(u64) + Send + Sync + 'static) {
        let _ = self.inner.on_sealed.set(Box::new(hear));
    }

    /// Goes on in the next unit, so that the one that is written now is sealed soon; whether it did:
    /// not when that would have to wait for anything.
    #[must_use]
    pub fn turn(&self) -> bool {
        self.inner.turn_if_ready()
    }

    /// The lowest number of a unit that may still be written: lower ones never change any more.
    #[must_use]
    pub fn open_from(&self) -> u64 {
        let tail = lock(&self.inner.tail);
        let full = tail.full.iter().map(|u| u.header.number).min();
        full.unwrap_or(tail.unit.header.number)
    }

    /// How far the log is final and durable: what may leave it.
    #[must_use]
    pub fn finality(&self) -> Final {
        self.inner.finals.now()
    }

    /// Waits until that is something else than `beyond`, for at most so long, and says how far it is.
    #[must_use]
    pub fn wait_final(&self, beyond: &Final, wait: Duration) -> Final {
        self.inner.finals.wait(beyond, wait)
    }

    /// What a feed of this journal needs, which must not keep it open.
    pub(crate) fn finals(&self) -> Arc<Finals> {
        Arc::clone(&self.inner.finals)
    }

    /// How it is written.
    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
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
}

impl Inner {
    fn stop_error(&self) -> Error {
        self.stop_error_under(&lock(&self.tail))
    }

    fn stop_error_under(&self, tail: &Tail) -> Error {
        let stop = tail.stopped.as_ref();
        let (why, space) = stop.map_or_else(
            || ("it was closed".to_owned(), false),
            |s| (s.why.clone(), s.ending == Ending::Space),
        );
        Error::Stopped { last_seq: self.head.load(Ordering::Acquire), why, space }
    }

    /// Waits until everything up to this number is durable.
    fn sync_upto(&self, head: Seq) -> Result<Seq> {
        self.wanted.fetch_max(head, Ordering::AcqRel);
        if self.options.inline {
            self.flush_inline();
        } else {
            let tail = lock(&self.tail);
            self.wake_flusher(tail);
        }
        let mut ended = lock(&self.sync_ended);
        while self.durable.load(Ordering::Acquire) < head {
            if ended.ended || self.options.inline {
                drop(ended);
                return Err(self.stop_error());
            }
            ended = self.sync_done.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(self.durable.load(Ordering::Acquire))
    }

    /// Ends the taking of records; the first reason stays.
    fn stop(&self, tail: &mut Tail, why: String, ending: Ending) {
        let is_first = tail.stopped.is_none();
        if is_first {
            tail.stopped = Some(Stop { why: why.clone(), ending });
        }
        self.wake_all();
        // Last: what a log does must not keep anybody waiting, or the stop from being seen.
        if is_first {
            tracing::error!(journal = %self.dir.display(), %why, "the journal stopped");
        }
    }

    fn wake_all(&self) {
        self.room.notify_all();
        self.preparer_wake.notify_all();
        self.sealer_wake.notify_all();
        self.flusher_wake.notify_all();
        self.sync_done.notify_all();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.abandon();
    }
}
