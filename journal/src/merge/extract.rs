//! What a sink lacks of a merged unit: its records above a number, as a merged unit of their own.
//!
//! What always holds: records keep their numbers, zeroes too; positions up to that number lose nothing by
//! it, those in between are listed no more than before. Its maker gives it no name: it is sent.

use super::Job;
use super::content::{Content, Kept, Source};
use super::writer::{Draft, Plan, plan, write_draft};
use crate::Seq;
use crate::error::{Error, Result};
use crate::format::meta::{Lost, MemoryKept, Merged};
use crate::format::record::Kind;
use crate::planted;
use crate::pool::{FileName, Found};
use crate::unit::{ScanEnd, read_merged, read_unit};
use std::path::Path;

/// Writes to `draft` what a merged unit has above a number, as one that stands for the units of `name`.
///
/// # Errors
/// It can't be read whole, or the draft can't be written; nothing of it is left then.
pub fn extract(
    job: &Job,
    from: &Found,
    (name, above): (FileName, Seq),
    draft: &Path,
) -> Result<()> {
    let content = content(job, from, (name, above))?;
    let unusable = |why: &str| Error::Unusable { path: from.path.clone(), why: why.into() };
    let plan: Plan = plan(job, name, content)?.ok_or_else(|| unusable("it is too large"))?;
    let written = match write_draft(job, draft, &plan) {
        Ok(Draft::Whole(..)) => return Ok(()),
        Ok(Draft::TooLarge) => Err(unusable("what is left of it fits no unit")),
        Ok(Draft::Stopped) => Err(unusable("it was to stop")),
        Err(e) => Err(e),
    };
    // One that stays counts for nothing.
    let _ = job.storage.remove(draft);
    written
}

fn content(job: &Job, from: &Found, (name, above): (FileName, Seq)) -> Result<Content> {
    let unit = read_unit(job.storage.as_ref(), from, job.group.into_bytes(), None)?;
    if unit.end != ScanEnd::Sealed {
        let why = "its index is damaged: nothing can be taken from it".into();
        return Err(Error::Unusable { path: from.path.clone(), why });
    }
    let of = read_merged(&*unit.file, &unit.path, &unit.header)?;
    let is_left_out = |kind| planted::is("delta-without-zeroes") && kind == Kind::Zero;
    let wanted = unit
        .records
        .iter()
        .filter(|(_, r)| r.kind != Kind::Merged && r.seq > above && !is_left_out(r.kind));
    let kept: Vec<Kept> = wanted.map(|&(at, record)| Kept::whole(0, at, record)).collect();
    let first_wall_ns = kept.iter().map(|k| k.record.wall_ns).min();
    let merged = Merged {
        first: name.numbers().0,
        last: name.numbers().1,
        // What the sink has of lower numbers stays restorable there.
        floor: Some(0),
        kept: above_only(&of.kept, above),
        memory: of
            .memory
            .as_ref()
            .map(|m| MemoryKept { edge: m.edge, kept: above_only(&m.kept, above) }),
        epochs: of.epochs.iter().filter(|e| e.first_seq > above).copied().collect(),
        first_seq: if of.last_seq == 0 { 0 } else { of.first_seq.max(above + 1) },
        // Of the rest the sink has what is lost here.
        lost: of.lost.iter().filter(|l| l.last > above).map(|l| above_of(l, above)).collect(),
        first_wall_ns: first_wall_ns.unwrap_or(of.last_wall_ns),
        ..of
    };
    Ok(Content {
        epoch: unit.header.epoch,
        prev_last_seq: unit.header.prev_last_seq,
        after_seq: unit.header.after_seq,
        sources: vec![Source { path: unit.path, file: unit.file, header: unit.header }],
        kept,
        merged,
    })
}

fn above_of(lost: &Lost, above: Seq) -> Lost {
    Lost { from: lost.from.max(above + 1), ..lost.clone() }
}

fn above_only(kept: &[Seq], above: Seq) -> Vec<Seq> {
    kept.iter().copied().filter(|seq| *seq > above).collect()
}
