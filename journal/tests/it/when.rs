//! From a wanted moment to a position.

use crate::fixture::{new_journal, quiet, session, write};
use afterimage_journal::clock::Clock;
use afterimage_journal::history::{NotRestorable, Point, When};
use afterimage_journal::meta::{Checkpoint, CheckpointKind, Meta, SessionEvent};
use afterimage_journal::{History, Journal, Options, Seq};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SECOND: u64 = 1_000_000_000;

/// A clock that can be set, and one that can't.
struct TwoClocks {
    wall_ns: AtomicU64,
    mono_ns: AtomicU64,
}

impl TwoClocks {
    fn pass(&self, ns: u64) {
        self.wall_ns.fetch_add(ns, Ordering::Relaxed);
        self.mono_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Clock for TwoClocks {
    fn wall_ns(&self) -> u64 {
        self.wall_ns.load(Ordering::Relaxed)
    }
    fn mono_ns(&self) -> u64 {
        self.mono_ns.load(Ordering::Relaxed)
    }
    fn boot_id(&self) -> [u8; 16] {
        [1; 16]
    }
}

struct Timed {
    _dir: tempfile::TempDir,
    journal: Journal,
    clock: Arc<TwoClocks>,
}

impl Timed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (wall_ns, mono_ns) = (AtomicU64::new(1000 * SECOND), AtomicU64::new(SECOND));
        let clock = Arc::new(TwoClocks { wall_ns, mono_ns });
        let options = Options { clock: Arc::clone(&clock) as _, ..quiet() };
        let journal = new_journal(&dir.path().join("j"), options);
        Self { _dir: dir, journal, clock }
    }

    /// Time goes by until then; or the clock is set back.
    fn go_to(&self, seconds: u64) {
        let now = self.clock.wall_ns.load(Ordering::Relaxed);
        match (seconds * SECOND).checked_sub(now) {
            Some(ns) => self.clock.pass(ns),
            None => self.clock.wall_ns.store(seconds * SECOND, Ordering::Relaxed),
        }
    }

    fn write_at(&self, seconds: u64) -> Seq {
        self.go_to(seconds);
        write(&self.journal, 0, &[1; 512])
    }

    fn session_at(&self, seconds: u64, id: u32, event: SessionEvent) -> Seq {
        self.go_to(seconds);
        self.journal.append_meta(&session(id, event)).unwrap()
    }

    fn mark(&self, id: u64, tag: &str) -> Seq {
        let (kind, tag) = (CheckpointKind::Crash, Some(tag.to_owned()));
        let mark = Checkpoint { id, kind, tag, memory: None };
        self.journal.append_meta(&Meta::Mark(mark)).unwrap()
    }

