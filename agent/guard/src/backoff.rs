//! How long to wait between the death of a worker and the start of the next. Pure.
//!
//! The first restart is at once; then the pause doubles from `min` to `max`. A worker that
//! lived for `healthy_after` starts the row anew.

use crate::config::GuardConfig;
use std::time::Duration;

pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    healthy_after: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(config: &GuardConfig) -> Backoff {
        let (min, max) = (config.backoff_min, config.backoff_max);
        Backoff { min, max, healthy_after: config.healthy_after, next: Duration::ZERO }
    }

    /// The pause after the death of a worker that had `lived` so long.
    pub(crate) fn after(&mut self, lived: Duration) -> Duration {
        if lived >= self.healthy_after {
            self.next = Duration::ZERO;
        }
        let pause = self.next;
        self.next = (pause * 2).clamp(self.min, self.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Program;

    fn backoff() -> Backoff {
        Backoff::new(&GuardConfig::new(Program { program: "worker".into(), args: Vec::new() }))
    }

    #[test]
    fn pauses_double_from_none_to_the_longest() {
        let mut backoff = backoff();
        let got: Vec<u128> =
            (0..11).map(|_| backoff.after(Duration::from_secs(1)).as_millis()).collect();
        assert_eq!(got, [0, 50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }

    #[test]
    fn a_healthy_life_starts_the_row_anew() {
        let mut backoff = backoff();
        for _ in 0..5 {
            backoff.after(Duration::from_secs(1));
        }
        assert_eq!(backoff.after(Duration::from_secs(30)), Duration::ZERO);
        assert_eq!(backoff.after(Duration::from_secs(1)), Duration::from_millis(50));
    }
}
