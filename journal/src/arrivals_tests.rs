//! Notes of arrivals: what they prove, how many there are, and what hosts and clocks do to them.

use super::{Arrivals, NOTE_EVERY_NS};
use crate::clock::Clock;
use crate::storage::RealStorage;
use crate::window::{Row, Stamp, edge};
use std::sync::Mutex;

const HOUR: u64 = 3600 * 1_000_000_000;
const DAY: u64 = 24 * HOUR;

struct Hands(Mutex<Stamp>);

impl Clock for Hands {
    fn wall_ns(&self) -> u64 {
        self.0.lock().unwrap().wall_ns
    }
    fn mono_ns(&self) -> u64 {
        self.0.lock().unwrap().mono_ns
    }
    fn boot_id(&self) -> [u8; 16] {
        self.0.lock().unwrap().boot_id
    }
}

impl Hands {
    fn new() -> Self {
        Self(Mutex::new(Stamp { wall_ns: 1 << 60, mono_ns: 5, boot_id: [1; 16] }))
    }

    fn pass(&self, ns: u64) {
        let mut now = self.0.lock().unwrap();
        now.wall_ns += ns;
        now.mono_ns += ns;
    }

    /// Another host, or the same one after a boot, that has been up for so long.
    fn other(&self, boot: u8, up_ns: u64) {
        let mut now = self.0.lock().unwrap();
        (now.mono_ns, now.boot_id) = (up_ns, [boot; 16]);
    }
}

/// Units of ten numbers; the sender says that they were made on a host that has been up for a month.
fn rows(count: u64) -> Vec<Row> {
    let row = |n: u64| Row {
        first: n,
        last: n,
        merged: false,
        timed: true,
        sound: n < count,
        last_seq: if n < count { n * 10 } else { u64::MAX },
        made: Stamp { wall_ns: n, mono_ns: n, boot_id: [99; 16] },
        after_seq: (n - 1) * 10,
        file_bytes: 1 << 20,
        live_bytes: None,
    };
    (1..=count).map(row).collect()
}

fn edge_of(arrivals: &Arrivals, clock: &Hands, window_ns: u64) -> u64 {
    let mut rows = rows(20);
    arrivals.date(&mut rows);
    edge(&rows, &arrivals.now(clock), window_ns).map_or(0, |e| e.unit)
}

/// A unit arrives each hour.
fn hourly(clock: &Hands) -> Arrivals {
    let mut arrivals = Arrivals::default();
    for n in 1..20 {
        clock.pass(HOUR);
        assert!(arrivals.note((n * 10, 0), clock));
    }
    arrivals
}

#[test]
fn a_record_ages_from_its_arrival_by_the_sites_clock() {
    let clock = Hands::new();
    let arrivals = hourly(&clock);
    // Unit 19 arrived now, unit 15 four hours ago.
    assert_eq!(edge_of(&arrivals, &clock, 4 * HOUR), 15);
    assert_eq!(edge_of(&arrivals, &clock, DAY), 0);
    clock.pass(10 * HOUR);
    assert_eq!(edge_of(&arrivals, &clock, DAY), 5);
    assert_eq!(edge_of(&Arrivals::default(), &clock, 1), 0, "what nothing tells of stays");
}

#[test]
fn another_boot_and_a_host_that_has_been_up_for_long_prove_an_hour_at_most() {
    let clock = Hands::new();
    let arrivals = hourly(&clock);
    clock.other(2, 30 * DAY);
    assert_eq!(edge_of(&arrivals, &clock, DAY), 0);
    assert_eq!(edge_of(&arrivals, &clock, 4 * HOUR), 16);
    let mut moved = arrivals.clone();
    assert!(moved.note((200, 0), &clock));
    clock.pass(DAY);
    assert_eq!(edge_of(&moved, &clock, DAY), 19);
    assert_eq!(edge_of(&moved, &clock, DAY + 2 * HOUR), 18);
}

#[test]
fn a_wall_clock_that_is_set_changes_no_age() {
    let clock = Hands::new();
    let arrivals = hourly(&clock);
    for wall_ns in [0, 1 << 62] {
        clock.0.lock().unwrap().wall_ns = wall_ns;
        assert_eq!(edge_of(&arrivals, &clock, 4 * HOUR), 15);
    }
}

#[test]
fn notes_are_few_and_prove_a_sixteenth_less_at_most() {
    let clock = Hands::new();
    let mut arrivals = Arrivals::default();
    let mut seq = 0;
    while seq < 40_000 {
        clock.pass(NOTE_EVERY_NS * 11);
        seq += 1;
        assert!(arrivals.note((seq, seq), &clock));
    }
    assert!(arrivals.notes.len() < 1000, "{} notes", arrivals.notes.len());
    for ago in [1, 10, 100, 1000, 10_000, 39_000] {
        let mut rows = rows(2);
        rows[0].last_seq = seq - ago;
        arrivals.date(&mut rows);
        let true_ns = ago * NOTE_EVERY_NS * 11;
        let age_ns = arrivals.now(&clock).mono_ns - rows[1].made.mono_ns;
        assert!(age_ns <= true_ns && age_ns >= true_ns - true_ns / 16, "{age_ns} of {true_ns}");
    }
    assert!(!arrivals.note((seq, seq), &clock), "nothing new is no note");
}

#[test]
fn what_is_written_is_read_back_and_damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let storage = RealStorage::shared();
    let clock = Hands::new();
    let arrivals = hourly(&clock);
    assert_eq!(Arrivals::load(&*storage, dir.path()).unwrap(), None);
    Arrivals::begin(&*storage, dir.path()).unwrap();
    assert_eq!(Arrivals::load(&*storage, dir.path()).unwrap(), Some(Arrivals::default()));
    arrivals.save(&*storage, dir.path()).unwrap();
    Arrivals::begin(&*storage, dir.path()).unwrap();
    assert_eq!(Arrivals::load(&*storage, dir.path()).unwrap().as_ref(), Some(&arrivals));
    let bytes = arrivals.encode();
    for at in 0..bytes.len() {
        let mut rotten = bytes.clone();
        rotten[at] ^= 4;
        assert_eq!(Arrivals::decode(&rotten), None, "byte {at}");
    }
    let mut seeded = Arrivals::default();
    clock.other(3, 9 * DAY);
    assert!(seeded.take_over(&arrivals, &clock) && !seeded.take_over(&arrivals, &clock));
    assert_eq!(edge_of(&seeded, &clock, 4 * HOUR), 15);
    Arrivals::end(&*storage, dir.path()).unwrap();
    assert!(!storage.exists(&dir.path().join(super::NAME)));
}
