//! Which runs answer for a position, which are to be built, and which are of no use any more: pure.
//!
//! What always holds:
//! * a run counts for a position only if no number in its units is above it: a record above would
//!   hide what counts there. Neighbouring units overlap in numbers at their border, so it is the
//!   run's highest number that says so, not its units;
//! * whatever no run covers is taken from the units' own indexes, filtered by number;
//! * a lower level stays while a higher one covers it: positions inside of the higher one need it.

use super::run::{LEVEL_MAX, Span};
use crate::Seq;

/// Units of a level-1 run, and runs of a level that make one of the next. Fewer units that no run
/// covers, and fewer runs side by side, cost a piece more on the disk each level: with 8, opening a
/// moment reads 7 indexes at most.
pub const FANOUT: u64 = 8;

/// A unit's file, as far as runs are concerned; rows come ascending and disjoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitRow {
    /// Number of the unit, or the first that a merged one stands for.
    pub first: u64,
    /// The last that a merged one stands for, else the same.
    pub last: u64,
    /// Its lowest record number; above `last_seq` when it holds none.
    pub first_seq: Seq,
    /// Its highest record number.
    pub last_seq: Seq,
    /// It never changes any more.
    pub sealed: bool,
}

/// What to read for the map at a position: indexes into what was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cover {
    /// The base run.
    pub base: Option<usize>,
    /// Runs, ascending by what they cover.
    pub runs: Vec<usize>,
    /// Units whose own index is needed, filtered by number.
    pub units: Vec<usize>,
}

/// The fewest files that show every record up to `at` of every unit, whatever edge there is.
#[must_use]
pub fn cover(at: Seq, runs: &[Span], units: &[UnitRow]) -> Cover {
    let usable = |run: &Span| run.last_seq <= at;
    let base = (0..runs.len())
        .filter(|&i| runs[i].is_base() && usable(&runs[i]))
        .max_by_key(|&i| (runs[i].last_unit, runs[i].last_seq));
    let mut cover = Cover { base, ..Cover::default() };
    let mut covered = base.map_or(0, |i| runs[i].last_unit);
    for (i, unit) in units.iter().enumerate() {
        if unit.last <= covered || unit.first_seq > at || unit.first_seq > unit.last_seq {
            continue;
        }
        // The one that reaches furthest of those that cover what comes next.
        let next = unit.first.max(covered + 1);
        let reaching = (0..runs.len())
            .filter(|&r| !runs[r].is_base() && usable(&runs[r]))
            .filter(|&r| runs[r].first_unit <= next && next <= runs[r].last_unit)
            .max_by_key(|&r| runs[r].last_unit);
        match reaching {
            Some(run) => {
                cover.runs.push(run);
                covered = runs[run].last_unit;
                // A merged unit may go on behind the run.
                if unit.last > covered {
                    cover.units.push(i);
                    covered = unit.last;
                }
            }
            None => {
                cover.units.push(i);
                covered = unit.last;
            }
        }
    }
    cover
}

/// What a run is to be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// What it will cover.
    pub span: Span,
    /// Runs of the level below: indexes into what was given.
    pub runs: Vec<usize>,
    /// Units whose index is needed instead (level 1): indexes into what was given.
    pub units: Vec<usize>,
}

/// What to do next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The next run to build, lowest level first.
    pub build: Option<Build>,
    /// Runs that no position needs any more: at or below the newest base run's edge.
    pub delete: Vec<usize>,
}

/// What to build and what to delete; asked again after each.
#[must_use]
pub fn plan(runs: &[Span], units: &[UnitRow]) -> Plan {
    let base = runs.iter().filter(|r| r.is_base()).max_by_key(|r| (r.last_unit, r.last_seq));
    let edge_unit = base.map_or(0, |b| b.last_unit);
    let useless = |run: &Span| match (run.is_base(), base) {
        (true, Some(base)) => run.last_seq < base.last_seq,
        _ => run.last_unit <= edge_unit,
    };
    let delete = (0..runs.len()).filter(|&i| useless(&runs[i])).collect();
    let build = (1..=LEVEL_MAX).find_map(|level| build_level(level, edge_unit, runs, units));
    Plan { build, delete }
}

/// Numbers of the aligned units of a level's run that a unit belongs to.
#[must_use]
pub fn aligned(level: u8, unit: u64) -> (u64, u64) {
    let size = FANOUT.pow(level.into());
    let first = (unit.max(1) - 1) / size * size + 1;
    (first, first + size - 1)
}

/// The first run of a level that is not there though all that it is made of is.
fn build_level(level: u8, edge_unit: u64, runs: &[Span], units: &[UnitRow]) -> Option<Build> {
    let newest = units.iter().rev().find(|u| u.sealed)?.last;
    let mut first = aligned(level, edge_unit + 1).0;
    loop {
        let (_, last) = aligned(level, first);
        if last > newest {
            return None;
        }
        let there = runs.iter().any(|r| r.level == level && r.first_unit == first);
        let parts = if level == 1 { from_units(first, last, units) } else { None };
        let parts = parts.or_else(|| from_runs(level, first, last, runs));
        if let Some((run_parts, unit_parts)) = parts.filter(|_| !there) {
            let spans = run_parts.iter().map(|&i| (runs[i].first_seq, runs[i].last_seq));
            let rows = unit_parts.iter().map(|&i| (units[i].first_seq, units[i].last_seq));
            let (first_seq, last_seq) = spans
                .chain(rows)
                .filter(|(from, to)| from <= to)
                .fold((Seq::MAX, 0), |all, one| (all.0.min(one.0), all.1.max(one.1)));
            let first_seq = first_seq.min(last_seq);
            let span = Span { level, first_unit: first, last_unit: last, first_seq, last_seq };
            return Some(Build { span, runs: run_parts, units: unit_parts });
        }
        first = last + 1;
    }
}

type Parts = (Vec<usize>, Vec<usize>);

/// The sealed units that are exactly these numbers.
fn from_units(first: u64, last: u64, units: &[UnitRow]) -> Option<Parts> {
    let inside = (0..units.len()).filter(|&i| units[i].first <= last && units[i].last >= first);
    let mut next = first;
    let mut parts = Vec::new();
    for i in inside {
        let unit = &units[i];
        if !unit.sealed || unit.first != next || unit.last > last {
            return None;
        }
        next = unit.last + 1;
        parts.push(i);
    }
    (next == last + 1).then_some((Vec::new(), parts))
}

/// The runs of the level below that are exactly these units.
fn from_runs(level: u8, first: u64, last: u64, runs: &[Span]) -> Option<Parts> {
    let mut next = first;
    let mut parts = Vec::new();
    while level > 1 && next <= last {
        let part = runs.iter().position(|r| r.level == level - 1 && r.first_unit == next)?;
        next = runs[part].last_unit + 1;
        parts.push(part);
    }
    (next == last + 1).then_some((parts, Vec::new()))
}
