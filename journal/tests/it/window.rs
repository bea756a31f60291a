//! The policy of the window: clocks, limits, thinning, and what is merged.

use afterimage_journal::window::limits::headroom_bytes;
use afterimage_journal::window::victims::reclaimable_bytes;
use afterimage_journal::window::{
    AlarmLevel, Capture, Edge, Keep, Limits, Row, Stamp, Usage, decide, edge, victims,
};
use proptest::prelude::*;

pub const MINUTE: u64 = 60_000_000_000;
pub const HOUR: u64 = 60 * MINUTE;
const UNIT: u64 = 64 << 20;

pub fn stamp(boot: u8, wall_min: u64, mono_min: u64) -> Stamp {
    Stamp { wall_ns: wall_min * MINUTE, mono_ns: mono_min * MINUTE, boot_id: [boot; 16] }
}

/// Unit `number` with numbers up to ten times its own, made when the one before was full.
pub fn row(number: u64, made: Stamp) -> Row {
    Row {
        first: number,
        last: number,
        merged: false,
        timed: true,
        sound: true,
        last_seq: number * 10,
        made,
        after_seq: (number - 1) * 10,
        file_bytes: UNIT,
        live_bytes: None,
    }
}

/// A unit each minute, from minute 1000 of the first boot.
pub fn minutes(count: u64) -> Vec<Row> {
    (1..=count).map(|n| row(n, stamp(1, 1000 + n, n))).collect()
}

fn unit_of(edge: Option<Edge>) -> u64 {
    edge.map_or(0, |e| e.unit)
}

#[test]
fn the_edge_is_the_newest_border_that_the_window_does_not_need() {
    let rows = minutes(10);
    // Unit 4 ended when unit 5 was made, in minute 5.
    let now = stamp(1, 1015, 15);
    assert_eq!(edge(&rows, &now, 10 * MINUTE), Some(Edge { unit: 4, seq: 40 }));
    assert_eq!(edge(&rows, &now, 10 * MINUTE + 1), Some(Edge { unit: 3, seq: 30 }));
    // The newest unit has no end that anything proves.
    assert_eq!(unit_of(edge(&rows, &now, 0)), 9);
    assert_eq!(edge(&rows, &now, HOUR), None);
}

#[test]
fn a_unit_prepared_ahead_proves_nothing_about_the_end_of_the_one_in_use() {
    let mut rows = minutes(5);
    // Unit 3 was made when unit 2 had taken three of its ten records.
    rows[2].after_seq = 13;
    let now = stamp(1, 1005, 5);
    // Unit 2 ended by minute 4, when unit 4 was made.
    assert_eq!(unit_of(edge(&rows, &now, MINUTE)), 3);
    assert_eq!(unit_of(edge(&rows, &now, 2 * MINUTE)), 1);
}

#[test]
fn a_clock_set_forward_expires_nothing() {
    let rows = minutes(10);
    let years = stamp(1, 50_000_000, 11);
    assert_eq!(edge(&rows, &years, HOUR), None);
    // Nor does one that was wrong for a while.
    let mut rows = rows;
    rows[5].made.wall_ns = 50_000_000 * MINUTE;
    assert_eq!(edge(&rows, &stamp(1, 1011, 11), HOUR), None);
}

#[test]
fn a_clock_set_back_keeps_nothing_for_ever() {
    let rows = minutes(10);
    assert_eq!(unit_of(edge(&rows, &stamp(1, 3, 200), HOUR)), 9);
}

#[test]
fn the_time_a_machine_was_off_counts_for_an_hour_at_most() {
    let rows = minutes(10);
    // Ten days off, by a wall clock that may be wrong.
    let up = |mono_min| stamp(2, 1010 + 14_400 + mono_min, mono_min);
    assert_eq!(edge(&rows, &up(5), 24 * HOUR), None);
    assert_eq!(unit_of(edge(&rows, &up(5), HOUR)), 9);
    // Nor does the uptime prove more: this may be another host, to which the journal was moved.
    assert_eq!(edge(&rows, &up(60 * 24 * 30), 2 * HOUR), None);
    // Running time is what expires, from what was written in this boot on.
    let mut rows = rows;
    rows.push(row(11, up(5)));
    assert_eq!(unit_of(edge(&rows, &up(5 + 23 * 60 - 7), 24 * HOUR)), 2);
    // A clock that came up in the past proves the uptime all the same, up to an hour.
    let rows = minutes(10);
    assert_eq!(unit_of(edge(&rows, &stamp(2, 3, 90), HOUR)), 9);
    assert_eq!(edge(&rows, &stamp(2, 3, 20), HOUR), None);
}

