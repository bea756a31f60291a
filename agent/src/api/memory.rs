//! What goes over the wire about checkpoints of memory.

use afterimage_journal::Seq;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

use crate::settings::MemoryMode;

/// What is done about a group's memory at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryState {
    /// Nothing.
    #[default]
    Idle,
    /// QEMU sends the guests' memory.
    Snapshot,
    /// What changed goes to the journal.
    Storing,
}

impl fmt::Display for MemoryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "idle",
            Self::Snapshot => "snapshot",
            Self::Storing => "storing",
        })
    }
}

/// Checkpoints of a guest's memory, as `status` shows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// What is done now.
    pub state: MemoryState,
    /// Time between two of them, in milliseconds; `None`: only those that are asked for.
    pub every_ms: Option<u64>,
    /// How they are taken.
    pub mode: MemoryMode,
    /// The last one since the agent started; earlier ones are in `checkpoints`.
    pub last: Option<MemoryCheckpoint>,
    /// Why the last try failed, and what to do; `None`: it did not.
    pub error: Option<String>,
}

/// A checkpoint of a group's memory that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryCheckpoint {
    /// Its number.
    pub id: u64,
    /// Its position.
    pub seq: Seq,
    /// Its instant.
    pub time: Timestamp,
    /// The longest that one of the guests stood still for it, in microseconds.
    pub pause_us: u64,
    /// What of the memory and the devices' state was new to the journal, in bytes.
    pub changed_bytes: u64,
    /// From the beginning to the durable record, in milliseconds.
    pub took_ms: u64,
    /// How the instant was taken: `in-band`, `explicit` (stopped until the first page), or `stop`.
    pub order: String,
}
