//! Checking a journal: every checksum ([`verify`]), or one point against a simple replay
//! ([`verify_at`]).

mod at;
mod memory;
mod replay;
mod whole;

pub use at::verify_at;
pub use whole::verify;

use afterimage_journal::Seq;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Recovery points that can't be restored because of damage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRange {
    /// First position.
    pub from: Seq,
    /// Last position; `None`: all that follow, until every disk was copied or compared anew.
    pub to: Option<Seq>,
    /// Time of the first, RFC 3339 in UTC.
    pub from_time: String,
    /// Time of the last.
    pub to_time: Option<String>,
}

/// One thing in the journal that isn't as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageFound {
    /// The unit's file.
    pub unit: Option<PathBuf>,
    /// Byte offset in it.
    pub at: Option<u64>,
    /// The record.
    pub seq: Option<Seq>,
    /// What is wrong.
    pub what: String,
    /// The points whose disks need it; `None`: none does.
    pub refused: Option<RefusedRange>,
    /// The checkpoints whose memory needs it, by number: they can be restored cold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<u64>,
}

/// The result of [`verify`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Units read.
    pub units: u64,
    /// Records checked.
    pub records: u64,
    /// Bytes of payload checked.
    pub bytes: u64,
    /// Everything that is damaged.
    pub damage: Vec<DamageFound>,
    /// What the host could not read: it may be whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<DamageFound>,
    /// Points that are refused because of it, ascending, joined.
    pub refused: Vec<RefusedRange>,
    /// Duration.
    pub seconds: f64,
}

impl VerifyReport {
    /// Whether all was read, and nothing is damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.unread.is_empty()
    }
}

/// One volume of [`verify_at`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDigest {
    /// The guest.
    pub guest: String,
    /// QEMU's node name.
    pub node: String,
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 of the volume as a restore writes it, hexadecimal.
    pub restored: String,
    /// BLAKE3 of the volume as the simple replay leaves it.
    pub replayed: String,
}

impl VolumeDigest {
    /// Whether both ways led to the same bytes.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.restored == self.replayed
    }
}

/// The result of [`verify_at`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyAtReport {
    /// The position.
    pub seq: Seq,
    /// Its time, RFC 3339 in UTC.
    pub time: String,
    /// Both digests of each disk.
    pub disks: Vec<VolumeDigest>,
    /// Both digests of each RAM block and device state, when the point is a checkpoint with memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<VolumeDigest>,
    /// Duration.
    pub seconds: f64,
}

impl VerifyAtReport {
    /// Whether all digests agree.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.disks.iter().chain(&self.memory).all(VolumeDigest::is_equal)
    }
}