    fn mark_at(&self, seconds: u64, id: u64, tag: &str) -> Seq {
        self.go_to(seconds);
        self.mark(id, tag)
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
fn a_time_that_the_clock_showed_twice_is_refused_and_names_both_positions() {
    let timed = Timed::new();
    timed.session_at(1001, 1, SessionEvent::Open);
    let early = timed.write_at(1020);
    let edge = timed.write_at(1030);
    timed.clock.pass(SECOND);
    let late = timed.write_at(1015);
    let last = timed.write_at(1031);
    let named = |ns: u64| {
        let refused = timed.resolve(ns).unwrap_err();
        assert!(refused.why.contains("set back"), "{refused:?}");
        refused.named.iter().map(|p| p.seq).collect::<Vec<_>>()
    };
    assert_eq!(named(1022 * SECOND), [early, late]);
    assert_eq!(named(1030 * SECOND), [edge, late], "its own time, to the nanosecond");
    // For a second it went on from there.
    assert_eq!(named(1031 * SECOND), [edge, last]);
    assert_eq!(timed.resolve(1034 * SECOND).unwrap().seq, last, "it came once");
    let history = load(timed.journal.dir());
    for seq in [early, edge, late, last] {
        assert_eq!(history.resolve(&When::Seq(seq)).unwrap().seq, seq);
    }
}

#[test]
fn the_time_of_a_checkpoint_before_the_clock_was_set_back_names_it_and_the_later_position() {
    let timed = Timed::new();
    timed.session_at(1001, 1, SessionEvent::Open);
    timed.write_at(1020);
    let mark = timed.mark_at(1030, 1, "here");
    timed.write_at(1000);
    let later = timed.write_at(1029);
    timed.write_at(1040);
    let refused = timed.resolve(1030 * SECOND).unwrap_err();
    assert_eq!(refused.named.iter().map(|p| p.seq).collect::<Vec<_>>(), [mark, later]);
    let history = load(timed.journal.dir());
    for when in [When::Tag("here".into()), When::Checkpoint(1), When::Seq(mark)] {
        assert_eq!(history.resolve(&when).unwrap().seq, mark, "{when:?}");
    }
}

#[test]
fn a_time_that_the_clock_was_set_forward_over_is_refused_with_both_neighbours() {
    let timed = Timed::new();
    timed.session_at(1001, 1, SessionEvent::Open);
    let before = timed.write_at(1010);
    timed.clock.mono_ns.fetch_add(2 * SECOND, Ordering::Relaxed);
    timed.clock.wall_ns.store(5000 * SECOND, Ordering::Relaxed);
    let after = write(&timed.journal, 0, &[1; 512]);
    for ns in [1015 * SECOND, 3000 * SECOND, 4990 * SECOND] {
        let refused = timed.resolve(ns).unwrap_err();
        assert!(refused.why.contains("set forward"), "{refused:?}");
        let (b, a) = (refused.before.unwrap().seq, refused.after.unwrap().seq);
        assert_eq!((b, a), (before, after));
    }
    // It went on for two seconds, on one side or the other.
    for ns in [1012 * SECOND, 4999 * SECOND] {
        assert_eq!(timed.resolve(ns).unwrap().seq, before);
    }
    // A machine that stood still for as long is another matter.
    timed.write_at(5100);
    assert_eq!(timed.resolve(5050 * SECOND).unwrap().seq, after);
}

#[test]
fn the_time_of_a_checkpoint_is_its_own_whatever_has_the_same_time() {
    let timed = Timed::new();
    timed.session_at(1001, 1, SessionEvent::Open);
    timed.write_at(1010);
    let mark = timed.mark_at(1010, 1, "a");
    let tie = timed.write_at(1010);
    timed.write_at(1011);
    assert_eq!(timed.resolve(1010 * SECOND).unwrap().seq, mark);
    assert_eq!(timed.resolve(1010 * SECOND + 1).unwrap().seq, tie);
}

#[test]
fn the_last_moment_before_a_gap_is_restorable_though_a_missed_record_has_its_time() {
    let timed = Timed::new();
    timed.session_at(1001, 1, SessionEvent::Open);
    let end = timed.session_at(1005, 1, SessionEvent::Close);
    timed.write_at(1005);
    timed.write_at(1006);
    assert_eq!(timed.resolve(1005 * SECOND).unwrap().seq, end);
    assert!(timed.resolve(1005 * SECOND + 1).is_err());
}

/// What a history does next.
#[derive(Debug, Clone, Copy)]
enum Act {
    Write,
    Mark,
    Session,
    /// Time goes by, nanoseconds.
    Pass(u64),
    /// The clock is set, seconds.
    Set(i64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Write),
        2 => Just(Act::Mark),
        1 => Just(Act::Session),
        5 => prop_oneof![0..3_u64, 1..2_000_000_u64, 1..5 * SECOND].prop_map(Act::Pass),
        1 => (-40..40_i64).prop_map(Act::Set),
    ]
}

/// A journal that ticks each second, and what its clock really showed.
struct Told {
    timed: Timed,
    /// From and to which time which position was the newest.
    shown: Vec<(u64, u64, Seq)>,
    since: u64,
    session: Option<u32>,
    next_id: u32,
}

impl Told {
    fn new() -> Self {
        let (timed, since) = (Timed::new(), 1000 * SECOND);
        Self { timed, shown: Vec::new(), since, session: None, next_id: 1 }
    }

