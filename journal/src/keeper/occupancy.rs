//! What a journal uses and holds, for status.

use crate::Seq;
use crate::window::age::held_ns;
use crate::window::{Actions, AlarmLevel, Capture, Limits, Row, Stamp, Usage};
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
    /// The edge: positions below it are merged (0: none).
    pub edge: Seq,
    /// Wall time of the newest record at the edge, nanoseconds since the Unix epoch (0: no edge).
    pub edge_wall_ns: u64,
    /// How far back positions reach, seconds.
    pub window_s: u64,
    /// How far back they are to reach, seconds.
    pub window_wanted_s: u64,
    /// Bytes of files that were replaced, and that readers hold.
    pub pinned_bytes: u64,
    /// Bytes that merging will still give back.
    pub reclaimable_bytes: u64,
    /// Bytes that merging has written since the keeper began.
    pub merged_bytes: u64,
    /// Bytes that merging has given back since the keeper began.
    pub freed_bytes: u64,
    /// How far scrubbing is.
    pub scrub: ScrubProgress,
    /// What was found damaged, by name.
    pub damage: Vec<String>,
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
    pub(super) fn take(
        &mut self,
        usage: &Usage,
        limits: &Limits,
        actions: &Actions,
        rows: &[Row],
        now: &Stamp,
    ) {
        self.used_bytes = usage.used_bytes;
        self.hard_bytes = usage.hard_bytes(limits);
        self.limit_bytes = limits.limit_bytes;
        self.alarm = actions.alarm.as_ref().map(|a| level(a.level).to_owned());
        self.alarm_text = actions.alarm.as_ref().map(|a| a.text.clone());
        self.stopped = usage.stopped;
        self.has_room = actions.capture == Capture::Go;
        self.edge = usage.edge.map_or(0, |e| e.seq);
        self.window_s = held_ns(rows, now, usage.edge) / SECOND_NS;
        self.window_wanted_s = limits.window_ns / SECOND_NS;
        self.reclaimable_bytes = usage.reclaimable_bytes;
    }
}

fn level(level: AlarmLevel) -> &'static str {
    match level {
        AlarmLevel::Warning => "warning",
        AlarmLevel::Shortened => "shortened",
        AlarmLevel::Full => "full",
    }
}
