//! The keeper's thread: takes steps while there are any, then waits for a second or a sealed unit.

use super::{Keeper, Occupancy, Setup};
use crate::error::Result;
use crate::merge::Throttle;
use crate::window::{AlarmLevel, Limits};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest time between two looks at window and limits.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause after a step that failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Merging goes at least this fast, bytes a second, and at twice the rate of capture.
const MERGE_FLOOR_BYTES_PER_S: u64 = 32 << 20;
/// How fast scrubbing reads, bytes a second.
const SCRUB_BYTES_PER_S: u64 = 4 << 20;
/// The rate of capture is that of about the last milliseconds.
const RATE_MEMORY_MS: u64 = 4000;

/// What keeper and agent tell each other.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    stop: Arc<AtomicBool>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    sealed: u64,
    /// Units sealed since the last look.
    sealed_count: u64,
    stopped: bool,
    occupancy: Occupancy,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held leaves plain values: they are whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, limit: Duration) {
        let state = self.lock();
        let idle = !self.stop.load(Ordering::Relaxed) && state.sealed_count == 0;
        if idle {
            let waited = self.wake.wait_timeout(state, limit);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// A unit was sealed.
    pub fn sealed(&self, number: u64) {
        let mut state = self.lock();
        state.sealed = state.sealed.max(number);
        state.sealed_count += 1;
        self.wake.notify_all();
    }

    /// What the group may use and keeps from now on.
    pub fn set(&self, limits: Limits) {
        self.lock().limits = limits;
        self.wake.notify_all();
    }

    /// Whether capture is stopped for space.
    pub fn set_stopped(&self, stopped: bool) {
        self.lock().stopped = stopped;
        self.wake.notify_all();
    }

    /// What is used and held.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        self.lock().occupancy.clone()
    }
}

/// A running keeper; dropped, it stops at once.
#[derive(Debug)]
pub struct KeeperThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl KeeperThread {
    /// Starts to keep a journal that the caller has open for writing, until this is dropped, which must
    /// be before the journal is let go of. The pace of `setup` is the thread's own.
    ///
    /// # Errors
    /// The journal's identity can't be read, or no thread can be had.
    pub fn start(mut setup: Setup) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let throttle = Throttle::new(MERGE_FLOOR_BYTES_PER_S, Arc::clone(&stop));
        setup.pace = Arc::new(throttle.clone());
        let (limits, dir, unit_bytes) =
            (setup.limits.clone(), setup.dir.clone(), setup.unit_bytes()?);
        let occupancy = Occupancy { has_room: true, ..Occupancy::default() };
        let state = State { limits, sealed: 0, sealed_count: 0, stopped: false, occupancy };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new(), stop });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || {
                // What it has to read must not hold the journal's opening up.
                if let Some(keeper) = open(&setup, &of_thread) {
                    Loop { keeper, shared: of_thread, throttle, unit_bytes }.run();
                }
            })
            .map_err(|e| crate::Error::io("start a thread for", &dir, e))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The way to tell it and ask it.
    #[must_use]
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl Drop for KeeperThread {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // The thread looks at `stop` under the lock before it waits.
        drop(self.shared.lock());
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Setup {
    fn unit_bytes(&self) -> Result<u64> {
        Ok(crate::layout::read_identity(&self.dir)?.unit_bytes)
    }
}

/// Opens it, again and again; `None`: it is to stop.
fn open(setup: &Setup, shared: &Shared) -> Option<Keeper> {
    while !shared.stop.load(Ordering::Relaxed) {
        match Keeper::open(setup.clone()) {
            Ok(keeper) => return Some(keeper),
            Err(error) => {
                tracing::error!(%error, "the journal is not kept within its window");
                shared.lock().occupancy.error = Some(error.to_string());
                shared.wait(RETRY_AFTER);
            }
        }
    }
    None
}

/// How fast records are captured, told by the units that are sealed.
#[derive(Debug, Default)]
struct CaptureRate {
    /// Since the last look.
    sealed_bytes: u64,
    bytes_per_s: u64,
}

impl CaptureRate {
    /// Takes in what was sealed in the milliseconds since the last look. Those must be many: two units
    /// that were sealed right after each other say nothing of a rate.
    fn look(&mut self, ms: u64) {
        let now = std::mem::take(&mut self.sealed_bytes).saturating_mul(1000) / ms.max(1);
        let share_ms = ms.min(RATE_MEMORY_MS);
        let before = self.bytes_per_s.saturating_mul(RATE_MEMORY_MS - share_ms);
        self.bytes_per_s = before.saturating_add(now.saturating_mul(share_ms)) / RATE_MEMORY_MS;
    }
}

struct Loop {
    keeper: Keeper,
    shared: Arc<Shared>,
    throttle: Throttle,
    unit_bytes: u64,
}

impl Loop {
    fn run(mut self) {
        let mut looked = Instant::now();
        let mut capture = CaptureRate::default();
        while !self.shared.stop.load(Ordering::Relaxed) {
            capture.sealed_bytes += self.take_orders().saturating_mul(self.unit_bytes);
            let stepped = self.keeper.step();
            let since = looked.elapsed();
            if since >= LOOK_EVERY {
                let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
                capture.look(ms);
                self.pace(capture.bytes_per_s);
                self.keeper.scrub(SCRUB_BYTES_PER_S.saturating_mul(ms.min(1000)) / 1000);
                looked = Instant::now();
            }
            let (wait, error) = match stepped {
                Ok(true) => (None, None),
                Ok(false) => (Some(LOOK_EVERY), None),
                Err(_) if self.shared.stop.load(Ordering::Relaxed) => return,
                Err(e) => {
                    tracing::error!(error = %e, "keeping the journal");
                    (Some(RETRY_AFTER), Some(e.to_string()))
                }
            };
            self.publish(error);
            if let Some(wait) = wait {
                self.shared.wait(wait);
            }
        }
    }

    fn take_orders(&mut self) -> u64 {
        let mut state = self.shared.lock();
        self.keeper.set(state.limits.clone());
        self.keeper.set_stopped(state.stopped);
        self.keeper.sealed(state.sealed);
        std::mem::take(&mut state.sealed_count)
    }

    /// Capture comes first, but not when it is about to end for want of space.
    fn pace(&self, capture_bytes_per_s: u64) {
        let alarm = self.keeper.actions().alarm.as_ref();
        let full = alarm.is_some_and(|a| a.level >= AlarmLevel::Full);
        let calm = capture_bytes_per_s.saturating_mul(2).max(MERGE_FLOOR_BYTES_PER_S);
        self.throttle.set(if full { u64::MAX } else { calm });
    }

    fn publish(&self, error: Option<String>) {
        let mut state = self.shared.lock();
        state.occupancy = self.keeper.occupancy().clone();
        state.occupancy.error = error;
    }
}

#[cfg(test)]
mod tests {
    use super::CaptureRate;

    #[test]
    fn the_rate_of_capture_is_followed_and_forgotten_within_seconds() {
        let mut capture = CaptureRate::default();
        for _ in 0..30 {
            capture.sealed_bytes = 150_000_000;
            capture.look(1000);
        }
        let steady = capture.bytes_per_s;
        assert!((149_000_000..=150_000_000).contains(&steady), "{steady}");
        // One long look says as much as the many short ones that it stands for.
        capture.sealed_bytes = 10 * 50_000_000;
        capture.look(10_000);
        assert_eq!(capture.bytes_per_s, 50_000_000);
        capture.look(4000);
        assert_eq!(capture.bytes_per_s, 0);
    }
}
