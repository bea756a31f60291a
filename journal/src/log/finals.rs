//! What may leave the journal: bytes that nobody writes any more, of records that are durable.
//!
//! What always holds: it only grows; all below it was synced; no record below it has a number above the
//! durable watermark (I-3), and none above it has one up to [`Final::watermark`]. It is told when a run
//! of the flusher ends, so appends pay nothing for it.

use crate::Seq;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far a journal's log is final and durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Final {
    /// Number of the newest unit of which something may be final; all before it are final whole.
    pub unit: u64,
    /// All below this byte of it is.
    pub at: u64,
    /// Every record up to this number lies below.
    pub watermark: Seq,
    /// Every unit up to this number is sealed, or will not be.
    pub sealed: u64,
    /// The journal takes no records more, and nothing will be added.
    pub ended: bool,
}

/// It, for those who wait for it.
#[derive(Debug, Default)]
pub(crate) struct Finals {
    now: Mutex<Final>,
    changed: Condvar,
}

impl Finals {
    /// Begins with a unit without records; all before it is final.
    pub(super) fn new(unit: u64, at: u64, watermark: Seq) -> Self {
        let sealed = unit.saturating_sub(1);
        let now = Final { unit, at, watermark, sealed, ended: false };
        Self { now: Mutex::new(now), changed: Condvar::new() }
    }

    /// Of a journal that nobody writes to.
    pub(crate) fn fixed(now: Final) -> Self {
        Self { now: Mutex::new(now), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Final> {
        // A panic while the lock was held leaves plain values: they are whole at every step.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is.
    pub(crate) fn now(&self) -> Final {
        *self.lock()
    }

    /// Waits until it is something else than this; for at most so long.
    pub(crate) fn wait(&self, beyond: &Final, wait: Duration) -> Final {
        let deadline = Instant::now().checked_add(wait);
        let mut now = self.lock();
        while *now == *beyond {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            now = match left {
                Some(left) if left.is_zero() => return *now,
                Some(left) => {
                    self.changed.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(now).unwrap_or_else(PoisonError::into_inner),
            };
        }
        *now
    }

    /// All below a byte of a unit is durable.
    pub(super) fn reach(&self, (unit, at): (u64, u64), watermark: Seq) {
        let mut now = self.lock();
        if (unit, at) >= (now.unit, now.at) {
            (now.unit, now.at) = (unit, at);
            now.watermark = now.watermark.max(watermark);
        }
        self.changed.notify_all();
    }

    /// A unit was sealed.
    pub(super) fn sealed(&self, number: u64) {
        let mut now = self.lock();
        now.sealed = now.sealed.max(number);
        self.changed.notify_all();
    }

    /// Nothing will be added.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}
