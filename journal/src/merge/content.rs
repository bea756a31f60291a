//! What is left of units: pieces of data that count where they are judged, and what is kept of the rest.
//!
//! Only indexes and metadata payloads are read here.

use super::copier::read_kept;
use super::{Job, Part, Sight};
use crate::Seq;
use crate::catalogue::epoch_start;
use crate::error::{Error, Result};
use crate::format::cipher::TAG_BYTES;
use crate::format::meta::{EPOCHS_LISTED_MAX, META_BYTES_MAX, Made, MemoryKept, Merged, Meta};
use crate::format::record::{Kind, Record};
use crate::format::unit_header::{FLAG_MERGED, UnitHeader};
use crate::history::void_above;
use crate::map::Stack;
use crate::planted;
use crate::pool::Found;
use crate::storage::StoredFile;
use crate::unit::{ScanEnd, UnitContents, read_merged, read_unit};
use crate::window::keep::judges;
use std::path::PathBuf;
use std::sync::Arc;

/// A unit that is read from.
#[derive(Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub file: Arc<dyn StoredFile>,
    pub header: UnitHeader,
}

/// A record, or a part of one, that goes into the merged unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// Index of the source.
    pub source: usize,
    /// Byte offset of the original record in it.
    pub at: u64,
    /// The original.
    pub record: Record,
    /// Where the part starts in the original, in bytes; it is `len` bytes long.
    pub skip: u64,
    pub len: u32,
}

impl Kept {
    pub fn whole(source: usize, at: u64, record: Record) -> Self {
        Self { source, at, record, skip: 0, len: record.len }
    }

    /// Whether it is all of the original.
    pub fn is_whole(&self) -> bool {
        self.skip == 0 && self.len == self.record.len
    }

    /// Most bytes of payload that it takes in the merged unit: what compressing a part again comes to is
    /// not known before.
    pub fn payload_bytes_max(&self) -> u32 {
        match self.record.kind {
            Kind::Write if !self.is_whole() && self.record.encrypted => self.len + TAG_BYTES,
            Kind::Write if !self.is_whole() => self.len,
            _ => self.record.payload_bytes,
        }
    }

    /// Bytes of payload that it will take, about.
    pub fn payload_bytes(&self) -> u32 {
        let most = u64::from(self.payload_bytes_max());
        let (stored, data) = (self.record.payload_bytes, self.record.data_bytes());
        match self.record.kind {
            Kind::Write if !self.is_whole() && data > 0 => {
                (most * u64::from(stored) / u64::from(data)) as u32
            }
            _ => most as u32,
        }
    }

    fn key(&self) -> (Seq, u64) {
        (self.record.seq, self.record.addr + self.skip)
    }
}

/// What is left of a group.
#[derive(Debug)]
pub(super) struct Content {
    pub sources: Vec<Source>,
    /// By (number, address).
    pub kept: Vec<Kept>,
    pub merged: Merged,
    /// Epoch of the last unit, its `prev_last_seq`, and the newest number given out when any of
    /// them was made.
    pub epoch: u64,
    pub prev_last_seq: Seq,
    pub after_seq: Seq,
}

/// Reads the indexes of a group's units and finds what counts, one unit at a time.
pub(super) fn gather(job: &Job, sight: &mut dyn Sight, found: &[Found]) -> Result<Content> {
    let mut content = Content {
        sources: Vec::new(),
        kept: Vec::new(),
        merged: Merged {
            first: 0,
            last: 0,
            edge: job.edge,
            epochs: Vec::new(),
            epochs_from: 0,
            kept: Vec::new(),
            floor: (job.floor < job.edge).then_some(job.floor),
            memory: None,
            made: None,
            first_seq: 0,
            last_seq: 0,
            first_wall_ns: 0,
            last_wall_ns: 0,
            lost: Vec::new(),
        },
        epoch: 0,
        prev_last_seq: 0,
        after_seq: 0,
    };
    for found in found {
        add_unit(job, sight, found, &mut content)?;
    }
    // Behind the first position at which all of it is judged, nothing is missed.
    let merged = &mut content.merged;
    let judges = |kept| judges(kept, job.edge, merged.first_seq, merged.last_seq);
    let (disks, memory) = (judges(job.kept), judges(job.kept_memory));
    if let Some((edge, kept)) = disks.split_last() {
        (merged.edge, merged.kept) = (*edge, kept.to_vec());
    }
    if disks != memory && !job.memory_volumes.is_empty() {
        let behind = memory.split_last();
        merged.memory = behind.map(|(edge, kept)| MemoryKept { edge: *edge, kept: kept.to_vec() });
    }
    if let Some(at) = sight.judges_all_at().filter(|at| *at >= merged.last_seq) {
        (merged.edge, merged.kept, merged.memory) = (at, Vec::new(), None);
    }
    merged.shorten_epochs(EPOCHS_LISTED_MAX);
    content.kept.sort_by_key(Kept::key);
    drop_repeated_meta(job, &mut content)?;
    Ok(content)
}

