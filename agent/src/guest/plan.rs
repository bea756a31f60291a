//! Deciding how a disk gets level: pure.
//!
//! A map is trusted only when it is ours, consistent and was recording all the time; everything
//! else is compared (I-4).

use crate::group::VolumeState;
use afterimage_planted as planted;

/// What has to be done until a disk is level.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The mirror is there, paused by the end of its server: it sends what it noted.
    pub resume: bool,
    /// Maps of what was written while nobody listened: their blocks are pulled.
    pub bitmaps: Vec<String>,
    /// Maps of what the journal has, or the mirror sends: not needed once the disk is level.
    pub covered: Vec<String>,
    /// A copy of the whole disk.
    pub full: Option<FullCopy>,
}

/// A copy of a whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullCopy {
    /// Everything from this byte address on, the first time.
    Initial {
        /// Where to go on.
        from: u64,
    },
    /// Only what differs from the journal.
    Compare,
    /// Everything, zeroes too, whatever the journal has: units of it are lost, or away and may come back.
    Whole,
}

/// What was found of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// A job of ours is there.
    pub job: bool,
    /// A bitmap of ours has recorded since the journal last knew the disk.
    pub mapped: bool,
    /// What the journal has of it.
    pub journal: VolumeState,
    /// Its image lies as it lay when the guest had ended, and the guest hasn't run since.
    pub untouched: bool,
    /// Its size is another than the journal's.
    pub resized: bool,
    /// The journal's records of it can't be trusted.
    pub damaged: bool,
}

/// What to do for a disk; the bitmaps are filled in by name later.
#[must_use]
pub fn decide(found: &Found) -> Plan {
    let known = found.journal.has_data || found.journal.complete;
    let maps_gone = found.journal.owes_maps && !found.mapped;
    if found.damaged && !planted::is("damage-is-only-compared") {
        return Plan { resume: found.job, full: Some(FullCopy::Whole), ..Plan::default() };
    }
    if found.damaged || found.journal.owes_compare || maps_gone || (found.resized && known) {
        return Plan { resume: found.job, full: Some(FullCopy::Compare), ..Plan::default() };
    }
    let rest =
        (!found.journal.complete).then_some(FullCopy::Initial { from: found.journal.initial_upto });
    if found.job {
        // The map that the journal noted last shows that this is the journal which the mirror wrote to.
        // What the mirror has sent to another one, or to this one later than a copy of it that was put
        // back, it will not send again.
        let proved = found.mapped || !known || planted::is("believe-a-mirror-without-its-map");
        let full = if proved { rest } else { Some(FullCopy::Compare) };
        return Plan { resume: true, full, ..Plan::default() };
    }
    if found.mapped || found.untouched {
        return Plan { full: rest, ..Plan::default() };
    }
    let full = if known { FullCopy::Compare } else { FullCopy::Initial { from: 0 } };
    Plan { full: Some(full), ..Plan::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: VolumeState = VolumeState {
        complete: true,
        initial_upto: 0,
        has_data: true,
        owes_compare: false,
        owes_maps: false,
    };
    const NEW: VolumeState = VolumeState { complete: false, has_data: false, ..KNOWN };
    const HALF: VolumeState = VolumeState { complete: false, initial_upto: 4096, ..KNOWN };

    fn found(job: bool, mapped: bool, journal: VolumeState) -> Found {
        Found { job, mapped, journal, untouched: false, resized: false, damaged: false }
    }

    #[test]
    fn a_copy_of_everything_is_made_only_when_nothing_says_what_changed() {
        let full = |f: &Found| decide(f).full;
        assert_eq!(full(&found(false, false, NEW)), Some(FullCopy::Initial { from: 0 }));
        assert_eq!(full(&found(true, true, KNOWN)), None);
        assert_eq!(full(&found(false, true, KNOWN)), None);
        assert_eq!(full(&found(false, false, KNOWN)), Some(FullCopy::Compare));
        assert_eq!(full(&Found { untouched: true, ..found(false, false, KNOWN) }), None);
    }

    #[test]
    fn an_interrupted_first_copy_goes_on_only_under_a_map() {
        let rest = Some(FullCopy::Initial { from: 4096 });
        assert_eq!(decide(&found(true, true, HALF)).full, rest);
        assert_eq!(decide(&found(false, true, HALF)).full, rest);
        assert_eq!(decide(&found(false, false, HALF)).full, Some(FullCopy::Compare));
    }

    #[test]
    fn what_cannot_be_trusted_is_compared() {
        for (job, mapped) in [(true, true), (false, true), (true, false)] {
            let damaged = Found { damaged: true, ..found(job, mapped, KNOWN) };
            assert_eq!(decide(&damaged).full, Some(FullCopy::Whole), "lost units may come back");
            let resized = Found { resized: true, ..found(job, mapped, KNOWN) };
            assert_eq!(decide(&resized).full, Some(FullCopy::Compare));
        }
        let owing = VolumeState { owes_compare: true, ..KNOWN };
        for (job, mapped) in [(true, true), (false, true), (true, false)] {
            assert_eq!(decide(&found(job, mapped, owing)).full, Some(FullCopy::Compare));
        }
        let gone = VolumeState { owes_maps: true, ..KNOWN };
        assert_eq!(decide(&found(true, false, gone)).full, Some(FullCopy::Compare));
        assert_eq!(decide(&found(true, true, gone)).full, None);
    }

    #[test]
    fn mirror_without_the_map_that_the_journal_noted_is_compared() {
        assert_eq!(decide(&found(true, false, KNOWN)).full, Some(FullCopy::Compare));
        assert_eq!(decide(&found(true, false, HALF)).full, Some(FullCopy::Compare));
        assert_eq!(decide(&found(true, false, NEW)).full, Some(FullCopy::Initial { from: 0 }));
    }
}
