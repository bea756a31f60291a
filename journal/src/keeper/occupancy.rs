//! What a journal uses and holds, for status.

use crate::Seq;
use crate::catalogue::Catalogue;
use crate::window::{Actions, Capture, Limits, Usage};
use serde::{Deserialize, Serialize};

/// See the module. Bytes are those of files; seconds of the window are running time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Bytes of all that counts against the limit.
    pub used_bytes: u64,
    /// The hard line: the group's limit, or what its members have room for.
    pub hard_bytes: u64,
    /// The group's own limit.
    pub limit_bytes: Option<u64>,
    /// `warning`, `shortened` or `full`.
    pub alarm: Option<String>,
    /// What is, what happens next, what can be done.
    pub alarm_text: Option<String>,
    /// Whether capture has room to go on.
    pub has_room: bool,
    /// Whether that was judged for a capture that had stopped for space.
    pub stopped: bool,
    /// The edge: every position from it on is restorable (0: nothing was merged).
    pub edge: Seq,
    /// Wall time of the newest record at the edge, nanoseconds since the Unix epoch (0: no edge).
    pub edge_wall_ns: u64,
    /// How far back every position is restorable, seconds.
    pub window_s: u64,
    /// How far back it is to be, seconds.
    pub window_wanted_s: u64,
    /// Checkpoints that are kept from before the edge.
    #[serde(default)]
    pub kept: u64,
    /// Wall time of the oldest of them, nanoseconds since the Unix epoch (0: there is none).
    #[serde(default)]
    pub kept_from_wall_ns: u64,
    /// Bytes of files that were replaced, and that readers hold.
    pub pinned_bytes: u64,
    /// Bytes that merging will still give back.
    pub reclaimable_bytes: u64,
    /// Bytes that merging has written since the keeper began.
    pub merged_bytes: u64,
    /// Bytes that merging has given back since the keeper began.
    pub freed_bytes: u64,
    /// Why nothing is merged, though all else is kept up.
    #[serde(default)]
    pub merging_waits: Option<String>,
    /// How far scrubbing is.
    pub scrub: ScrubProgress,
    /// What was found damaged, by name.
    pub damage: Vec<String>,
    /// What the host could not read in this pass of the scrubber, by name: it may be whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
    /// Ranges of records that are lost for good, in units that were given up.
    #[serde(default)]
    pub lost: u64,
    /// Why the keeper's last step failed.
    pub error: Option<String>,
}

/// How far scrubbing is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubProgress {
    /// Sealed units that this pass has read.
    pub units_done: u64,
    /// Sealed units that there are.
    pub units: u64,
    /// Whole passes since the keeper began.
    pub passes: u64,
}

const SECOND_NS: u64 = 1_000_000_000;

impl Occupancy {
    pub(super) fn take(&mut self, usage: &Usage, limits: &Limits, actions: &Actions) {
        self.used_bytes = usage.used_bytes;
        self.hard_bytes = usage.hard_bytes(limits);
        self.limit_bytes = limits.limit_bytes;
        self.alarm = actions.alarm.as_ref().map(|a| a.level.name().to_owned());
        self.alarm_text = actions.alarm.as_ref().map(|a| a.text.clone());
        self.stopped = usage.stopped;
        self.has_room = actions.capture == Capture::Go;
        self.window_wanted_s = limits.keep.every_write_ns() / SECOND_NS;
        self.reclaimable_bytes = usage.reclaimable_bytes;
    }

    /// How far back what can be restored; `held_ns` is how far back every position is.
    pub(super) fn take_reach(&mut self, catalogue: &Catalogue, held_ns: u64) {
        self.edge = catalogue.edge();
        let merged = catalogue.units().iter().filter_map(|u| u.merged.as_ref());
        self.lost = merged.map(|m| m.lost.len() as u64).sum();
        self.window_s = held_ns / SECOND_NS;
        let below = catalogue.units().iter().take_while(|u| u.last_seq <= self.edge);
        let at_edge = below.filter(|u| u.last_seq > 0).last();
        self.edge_wall_ns = at_edge.filter(|_| self.edge > 0).map_or(0, |u| u.last_wall_ns);
        let kept = catalogue.kept().unwrap_or_default();
        self.kept = kept.len() as u64;
        let mut checkpoints = catalogue.facts.checkpoints.iter();
        let oldest = checkpoints.find(|c| kept.first() == Some(&c.seq));
        self.kept_from_wall_ns = oldest.map_or(0, |c| c.wall_ns);
    }
}