fn add_unit(job: &Job, sight: &mut dyn Sight, found: &Found, content: &mut Content) -> Result<()> {
    let contents = read_unit(job.storage.as_ref(), found, job.group.into_bytes(), None)?;
    if contents.end != ScanEnd::Sealed {
        let why = "it is not sealed, or its index is damaged: it can't be merged".into();
        return Err(Error::Unusable { path: found.path.clone(), why });
    }
    let of = note_replaced(found, &contents, content)?;
    let source = content.sources.len();
    let header = &contents.header;
    let valid_to = void_above(job.epochs, header.epoch);
    let mut data = Vec::new();
    for &(at, record) in &contents.records {
        match record.kind {
            _ if record.kind == Kind::Merged || record.seq > valid_to => {}
            Kind::Write | Kind::Zero => data.push((at, record)),
            // Ticks, watermarks, flushes and closes say nothing that the edge doesn't.
            Kind::Tick | Kind::Watermark | Kind::Flush | Kind::Close => {}
            _ => content.kept.push(Kept::whole(source, at, record)),
        }
    }
    // In the order of the runs: each of their blocks is read once.
    let judged_at = |sight: &dyn Sight, r: &Record| {
        let part = job.part_of(r.volume);
        (part, sight.judged_at(part, r.seq))
    };
    data.sort_unstable_by_key(|(_, r)| (judged_at(sight, r), r.volume, r.addr));
    let mut judge: Option<((Part, Seq), Arc<Stack>)> = None;
    for (at, record) in data {
        let (part, position) = judged_at(sight, &record);
        let stack = match &judge {
            Some((of, stack)) if *of == (part, position) => Arc::clone(stack),
            _ => sight.stack(part, position, of.first)?,
        };
        keep_data(&stack, source, at, &record, &mut content.kept)?;
        judge = Some(((part, position), stack));
    }
    let merged = &mut content.merged;
    merged.first = if source == 0 { of.first } else { merged.first };
    merged.last = of.last;
    content.epoch = header.epoch;
    content.prev_last_seq = header.prev_last_seq;
    content.after_seq = content.after_seq.max(header.after_seq);
    let header = contents.header;
    content.sources.push(Source { path: contents.path, file: contents.file, header });
    Ok(())
}

