//! Which recovery points there are for a guest, which are nearest, and which ones need a record.
//! Pure, over a loaded [`History`].

use crate::apply::Rotten;
use crate::error::{DamagedRecord, Error, Nearest};
use crate::plan::{Plan, shown};
use crate::time::Moment;
use afterimage_journal::history::Entry;
use afterimage_journal::meta::LevelRange;
use afterimage_journal::view::rank;
use afterimage_journal::{History, Seq};

/// The restorable ranges of a group, or of one guest: those in which it had a session.
pub(crate) fn ranges(history: &History, guest: Option<&str>) -> Vec<LevelRange> {
    let Some(guest) = guest else { return history.level.clone() };
    let mut ranges = Vec::new();
    for level in &history.level {
        for session in history.sessions.iter().filter(|s| s.guest == guest) {
            let from = level.from.max(session.from);
            let to = session.to.map_or(level.to, |to| to.min(level.to));
            if from <= to {
                ranges.push(LevelRange { from, to });
            }
        }
    }
    ranges
}

/// The points next to a position, on both sides.
pub(crate) fn nearest(history: &History, ranges: &[LevelRange], seq: Seq) -> Nearest {
    around(history, ranges, seq.saturating_sub(1), Some(seq + 1))
}

/// The last point at or before `upto`, the first one at or behind `from`.
fn around(history: &History, ranges: &[LevelRange], upto: Seq, from: Option<Seq>) -> Nearest {
    let before = ranges.iter().rev().find(|r| r.from <= upto).map(|r| r.to.min(upto));
    let after =
        from.and_then(|from| ranges.iter().find(|r| r.to >= from).map(|r| r.from.max(from)));
    let point = |seq: Option<Seq>| seq.map(|s| Moment::of(history, history.point(s)));
    Nearest { before: point(before), after: point(after) }
}

/// The points of some ranges next to others: for a guest, whose points are not all of its group's.
pub(crate) fn within(history: &History, ranges: &[LevelRange], nearest: Nearest) -> Nearest {
    let upto = nearest.before.map(|m| m.point.seq);
    let from = nearest.after.map(|m| m.point.seq);
    let before = upto.and_then(|upto| around(history, ranges, upto, None).before);
    let after = from.and_then(|from| around(history, ranges, 0, Some(from)).after);
    Nearest { before, after }
}

/// First position at or behind a data record's own at which newer records cover all of it;
/// `None`: it is needed to the end. One pass over the entries.
pub(crate) fn needed_until(history: &History, entry: &Entry) -> Option<Seq> {
    let record = &entry.record;
    let own = (rank(history, entry, record.seq)?, record.seq);
    let mut left = vec![(record.addr, record.addr.saturating_add(record.len.into()))];
    for other in history.entries().flatten() {
        if other.record.volume != record.volume {
            continue;
        }
        // Where it ranks doesn't change with the position, once it counts at all.
        let Some(rank) = rank(history, &other, other.record.seq) else { continue };
        if (rank, other.record.seq) <= own {
            continue;
        }
        let start = other.record.addr;
        let end = start.saturating_add(other.record.len.into());
        if left.iter().all(|(from, to)| end <= *from || *to <= start) {
            continue;
        }
        left = left
            .into_iter()
            .flat_map(|(from, to)| [(from, to.min(start)), (from.max(end), to)])
            .filter(|(from, to)| from < to)
            .collect();
        if left.is_empty() {
            return Some(other.record.seq.max(record.seq));
        }
    }
    None
}

/// The error for a record that a plan needs and that is damaged.
pub(crate) fn damaged(
    history: &History,
    guest: Option<&str>,
    plan: &Plan,
    rotten: Rotten,
) -> Error {
    let Rotten { entry, volume, addr, why } = rotten;
    let seq = entry.record.seq;
    let nearest = around(
        history,
        &ranges(history, guest),
        seq.saturating_sub(1),
        needed_until(history, &entry),
    );
    let unit = history.units.get(entry.unit as usize).map(|u| u.path.clone());
    Error::Damaged {
        point: plan.point.seq,
        record: Box::new(DamagedRecord {
            unit: unit.unwrap_or_default(),
            at: entry.at,
            seq,
            why,
            disk: plan.volumes.get(volume).map(|v| shown(&v.volume)).unwrap_or_default(),
            addr,
            nearest,
        }),
    }
}
