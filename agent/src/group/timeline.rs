//! When a guest was level, for status: kept in memory, first read from the journal.

use afterimage_journal::History;
use std::collections::BTreeMap;

/// A session in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interval {
    /// Its start, nanoseconds since the Unix epoch.
    pub from_ns: u64,
    /// Its end; `None` while it is open.
    pub to_ns: Option<u64>,
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
                to_ns: Some(history.wall_ns(to)),
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

    pub(super) fn opened(&mut self, now_ns: u64) {
        self.push(Interval { from_ns: now_ns, to_ns: None, reason: String::new() });
    }

    pub(super) fn closed(&mut self, now_ns: u64, reason: &str) {
        if let Some(last) = self.intervals.last_mut() {
            last.to_ns = Some(now_ns);
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