/// Takes over what a unit says of itself: the numbers it had, and the epochs that began in it.
fn note_replaced(found: &Found, unit: &UnitContents, content: &mut Content) -> Result<Merged> {
    let header = &unit.header;
    let (first, last) = found.name.numbers();
    let of = if header.flags & FLAG_MERGED != 0 {
        read_merged(unit.file.as_ref(), &unit.path, header)?
    } else {
        let seqs = || unit.records.iter().map(|(_, r)| r.seq);
        let walls = || unit.records.iter().map(|(_, r)| r.wall_ns);
        Merged {
            first,
            last,
            edge: 0,
            epochs: epoch_start(header).into_iter().collect(),
            epochs_from: 0,
            kept: Vec::new(),
            floor: None,
            memory: None,
            made: Some(Made {
                after_seq: header.after_seq,
                wall_ns: header.wall_ns,
                mono_ns: header.mono_ns,
                boot_id: uuid::Uuid::from_bytes(header.boot_id),
            }),
            first_seq: seqs().min().unwrap_or(0),
            last_seq: seqs().max().unwrap_or(0),
            first_wall_ns: walls().min().unwrap_or(0),
            last_wall_ns: walls().max().unwrap_or(0),
            lost: Vec::new(),
        }
    };
    if (of.first, of.last) != (first, last) {
        let why = "its name and what it says to replace differ".into();
        return Err(Error::Unusable { path: found.path.clone(), why });
    }
    let all = &mut content.merged;
    all.epochs.extend(of.epochs.iter().copied());
    all.epochs_from = all.epochs_from.max(of.epochs_from);
    if of.last_seq > 0 {
        let lowest = if all.last_seq == 0 { of.first_seq } else { all.first_seq };
        let earliest = if all.last_seq == 0 { of.first_wall_ns } else { all.first_wall_ns };
        all.first_seq = lowest.min(of.first_seq);
        all.first_wall_ns = earliest.min(of.first_wall_ns);
    }
    all.lose(&of.lost);
    all.made = of.made.or(all.made);
    all.last_seq = all.last_seq.max(of.last_seq);
    all.last_wall_ns = all.last_wall_ns.max(of.last_wall_ns);
    Ok(of)
}

/// Adds the parts of a data record that are visible where it is judged.
fn keep_data(
    stack: &Stack,
    source: usize,
    at: u64,
    record: &Record,
    kept: &mut Vec<Kept>,
) -> Result<()> {
    let end = record.addr.saturating_add(u64::from(record.len));
    let mut part: Option<(u64, u64)> = None;
    let mut keep = |(from, to): (u64, u64)| -> Result<()> {
        let len = u32::try_from(to - from)
            .map_err(|_| Error::Invalid(format!("record {} is too long", record.seq)))?;
        kept.push(Kept { source, at, record: *record, skip: from - record.addr, len });
        Ok(())
    };
    for piece in stack.find(record.volume, record.addr..end)? {
        if piece.seq != record.seq {
            continue;
        }
        part = match part {
            Some((from, to)) if to == piece.start => Some((from, piece.end)),
            Some(done) => {
                keep(done)?;
                Some((piece.start, piece.end))
            }
            None => Some((piece.start, piece.end)),
        };
    }
    part.map_or(Ok(()), keep)
}

/// Of configurations that say the same one after another, the first is enough; of checkpoints that have
/// no tag and can't be restored any more, only the last stays: no number is given twice.
fn drop_repeated_meta(job: &Job, content: &mut Content) -> Result<()> {
    let mut drop = vec![false; content.kept.len()];
    let mut config: Option<Vec<u8>> = None;
    let mut mark = None;
    for (i, item) in content.kept.iter().enumerate() {
        if !matches!(item.record.kind, Kind::Config | Kind::Mark) {
            continue;
        }
        let payload = read_meta(&content.sources, item)?;
        if item.record.kind == Kind::Config {
            drop[i] = config.as_ref() == Some(&payload);
            config = Some(payload);
            continue;
        }
        let stays = match Meta::decode(Kind::Mark, &payload) {
            Some(Ok(Meta::Mark(mark))) => {
                // One with memory names a position before its own number.
                let own = planted::is("memory-commit-merged-away");
                let at = if own { item.record.seq } else { mark.position(item.record.seq) };
                mark.tag.is_some() || job.kept.binary_search(&at).is_ok()
            }
            // Not understood, hence not for us to drop.
            _ => true,
        };
        if !stays && let Some(before) = mark.replace(i) {
            drop[before] = true;
        }
    }
    let mut dropped = drop.into_iter();
    content.kept.retain(|_| !dropped.next().unwrap_or(false));
    Ok(())
}

fn read_meta(sources: &[Source], item: &Kept) -> Result<Vec<u8>> {
    let mut payload = Vec::new();
    if item.record.payload_bytes as usize > META_BYTES_MAX {
        let what = format!("record {} is too large for what it is", item.record.seq);
        return Err(Error::Invalid(what));
    }
    read_kept(sources, item, &mut payload)?;
    Ok(payload)
}
