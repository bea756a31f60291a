//! Checkpoints with memory: which of them can be restored warm.
//!
//! Such a checkpoint has two positions: its instant, at which the disks are read, and the number of the
//! record that commits it, at which the memory volumes are. What always holds (I-6): it is listed at its
//! instant when that is restorable; with memory only if that is whole at the other position, too. Else
//! it is listed without, and says why.

use super::{CheckpointAt, Damage, History, thinned};
use crate::Seq;
use crate::meta::{LevelRange, Memory};
use crate::planted;

impl CheckpointAt {
    /// Whether the guests can go on from it: their memory is there.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        self.checkpoint.memory.is_some()
    }
}

impl Damage {
    /// Whether memory that is read at a position may have lost something to it. A disk that is copied
    /// whole owes nothing to what was lost before; memory is never copied again, so that a checkpoint
    /// counts on all pages before it.
    fn hits_memory(&self, seq: Seq) -> bool {
        // Of a mark that can't be read nothing but its name is lost, and damage ends right behind it;
        // any other ends with a copy at the earliest.
        let is_mark = self.to == Some(self.last + 1);
        let is_healed = planted::is("memory-healed-with-disks") && self.to.is_some();
        self.from <= seq && !is_mark && !is_healed
    }
}

/// Takes the memory from checkpoints for which it is not whole.
pub(super) fn judge(history: &mut History) {
    let merged = history.units.iter().filter_map(|u| u.merged.as_ref()).filter(|m| m.last_seq > 0);
    let merged = merged.map(|m| (m.first_seq, m.memory_kept()));
    let exact = thinned::exact(0, Seq::MAX, merged);
    let mut checkpoints = std::mem::take(&mut history.checkpoints);
    if planted::is("memory-listed-without-commit") {
        list_uncommitted(&mut checkpoints);
    }
    for point in &mut checkpoints {
        let lost = point.checkpoint.memory.as_ref().and_then(|memory| {
            let point = (point.seq, point.committed);
            why_lost(history, &exact, point, memory)
        });
        if lost.is_some() {
            point.checkpoint.memory = None;
            point.memory_lost = lost;
        }
    }
    history.checkpoints = checkpoints;
}

/// Why memory can't be restored; `None`: it can.
fn why_lost(
    history: &History,
    exact: &[LevelRange],
    (instant, committed): (Seq, Seq),
    memory: &Memory,
) -> Option<String> {
    if instant >= committed || memory.guests.is_empty() {
        return Some("its record says nothing that can be restored".into());
    }
    if let Some(damage) = history.damage.iter().find(|d| d.hits_memory(committed)) {
        return Some(format!("its memory needs what is damaged: {}", damage.what));
    }
    let given_up = history.kept.is_some()
        && committed < history.edge
        && history.kept_memory.binary_search(&committed).is_err();
    let at = exact.partition_point(|r| r.to < committed);
    let is_exact = exact.get(at).is_some_and(|r| r.from <= committed);
    if given_up || !is_exact {
        return Some("its memory was merged away".into());
    }
    let config = history.config_at(committed);
    let volumes = config.map(|c| c.volumes.as_slice()).unwrap_or_default();
    let missing = memory.needs().find(|(id, kind, bytes)| {
        let known = volumes.iter().find(|v| v.id == *id);
        !known.is_some_and(|v| v.kind == *kind && *bytes <= v.bytes)
    });
    missing.map(|(id, ..)| format!("its memory needs volume {id}, which is not what it should be"))
}

/// A bug on purpose: the pages are there, so there is a checkpoint.
fn list_uncommitted(checkpoints: &mut [CheckpointAt]) {
    let mut memory: Option<Memory> = None;
    for point in checkpoints {
        match &point.checkpoint.memory {
            Some(known) => memory = Some(known.clone()),
            None => {
                point.committed += u64::from(memory.is_some());
                point.checkpoint.memory.clone_from(&memory);
            }
        }
    }
}

impl History {
    /// The checkpoint with memory whose instant is just this position; the newest of several.
    #[must_use]
    pub fn memory_at(&self, seq: Seq) -> Option<&CheckpointAt> {
        self.checkpoints.iter().rev().find(|c| c.seq == seq && c.is_warm())
    }

    /// The checkpoints with memory next to a position: the newest whose instant is at or before it, the
    /// first whose instant is behind it.
    #[must_use]
    pub fn nearest_memory(&self, seq: Seq) -> (Option<&CheckpointAt>, Option<&CheckpointAt>) {
        let (before, behind) =
            self.checkpoints.split_at(self.checkpoints.partition_point(|c| c.seq <= seq));
        let warm = |c: &&CheckpointAt| c.is_warm();
        (before.iter().rev().find(warm), behind.iter().find(warm))
    }
}
