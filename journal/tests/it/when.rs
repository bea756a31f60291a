//! From a wanted moment to a position.

use crate::fixture::{ManualClock, new_journal, quiet, session, write};
use afterimage_journal::history::{NotRestorable, Point, When};
use afterimage_journal::meta::SessionEvent;
use afterimage_journal::{History, Journal, Options, Seq};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SECOND: u64 = 1_000_000_000;

struct Timed {
    _dir: tempfile::TempDir,
    journal: Journal,
    clock: Arc<ManualClock>,
}

impl Timed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wall_ns = AtomicU64::new(1000 * SECOND);
        let clock = Arc::new(ManualClock { wall_ns, boot: 1 });
        let options = Options { clock: Arc::clone(&clock) as _, ..quiet() };
        let journal = new_journal(&dir.path().join("j"), options);
        Self { _dir: dir, journal, clock }
    }

    fn write_at(&self, seconds: u64) -> Seq {
        self.clock.wall_ns.store(seconds * SECOND, Ordering::Relaxed);
        write(&self.journal, 0, &[1; 512])
    }

    fn session_at(&self, seconds: u64, id: u32, event: SessionEvent) -> Seq {
        self.clock.wall_ns.store(seconds * SECOND, Ordering::Relaxed);
        self.journal.append_meta(&session(id, event)).unwrap()
    }

    fn resolve(&self, ns: u64) -> Result<Point, Box<NotRestorable>> {
        load(self.journal.dir()).resolve(&When::Time(ns))
    }
}

fn load(dir: &Path) -> History {
    History::load(dir).unwrap()
}

#[test]
fn a_time_means_the_newest_record_at_or_before_it() {
    let timed = Timed::new();
    timed.session_at(1001, 1, SessionEvent::Open);
    timed.write_at(1010);
    let tie = timed.write_at(1010);
    let last = timed.write_at(1011);
    assert_eq!(timed.resolve(1010 * SECOND).unwrap().seq, tie);
    assert_eq!(timed.resolve(1011 * SECOND - 1).unwrap().seq, tie);
    assert_eq!(timed.resolve(1012 * SECOND).unwrap().seq, last);
    let future = timed.resolve(1020 * SECOND).unwrap_err();
    assert!(future.why.contains("behind") && future.before.unwrap().seq == last, "{future:?}");
    let early = timed.resolve(10 * SECOND).unwrap_err();
    assert!(early.why.contains("before") && early.before.is_none(), "{early:?}");
    assert!(timed.resolve(1000 * SECOND).is_err(), "no session was open");
}

#[test]
fn a_gap_is_refused_with_both_neighbours_and_its_edges_are_not() {
    let timed = Timed::new();
    timed.session_at(1001, 1, SessionEvent::Open);
    let end = timed.session_at(1005, 1, SessionEvent::Close);
    let missed = timed.write_at(1007);
    let back = timed.session_at(1009, 2, SessionEvent::Open);
    assert_eq!(timed.resolve(1005 * SECOND).unwrap().seq, end);
    assert_eq!(timed.resolve(1009 * SECOND).unwrap().seq, back);
    for ns in [1005 * SECOND + 1, 1007 * SECOND, 1009 * SECOND - 1] {
        let refused = timed.resolve(ns).unwrap_err();
        assert_eq!(refused.before.unwrap().seq, end, "{refused:?}");
        assert_eq!(refused.after.unwrap().seq, back, "{refused:?}");
    }
    assert!(load(timed.journal.dir()).resolve(&When::Seq(missed)).is_err());
}

#[test]
fn after_a_clock_was_set_back_the_last_time_that_a_time_came_counts() {
    let timed = Timed::new();
    timed.session_at(1001, 1, SessionEvent::Open);
    let early = timed.write_at(1020);
    timed.write_at(1030);
    let late = timed.write_at(1015);
    timed.write_at(1018);
    assert_eq!(timed.resolve(1016 * SECOND).unwrap().seq, late, "it came twice");
    assert_eq!(timed.resolve(1025 * SECOND).unwrap().seq, early, "it came once");
}
