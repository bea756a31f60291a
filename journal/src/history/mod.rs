//! What a journal on disk can restore: units scanned, numbers joined, sessions, copies,
//! checkpoints and damage made out. Works beside a running agent and without one.
//!
//! What always holds:
//! * a position is listed only when every guest was level there (I-4, I-6);
//! * records behind a torn tail are dropped, records lost in the middle are damage: no position
//!   that needs them is listed, until everything was compared or copied anew (I-3, I-12).

mod load;
mod resolve;

pub use resolve::{NotRestorable, Point, When};

use crate::error::{Error, Result};
use crate::format::record::Record;
use crate::format::unit_header::UnitHeader;
use crate::layout::Identity;
use crate::meta::{Checkpoint, Config, CopyCause, ImageIdentity, LevelRange, Volume};
use crate::ring::Overlay;
use crate::unit::ScanEnd;
use crate::{Seq, VolumeId, layout, unit};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A unit that was read.
#[derive(Debug)]
pub struct Unit {
    /// Its file.
    pub path: PathBuf,
    /// It, open.
    pub file: File,
    /// Its number.
    pub number: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The boot that wrote it.
    pub boot_id: [u8; 16],
    /// All of its header.
    pub header: UnitHeader,
    /// How its records ended.
    pub end: ScanEnd,
}

/// One record: where it lies, and its header.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Index into [`History::units`].
    pub unit: u32,
    /// Byte offset in the unit.
    pub at: u64,
    /// The header.
    pub record: Record,
}

/// A copy, whole or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyState {
    /// The volume.
    pub volume: VolumeId,
    /// Position at which it began: where its blocks rank (I-5).
    pub as_of: Seq,
    /// Why.
    pub cause: CopyCause,
    /// What is in, up to this byte address.
    pub upto: u64,
    /// Position at which it ended.
    pub ended: Option<Seq>,
}

/// A session of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionState {
    /// Its id.
    pub id: u32,
    /// The guest.
    pub guest: String,
    /// First restorable position.
    pub from: Seq,
    /// Last restorable position; `None` while it is open.
    pub to: Option<Seq>,
    /// Why it ended.
    pub reason: String,
    /// Images as they lay when the guest had ended.
    pub images: Vec<ImageIdentity>,
    /// Whether every block had been copied or compared when it opened.
    pub full: bool,
    /// Whether a record of its own closed it, not the end of its epoch.
    pub closed_by_record: bool,
}

/// A checkpoint and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointAt {
    /// Its position.
    pub seq: Seq,
    /// Its time, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// What it is.
    pub checkpoint: Checkpoint,
}

/// An interval without recovery points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Last restorable position before it (0: none).
    pub from: Seq,
    /// First restorable position behind it; `None` while it lasts.
    pub to: Option<Seq>,
    /// Its start, nanoseconds since the Unix epoch.
    pub from_ns: u64,
    /// Its end.
    pub to_ns: Option<u64>,
    /// Why.
    pub reason: String,
}

/// Something in the journal that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// First position that needs it.
    pub from: Seq,
    /// Last number that is lost or damaged: a copy that began behind it owes nothing to it.
    pub last: Seq,
    /// Positions from here don't; `None`: all behind it do.
    pub to: Option<Seq>,
    /// What, and where.
    pub what: String,
}

