//! Doing what a plan says: while one batch is read and checked, the one before it is written, and
//! the one behind it is looked up. Decides nothing.
//!
//! What always holds: no byte reaches a target whose record failed its checksum (I-12): a batch in
//! which one did is not written; memory is two batches' data and what [`runs`] takes.

use crate::batch::{Batch, Batches, Order, Read};
use crate::direct::Aligned;
use crate::error::Error;
use crate::plan::{Plan, shown};
use crate::refusal;
use crate::restore::Progress;
use crate::runs::{self, Lies, Reader, Unread};
use crate::target::Target;
use afterimage_journal::History;
use afterimage_journal::history::Entry;
use std::io;
use std::sync::{Mutex, PoisonError};

/// Why a plan could not be carried out.
pub(crate) enum Fault {
    /// A record is damaged.
    Record(Box<Rotten>),
    /// A target could not be written: the volume's index.
    Target(usize, io::Error),
    /// The journal's map or indexes can't be read.
    Journal(afterimage_journal::Error),
}

/// A damaged record that a plan needs.
pub(crate) struct Rotten {
    /// It.
    pub entry: Entry,
    /// The volume's index.
    pub volume: usize,
    /// First byte of the volume that is needed from it.
    pub addr: u64,
    /// What is wrong.
    pub why: String,
}

impl Rotten {
    /// What is damaged, where it lies, what it holds: for people.
    pub(crate) fn describe(&self, history: &History, plan: &Plan) -> String {
        let Entry { unit, at, record, .. } = &self.entry;
        let unit = history.units.get(*unit as usize).map(|u| u.path.display().to_string());
        let volume = plan.volumes.get(self.volume).map(|v| shown(&v.volume));
        format!(
            "{}: record {} at byte {at} is damaged ({}); it holds {} at byte {}",
            unit.unwrap_or_default(),
            record.seq,
            self.why,
            volume.unwrap_or_default(),
            self.addr
        )
    }
}

impl Fault {
    /// The error for people; `path` names a volume's target.
    pub(crate) fn into_error(
        self,
        history: &History,
        guest: Option<&str>,
        plan: &Plan,
        path: impl Fn(usize) -> std::path::PathBuf,
    ) -> Error {
        match self {
            Self::Record(rotten) => refusal::damaged(history, guest, plan, *rotten),
            Self::Target(volume, source) => Error::target("write", &path(volume), source),
            Self::Journal(error) => error.into(),
        }
    }
}

impl Lies for Read {
    fn entry(&self) -> &Entry {
        &self.entry
    }
}

/// A batch with its data.
struct Filled {
    batch: Batch,
    data: Aligned,
}

