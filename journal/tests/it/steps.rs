//! The policy of thinning: what is kept, by which position a record is judged.

use crate::window::{HOUR, MINUTE, minutes, stamp};
use afterimage_journal::window::Keep;
use afterimage_journal::window::age::spans;
use afterimage_journal::window::keep::{Candidate, Interval, intervals, judges};
use proptest::prelude::*;

#[test]
fn keep_is_read_as_it_is_written() {
    let keep: Keep = "24h,1m:7d,1h:30d".parse().unwrap();
    assert_eq!((keep.every_write_ns(), keep.upto_ns()), (24 * HOUR, 30 * 24 * HOUR));
    assert_eq!(keep.to_string(), "1d,1m:7d,1h:30d");
    assert_eq!(keep.to_string().parse(), Ok(keep));
    assert!(!"90m".parse::<Keep>().unwrap().thins());
    for bad in [
        "",
        "7",
        "0h",
        "-1h",
        "1m:7d",
        "24h,1m",
        "24h,1m:12h",
        "24h,1h:7d,1m:30d",
        "1h,2d:1d",
        "1h,,",
        "1h,1s:30d",
        "99999999999999w",
    ] {
        assert!(bad.parse::<Keep>().is_err(), "{bad:?}");
    }
}

#[test]
fn of_two_wishes_the_finer_counts_at_each_age() {
    let both = |a: &str, b: &str| {
        let (a, b): (Keep, Keep) = (a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(a.with(&b), b.with(&a));
        a.with(&b).to_string()
    };
    assert_eq!(both("1d", "7d"), "7d");
    assert_eq!(both("1d,1m:7d", "12h,1h:30d"), "1d,1m:7d,1h:30d");
    assert_eq!(both("1d,1m:7d", "2d,1h:6d"), "2d,1m:7d");
    let longer = |text: &str, hours| {
        text.parse::<Keep>().unwrap().with_every_write(hours * HOUR).to_string()
    };
    assert_eq!(longer("1d,1m:7d,1h:30d", 48), "2d,1m:7d,1h:30d");
    assert_eq!(longer("1d,1m:7d,1h:30d", 8 * 24), "8d,1h:30d");
}

#[test]
fn a_record_is_judged_where_the_next_position_is_kept() {
    assert_eq!(judges(&[10, 20, 30], 40, 1, 5), [10]);
    assert_eq!(judges(&[10, 20, 30], 40, 10, 10), [10]);
    assert_eq!(judges(&[10, 20, 30], 40, 5, 25), [10, 20, 30]);
    assert_eq!(judges(&[10, 20, 30], 40, 21, 35), [30, 40]);
    assert_eq!(judges(&[], 40, 1, 35), [40]);
}

#[test]
fn what_becomes_one_spans_a_small_part_of_its_age() {
    let rows = minutes(60);
    let now = stamp(1, 1161, 161);
    // Ages from 160 minutes on down; the last one has none.
    let parts = spans(&rows, 0..60, &now);
    assert_eq!((parts[0].clone(), parts[1].clone()), (0..20, 20..38));
    assert_eq!(parts.last(), Some(&(59..60)));
    assert!(spans(&rows, 5..5, &now).is_empty());
}

#[test]
fn thinning_keeps_the_first_of_each_slot_and_all_that_have_names() {
    let keep: Keep = "1h,10m:3h".parse().unwrap();
    let now_min = 10_000;
    let point = |min: u64, tagged| Candidate {
        seq: min,
        wall_ns: min * MINUTE,
        age_ns: (now_min - min) * MINUTE,
        tagged,
        warm: false,
    };
    let all: Vec<_> = (9800..10_000).map(|min| point(min, min == 9855)).collect();
    let kept = keep.choose(&all);
    // Three hours back is 9820, one hour back 9940.
    let slots: Vec<u64> =
        [9820, 9830, 9840, 9850, 9855].into_iter().chain((9860..=9940).step_by(10)).collect();
    assert_eq!(kept, slots);
    assert_eq!(
        intervals(&[9820, 9830], 9810, 9835),
        [(9810, 9820), (9820, 9830), (9830, 9835)].map(|(after, upto)| Interval { after, upto })
    );
    assert_eq!(intervals(&[9820], 9830, 9830), []);
}

#[test]
fn thinning_keeps_the_first_with_memory_of_each_slot_too() {
    let keep: Keep = "1h,10m:3h".parse().unwrap();
    let point = |min: u64| Candidate {
        seq: min,
        wall_ns: min * MINUTE,
        age_ns: (10_000 - min) * MINUTE,
        tagged: false,
        warm: min % 4 == 3,
    };
    let kept = keep.choose(&(9820..9850).map(point).collect::<Vec<_>>());
    assert_eq!(kept, [9820, 9823, 9830, 9831, 9840, 9843]);
}

proptest! {
    #[test]
    fn what_thinning_gave_up_is_never_wanted_again(
        gaps in prop::collection::vec(
            (1u64..40, (prop::bool::weighted(0.05), prop::bool::weighted(0.2))),
            1..200,
        ),
        later in 0u64..3000,
    ) {
        let keep: Keep = "2h,10m:8h,1h:40h".parse().unwrap();
        let mut min = 1000;
        let times: Vec<_> = gaps.iter().map(|(gap, is)| { min += gap; (min, *is) }).collect();
        let at = |now: u64, times: &[(u64, (bool, bool))]| {
            let points: Vec<_> = times.iter().map(|&(t, (tagged, warm))| Candidate {
                seq: t, wall_ns: t * MINUTE, age_ns: now.saturating_sub(t) * MINUTE, tagged, warm,
            }).collect();
            keep.choose(&points)
        };
        // What is left after a first choice: what was chosen, and what is too young to choose from.
        let left: Vec<_> = times.iter().copied()
            .filter(|(t, _)| (min - t) * MINUTE < keep.every_write_ns() || at(min, &times).contains(t))
            .collect();
        prop_assert_eq!(at(min, &left), at(min, &times));
        prop_assert_eq!(at(min + later, &left), at(min + later, &times));
    }
}
