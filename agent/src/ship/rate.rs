//! How fast the background goes: a rate in bytes a second.
//!
//! What always holds: over any stretch of time no more is let through than the rate allows, one burst
//! and one piece. Time is told by the caller.

use std::time::{Duration, Instant};

/// What may be spent at once after a rest, in time of the rate.
const BURST: Duration = Duration::from_millis(250);

/// Bytes that may go; a piece may go while nothing is owed, and what it costs is owed from then on.
#[derive(Debug, Clone)]
pub(super) struct Rate {
    /// 0: no limit.
    bytes_per_s: u64,
    /// When all that went will have been earned.
    earned: Option<Instant>,
}

impl Rate {
    /// So many bytes a second; 0: no limit.
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, earned: None }
    }

    /// Changes it; what is owed stays owed.
    pub(super) fn set(&mut self, bytes_per_s: u64) {
        self.bytes_per_s = bytes_per_s;
    }

    /// How long the next piece has to wait; zero: not at all.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        match self.earned {
            Some(earned) if self.bytes_per_s > 0 => earned.saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }

    /// Notes that so much went.
    pub(super) fn spend(&mut self, bytes: u64, now: Instant) {
        if self.bytes_per_s == 0 {
            return;
        }
        let cost_ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let cost = Duration::from_nanos(u64::try_from(cost_ns).unwrap_or(u64::MAX));
        // What was not used for long is not saved up.
        let rested = now.checked_sub(BURST).unwrap_or(now);
        let from = self.earned.map_or(rested, |earned| earned.max(rested));
        self.earned = from.checked_add(cost).or(Some(from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_goes_than_the_rate_a_burst_and_a_piece() {
        const PIECE_BYTES: u64 = 1 << 20;
        let begin = Instant::now();
        let mut rate = Rate::new(10 << 20);
        let (mut now, mut sent_bytes) = (begin, 0);
        while now < begin + Duration::from_secs(10) {
            match rate.wait(now) {
                Duration::ZERO => {
                    rate.spend(PIECE_BYTES, now);
                    sent_bytes += PIECE_BYTES;
                }
                wait => now += wait,
            }
        }
        let limit_bytes = 100 * PIECE_BYTES;
        let most = limit_bytes + (10 << 20) / 4 + PIECE_BYTES;
        assert!((limit_bytes..=most).contains(&sent_bytes), "{sent_bytes}");
        // A long rest earns one burst.
        now += Duration::from_secs(60);
        let mut at_once = 0;
        while rate.wait(now).is_zero() {
            rate.spend(PIECE_BYTES, now);
            at_once += 1;
        }
        assert!((2..=4).contains(&at_once), "{at_once}");
        rate.set(0);
        assert_eq!(rate.wait(now), Duration::ZERO);
    }
}