/// Reads every record of the plan and writes what is needed of it to the targets (one a volume, in
/// the plan's order; they must be empty, so that what isn't written is zero), in that order: a target
/// that is a stream needs [`Order::Address`].
pub(crate) fn apply(
    history: &History,
    (plan, order): (&Plan, Order),
    targets: &mut [Box<dyn Target>],
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Fault> {
    let total_bytes = plan.bytes();
    progress(Progress { done_bytes: 0, total_bytes });
    let source = Reader::new(history);
    let mut batches = Batches::new(history, plan, order);
    let mut next = || batches.next().transpose().map_err(Fault::Journal);
    let mut planned = next()?;
    let mut filled: Option<Filled> = None;
    let mut spare = Aligned::default();
    while planned.is_some() || filled.is_some() {
        let (now, before) = (planned.take(), filled.take());
        let mut data = std::mem::take(&mut spare);
        let done_bytes = before.as_ref().map(|f| f.batch.done_bytes);
        std::thread::scope(|scope| {
            let writer = before.map(|f| scope.spawn(|| write(f, targets)));
            let reader = now.map(|batch| {
                scope.spawn(|| {
                    fill(&source, &batch, &mut data)?;
                    Ok(Filled { batch, data })
                })
            });
            let looked_up = next();
            if let Some(writer) = writer {
                spare = joined(writer)?;
            }
            filled = reader.map(joined).transpose()?;
            planned = looked_up?;
            Ok(())
        })?;
        if let Some(done_bytes) = done_bytes {
            progress(Progress { done_bytes, total_bytes });
        }
    }
    progress(Progress { done_bytes: total_bytes, total_bytes });
    Ok(())
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, Fault>>) -> Result<T, Fault> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Reads and checks the records of a batch; the parts of them that are needed come to lie in
/// `data`, in the order of addresses.
fn fill(reader: &Reader<'_>, batch: &Batch, data: &mut Aligned) -> Result<(), Fault> {
    data.resize(batch.memory_bytes);
    let mut rest = slots(batch, data).into_iter();
    let mut jobs = Vec::new();
    for run in runs::runs(&batch.reads) {
        let mine = batch.reads[run.clone()].iter().map(|r| r.writes.len()).sum();
        let slots: Vec<_> = rest.by_ref().take(mine).collect();
        jobs.push((run, slots.into_iter()));
    }
    // Of several the first in the journal's order is named, whichever thread met its own first.
    let rotten: Mutex<Option<(usize, Unread)>> = Mutex::new(None);
    reader.read(&batch.reads, jobs, |slots, i, stored| {
        let read = &batch.reads[i];
        let mut payload = stored.payload;
        for (write, slot) in batch.writes[read.writes.clone()].iter().zip(slots) {
            let from = write.skip as usize;
            let Ok(bytes) = payload else { continue };
            match bytes.get(from..from + slot.len()) {
                Some(part) => slot.copy_from_slice(part),
                None => {
                    payload = Err(Unread::Damaged("it is shorter than what it covers".into()));
                }
            }
        }
        if let Err(why) = payload {
            let mut rotten = rotten.lock().unwrap_or_else(PoisonError::into_inner);
            if rotten.as_ref().is_none_or(|(known, _)| i < *known) {
                *rotten = Some((i, why));
            }
        }
    });
    match rotten.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(()),
        Some((_, Unread::Host(e))) => Err(Fault::Journal(e)),
        Some((read, Unread::Damaged(why))) => {
            let read = &batch.reads[read];
            let addr = batch.writes[read.writes.start].addr;
            let rotten = Rotten { entry: read.entry, volume: read.volume, addr, why };
            Err(Fault::Record(Box::new(rotten)))
        }
    }
}

/// The place of each write's bytes within the data, in the order of the writes: disjoint, so that
/// several threads fill them.
fn slots<'d>(batch: &Batch, data: &'d mut [u8]) -> Vec<&'d mut [u8]> {
    let mut order: Vec<usize> = (0..batch.writes.len()).collect();
    order.sort_unstable_by_key(|&i| batch.writes[i].to);
    let (mut rest, mut at) = (data, 0);
    let mut placed = Vec::with_capacity(order.len());
    for i in order {
        let write = &batch.writes[i];
        let (slot, behind) = rest[write.to - at..].split_at_mut(write.len as usize);
        (rest, at) = (behind, write.to + slot.len());
        placed.push((i, slot));
    }
    placed.sort_unstable_by_key(|(i, _)| *i);
    placed.into_iter().map(|(_, slot)| slot).collect()
}

/// Writes a batch; gives its memory back.
fn write(filled: Filled, targets: &mut [Box<dyn Target>]) -> Result<Aligned, Fault> {
    let Filled { batch, data } = filled;
    for extents in batch.extents.chunk_by(|a, b| a.volume == b.volume) {
        let volume = extents[0].volume;
        let failed = |e| Fault::Target(volume, e);
        let target = targets
            .get_mut(volume)
            .ok_or_else(|| failed(io::Error::other("the plan has no such volume")))?;
        for extent in extents {
            let behind = extent.from + (extent.end - extent.start) as usize;
            target.write(extent.start, &data[extent.from..behind]).map_err(failed)?;
        }
        target.begin_sync();
    }
    Ok(data)
}
