//! What a sink lacks, from two lists: the journal's files and the sink's. Pure.
//!
//! ```text
//!  source  merged-1-40   merged-41-60   unit 61  unit 62  unit 63 (open)
//!  sink    merged-1-30 .. unit 45 (open)
//!  plan    delta-46-60 (above the sink's watermark), then the log's end from unit 61 on
//! ```
//!
//! What always holds: a unit that the sink has with records that the journal doesn't ends the plan with an
//! error; nothing is sent as a whole that the sink has, nor that it needs only the news of; the log's end
//! goes in the log's order, from where the sink has it, or from the tail if it has nothing.

use super::line::{Files, Line, other_branch};
use crate::Seq;
use crate::error::{Error, Result};
use crate::format::unit_header::BLOCK_BYTES;
use crate::log::Final;
use crate::pool::FileName;
use crate::wire::{Extent, Held, Inventory};
use std::collections::VecDeque;

/// A file of the journal: of those that count, so none lies within another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SourceFile {
    pub name: FileName,
    pub salt: [u8; 16],
    /// It stands for units that are lost here.
    pub is_lossy: bool,
}

/// A file to be sent in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// As it is, from this byte on.
    Whole(FileName, u64),
    /// What a merged unit has above a number, as the merged unit of that name.
    Delta { of: FileName, name: FileName, above: Seq },
}

