//! What a merged unit says of itself: what it replaces, and for which positions nothing of it is gone.

use crate::Seq;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where an epoch begins, and the last valid number before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: u64,
    /// Its first number.
    pub first_seq: Seq,
    /// Numbers above this one are void in units of older epochs.
    pub prev_last_seq: Seq,
    /// The salt of its first unit: random, so no two openings of a journal share it, copies of it
    /// included. Not there: merged by a program that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Number of its first unit. Not there: as `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<u64>,
}

/// Most epochs that a merged unit lists: far below what a record of metadata has room for.
pub const EPOCHS_LISTED_MAX: usize = 256;

/// The first record of a merged unit: what it replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merged {
    /// Number of the first unit that it replaces.
    pub first: u64,
    /// Number of the last one.
    pub last: u64,
    /// The edge as of which it was merged: positions from here on lost nothing.
    pub edge: Seq,
    /// The epochs that began in what it replaces, so that void numbers stay void.
    #[serde(default)]
    pub epochs: Vec<EpochStart>,
    /// From this epoch on `epochs` is complete; of older ones it may list the first alone. Not there: it
    /// is complete.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epochs_from: u64,
    /// Positions before the edge for which everything was kept, too; ascending.
    #[serde(default)]
    pub kept: Vec<Seq>,
    /// Where the base ended then: nothing below it is restorable. Not there: at the edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Seq>,
    /// The same of memory, where that is read at other positions. Not there: `edge` and `kept`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryKept>,
    /// When the last unit that it replaces was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// Lowest number of a record in what it replaces (0: there was none).
    #[serde(default)]
    pub first_seq: Seq,
    /// Highest number of a record in what it replaces.
    #[serde(default)]
    pub last_seq: Seq,
    /// Wall time of its first record, nanoseconds since the Unix epoch.
    #[serde(default)]
    pub first_wall_ns: u64,
    /// Wall time of its last record.
    #[serde(default)]
    pub last_wall_ns: u64,
    /// What it replaces and does not have: records of units that were lost, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
}

/// Most ranges of lost records that a merged unit lists; beyond that, neighbors are joined.
pub const LOST_LISTED_MAX: usize = 64;

/// Records that are lost for good, with the units that held them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The first number that may be among them.
    pub from: Seq,
    /// The last one; before the first if all that they can have held is void.
    pub last: Seq,
    /// Epochs above the first of these and up to the second may have begun there, and are not known.
    #[serde(default)]
    pub epochs: (u64, u64),
    /// Which units, and why, for people.
    pub what: String,
}

/// Where memory volumes lost nothing in a merged unit: they are read at the numbers of the records
/// that commit checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryKept {
    /// From here on nothing is lost.
    pub edge: Seq,
    /// Positions before that for which everything was kept; ascending.
    #[serde(default)]
    pub kept: Vec<Seq>,
}

/// When a unit was made: proves that all numbers up to `after_seq` are older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The newest number that had been given out.
    pub after_seq: Seq,
    /// Wall time, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// Monotonic time since the boot, nanoseconds.
    pub mono_ns: u64,
    /// The boot.
    pub boot_id: Uuid,
}

/// Of ranges that were joined.
const MORE: &str = ", and more behind them";

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(epoch: &u64) -> bool {
    *epoch == 0
}

impl Merged {
    /// What stands for units of which nothing is there.
    #[must_use]
    pub fn nothing(first: u64, last: u64) -> Self {
        Self {
            first,
            last,
            edge: 0,
            epochs: Vec::new(),
            epochs_from: 0,
            kept: Vec::new(),
            floor: None,
            memory: None,
            made: None,
            first_seq: 0,
            last_seq: 0,
            first_wall_ns: 0,
            last_wall_ns: 0,
            lost: Vec::new(),
        }
    }