/// Everything that is known of a journal without reading its data.
#[derive(Debug)]
pub struct History {
    /// The journal's directory.
    pub dir: PathBuf,
    /// Its identity.
    pub identity: Identity,
    /// Its units, by number.
    pub units: Vec<Unit>,
    /// Its records, by sequence number.
    pub entries: Vec<Entry>,
    /// Each configuration and the position from which it counts.
    pub configs: Vec<(Seq, Config)>,
    /// Sessions in the order of their opening.
    pub sessions: Vec<SessionState>,
    /// Copies by id.
    pub copies: BTreeMap<u32, CopyState>,
    /// The changed-block map of each volume that may be trusted.
    pub maps: BTreeMap<VolumeId, String>,
    /// Checkpoints at restorable positions, by position.
    pub checkpoints: Vec<CheckpointAt>,
    /// Restorable ranges, ascending.
    pub level: Vec<LevelRange>,
    /// What lies between them.
    pub gaps: Vec<Gap>,
    /// What can't be read.
    pub damage: Vec<Damage>,
    /// The newest epoch.
    pub epoch: u64,
    /// The newest position.
    pub head: Seq,
    /// Newest position that is known to have been durable.
    pub watermark: Seq,
    /// Highest number in any valid header, that of a dropped record too: none is used again.
    pub seen_seq: Seq,
    /// Whether the last writer closed the journal.
    pub closed: bool,
    /// Whether records behind the head were dropped as a torn tail.
    pub torn: bool,
    /// Highest number among the units' names (0: there is none).
    pub(crate) unit_number_max: u64,
    /// Units whose header can't be used.
    pub(crate) units_unreadable: u64,
    /// The newest position at which an epoch began after records had been cut off (0: none):
    /// what those said of the volumes has to be found again.
    pub cut_at: Seq,
    /// Highest number of a checkpoint, restorable or not.
    pub last_checkpoint_id: u64,
    /// What is in the ring only.
    pub(crate) ring: Option<Overlay>,
}

impl History {
    /// Reads a journal. It may be written to meanwhile: all that was committed when the call began
    /// counts, and a part of what came after, without a hole.
    ///
    /// # Errors
    /// There is no journal, it can't be read, or a newer program wrote it. Damage is no error
    /// here: it is listed in [`History::damage`].
    pub fn load(dir: &Path) -> Result<Self> {
        let identity = layout::read_identity(dir)?;
        load::load(dir, &identity)
    }

    /// The newest configuration.
    #[must_use]
    pub fn config(&self) -> Option<&Config> {
        self.configs.last().map(|(_, c)| c)
    }

    /// The configuration at a position.
    #[must_use]
    pub fn config_at(&self, seq: Seq) -> Option<&Config> {
        let after = self.configs.partition_point(|(at, _)| *at <= seq);
        self.configs[..after].last().map(|(_, c)| c)
    }

    /// The volumes that belong to the group at a position.
    #[must_use]
    pub fn volumes_at(&self, seq: Seq) -> Vec<&Volume> {
        self.config_at(seq)
            .map(|c| c.volumes.iter().filter(|v| v.active).collect())
            .unwrap_or_default()
    }

    /// Whether a position is in a restorable range.
    #[must_use]
    pub fn is_restorable(&self, seq: Seq) -> bool {
        let i = self.level.partition_point(|r| r.to < seq);
        self.level.get(i).is_some_and(|r| r.from <= seq)
    }

    /// The entry with this number.
    #[must_use]
    pub fn entry(&self, seq: Seq) -> Option<&Entry> {
        let i = self.entries.partition_point(|e| e.record.seq < seq);
        self.entries.get(i).filter(|e| e.record.seq == seq)
    }

    /// Wall time of the newest record at or before a position (0: there is none).
    #[must_use]
    pub fn wall_ns(&self, seq: Seq) -> u64 {
        let i = self.entries.partition_point(|e| e.record.seq <= seq);
        self.entries[..i].last().map_or(0, |e| e.record.wall_ns)
    }

    /// Reads and checks a record's whole payload.
    ///
    /// # Errors
    /// It can't be read, or its checksum doesn't match.
    pub fn read_payload(&self, entry: &Entry, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(entry.record.payload_bytes as usize, 0);
        self.read_payload_into(entry, buffer)
    }

    /// As [`History::read_payload`], into memory of just the payload's size.
    ///
    /// # Errors
    /// As there.
    pub fn read_payload_into(&self, entry: &Entry, buffer: &mut [u8]) -> Result<()> {
        let unit = self.units.get(entry.unit as usize).ok_or_else(|| {
            Error::Invalid(format!("record {} lies in no unit", entry.record.seq))
        })?;
        let ring = self.ring.as_ref().filter(|_| unit.end != ScanEnd::Sealed);
        let (file, from) = ((&unit.file, &*unit.path), (unit.number, ring));
        unit::read_payload(file, from, entry.at, &entry.record, buffer)
    }
}
