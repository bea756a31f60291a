//! How old a unit's newest record surely is.
//!
//! Within a boot, ages are differences of monotonic time: setting the wall clock changes nothing.
//! Between two boots nothing is proved: the machine may have been off for a week, its clock may have been
//! wrong when it came up, and a journal that was moved is on another host, which has been up for as long
//! as it likes. So that counts for at most [`DOWNTIME_MAX_NS`] a boot. What lies before an outage is what
//! people ask for behind it, so it stays for a window of running time. The price is disk space, which the
//! limits bound.
//!
//! A unit's newest record is as old as the first later header that was made when all of its numbers
//! had been given out: no record's own time is needed, and an age is never too high.

use super::{Edge, Row, Stamp, edge_behind, sound_rows};
use crate::{Seq, planted};
use std::ops::Range;

/// The most that the time between two instants of different boots counts for.
pub const DOWNTIME_MAX_NS: u64 = 3600 * 1_000_000_000;

/// Thinned units that become one span at most this part of their age: what it holds ages, and goes,
/// as one.
const SPAN_DIVISOR: u64 = 8;

/// Nanoseconds that surely (see the module) lie between two instants; 0 when `from` is not earlier.
#[must_use]
pub fn between(from: &Stamp, to: &Stamp) -> u64 {
    if from.boot_id == to.boot_id {
        return to.mono_ns.saturating_sub(from.mono_ns);
    }
    let booted_ns = to.wall_ns.saturating_sub(to.mono_ns);
    let off_ns = booted_ns.saturating_sub(from.wall_ns);
    let since_ns = to.mono_ns.saturating_add(off_ns.min(DOWNTIME_MAX_NS));
    match planted::is("uptime-of-another-host-counts") {
        true => since_ns,
        false => since_ns.min(DOWNTIME_MAX_NS),
    }
}

/// The age of each row's header, nanoseconds; one of which nobody knows when it was made has that of the
/// row behind it.
fn made_ages(rows: &[Row], now: &Stamp) -> Vec<u64> {
    let mut ages = vec![0; rows.len()];
    let (mut later, mut age_ns) = (*now, 0u64);
    for (age, row) in ages.iter_mut().zip(rows).rev() {
        if row.timed {
            age_ns = age_ns.saturating_add(between(&row.made, &later));
            later = row.made;
        }
        *age = age_ns;
    }
    ages
}

/// The age of each row's newest record, nanoseconds; `None` when nothing proves that it ended.
#[must_use]
pub fn ages(rows: &[Row], now: &Stamp) -> Vec<Option<u64>> {
    let made = made_ages(rows, now);
    let mut ages = vec![None; rows.len()];
    // Headers behind the row, the nearest last: one of the nearest fits, as the first was prepared
    // ahead and the second when the row was full.
    let mut proofs: Vec<(Seq, u64)> = Vec::new();
    for (i, row) in rows.iter().enumerate().rev() {
        let first_proof = proofs.iter().rev().find(|(after, _)| *after >= row.last_seq);
        ages[i] = first_proof.map(|(_, age)| *age);
        if row.timed {
            proofs.push((row.after_seq, made[i]));
        }
    }
    ages
}

/// The newest border of units at which everything older than the window lies in the base. Rows
/// ascend by number; the last one may be open.
#[must_use]
pub fn edge(rows: &[Row], now: &Stamp, window_ns: u64) -> Option<Edge> {
    let sound = sound_rows(rows);
    let aged = ages(rows, now)[..sound].iter().take_while(|age| is_aged(**age, window_ns)).count();
    edge_behind(rows, aged)
}

fn is_aged(age_ns: Option<u64>, window_ns: u64) -> bool {
    age_ns.is_some_and(|age| age >= window_ns)
}

/// How far back positions reach behind an edge, nanoseconds: the age of the newest record at or
/// below it, or of everything while nothing is.
#[must_use]
pub fn held_ns(rows: &[Row], now: &Stamp, edge: Option<Edge>) -> u64 {
    let base = edge.and_then(|edge| rows.iter().rposition(|r| r.last <= edge.unit));
    match base {
        Some(i) => ages(rows, now)[i].unwrap_or(0),
        None => made_ages(rows, now).first().copied().unwrap_or(0),
    }
}

/// Cuts some of the rows, which ascend by number, into parts that each span a small share of their age.
#[must_use]
pub fn spans(rows: &[Row], part: Range<usize>, now: &Stamp) -> Vec<Range<usize>> {
    let ages = ages(rows, now);
    let age = |i: usize| ages.get(i).copied().flatten();
    let mut found = Vec::new();
    let mut from = part.start;
    for i in part.start + 1..=part.end {
        let within = i < part.end
            && age(from)
                .zip(age(i))
                .is_some_and(|(old, young)| old.saturating_sub(young) <= old / SPAN_DIVISOR);
        if !within {
            found.push(from..i);
            from = i;
        }
    }
    found
}