    /// Shortens `epochs` to at most `max` entries, which bounds the unit's first record however often the
    /// journal is opened. The first stays (it makes numbers of units before this one void), and so do the
    /// newest at or below the floor and all above it (they end sessions that are still restorable).
    pub fn shorten_epochs(&mut self, max: usize) {
        let floor = self.floor();
        let below = self.epochs.iter().filter(|e| e.first_seq <= floor).count();
        let surplus = self.epochs.len().saturating_sub(max).min(below.saturating_sub(2));
        if surplus > 0 {
            self.epochs.drain(1..=surplus);
            self.epochs_from = self.epochs_from.max(self.epochs.get(1).map_or(0, |e| e.epoch));
        }
    }

    /// Adds what a merged unit that it stands for had lost.
    pub fn lose(&mut self, lost: &[Lost]) {
        self.lost.extend_from_slice(lost);
        self.lost.sort_by_key(|l| (l.from, l.last));
        self.lost.dedup();
        while self.lost.len() > LOST_LISTED_MAX {
            // What lies between the two counts as lost as well.
            let behind = self.lost.remove(1);
            let first = &mut self.lost[0];
            first.last = first.last.max(behind.last);
            first.epochs.0 = first.epochs.0.min(behind.epochs.0);
            first.epochs.1 = first.epochs.1.max(behind.epochs.1);
            if !first.what.ends_with(MORE) {
                first.what.push_str(MORE);
            }
        }
    }

    /// Where the base ended when it was made.
    #[must_use]
    pub fn floor(&self) -> Seq {
        self.floor.unwrap_or(self.edge).min(self.edge)
    }

    /// Whether nothing is gone that disks need at a position.
    #[must_use]
    pub fn is_exact_at(&self, seq: Seq) -> bool {
        self.is_exact(self.disks_kept(), seq)
    }

    /// Whether nothing is gone that memory needs at a position.
    #[must_use]
    pub fn is_memory_exact_at(&self, seq: Seq) -> bool {
        self.is_exact(self.memory_kept(), seq)
    }

    fn is_exact(&self, (kept, edge): (&[Seq], Seq), seq: Seq) -> bool {
        self.last_seq == 0
            || seq >= edge
            || seq < self.first_seq
            || kept.binary_search(&seq).is_ok()
    }

    /// Positions before an edge, and the edge from which on disks lost nothing.
    #[must_use]
    pub fn disks_kept(&self) -> (&[Seq], Seq) {
        (&self.kept, self.edge)
    }

    /// The same of memory.
    #[must_use]
    pub fn memory_kept(&self) -> (&[Seq], Seq) {
        self.memory.as_ref().map_or(self.disks_kept(), |m| (&m.kept, m.edge))
    }
}

#[cfg(test)]
mod tests {
    use super::{EpochStart, Merged};

    fn merged(epochs: u64, floor: u64) -> Merged {
        let start = |epoch: u64| EpochStart {
            epoch,
            first_seq: epoch * 10 + 1,
            prev_last_seq: epoch * 10,
            id: None,
            unit: None,
        };
        let text = format!(r#"{{"first":1,"last":9,"edge":{floor}}}"#);
        let bare: Merged = serde_json::from_str(&text).unwrap();
        Merged { epochs: (1..=epochs).map(start).collect(), ..bare }
    }

    #[test]
    fn a_shortened_list_has_the_first_and_the_newest_epochs() {
        let mut many = merged(1000, 9_990);
        many.shorten_epochs(100);
        let left: Vec<u64> = many.epochs.iter().map(|e| e.epoch).collect();
        assert_eq!((left.len(), left[0], left[1], left[99]), (100, 1, 902, 1000));
        assert_eq!(many.epochs_from, 902);
        let mut few = merged(100, 9_000);
        few.shorten_epochs(100);
        assert_eq!((few.epochs.len(), few.epochs_from), (100, 0));
    }

    #[test]
    fn what_begins_above_the_floor_stays_and_the_last_below_it() {
        let mut merged = merged(1000, 505);
        merged.shorten_epochs(10);
        let left: Vec<u64> = merged.epochs.iter().map(|e| e.epoch).collect();
        assert_eq!((left[0], left[1], left[2], left.len()), (1, 50, 51, 952));
    }
}