    /// Until now the newest position was this.
    fn note(&mut self) {
        let now = self.timed.clock.wall_ns.load(Ordering::Relaxed);
        self.shown.push((self.since, now, self.timed.journal.head()));
        self.since = now;
    }

    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Pass(mut ns) => {
                while ns > 0 {
                    let step = ns.min(SECOND);
                    self.timed.clock.pass(step);
                    ns -= step;
                    if ns > 0 {
                        self.act(Act::Write);
                    }
                }
            }
            Act::Set(seconds) => {
                self.note();
                let set = self.since.saturating_add_signed(seconds * SECOND as i64);
                self.timed.clock.wall_ns.store(set, Ordering::Relaxed);
                self.since = set;
                // Set again before the next tick, it would leave no trace.
                self.act(Act::Write);
            }
            Act::Write => {
                self.note();
                write(&self.timed.journal, 0, &[1; 512]);
            }
            Act::Mark => {
                self.note();
                let id = self.id();
                self.timed.mark(u64::from(id), "m");
            }
            Act::Session => {
                self.note();
                let (id, event) = match self.session.take() {
                    Some(id) => (id, SessionEvent::Close),
                    None => {
                        self.session = Some(self.id());
                        (self.next_id - 1, SessionEvent::Open)
                    }
                };
                self.timed.journal.append_meta(&session(id, event)).unwrap();
            }
        }
    }

    /// The positions that were the newest at a time.
    fn at(&self, ns: u64) -> BTreeSet<Seq> {
        let all = self.shown.iter().filter(|(from, to, _)| (*from..*to).contains(&ns));
        all.map(|(_, _, seq)| *seq).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn a_time_gives_the_position_that_had_it_or_names_all_that_had(
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let mut told = Told::new();
        told.act(Act::Session);
        for act in &acts {
            told.act(*act);
        }
        // An agent that runs says so: a record follows each setting of the clock.
        told.act(Act::Write);
        told.note();
        let history = load(told.timed.journal.dir());
        let ranges = history.level.iter().flat_map(|r| r.from..=r.to);
        let gaps = history.gaps.iter().flat_map(|g| [Some(g.from), g.to]).flatten();
        for seq in ranges.chain(gaps) {
            let ns = history.wall_ns(seq);
            match history.resolve(&When::Time(ns)) {
                // Records of the very same time are one moment.
                Ok(found) => {
                    prop_assert_eq!(found.wall_ns, ns);
                    let had = told.at(ns);
                    let others = had.iter().filter(|s| history.wall_ns(**s) != ns);
                    prop_assert_eq!(others.count(), 0, "{} of {:?}", found.seq, had);
                }
                Err(refused) => prop_assert!(refused.named.len() > 1, "{seq}: {refused:?}"),
            }
        }
        for at in &history.checkpoints {
            match history.resolve(&When::Time(at.wall_ns)) {
                Ok(found) => prop_assert_eq!(found.wall_ns, at.wall_ns),
                Err(refused) => prop_assert!(refused.named.iter().any(|p| p.wall_ns == at.wall_ns)),
            }
        }
        let points: Vec<Point> = history.checkpoints.iter().map(|c| history.point(c.seq)).collect();
        let named: Vec<bool> = points.iter().map(|p| history.is_named_by_time(p)).collect();
        prop_assert_eq!(history.are_named_by_time(&points), named);
        if !acts.iter().any(|act| matches!(act, Act::Set(_))) {
            let mut times = history.checkpoints.iter().map(|c| When::Time(c.wall_ns));
            prop_assert!(times.all(|when| history.resolve(&when).is_ok()));
        }
    }
}