#[test]
fn the_edge_stops_before_what_cannot_be_read() {
    let now = stamp(1, 2000, 1000);
    let mut rows = minutes(10);
    rows[4].sound = false;
    assert_eq!(unit_of(edge(&rows, &now, HOUR)), 4);
    let mut rows = minutes(10);
    rows.remove(6);
    assert_eq!(unit_of(edge(&rows, &now, HOUR)), 6);
}

#[test]
fn a_merged_unit_says_nothing_about_time() {
    let mut rows = minutes(6);
    let merged = Row {
        first: 1,
        last: 3,
        merged: true,
        timed: false,
        last_seq: 30,
        made: stamp(1, 1006, 6),
        ..rows[0]
    };
    rows.splice(0..3, [merged]);
    let now = stamp(1, 1010, 10);
    assert_eq!(unit_of(edge(&rows, &now, 6 * MINUTE)), 3);
    assert_eq!(unit_of(edge(&rows, &now, 5 * MINUTE)), 4);
}

#[test]
fn numbers_of_the_base_may_end_behind_its_last_unit() {
    let mut rows = minutes(5);
    // Reserved before the turn, committed after the first record of unit 3.
    rows[1].last_seq = 21;
    rows[3].after_seq = 25;
    let now = stamp(1, 1010, 10);
    assert_eq!(edge(&rows, &now, 6 * MINUTE), Some(Edge { unit: 2, seq: 21 }));
}

fn usage(used_units: u64) -> Usage {
    Usage {
        used_bytes: used_units * UNIT,
        moving_bytes: 0,
        free_bytes: 1 << 40,
        unit_bytes: UNIT,
        reclaimable_bytes: 0,
        stopped: false,
        floor: None,
    }
}

fn limits(limit_units: u64) -> Limits {
    Limits {
        keep: Keep::every_write(24 * HOUR),
        guaranteed_ns: 20 * MINUTE,
        limit_bytes: Some(limit_units * UNIT),
    }
}

#[test]
fn each_line_does_what_was_said_before() {
    // 40 units of history, a unit a minute; the limit has room for 50.
    let rows = minutes(40);
    let now = stamp(1, 1041, 41);
    let at = |used| decide(&usage(used), &rows, &limits(50), &now);
    let level = |used| at(used).alarm.map(|a| a.level);

    assert_eq!((level(39), at(39).edge, at(39).capture), (None, None, Capture::Go));
    assert_eq!(at(39).dead_permille, 500);

    assert_eq!((level(40), at(40).edge), (Some(AlarmLevel::Warning), None));
    let text = at(45).alarm.unwrap().text;
    assert!(text.contains("90 % of its limit") && text.contains("down to the last 20m"), "{text}");

    // Three units of headroom: from 48 on, the oldest goes, as much as is short.
    assert_eq!((level(47), at(47).edge), (Some(AlarmLevel::Warning), None));
    assert_eq!((level(48), unit_of(at(48).edge)), (Some(AlarmLevel::Shortened), 1));
    assert_eq!((level(49), unit_of(at(49).edge)), (Some(AlarmLevel::Shortened), 2));
    assert_eq!(at(49).capture, Capture::Go);
    assert!(at(49).dead_permille < 200);

    // No room for another unit.
    assert_eq!((level(50), at(50).capture), (Some(AlarmLevel::Full), Capture::Stop));
    assert!(at(50).alarm.unwrap().text.contains("capture stops now"));
}

#[test]
fn what_merging_needs_for_a_moment_is_left_free_below_the_limit_but_not_below_the_disk_s_end() {
    let rows = minutes(40);
    let now = stamp(1, 1041, 41);
    let moving = Usage { moving_bytes: 2 * UNIT, ..usage(48) };
    assert_eq!(decide(&moving, &rows, &limits(50), &now).capture, Capture::Stop);
    assert_eq!(decide(&moving, &rows, &limits(51), &now).capture, Capture::Go);
    // What the members have room for is counted by who gives it out.
    let on_disk = Usage { free_bytes: UNIT, ..moving };
    let no_limit = Limits { limit_bytes: None, ..limits(0) };
    assert_eq!(decide(&on_disk, &rows, &no_limit, &now).capture, Capture::Go);
}

#[test]
fn what_merging_still_frees_is_not_taken_from_the_window_too() {
    let rows = minutes(40);
    let now = stamp(1, 1041, 41);
    let usage = Usage { reclaimable_bytes: 2 * UNIT, ..usage(49) };
    assert_eq!(decide(&usage, &rows, &limits(50), &now).edge, None);
}

