//! Whether records that had been answered may be missing at an opening: the one place that decides it.
//!
//! What always holds: an end is taken for harmless only on evidence. Either the journal was closed, or
//! all of this holds: same boot, each open unit on the mount that it was made on, the very ring and unit
//! files that were written, no failed sync, nothing torn or damaged, and no higher number noted outside
//! of the journal in this boot. Anything else is a loss, and numbers are skipped for it, so that later
//! openings know of it as well (`History::cut_at`).

use super::Options;
use super::head_note::Noted;
use crate::history::{History, Unit};
use crate::ring::Left;
use crate::unit::ScanEnd;
use crate::{Seq, planted};

/// Records that had been answered may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The last position that is certain: nothing at or below it is missing.
    pub certain: Seq,
    /// Why, for people: a clause without its end.
    pub why: String,
}

/// What an opening found beside the journal's records.
pub(super) struct Traces {
    /// Of the ring.
    pub(super) ring: Left,
    /// What was noted outside of the journal's directory.
    pub(super) noted: Option<Noted>,
    /// A member that is away may hold the newest units.
    pub(super) tail_unknown: bool,
    /// Word of a failed sync was there.
    pub(super) sync_failed: bool,
}

/// Judges how the last writer ended.
pub(super) fn judge(history: &History, options: &Options, traces: &Traces) -> Option<Loss> {
    let why = broken(history, traces).or_else(|| unproved(history, options, traces))?;
    Some(Loss { certain: history.head, why })
}

/// What is missing for certain, whether it was closed or not.
fn broken(history: &History, traces: &Traces) -> Option<String> {
    if let Some(damage) = history.damage.iter().find(|d| !d.is_given_up) {
        return Some(format!("the journal is damaged ({})", damage.what));
    }
    if traces.tail_unknown {
        return Some("the newest units are on a member of the pool that is away".into());
    }
    if let Some(noted) = traces.noted.filter(|n| ends_before(history, *n)) {
        return Some(format!(
            "the journal ends at {}, but {} had been written: an older copy of it was put back",
            history.head, noted.head
        ));
    }
    if traces.sync_failed {
        return Some("a sync of the journal had failed".into());
    }
    history.torn.then(|| "the end of the journal is torn".into())
}

/// Why an unclean end can't be taken for a mere end of the process.
fn unproved(history: &History, options: &Options, traces: &Traces) -> Option<String> {
    let newest = history.units.last().filter(|_| !history.closed)?;
    let mut open: Vec<&Unit> = history.units.iter().filter(|u| is_open(u, history)).collect();
    open.push(newest);
    let storage = &*options.storage;
    let boot_id = options.clock.boot_id();
    for unit in open {
        if boot_id == [0; 16] || unit.header.boot_id != boot_id {
            return Some("the host was restarted while the journal was open".into());
        }
        let dir = unit.path.parent().unwrap_or(&history.dir);
        if unit.header.mount_id != storage.mount_id(dir) {
            return Some(format!(
                "the file system of {} was mounted anew while the journal was open",
                dir.display()
            ));
        }
    }
    if planted::is("ring-lost-unnoticed") {
        return None;
    }
    match &traces.ring {
        Left::Nothing => Some("the journal's ring is lost, or was put back from a copy".into()),
        Left::Ring { replaced: Some(path), .. } => {
            Some(format!("{} was put back from a copy", path.display()))
        }
        // An opening that died before it had its ring took no record.
        Left::Ring { epoch, .. } if *epoch < history.epoch && has_records(history) => {
            Some("the journal's ring is older than its units".into())
        }
        Left::Ring { .. } => None,
    }
}

fn ends_before(history: &History, noted: Noted) -> bool {
    let is_older = history.epoch < noted.epoch || history.head < noted.head;
    is_older && !planted::is("note-of-the-head-unread")
}

/// Units of the newest epoch that are not sealed: what others hold was synced.
fn is_open(unit: &Unit, history: &History) -> bool {
    unit.end != ScanEnd::Sealed && unit.header.epoch == history.epoch
}

fn has_records(history: &History) -> bool {
    let newest = history.units.iter().enumerate().filter(|(_, u)| u.header.epoch == history.epoch);
    let mut counts = newest.map(|(i, _)| history.records(i as u32).map_or(1, |r| r.len()));
    counts.any(|count| count > 0)
}
