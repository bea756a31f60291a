//! Writing what is left of old units into merged ones, and giving up what those replace (I-8).
//!
//! ```text
//!  unit 7   unit 8   unit 9          merged-7-9
//!  ##..#.   ......   .#...#    ──►   "replaces 7 to 9, as of edge E" | ##|#|#|# | index
//!  (. is superseded at the next position that stays restorable)
//! ```
//!
//! Units of the base are judged at its end; those of thinned history each record at the first position
//! from its own on that stays restorable: of disks that is a checkpoint's, of memory the number of the
//! record that commits one. What is superseded there is so at every later one.
//!
//! What always holds:
//! * a merged unit has its name only when all of it is durable, and a name is never used twice: what
//!   a reader opened under it stays what it was (I-7);
//! * what is copied was checked against its checksum; a group with a record that fails stays as it
//!   is, as evidence, and is named (I-12);
//! * a unit is given up only after the merged one and the catalogue that names it are durable; who
//!   is killed in between leaves files that [`release::leftovers`] finds;
//! * what is encrypted is decrypted and encrypted anew, with the merged unit's own key;
//! * copied records keep flag and copy, and the starts of copies are kept, so that they rank where
//!   they did (I-5).

mod content;
mod copier;
mod extract;
mod output;
mod pace;
pub mod release;
mod sight;
mod writer;

pub use extract::extract;
pub use pace::{Pace, Throttle, Unpaced};
pub use release::{Give, Remove};
pub use sight::{AtFloor, Part, Sight};

use crate::error::{Error, Result};
use crate::format::cipher::Cipher;
use crate::format::meta::{EpochStart, Merged};
use crate::format::record::Record;
use crate::format::unit_header::UnitHeader;
use crate::pool::{FileName, Found};
use crate::storage::Storage;
use crate::window::Stamp;
use crate::{Seq, VolumeId};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// What a merge works with.
pub struct Job<'a> {
    /// Where everything lies.
    pub storage: &'a Arc<dyn Storage>,
    /// The journal's group.
    pub group: Uuid,
    /// The directory that the merged unit is written to.
    pub into: &'a Path,
    /// The window's edge.
    pub edge: Seq,
    /// Where the base ends.
    pub floor: Seq,
    /// The positions in between that stay restorable, ascending.
    pub kept: &'a [Seq],
    /// The numbers of the records that commit their memory, ascending.
    pub kept_memory: &'a [Seq],
    /// The volumes that hold guests' memory.
    pub memory_volumes: &'a BTreeSet<VolumeId>,
    /// Where epochs began: older units' numbers above an epoch's `prev_last_seq` are void.
    pub epochs: &'a [EpochStart],
    /// The largest file that may come out.
    pub unit_bytes_max: u64,
    /// Of the merged unit's checksums, and of its key: of no other unit.
    pub salt: [u8; 16],
    /// How the journal stores data.
    pub cipher: &'a Cipher,
    /// Now.
    pub now: Stamp,
    /// The mount that `into` is on.
    pub mount_id: u64,
    /// How fast it may go.
    pub pace: &'a dyn Pace,
}

impl Job<'_> {
    fn part_of(&self, volume: VolumeId) -> Part {
        if self.memory_volumes.contains(&volume) { Part::Memory } else { Part::Disks }
    }
}

/// A merged unit that was written.
#[derive(Debug)]
pub struct Written {
    /// Its file.
    pub found: Found,
    /// Its header.
    pub header: UnitHeader,
    /// What it replaces.
    pub merged: Merged,
    /// Its records, with their byte offsets.
    pub records: Vec<(u64, Record)>,
}

/// What became of a group.
#[derive(Debug)]
pub enum Outcome {
    /// It is durable under its name.
    Written(Box<Written>),
    /// What is left doesn't fit one unit: try fewer.
    TooLarge,
    /// It was told to stop; nothing is left of it.
    Stopped,
}

/// Merges units, which are contiguous in number and whose records `sight` can judge, into one.
///
/// # Errors
/// A unit is damaged, or can't be read whole: it is named, nothing was changed. Or the merged unit
/// can't be written.
pub fn merge(job: &Job, sight: &mut dyn Sight, sources: &[Found]) -> Result<Outcome> {
    let (Some(first), Some(last)) = (sources.first(), sources.last()) else {
        return Err(Error::Invalid("there is nothing to merge".into()));
    };
    let (first, last) = (first.name.numbers().0, last.name.numbers().1);
    let name = FileName::Merged(first, last);
    if sources.iter().any(|s| s.name == name) {
        return Err(Error::Invalid(format!("{name} can't be made of what it is to replace")));
    }
    let content = content::gather(job, sight, sources)?;
    let Some(plan) = writer::plan(job, name, content)? else { return Ok(Outcome::TooLarge) };
    writer::write(job, name, plan)
}

/// Writes the merged unit that stands for units which are lost: it has no record, and says what is missing.
///
/// # Errors
/// It can't be written.
pub fn stand_in(job: &Job, merged: Merged, before: Option<&UnitHeader>) -> Result<Outcome> {
    let name = FileName::Merged(merged.first, merged.last);
    let content = content::Content {
        sources: Vec::new(),
        kept: Vec::new(),
        merged,
        epoch: before.map_or(0, |h| h.epoch),
        prev_last_seq: before.map_or(0, |h| h.prev_last_seq),
        after_seq: before.map_or(0, |h| h.after_seq),
    };
    let Some(plan) = writer::plan(job, name, content)? else { return Ok(Outcome::TooLarge) };
    writer::write(job, name, plan)
}

/// The path of a draft for `name` in `dir`.
fn draft_path(dir: &Path, name: FileName) -> PathBuf {
    dir.join(format!("{name}.tmp"))
}
