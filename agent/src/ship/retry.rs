//! When a site that failed is tried again.
//!
//! What always holds: pauses grow to a limit and never beyond, so that the return of a site is noticed
//! within it; no two links pause for the same times, so that a site that returns is not met by all at
//! once.

use afterimage_journal::wire::SinkError;
use std::time::Duration;

/// Pauses before a site that is away, or broke the order, is tried again: first and longest.
const AWAY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// The same for one without room.
const FULL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The same for one that refuses: a person may have seen to it.
const REFUSED: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(60));

/// Longest pause of all, jitter included.
#[cfg(test)]
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(75);

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The site can't be reached, or broke off.
    Away,
    /// It has no room.
    Full,
    /// It won't.
    Refused,
    /// What arrived there is not what was sent.
    Broken,
    /// Our own journal can't be read.
    Source,
}

impl Trouble {
    /// What an error of a sink is.
    pub(super) fn of(error: &SinkError) -> Self {
        match error {
            SinkError::Away(_) => Self::Away,
            SinkError::Full(_) => Self::Full,
            SinkError::Refused(_) => Self::Refused,
            SinkError::Broken(_) => Self::Broken,
        }
    }

    fn pauses(self) -> (Duration, Duration) {
        match self {
            Self::Away | Self::Broken | Self::Source => AWAY,
            Self::Full => FULL,
            Self::Refused => REFUSED,
        }
    }
}

/// The pauses of one link.
#[derive(Debug, Clone)]
pub(super) struct Retry {
    failures: u32,
    last: Option<Trouble>,
    random: u64,
}

impl Retry {
    /// `seed` tells links apart.
    pub(super) fn new(seed: u64) -> Self {
        Self { failures: 0, last: None, random: seed | 1 }
    }

    /// It works again.
    pub(super) fn works(&mut self) {
        (self.failures, self.last) = (0, None);
    }

    /// It failed: how long to wait.
    pub(super) fn failed(&mut self, trouble: Trouble) -> Duration {
        if self.last != Some(trouble) {
            self.failures = 0;
        }
        self.last = Some(trouble);
        let (first, longest) = trouble.pauses();
        let doubled = first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.jitter(doubled.min(longest))
    }

    /// From three quarters of it to five quarters.
    fn jitter(&mut self, pause: Duration) -> Duration {
        // Xorshift: nobody has to be kept from guessing it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = 750 + u32::try_from(self.random % 501).unwrap_or(250);
        pause.saturating_mul(share) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_begin_anew_after_a_success() {
        for trouble in [Trouble::Away, Trouble::Full, Trouble::Refused, Trouble::Broken] {
            let mut retry = Retry::new(7);
            let (first, longest) = trouble.pauses();
            let pauses: Vec<_> = (0..40).map(|_| retry.failed(trouble)).collect();
            assert!(pauses[0] <= first * 5 / 4, "{trouble:?} {pauses:?}");
            assert!(pauses.iter().all(|p| *p <= longest * 5 / 4), "{trouble:?} {pauses:?}");
            assert!(pauses.iter().skip(10).all(|p| *p >= longest * 3 / 4), "{pauses:?}");
            assert!(pauses.iter().all(|p| *p <= PAUSE_MAX));
            retry.works();
            assert!(retry.failed(trouble) <= first * 5 / 4);
        }
    }

    #[test]
    fn two_links_do_not_come_back_together() {
        let (mut one, mut other) = (Retry::new(1), Retry::new(99));
        let mut differ = |_: &u32| one.failed(Trouble::Away) != other.failed(Trouble::Away);
        assert!((0..10_u32).filter(|n| differ(n)).count() >= 9);
    }
}
