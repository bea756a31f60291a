//! When a guest was level, for status: kept in memory, first read from the journal.

use afterimage_journal::clock::Clock;
use afterimage_journal::history::Point;
use afterimage_journal::{History, Seq};
use std::collections::BTreeMap;

/// A session in time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interval {
    /// Its start, nanoseconds since the Unix epoch.
    pub from_ns: u64,
    /// The position of that.
    pub from_seq: Seq,
    /// Its end; `None` while it is open.
    pub to_ns: Option<u64>,
    /// The position of that, as far as it is known.
    pub to_seq: Option<Seq>,
    /// Why it ended.
    pub reason: String,
}

/// A guest's sessions, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    intervals: Vec<Interval>,
}

/// Sessions that are kept for status; the journal has them all.
const INTERVALS_MAX: usize = 1000;

impl Timeline {
    /// The timelines of a journal's guests. An open session ended with the journal's last record.
    pub(super) fn of(history: &History) -> BTreeMap<String, Self> {
        let mut all: BTreeMap<String, Self> = BTreeMap::new();
        for session in &history.sessions {
            let to = session.to.unwrap_or(history.head);
            let reason = match session.reason.as_str() {
                "" => "the agent was not running",
                reason => reason,
            };
            all.entry(session.guest.clone()).or_default().push(Interval {
                from_ns: history.wall_ns(session.from),
                from_seq: session.from,
                to_ns: Some(history.wall_ns(to)),
                to_seq: Some(to),
                reason: reason.to_owned(),
            });
        }
        all
    }

    fn push(&mut self, interval: Interval) {
        if self.intervals.len() >= INTERVALS_MAX {
            self.intervals.remove(0);
        }
        self.intervals.push(interval);
    }

    pub(super) fn opened(&mut self, at: Point) {
        self.push(Interval { from_ns: at.wall_ns, from_seq: at.seq, ..Interval::default() });
    }

    /// The last one has ended, at a position that may not be known yet.
    pub(super) fn closed(&mut self, now_ns: u64, seq: Option<Seq>, reason: &str) {
        if let Some(last) = self.intervals.last_mut() {
            (last.to_ns, last.to_seq) = (Some(now_ns), seq);
            reason.clone_into(&mut last.reason);
        }
    }

    pub(super) fn reworded(&mut self, reason: &str) {
        if let Some(last) = self.intervals.last_mut().filter(|i| i.to_ns.is_some()) {
            reason.clone_into(&mut last.reason);
        }
    }

    /// The sessions.
    #[must_use]
    pub fn intervals(&self) -> &[Interval] {
        &self.intervals
    }
}

/// Clocks differ by less than this between two looks unless one was set, in nanoseconds.
const SLEW_NS: u64 = 50_000_000;
/// Stretches of time that are kept; two that are near each other become one.
const TWICE_MAX: usize = 64;

/// Times that the clock showed twice, since it was set back, as far as status shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Twice {
    /// First and last of each stretch, nanoseconds since the Unix epoch.
    stretches: Vec<(u64, u64)>,
    /// Wall time and monotonic time of the last look.
    looked: Option<(u64, u64)>,
}

impl Twice {
    /// Of the sessions of a journal: ends of theirs whose time means another position too.
    pub(super) fn of(history: &History) -> Self {
        let ends =
            |s: &afterimage_journal::history::SessionState| [s.from, s.to.unwrap_or(history.head)];
        let mut seqs: Vec<Seq> = history.sessions.iter().flat_map(ends).collect();
        seqs.sort_unstable();
        seqs.dedup();
        let points: Vec<Point> = seqs.into_iter().map(|seq| history.point(seq)).collect();
        let mut twice = Self::default();
        for (point, is_named) in points.iter().zip(history.are_named_by_time(&points)) {
            if !is_named {
                twice.add(point.wall_ns, point.wall_ns);
            }
        }
        twice
    }

    /// Looks at the clock: where it is behind what it showed at the last look and the time since then, it
    /// was set back.
    pub(super) fn look(&mut self, clock: &dyn Clock) {
        let (wall_ns, mono_ns) = (clock.wall_ns(), clock.mono_ns());
        if let Some((last_wall_ns, last_mono_ns)) = self.looked.replace((wall_ns, mono_ns)) {
            let due_ns = last_wall_ns.saturating_add(mono_ns.saturating_sub(last_mono_ns));
            let behind_ns = due_ns.saturating_sub(wall_ns);
            if behind_ns > SLEW_NS {
                self.add(last_wall_ns.saturating_sub(behind_ns), due_ns);
            }
        }
    }

    fn add(&mut self, from_ns: u64, to_ns: u64) {
        self.stretches.push((from_ns, to_ns));
        if self.stretches.len() > TWICE_MAX {
            self.stretches.sort_unstable();
            let gap = |at: &usize| self.stretches[at + 1].0.saturating_sub(self.stretches[*at].1);
            let nearest = (0..self.stretches.len() - 1).min_by_key(gap).unwrap_or(0);
            let (_, to_ns) = self.stretches.remove(nearest + 1);
            self.stretches[nearest].1 = self.stretches[nearest].1.max(to_ns);
        }
    }

    /// Whether a time may have been shown twice.
    #[must_use]
    pub fn has(&self, ns: u64) -> bool {
        self.stretches.iter().any(|(from, to)| (*from..=*to).contains(&ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug)]
    struct Hands(Mutex<(u64, u64)>);

    impl Clock for Hands {
        fn wall_ns(&self) -> u64 {
            self.0.lock().unwrap().0
        }
        fn mono_ns(&self) -> u64 {
            self.0.lock().unwrap().1
        }
        fn boot_id(&self) -> [u8; 16] {
            [0; 16]
        }
        fn salt(&self) -> [u8; 16] {
            [0; 16]
        }
    }

    #[test]
    fn times_that_a_clock_shows_again_once_it_was_set_back_are_known() {
        const S: u64 = 1_000_000_000;
        let clock = Hands(Mutex::new((1000 * S, 5 * S)));
        let mut twice = Twice::default();
        // 10 s pass; then 60 s, within which the clock was set back by 30 s.
        for (wall_s, mono_s) in [(1000, 5), (1010, 15), (1040, 75)] {
            *clock.0.lock().unwrap() = (wall_s * S, mono_s * S);
            twice.look(&clock);
        }
        let known = [970, 979, 980, 1010, 1040, 1070, 1071].map(|s| twice.has(s * S));
        assert_eq!(known, [false, false, true, true, true, true, false]);
        // Set forward, or asleep: nothing comes again.
        *clock.0.lock().unwrap() = (9000 * S, 80 * S);
        twice.look(&clock);
        assert!(!twice.has(5000 * S));
        for at in 0..200 {
            twice.add(at * 1000 * S, at * 1000 * S + S);
        }
        assert!(twice.stretches.len() <= TWICE_MAX);
        assert!((0..200).all(|at| twice.has(at * 1000 * S)), "none is forgotten");
    }
}
