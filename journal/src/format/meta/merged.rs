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
}

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

impl Merged {
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
        seq >= edge || seq < self.first_seq || kept.binary_search(&seq).is_ok()
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