#[test]
fn the_guaranteed_window_stays_whatever_happens() {
    let rows = minutes(40);
    let now = stamp(1, 1041, 41);
    let full = |floor| Usage { floor, ..usage(500) };
    let actions = decide(&full(None), &rows, &limits(50), &now);
    // Unit 20 ended in minute 21, twenty minutes ago.
    assert_eq!(unit_of(actions.edge), 20);
    assert_eq!(actions.capture, Capture::Stop);
    // An edge that went further (the guaranteed window was made longer) does not come back.
    let behind = Some(Edge { unit: 30, seq: 300 });
    assert_eq!(decide(&full(behind), &rows, &limits(50), &now).edge, behind);
}

#[test]
fn capture_that_stopped_goes_on_with_headroom_only() {
    let rows = minutes(40);
    let now = stamp(1, 1041, 41);
    let capture =
        |stopped, used| decide(&Usage { stopped, ..usage(used) }, &rows, &limits(50), &now).capture;
    assert_eq!(capture(false, 49), Capture::Go);
    assert_eq!(capture(true, 49), Capture::Stop);
    assert_eq!(capture(true, 47), Capture::Stop);
    assert_eq!(capture(true, 46), Capture::Go);
    let text =
        decide(&Usage { stopped: true, ..usage(49) }, &rows, &limits(50), &now).alarm.unwrap().text;
    assert!(text.contains("capture has stopped"), "{text}");
}

#[test]
fn thinned_history_goes_before_any_of_the_window_does() {
    let rows = minutes(40);
    let now = stamp(1, 1041, 41);
    let keep: Keep = "10m,5m:1h".parse().unwrap();
    let limits = Limits { keep, ..limits(50) };
    let at = |used| decide(&usage(used), &rows, &limits, &now);
    // Every write from unit 31 on, checkpoints from the first one on.
    assert_eq!((at(39).floor, unit_of(at(39).edge)), (None, 30));
    assert_eq!((unit_of(at(49).floor), unit_of(at(49).edge)), (2, 30));
    // The guaranteed part is no longer than what keeps every write.
    assert_eq!((unit_of(at(500).floor), unit_of(at(500).edge)), (30, 30));
}

#[test]
fn a_full_disk_counts_as_a_limit() {
    let rows = minutes(40);
    let now = stamp(1, 1041, 41);
    let limits = Limits { limit_bytes: None, ..limits(0) };
    let usage = Usage { free_bytes: 0, ..usage(40) };
    let actions = decide(&usage, &rows, &limits, &now);
    assert_eq!(actions.capture, Capture::Stop);
    assert!(unit_of(actions.edge) >= 3);
    assert!(actions.alarm.unwrap().text.contains("its members have room for"));
}

fn with_live(numbers: std::ops::RangeInclusive<u64>, live_permille: u64) -> Vec<Row> {
    let live_bytes = Some(UNIT * live_permille / 1000);
    numbers.map(|n| Row { live_bytes, ..row(n, stamp(1, 0, 0)) }).collect()
}

