//! How fast merging and scrubbing may go: capture comes first.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Limits what goes on beside capture.
pub trait Pace: Send + Sync {
    /// Called before so many bytes are read or written; returns when they may be, or `false` when
    /// everything is to stop.
    fn spend(&self, bytes: u64) -> bool;
}

/// As fast as it goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unpaced;

impl Pace for Unpaced {
    fn spend(&self, _bytes: u64) -> bool {
        true
    }
}

/// Longest sleep at a time: a stop is seen within it.
const STEP: Duration = Duration::from_millis(20);
/// What may be spent at once after a rest, in seconds of the rate.
const BURST: Duration = Duration::from_millis(250);

/// A rate in bytes a second that can be changed at any time; clones share it.
#[derive(Debug, Clone)]
pub struct Throttle {
    rate_bytes_per_s: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// When what was granted so far will have been earned.
    earned: Arc<Mutex<Instant>>,
}

impl Throttle {
    /// So many bytes a second, until `stop`.
    #[must_use]
    pub fn new(rate_bytes_per_s: u64, stop: Arc<AtomicBool>) -> Self {
        let rate_bytes_per_s = Arc::new(AtomicU64::new(rate_bytes_per_s));
        Self { rate_bytes_per_s, stop, earned: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Changes the rate.
    pub fn set(&self, bytes_per_s: u64) {
        self.rate_bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
    }
}

impl Pace for Throttle {
    fn spend(&self, bytes: u64) -> bool {
        let rate = self.rate_bytes_per_s.load(Ordering::Relaxed).max(1);
        let cost_ns = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let cost = Duration::from_nanos(u64::try_from(cost_ns).unwrap_or(u64::MAX));
        let due = {
            let mut earned = self.earned.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            // What was not used for long is not saved up.
            let from = (*earned).max(now.checked_sub(BURST).unwrap_or(now));
            *earned = from.checked_add(cost).unwrap_or(from);
            *earned
        };
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(STEP));
        }
    }
}
