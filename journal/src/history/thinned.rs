//! What is restorable before the window's edge: the positions that thinning kept.
//!
//! What always holds: a position counts only if no merged unit lost anything that it needs, whatever
//! the catalogue says. Without the catalogue's word the merged units' own decides alone: more may be
//! listed then than was meant to be kept, never what can't be restored.

use super::History;
use super::resolve::{NotRestorable, Point};
use crate::Seq;
use crate::meta::LevelRange;

/// Times are shown to people to the millisecond: a kept position is found by what was shown.
const SHOWN_NS: u64 = 1_000_000;

/// Positions between floor and edge for which nothing is gone, as ascending ranges.
pub(super) fn ranges(history: &History) -> Vec<LevelRange> {
    let (floor, edge) = (history.floor, history.edge);
    if floor >= edge {
        return Vec::new();
    }
    let merged = history.units.iter().filter_map(|u| u.merged.as_ref()).filter(|m| m.last_seq > 0);
    let exact = exact(floor, edge, merged.map(|m| (m.first_seq, m.disks_kept())));
    let Some(kept) = &history.kept else { return exact };
    let is_exact = |seq: &&Seq| {
        let at = exact.partition_point(|r| r.to < **seq);
        exact.get(at).is_some_and(|r| r.from <= **seq)
    };
    kept.iter().filter(is_exact).map(|&seq| LevelRange { from: seq, to: seq }).collect()
}

/// What lies in `floor..edge` and in no hole of a merged unit: of each its first number, the positions
/// that it kept, and from where on it lost nothing.
pub(super) fn exact<'m>(
    floor: Seq,
    edge: Seq,
    merged: impl Iterator<Item = (Seq, (&'m [Seq], Seq))>,
) -> Vec<LevelRange> {
    let mut holes: Vec<(Seq, Seq)> = Vec::new();
    for (first_seq, (kept, unit_edge)) in merged {
        let mut from = first_seq;
        for stop in kept.iter().copied().chain([unit_edge]) {
            holes.push((from, stop));
            from = stop.saturating_add(1);
        }
    }
    holes.sort_unstable();
    let mut ranges = Vec::new();
    let mut at = floor;
    for (from, behind) in holes.into_iter().chain([(edge, edge)]) {
        let from = from.min(edge);
        if at < from {
            ranges.push(LevelRange { from: at, to: from - 1 });
        }
        at = at.max(behind);
    }
    ranges
}

impl History {
    /// The oldest recovery point before the window, if thinning kept one.
    #[must_use]
    pub fn thinned_from(&self) -> Option<Point> {
        let oldest = self.level.first().filter(|r| r.from < self.edge)?;
        Some(self.point(oldest.from))
    }

    /// Whether a position and the next are restorable, so that the time between them is known.
    pub(super) fn is_followed(&self, seq: Seq) -> bool {
        self.is_restorable(seq) && self.is_restorable(seq + 1)
    }

    /// A time before the edge: what happened at it is known only where a position was kept.
    pub(super) fn resolve_thinned(&self, ns: u64) -> Result<Point, Box<NotRestorable>> {
        let below = &self.level[..self.level.partition_point(|r| r.to < self.edge)];
        let behind = below.partition_point(|r| self.wall_ns(r.from) <= ns);
        let near = [behind.checked_sub(1), Some(behind)];
        for range in near.into_iter().flatten().filter_map(|i| below.get(i)) {
            for point in [self.point(range.from), self.point(range.to)] {
                if point.wall_ns / SHOWN_NS == ns / SHOWN_NS {
                    return Ok(point);
                }
            }
        }
        let before = behind.checked_sub(1).and_then(|i| below.get(i)).map_or(0, |r| r.to);
        Err(self.refuse(before, self.why_not(before + 1)))
    }
}
