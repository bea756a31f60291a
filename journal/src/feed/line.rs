//! Whether what a sink holds belongs to this journal's own line: the sequence of its openings. Pure.
//!
//! ```text
//!  copied here ─┐
//!  epoch 1 ─ 2 ─┼─ 3 (id a) ─ 4         the sink holds this line
//!               └─ 3 (id b) ─ 4 ─ 5     this journal: the same numbers, other records
//! ```
//!
//! What always holds: each opening of a journal has an id that no other opening has, and merged units list
//! the ids of all openings of what they replace. So a sink that holds anything of another line is told from
//! one that is merely behind, whatever was merged since at either end, and the answer never changes. An id
//! that one of the two does not know is not compared.

use super::plan::SourceFile;
use crate::Seq;
use crate::error::{Error, Result};
use crate::format::meta::{EpochStart, Lost, Merged};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::history::void_above;
use crate::planted;
use crate::pool::FileName;
use crate::wire::{Extent, Held, Inventory};
use std::collections::BTreeMap;

/// The openings of a journal, from its own files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// By epoch.
    starts: BTreeMap<u64, EpochStart>,
    /// Every epoch from this one on that has a record is in `starts`.
    from: u64,
    /// A file is missing or can't be read: epochs may be missing from `starts`.
    has_hole: bool,
    /// Epochs that may have begun in lost units: above the first, up to the second.
    unknown: Vec<(u64, u64)>,
}

/// What one file of the journal says of epochs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Openings {
    starts: Vec<EpochStart>,
    from: u64,
    lost: Vec<Lost>,
}

impl Openings {
    /// Whether it stands for units that are lost here; a sink may have them.
    pub fn is_lossy(&self) -> bool {
        !self.lost.is_empty()
    }
}

impl Openings {
    /// Those that began in a file: what a merged unit lists, or the unit's own header.
    pub fn of(header: &UnitHeader, merged: Option<Merged>) -> Self {
        match merged {
            Some(merged) => {
                Self { starts: merged.epochs, from: merged.epochs_from, lost: merged.lost }
            }
            None => Self {
                starts: crate::catalogue::epoch_start(header).into_iter().collect(),
                from: 0,
                lost: Vec::new(),
            },
        }
    }
}

impl Line {
    /// The line that files tell of, ascending by name; `None`: one that can't be read.
    pub fn of<'a>(files: impl Iterator<Item = (FileName, Option<&'a Openings>)>) -> Self {
        let mut line = Self::default();
        let mut expected = 1;
        for (name, openings) in files {
            let (first, last) = name.numbers();
            line.has_hole |= first != expected || openings.is_none();
            expected = last + 1;
            let Some(openings) = openings else { continue };
            line.from = line.from.max(openings.from);
            line.unknown.extend(openings.lost.iter().map(|l| l.epochs));
            line.starts.extend(openings.starts.iter().map(|start| (start.epoch, *start)));
        }
        line
    }

    /// Compares with all that a sink holds.
    ///
    /// # Errors
    /// [`Error::OtherBranch`]: the sink holds records that this journal's line does not have, or may hold
    /// such and nothing tells.
    pub fn check(&self, files: &Files<'_>, sink: &Inventory) -> Result<()> {
        if planted::is("sites-compare-no-line") {
            return Ok(());
        }
        for held in &sink.epochs {
            let own = self.starts.get(&held.epoch);
            let differs = |own: &EpochStart| {
                own.id.zip(held.id).is_some_and(|(own, id)| own.into_bytes() != id)
            };
            match own {
                Some(own) if differs(own) => return Err(other_branch(&epoch_text(held.epoch))),
                None if self.is_complete_at(held.epoch) => {
                    return Err(other_branch(&format!(
                        "epoch {}, which this one lacks",
                        held.epoch
                    )));
                }
                _ => {}
            }
        }
        let newest = sink.epochs.iter().map(|e| e.epoch).max();
        if let Some(newest) = newest.filter(|e| *e < self.from && !self.starts.contains_key(e)) {
            return Err(too_far_behind(newest, self.from));
        }
        for held in sink.files.iter().filter(|held| counts(held)) {
            self.check_file(held)?;
        }
        self.check_end(files, sink)
    }

    /// Whether an epoch that had a record would be in `starts`.
    fn is_complete_at(&self, epoch: u64) -> bool {
        let is_unknown = self.unknown.iter().any(|(above, upto)| *above < epoch && epoch <= *upto);
        !self.has_hole && !is_unknown && epoch >= self.from
    }

    /// At each number of a unit the same epoch was written.
    fn check_file(&self, held: &Held) -> Result<()> {
        let at = held.name.numbers().1;
        if held.epoch == 0 {
            return Ok(());
        }
        let later = self.starts.range(held.epoch + 1..).find_map(|(_, start)| start.unit);
        let own = self.starts.get(&held.epoch).and_then(|start| start.unit);
        match later.is_some_and(|unit| unit <= at) || own.is_some_and(|unit| unit > at) {
            true => Err(other_branch(&format!("{} of epoch {}", held.name, held.epoch))),
            false => Ok(()),
        }
    }

    /// The newest epoch of the sink did not go further there than here.
    fn check_end(&self, files: &Files<'_>, sink: &Inventory) -> Result<()> {
        let Some(newest) = sink.epochs.iter().map(|e| e.epoch).max() else { return Ok(()) };
        let starts: Vec<EpochStart> = self.starts.values().copied().collect();
        let end = void_above(&starts, newest);
        let highest = sink.files.iter().filter(|h| counts(h)).max_by_key(|h| h.name.numbers().1);
        // A unit with numbers that were torn off here was sent as it is: both have them.
        let has_torn_off = |h: &Held| {
            let own = files.listed.iter().any(|f| f.name == h.name && f.salt == h.salt);
            own && h.extent == Extent::Whole && (files.last_seq)(h.name) >= sink.watermark
        };
        match sink.watermark > end && !highest.is_some_and(has_torn_off) {
            true => Err(other_branch(&format!(
                "epoch {newest} up to record {}, which ended at record {end} here",
                sink.watermark
            ))),
            false => Ok(()),
        }
    }
}

/// The journal's files.
pub(super) struct Files<'a> {
    pub listed: &'a [SourceFile],
    /// The highest number in a sealed one of them; 0: not known.
    pub last_seq: &'a dyn Fn(FileName) -> Seq,
}

/// Whether records of a file are held.
fn counts(held: &Held) -> bool {
    match held.extent {
        Extent::Whole => true,
        Extent::Open(end) => end > BLOCK_BYTES,
        Extent::Part(_) => false,
    }
}

fn epoch_text(epoch: u64) -> String {
    format!("epoch {epoch} of another opening of the journal")
}

/// The refusal of a sink that holds another branch.
pub(super) fn other_branch(what: &str) -> Error {
    Error::OtherBranch(format!(
        "the site holds another branch of this journal ({what}): this journal was put back from an old \
         copy, or another copy of it was run. Nothing is sent and nothing is lost there. Bring back the \
         journal that the site was sent before; or, to keep this one, move the group's directory (or the \
         bucket's prefix) at the site aside, where it stays restorable, and all is sent anew"
    ))
}

fn too_far_behind(newest: u64, from: u64) -> Error {
    Error::OtherBranch(format!(
        "the site holds this journal up to epoch {newest}, and what is known here begins with epoch {from}: \
         nothing tells whether it is the same branch. Nothing is sent. Move the group's directory (or the \
         bucket's prefix) at the site aside, where it stays restorable, and all is sent anew"
    ))
}
