//! What is known to be missing: records in units that were given up, unreadable places of units that are
//! there.

use super::{Damage, History, Unit};
use crate::Seq;
use crate::catalogue::pass_lost;
use crate::unit::ScanEnd;

/// The damage that merged units tell of: records that they stand for and do not have.
pub(super) fn given_up(units: &[Unit]) -> Vec<Damage> {
    let lost = units.iter().filter_map(|u| u.merged.as_ref()).flat_map(|m| &m.lost);
    let mut lost: Vec<Damage> = lost
        .map(|l| Damage { is_given_up: true, ..Damage::of(l.from, l.last, l.what.clone()) })
        .collect();
    lost.sort_by_key(|d| (d.from, d.last));
    lost.dedup();
    lost
}

/// The first number from this one on that is not among those that are known to be lost.
pub(super) fn known_lost(units: &[Unit], seq: Seq) -> Seq {
    let lost = units.iter().filter_map(|u| u.merged.as_ref()).flat_map(|m| &m.lost);
    pass_lost(lost, seq)
}

/// Where units can't be read, as a clause; empty: nowhere.
pub(super) fn holes(history: &History) -> String {
    let damaged = history.units.iter().filter_map(|u| match &u.end {
        ScanEnd::Damaged { at } => Some(format!("{} at byte {}", u.path.display(), at.first()?)),
        _ => None,
    });
    let list: Vec<_> = damaged.collect();
    if list.is_empty() { String::new() } else { format!(" (unreadable: {})", list.join(", ")) }
}