#[test]
fn units_with_enough_dead_are_merged_while_they_fit_one() {
    let edge = Edge { unit: 100, seq: 1000 };
    let spans = |rows: &[Row]| {
        let mut all: Vec<_> =
            victims(rows, edge, 500, UNIT).iter().map(|g| (g.first, g.last)).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(spans(&with_live(1..=8, 250)), [(1, 4), (5, 8)]);
    assert_eq!(spans(&with_live(1..=8, 501)), []);
    assert_eq!(spans(&with_live(1..=300, 0)), [(1, 100)]);
    // What stays separates.
    let rows = [with_live(1..=2, 0), with_live(3..=3, 900), with_live(4..=5, 0)].concat();
    assert_eq!(spans(&rows), [(1, 2), (4, 5)]);
    let mut rows = with_live(1..=4, 0);
    rows[1].sound = false;
    assert_eq!(spans(&rows), [(1, 1), (3, 4)]);
}

#[test]
fn tiny_merged_neighbours_go_along() {
    let tiny = |first, last| Row {
        first,
        last,
        merged: true,
        file_bytes: UNIT / 100,
        live_bytes: Some(UNIT / 100 - 4096),
        ..row(1, stamp(1, 0, 0))
    };
    let edge = Edge { unit: 100, seq: 1000 };
    let rows = [vec![tiny(1, 9)], with_live(10..=10, 0), vec![tiny(11, 20)]].concat();
    let groups = victims(&rows, edge, 500, UNIT);
    assert_eq!((groups.len(), groups[0].first, groups[0].last), (1, 1, 20));
    assert_eq!(reclaimable_bytes(&groups), UNIT + 2 * 4096);
    assert!(victims(&[tiny(1, 9), tiny(10, 20)], edge, 500, UNIT).is_empty());
    let many: Vec<_> = (1..=8).map(|n| tiny(n, n)).collect();
    assert_eq!(victims(&many, edge, 500, UNIT).len(), 1);
}

#[test]
fn a_merged_file_is_never_merged_alone() {
    let edge = Edge { unit: 100, seq: 1000 };
    let merged = |first, live| Row {
        first,
        last: first,
        merged: true,
        live_bytes: Some(UNIT * live / 10),
        ..row(1, stamp(1, 0, 0))
    };
    assert!(victims(&[merged(1, 3)], edge, 500, UNIT).is_empty());
    // It takes a neighbour along that would have stayed, if there is room.
    let groups = victims(&[merged(1, 3), merged(2, 7)], edge, 500, UNIT);
    assert_eq!((groups.len(), groups[0].first, groups[0].last), (1, 1, 2));
    assert!(victims(&[merged(1, 3), merged(2, 8)], edge, 500, UNIT).is_empty());
}

proptest! {
    /// Whatever the clocks do, nothing younger than the window (by running time) leaves it, and the
    /// edge never goes back as time goes on.
    #[test]
    fn nothing_younger_than_the_window_is_ever_given_up(
        steps in prop::collection::vec((0u64..30, any::<i32>(), prop::bool::weighted(0.1), 0u64..90), 1..60),
        window_min in 1u64..200,
    ) {
        let (mut true_min, mut mono_min, mut boot) = (100_000u64, 0u64, 1u8);
        let mut rows: Vec<Row> = Vec::new();
        let mut made_at = Vec::new();
        let mut before = None;
        for (run_min, jump, reboot, off_min) in steps {
            true_min += run_min;
            mono_min += run_min;
            if reboot {
                true_min += off_min;
                (mono_min, boot) = (0, boot + 1);
            }
            let wall = true_min.saturating_add_signed(i64::from(jump) / 1000);
            let now = stamp(boot, wall, mono_min);
            rows.push(row(rows.len() as u64 + 1, now));
            made_at.push(true_min);
            let edge = edge(&rows, &now, window_min * MINUTE);
            prop_assert!(edge >= before);
            before = edge;
            if let Some(edge) = edge {
                // The unit behind it was made when its last record had been written.
                let ended = made_at[edge.unit as usize];
                // Wrong clocks can add an hour a reboot at most.
                let slack = 60 * u64::from(boot - rows[edge.unit as usize].made.boot_id[0]);
                prop_assert!(true_min - ended + slack >= window_min);
            }
        }
    }

    #[test]
    fn groups_fit_a_unit_free_what_they_say_and_never_overlap(
        lives in prop::collection::vec((0u64..=1000, any::<bool>(), prop::bool::weighted(0.9)), 1..60),
        permille in 125u64..=500,
    ) {
        let mut number = 0;
        let rows: Vec<Row> = lives.iter().map(|&(live, merged, sound)| {
            let first = number + 1;
            number = first + if merged { live % 5 } else { 0 };
            let file_bytes = if merged { (UNIT * live / 1000).max(8192) } else { UNIT };
            let live_bytes = Some(file_bytes * live / 1000);
            Row { first, last: number, merged, sound, file_bytes, live_bytes, ..row(1, stamp(1, 0, 0)) }
        }).collect();
        let edge = Edge { unit: number / 2 + 1, seq: 1 };
        let mut groups = victims(&rows, edge, permille, UNIT);
        groups.sort_by_key(|g| g.first);
        let mut behind = 0;
        for group in groups {
            prop_assert!(group.first > behind && group.last <= edge.unit);
            behind = group.last;
            prop_assert!(group.live_bytes <= UNIT && group.freed_bytes() > 0);
            let inside: Vec<_> =
                rows.iter().filter(|r| r.first >= group.first && r.last <= group.last).collect();
            prop_assert!(inside.iter().all(|r| r.sound));
            prop_assert!(inside.len() > 1 || !inside[0].merged);
            prop_assert_eq!(inside.iter().map(|r| r.file_bytes).sum::<u64>(), group.file_bytes);
            let records = inside.iter().map(|r| r.last - r.first + 1).sum::<u64>();
            prop_assert_eq!(records, group.last - group.first + 1);
        }
    }

    #[test]
    fn headroom_is_never_more_than_half(hard in 0u64..1 << 50, unit in 1u64 << 20..1 << 36) {
        prop_assert!(headroom_bytes(hard, unit) <= hard / 2);
    }
}
