//! The instant of a memory checkpoint, found in the stream of writes itself.
//!
//! ```text
//!         arm            first FLUSH: its number           release, or the limit
//! idle ────────► armed ─────────────────────────► holding ───────────────────────► released
//!   ▲                                             the reply waits,                    │
//!   └──────────────────── the `Armed` is dropped ◄─the guest stands still ◄───────────┘
//! ```
//!
//! When QEMU stops a guest, it first has every write answered, then sends one FLUSH to each mirror: a
//! guest's own are never forwarded. So the number of the first of them is a position at which the guest
//! stood still, and it stands still for as long as the reply is held. QEMU flushes one disk after the
//! other: the second disk's comes only behind the first one's reply.
//!
//! What always holds: a reply is held for [`HOLD_MS_MAX`] at most, less where the guard's stall limit
//! asks for it; what is not armed holds nothing.

use afterimage_guard::now_ns;
use afterimage_journal::{Seq, VolumeId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Moment};
use tokio::sync::watch;

/// Longest time that the reply to a FLUSH is held, in milliseconds.
pub const HOLD_MS_MAX: u64 = 400;

/// The longest hold under a stall limit: half of that, since other stalls may come on top.
#[must_use]
pub fn hold_limit(stall_limit_ms: u64) -> Duration {
    Duration::from_millis(HOLD_MS_MAX.min(stall_limit_ms / 2))
}

/// Shared by all taps of a guest; see the module.
#[derive(Debug, Default)]
pub struct Latch {
    state: Mutex<State>,
    /// A hold has ended.
    changed: Condvar,
    /// Nanoseconds that the guard is to leave a connection alone for; 0 while nothing is armed.
    exempt_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    armed: Option<Arming>,
    serial: u64,
}

#[derive(Debug)]
struct Arming {
    serial: u64,
    hold_limit: Duration,
    first: watch::Sender<Option<Stopped>>,
    phase: Phase,
    flushes: BTreeMap<VolumeId, u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Holding,
    /// Told to go on.
    Released,
    /// The limit came first.
    TimedOut,
}

/// The first FLUSH after the arming: the guest stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Its number.
    pub seq: Seq,
    /// When it had been journaled, microseconds since the Unix epoch.
    pub wall_us: u64,
}

/// A latch that is armed, until this is dropped.
#[derive(Debug)]
pub struct Armed {
    latch: Arc<Latch>,
    serial: u64,
    first: watch::Receiver<Option<Stopped>>,
}

/// What a tap's FLUSH has to wait for.
#[must_use = "the reply is to be held"]
pub(super) struct Hold(Option<(u64, Moment)>);

impl Latch {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values, whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Arms it for one instant; `None`: it is armed already.
    #[must_use]
    pub fn arm(self: &Arc<Self>, hold_limit: Duration) -> Option<Armed> {
        let mut state = self.lock();
        if state.armed.is_some() {
            return None;
        }
        state.serial += 1;
        let (sender, first) = watch::channel(None);
        state.armed = Some(Arming {
            serial: state.serial,
            hold_limit,
            first: sender,
            phase: Phase::Waiting,
            flushes: BTreeMap::new(),
        });
        self.exempt_ns.store(hold_limit.as_nanos() as u64, Ordering::Release);
        Some(Armed { latch: Arc::clone(self), serial: state.serial, first })
    }

    /// Until when the guard is to leave alone a connection whose request has just arrived; 0: as ever.
    pub(super) fn exempt_until_ns(&self) -> u64 {
        match self.exempt_ns.load(Ordering::Acquire) {
            0 => 0,
            ns => now_ns().saturating_add(ns),
        }
    }

    /// A FLUSH was journaled under this number.
    pub(super) fn flushed(&self, volume: VolumeId, seq: Seq, wall_us: u64) -> Hold {
        let mut state = self.lock();
        let Some(armed) = &mut state.armed else { return Hold(None) };
        *armed.flushes.entry(volume).or_default() += 1;
        if armed.phase != Phase::Waiting {
            return Hold(None);
        }
        armed.phase = Phase::Holding;
        // An error means that nobody waits any more: then it is released soon.
        let _ = armed.first.send(Some(Stopped { seq, wall_us }));
        Hold(Some((armed.serial, Moment::now() + armed.hold_limit)))
    }

    /// Waits until the reply may go. Blocking, within the limit of the arming.
    pub(super) fn wait(&self, hold: Hold) {
        let Some((serial, deadline)) = hold.0 else { return };
        let mut state = self.lock();
        loop {
            let armed = state.armed.as_mut().filter(|a| a.serial == serial);
            let Some(armed) = armed.filter(|a| a.phase == Phase::Holding) else { return };
            let left = deadline.saturating_duration_since(Moment::now());
            if left.is_zero() {
                armed.phase = Phase::TimedOut;
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.map_or_else(|e| e.into_inner().0, |(state, _)| state);
        }
    }
}

impl Armed {
    /// The guest's stop, once it has come; `None`: nothing will come any more.
    pub async fn stopped(&mut self) -> Option<Stopped> {
        self.first.wait_for(Option::is_some).await.ok().and_then(|first| *first)
    }

