//! What a journal on disk can restore: units scanned, numbers joined, sessions, copies,
//! checkpoints and damage made out. Works beside a running agent and without one.
//!
//! What always holds:
//! * a position is listed only when every guest was level there (I-4, I-6);
//! * records behind a torn tail are dropped, records lost in the middle are damage: no position
//!   that needs them is listed, until everything was compared or copied anew (I-3, I-12).

mod cache;
mod entries;
mod glance;
pub(crate) mod level;
mod load;
mod locator;
mod lost;
mod map;
mod memory;
mod passes;
mod payload;
mod pin;
mod resolve;
mod thinned;
mod units;
mod unread;
mod watermark;

pub use entries::{Entries, Entry};
pub use locator::Locator;
pub use map::{Map, rank};
pub use resolve::{NotRestorable, Point, When};
pub use units::{HELD, Records, Unit, open_files_max};
pub(crate) use units::{is_void, open_file, void_above};

use crate::error::Result;
use crate::format::cipher::Cipher;
use crate::layout::{self, Identity};
use crate::log::Loss;
use crate::meta::{Checkpoint, Config, CopyCause, EpochStart, ImageIdentity, LevelRange, Volume};
use crate::storage::{Lock, RealStorage, Storage};
use crate::{Seq, VolumeId};
use cache::Cache;
use payload::{PAYLOAD_BYTES_MAX, PAYLOADS_MAX};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A copy, whole or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// It leaves nothing out because the journal had it ([`Copy::whole`](crate::meta::Copy::whole)).
    #[serde(default)]
    pub whole: bool,
}

/// A session of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointAt {
    /// Its position. That of one with memory is its instant, before its own record.
    pub seq: Seq,
    /// The number of its record: the position at which its memory is read, if it has any.
    pub committed: Seq,
    /// Its time, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// What it is. In a [`History`], `memory` is there only if all of it can be restored.
    pub checkpoint: Checkpoint,
    /// Why it has no memory any more, though it was made with it.
    #[serde(skip)]
    pub memory_lost: Option<String>,
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
    /// Whether the host could not read it, which says nothing of what it holds.
    pub unread: bool,
    /// Whether the units that held it were given up: a merged one stands for them, and what was lost is
    /// known.
    pub is_given_up: bool,
}

impl Damage {
    /// Damage of records from the first number to the last, which all positions from the first on need.
    #[must_use]
    pub fn of(from: Seq, last: Seq, what: String) -> Self {
        Self { from, last, to: None, what, unread: false, is_given_up: false }
    }
}

/// Everything that is known of a journal without reading its data.
#[derive(Debug)]
pub struct History {
    /// The journal's directory.
    pub dir: PathBuf,
    /// Its identity.
    pub identity: Identity,
    /// How its data is read.
    cipher: Cipher,
    /// Its units, by number; their files and indexes are opened when they are asked for.
    pub units: Vec<Unit>,
    /// The epochs, in the order of their beginning.
    pub epochs: Vec<EpochStart>,
    /// Each configuration and the position from which it counts.
    pub configs: Vec<(Seq, Config)>,
    /// Sessions in the order of their opening.
    pub sessions: Vec<SessionState>,
    /// Copies by id.
    pub copies: BTreeMap<u32, CopyState>,
    /// The changed-block map of each volume that may be trusted.
    pub maps: BTreeMap<VolumeId, String>,
    /// The highest position that a tick of each session confirmed as level, by the session's id.
    pub confirmed: BTreeMap<u32, Seq>,
    /// The volumes that any record of data is about.
    pub has_data: BTreeSet<VolumeId>,
    /// The window's edge: what lies before it may have been merged (0: nothing was).
    pub edge: Seq,
    /// Where the base ends: nothing below it is restorable. Between it and the edge single positions
    /// are.
    pub floor: Seq,
    /// Checkpoints at restorable positions, by position. A look behind each found its guests level: none that
    /// is listed here is taken back when a session ends.
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
    /// Whether records that had been answered may be missing behind the head: told by an opening for
    /// writing, which alone looks for it. Later openings know it by [`History::cut_at`].
    pub loss: Option<Loss>,
    /// Highest number of a checkpoint, restorable or not.
    pub last_checkpoint_id: u64,
    /// The positions between floor and edge that stay restorable; `None`: those for which the merged
    /// units lost nothing.
    kept: Option<Vec<Seq>>,
    /// The numbers of the records that commit the memory of such positions; counts with `kept`.
    kept_memory: Vec<Seq>,
    storage: Arc<dyn Storage>,
    /// While it is held, nothing that is listed here is deleted (I-7).
    pin: Option<Lock>,
    opened: units::Opened,
    payloads: Cache<(u32, u64), Arc<Vec<u8>>>,
}

impl History {
    /// Reads a journal, and keeps what it lists from being deleted for as long as this lives
    /// (I-7). It may be written to meanwhile: all that was committed when the call began counts,
    /// and a part of what came after, without a hole.
    ///
    /// # Errors
    /// There is no journal, it can't be read, or a newer program wrote it; somebody deletes parts
    /// of it and doesn't end. Damage is no error here: it is listed in [`History::damage`].
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_in(&RealStorage::shared(), dir)
    }

    /// As [`History::load`], on any storage.
    ///
    /// # Errors
    /// As there.
    pub fn load_in(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Self> {
        let identity = layout::read_identity_in(&**storage, dir)?;
        let pin = pin::take(&**storage, dir)?;
        let mut history = load::load(storage, dir, &identity, true)?;
        history.pin = pin;
        Ok(history)
    }

    /// As [`History::load_in`] for the one writer, which decides itself what is deleted.
    ///
    /// # Errors
    /// As there.
    pub fn load_unpinned(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Self> {
        load::load(storage, dir, &layout::read_identity_in(&**storage, dir)?, true)
    }

    /// As [`History::load_in`], from the units alone: the catalogue is not looked at.
    ///
    /// # Errors
    /// As there.
    pub fn rebuild(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Self> {
        let identity = layout::read_identity_in(&**storage, dir)?;
        let pin = pin::take(&**storage, dir)?;
        let mut history = load::load(storage, dir, &identity, false)?;
        history.pin = pin;
        Ok(history)
    }

    /// Whether the lock is held that keeps what is listed here from being deleted: not on a medium
    /// without locks.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.pin.is_some()
    }

    /// The storage that it is read from.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Whether nothing is damaged but what was given up, of which all is known.
    #[must_use]
    pub(crate) fn is_sound(&self) -> bool {
        self.damage.iter().all(|d| d.is_given_up)
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

    /// The disks that belong to the group at a position.
    #[must_use]
    pub fn disks_at(&self, seq: Seq) -> Vec<&Volume> {
        let mut disks = self.volumes_at(seq);
        disks.retain(|v| v.kind.is_disk());
        disks
    }

    /// The volumes that belong to the group at a position: disks, and what holds guests' memory.
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
}
