//! How far back the journal reaches: pure decisions about edge, limits, thinning and merging.
//!
//! ```text
//!   base, log-structured  thinned: kept checkpoints   window: every position can be restored
//!   unit 1 ... unit k  |  unit k+1 ... unit m     |   unit m+1 ... unit n (open)
//!                      '- floor                   '- edge: the last number of units 1 to m
//! ```
//!
//! Without thinning there is nothing in between: floor and edge are the same. What always holds:
//! * floor and edge lie at the border of a sealed unit, and never move back;
//! * time that no clock proves expires nothing ([`age`]); only want of space takes history before its
//!   time, and never what is younger than the guaranteed window ([`limits`]);
//! * nothing here reads or writes: the same rows and clocks give the same answer.

pub mod age;
pub mod keep;
pub mod limits;
pub mod victims;

pub use age::edge;
pub use keep::Keep;
pub use limits::{Actions, Alarm, AlarmLevel, Capture, Limits, Usage, decide};
pub use victims::{Group, victims};

use crate::Seq;
use crate::clock::Clock;

/// An instant, as every clock of the machine had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Nanoseconds since the Unix epoch; people set this clock.
    pub wall_ns: u64,
    /// Monotonic time since the boot, nanoseconds.
    pub mono_ns: u64,
    /// The boot.
    pub boot_id: [u8; 16],
}

impl Stamp {
    /// This instant.
    #[must_use]
    pub fn now(clock: &dyn Clock) -> Self {
        Self { wall_ns: clock.wall_ns(), mono_ns: clock.mono_ns(), boot_id: clock.boot_id() }
    }
}

/// A unit's file as the policy sees it, merged or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// First number of the log's units that it holds.
    pub first: u64,
    /// Last one; the same, unless it is merged.
    pub last: u64,
    /// Whether it is a merged one.
    pub merged: bool,
    /// Whether `made` proves when `after_seq` had been given out. That of a merged one does if it was
    /// taken over from the last of the units that it replaces.
    pub timed: bool,
    /// Whether it is sealed, readable, and may be given up for a merged one.
    pub sound: bool,
    /// Its highest sequence number (0: it holds none).
    pub last_seq: Seq,
    /// When its header was made, or that of the last unit that it replaces.
    pub made: Stamp,
    /// The newest number that had been given out then.
    pub after_seq: Seq,
    /// Bytes that its file takes.
    pub file_bytes: u64,
    /// Bytes that a merged unit would take for what is still needed of it; `None`: not known.
    pub live_bytes: Option<u64>,
}

/// Where the base ends and the window begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// The last unit of the base.
    pub unit: u64,
    /// The highest number in the base's units.
    pub seq: Seq,
}

/// The edge behind `rows[..count]`; `None` when that is nothing.
fn edge_behind(rows: &[Row], count: usize) -> Option<Edge> {
    let base = &rows[..count];
    let seq = base.iter().map(|r| r.last_seq).max().filter(|seq| *seq > 0)?;
    Some(Edge { unit: base.last()?.last, seq })
}

/// How many rows from the first one are sound without a hole: the edge can't pass what can't be read.
fn sound_rows(rows: &[Row]) -> usize {
    let mut expected = rows.first().map_or(0, |r| r.first);
    let sound = rows.iter().take_while(|r| {
        let next = r.first == expected;
        expected = r.last + 1;
        r.sound && next
    });
    sound.count()
}