    fn with<T>(&self, look: impl FnOnce(&mut Arming) -> T) -> Option<T> {
        let mut state = self.latch.lock();
        state.armed.as_mut().filter(|a| a.serial == self.serial).map(look)
    }

    /// Whether the guest stands still because its FLUSH is held.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.with(|armed| armed.phase == Phase::Holding).unwrap_or(false)
    }

    /// Lets the reply go. False: it had gone already, the limit had come.
    pub fn release(&self) -> bool {
        let held = self.with(|armed| {
            let held = armed.phase == Phase::Holding;
            if armed.phase != Phase::TimedOut {
                armed.phase = Phase::Released;
            }
            held
        });
        self.latch.changed.notify_all();
        held.unwrap_or(false)
    }

    /// FLUSHes since the arming, by volume.
    #[must_use]
    pub fn flushes(&self) -> BTreeMap<VolumeId, u32> {
        self.with(|armed| armed.flushes.clone()).unwrap_or_default()
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        let mut state = self.latch.lock();
        if state.armed.as_ref().is_some_and(|a| a.serial == self.serial) {
            state.armed = None;
            self.latch.exempt_ns.store(0, Ordering::Release);
        }
        drop(state);
        self.latch.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// A tap's FLUSH on a thread of its own; gives how long its reply was held.
    fn flush(latch: &Arc<Latch>, volume: VolumeId, seq: Seq) -> std::thread::JoinHandle<Duration> {
        let latch = Arc::clone(latch);
        std::thread::spawn(move || {
            let begin = Moment::now();
            let hold = latch.flushed(volume, seq, 7);
            latch.wait(hold);
            begin.elapsed()
        })
    }

    #[tokio::test]
    async fn the_first_flush_is_held_until_it_is_released_and_the_others_are_counted() {
        let latch = Arc::new(Latch::default());
        assert!(flush(&latch, 1, 5).join().unwrap() < LONG, "not armed: nothing is held");
        let mut armed = latch.arm(LONG).unwrap();
        assert!(latch.arm(LONG).is_none(), "one at a time");
        assert!(latch.exempt_until_ns() > now_ns());
        assert!(!armed.is_holding() && !armed.release(), "nothing is held yet");
        drop(armed);
        armed = latch.arm(LONG).unwrap();
        let first = flush(&latch, 1, 10);
        assert_eq!(armed.stopped().await, Some(Stopped { seq: 10, wall_us: 7 }));
        assert!(armed.is_holding() && !first.is_finished());
        // QEMU sends none before it has the first reply; a second connection might.
        flush(&latch, 2, 11).join().unwrap();
        assert!(armed.is_holding());
        assert!(armed.release());
        first.join().unwrap();
        assert!(!armed.release() && !armed.is_holding(), "released once");
        flush(&latch, 2, 12).join().unwrap();
        assert_eq!(armed.flushes(), [(1, 1), (2, 2)].into());
        drop(armed);
        assert_eq!(latch.exempt_until_ns(), 0);
        flush(&latch, 1, 20).join().unwrap();
        assert!(latch.arm(LONG).unwrap().flushes().is_empty(), "a new arming begins anew");
    }

    #[tokio::test]
    async fn a_hold_ends_at_its_limit_and_that_is_told() {
        let latch = Arc::new(Latch::default());
        let mut armed = latch.arm(Duration::from_millis(50)).unwrap();
        let held = flush(&latch, 1, 10).join().unwrap();
        assert!(held >= Duration::from_millis(50), "{held:?}");
        assert!(armed.stopped().await.is_some());
        assert!(!armed.is_holding() && !armed.release(), "it had gone by itself");
    }

    #[tokio::test]
    async fn a_hold_ends_with_the_armings_owner() {
        let latch = Arc::new(Latch::default());
        let mut armed = latch.arm(LONG).unwrap();
        let held = flush(&latch, 1, 10);
        assert!(armed.stopped().await.is_some());
        drop(armed);
        assert!(held.join().unwrap() < LONG);
        // What waited for another arming is not confused with the next one.
        let armed = latch.arm(LONG).unwrap();
        assert!(!armed.is_holding());
    }

    #[test]
    fn a_hold_is_shorter_than_any_stall_limit() {
        assert_eq!(hold_limit(1000), Duration::from_millis(HOLD_MS_MAX));
        assert_eq!(hold_limit(100), Duration::from_millis(50));
    }
}