impl Want {
    /// The file of the journal that it is made of.
    pub fn source(&self) -> FileName {
        match *self {
            Self::Whole(name, _) => name,
            Self::Delta { of, .. } => of,
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Unit and byte from which the log's end goes on.
    pub tail: (u64, u64),
    /// Whether the sink has that unit.
    pub begun: bool,
    /// In the order of their numbers.
    pub wants: VecDeque<Want>,
    /// Files that a mirror has and the journal gave up.
    pub release: Vec<FileName>,
}

fn ahead(held: &Held) -> Error {
    other_branch(&format!("{} with records that are not in this one", held.name))
}

fn is_empty(held: &Held) -> bool {
    matches!(held.extent, Extent::Open(end) if end <= BLOCK_BYTES)
}

/// Compares.
pub(super) fn plan(
    (own, line): (&Files<'_>, &Line),
    last: &Final,
    sink: &Inventory,
    mirror: bool,
) -> Result<Plan> {
    line.check(own, sink)?;
    let files = own.listed;
    let own = |name| files.iter().find(|f| f.name == name);
    for held in sink.files.iter().filter(|h| !matches!(h.extent, Extent::Part(_))) {
        check(held, own(held.name), last)?;
    }
    if sink.watermark > last.watermark {
        let (theirs, ours) = (sink.watermark, last.watermark);
        return Err(other_branch(&format!("records up to {theirs}, this one has {ours}")));
    }
    let known = Known::new(files, sink, mirror);
    let (tail, begun) = known.tail(last);
    let mut plan = Plan { tail, begun, ..Plan::default() };
    for file in files.iter().filter(|f| f.name.numbers().1 < tail.0) {
        plan.wants.extend(known.want(file));
    }
    if mirror {
        plan.release = known.given_up();
    }
    Ok(plan)
}

/// Ends with an error where the sink is ahead.
fn check(held: &Held, own: Option<&SourceFile>, last: &Final) -> Result<()> {
    let (first, end) = held.name.numbers();
    let same = own.is_none_or(|own| own.salt == held.salt);
    let is_unit = matches!(held.name, FileName::Unit(_));
    let is_beyond = end > last.unit
        || (end == last.unit
            && match held.extent {
                Extent::Open(at) => at > last.at,
                _ => last.sealed < first,
            });
    match (same && !is_beyond) || is_empty(held) || (!is_unit && !is_beyond) {
        true => Ok(()),
        false => Err(ahead(held)),
    }
}

struct Known<'a> {
    files: &'a [SourceFile],
    sink: &'a Inventory,
    mirror: bool,
    /// Units that the sink has, that something there stands for, or of which no more is added to what is
    /// there: ranges, ascending, with a missing number between any two.
    held: Vec<(u64, u64)>,
}

impl<'a> Known<'a> {
    fn new(files: &'a [SourceFile], sink: &'a Inventory, mirror: bool) -> Self {
        let mut known = Self { files, sink, mirror, held: Vec::new() };
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for held in &sink.files {
            let (first, last) = held.name.numbers();
            let counts = match held.extent {
                Extent::Whole => true,
                // What it lacks comes with the next one: unless that is there already.
                Extent::Open(_) => {
                    !is_empty(held) && known.is_left(first) && !known.has_whole(first + 1)
                }
                Extent::Part(_) => false,
            };
            ranges.extend(counts.then_some((first, last)));
        }
        ranges.sort_unstable();
        for (first, last) in ranges {
            match known.held.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => known.held.push((first, last)),
            }
        }
        known
    }

    fn has_whole(&self, number: u64) -> bool {
        self.sink.files.iter().any(|h| {
            let (first, last) = h.name.numbers();
            h.extent == Extent::Whole && first <= number && number <= last
        })
    }

    fn own(&self, name: FileName) -> Option<&SourceFile> {
        self.files.iter().find(|f| f.name == name)
    }

    fn holds_all(&self, (first, last): (u64, u64)) -> bool {
        self.held.iter().any(|(a, b)| *a <= first && last <= *b)
    }

    /// Whether a unit was merged here with units behind it: what the sink has of it stays, what it lacks
    /// comes with those.
    fn is_left(&self, number: u64) -> bool {
        self.files.iter().any(|f| match f.name {
            FileName::Merged(first, last) => first <= number && number < last,
            FileName::Unit(_) => false,
        })
    }

    /// Where the log's end goes on, and whether the sink has that unit.
    fn tail(&self, last: &Final) -> ((u64, u64), bool) {
        let whole = self.sink.files.iter().filter(|h| h.extent == Extent::Whole);
        let top = whole.map(|h| h.name.numbers().1).max().unwrap_or(0);
        let merged = self.files.iter().filter(|f| matches!(f.name, FileName::Merged(..)));
        let behind = merged.map(|f| f.name.numbers().1).max().unwrap_or(0).max(top) + 1;
        let open = self.sink.files.iter().filter_map(|held| match (held.name, held.extent) {
            (FileName::Unit(number), Extent::Open(at)) if number >= behind => {
                let own = self.own(held.name)?;
                (own.salt == held.salt).then_some((number, at))
            }
            _ => None,
        });
        if let Some((number, at)) = open.min() {
            return ((number, at.max(BLOCK_BYTES)), true);
        }
        let is_new = top == 0
            && self.sink.files.iter().all(|h| is_empty(h) || matches!(h.extent, Extent::Part(_)));
        // Where nothing is, the tail comes first, and all behind it from the back.
        let from = if is_new { behind.max(last.unit.min(last.sealed + 1)) } else { behind };
        let units = self.files.iter().filter(|f| matches!(f.name, FileName::Unit(_)));
        let next = units.map(|f| f.name.numbers().0).find(|number| *number >= from);
        ((next.unwrap_or(from), BLOCK_BYTES), false)
    }

    /// The last unit before the first one that the sink lacks.
    fn prefix(&self) -> u64 {
        self.held.first().filter(|(first, _)| *first <= 1).map_or(0, |(_, last)| *last)
    }

    /// What is to be sent of a file, if anything.
    fn want(&self, file: &SourceFile) -> Option<Want> {
        let same = |h: &&Held| h.name == file.name && h.salt == file.salt;
        let part = match self.sink.files.iter().find(same).map(|h| h.extent) {
            Some(Extent::Whole) => return None,
            Some(Extent::Part(at)) => at,
            Some(Extent::Open(_)) | None => 0,
        };
        if self.mirror && !(file.is_lossy && self.holds_all(file.name.numbers())) {
            return Some(Want::Whole(file.name, part));
        }
        let (first, last) = file.name.numbers();
        if self.holds_all((first, last)) {
            return None;
        }
        let prefix = self.prefix();
        match file.name {
            FileName::Merged(..) if prefix > 0 && last > prefix => {
                let first = first.max(prefix + 1);
                // The unit that the sink has a part of ends with this file: it is replaced.
                let above = match self.open(first) {
                    Some(held) => held.lowest.saturating_sub(1),
                    None => self.sink.watermark,
                };
                let name = FileName::Merged(first, last);
                Some(Want::Delta { of: file.name, name, above })
            }
            _ => Some(Want::Whole(file.name, part)),
        }
    }

    fn open(&self, number: u64) -> Option<&Held> {
        let name = FileName::Unit(number);
        let mut files = self.sink.files.iter();
        files.find(|h| h.name == name && matches!(h.extent, Extent::Open(_)) && !is_empty(h))
    }

    fn given_up(&self) -> Vec<FileName> {
        let is_kept = |h: &&Held| {
            self.own(h.name).is_none_or(|own| own.salt != h.salt)
                && !matches!(h.extent, Extent::Part(_))
        };
        let stands_for = |h: &&Held| {
            let (first, last) = h.name.numbers();
            self.files.iter().any(|f| {
                let (a, b) = f.name.numbers();
                let there = self
                    .sink
                    .files
                    .iter()
                    .any(|s| s.name == f.name && s.salt == f.salt && s.extent == Extent::Whole);
                a <= first && last <= b && there && f.name != h.name
            })
        };
        self.sink.files.iter().filter(is_kept).filter(stands_for).map(|h| h.name).collect()
    }
}
