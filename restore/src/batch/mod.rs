//! A plan's reads and writes, a *batch* at a time: as much of the volumes as fits into bounded memory,
//! with the records that hold it in the order in which they lie.
//!
//! Two orders, see [`Order`]. What always holds:
//! * no two batches cover the same byte; what none covers is zero and stays a hole;
//! * within a batch each record is read once, in the order of units and offsets; one that two
//!   batches need is read for each;
//! * memory: [`BATCH_BYTES_MAX`] and [`BATCH_PIECES_MAX`], and [`PASS_PIECES_MAX`] in the order of the
//!   log, however long the journal is.

mod source;

use crate::direct::GRAIN_BYTES;
use crate::plan::Plan;
use afterimage_journal::history::{Entry, Locator};
use afterimage_journal::{History, Result};
use source::{Part, Source};
use std::cmp::Reverse;
use std::ops::Range;

/// Most memory for the data of a batch, in bytes. The more, the more of its records are neighbours.
pub const BATCH_BYTES_MAX: usize = 128 << 20;
/// The same in the order of the log, where they are neighbours anyway; a single record may be larger.
pub const LOG_BATCH_BYTES_MAX: usize = 32 << 20;
/// Most pieces of records in a batch: some 400 bytes of memory each.
pub const BATCH_PIECES_MAX: usize = 64 << 10;
/// Most pieces that are brought into the order of the log at a time: 32 bytes of memory each.
pub const PASS_PIECES_MAX: usize = 2 << 20;
/// A batch that ends within a record ends on a multiple of this many bytes: what images are
/// allocated in.
const CUT_BYTES: u64 = 64 << 10;

/// In which order batches come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// That of volumes and addresses: images are written in one go, and parts of a unit are read again
    /// and again. For units on a disk.
    Address,
    /// That of the numbers of records: units are read in one go, once for [`PASS_PIECES_MAX`] pieces,
    /// and images are written in many places. For units behind a network, where the way back costs
    /// another request, and memory for all that may be needed again.
    Log,
}

impl Order {
    /// The one that suits a journal's storage.
    #[must_use]
    pub fn of(history: &History) -> Self {
        if history.storage().is_far() { Self::Log } else { Self::Address }
    }
}

/// A record to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Index in [`Plan::volumes`].
    pub volume: usize,
    /// The record.
    pub entry: Entry,
    /// Its writes: a range of [`Batch::writes`].
    pub writes: Range<usize>,
}

/// A part of a record's payload, and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Byte address in the volume.
    pub addr: u64,
    /// Offset in the payload, in bytes.
    pub skip: u32,
    /// Bytes.
    pub len: u32,
    /// Where it comes to lie in the batch's memory.
    pub to: usize,
}

/// A stretch of a volume that holds data throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Index in [`Plan::volumes`].
    pub volume: usize,
    /// Byte address of its start.
    pub start: u64,
    /// Byte address behind its end.
    pub end: u64,
    /// Where its bytes begin in the batch's memory: as far behind a multiple of 4096 as they begin in
    /// the volume.
    pub from: usize,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Bytes of the plan that are done with it, of [`Plan::bytes`].
    pub done_bytes: u64,
    /// What it covers: by volumes and addresses, disjoint, not touching each other.
    pub extents: Vec<Extent>,
    /// The records, in the order of the journal.
    pub reads: Vec<Read>,
    /// Where their bytes go, grouped by record.
    pub writes: Vec<Write>,
    /// Memory that it takes, in bytes.
    pub memory_bytes: usize,
}

/// Where parts come to lie in memory.
#[derive(Default)]
struct Layout {
    /// With where in memory they begin.
    parts: Vec<(Part, usize)>,
    extents: Vec<Extent>,
    memory_bytes: usize,
}

impl Layout {
    /// Of parts in the order of volumes and addresses.
    fn of(parts: impl IntoIterator<Item = Part>) -> Self {
        let mut layout = Self::default();
        for part in parts {
            let from = layout.place(&part);
            layout.add(part, from);
        }
        layout
    }

    /// Where the bytes of a part would begin.
    fn place(&self, part: &Part) -> usize {
        match self.extents.last() {
            Some(last) if (last.volume, last.end) == (part.volume(), part.start) => {
                self.memory_bytes
            }
            _ => {
                let grain = GRAIN_BYTES as u64;
                self.memory_bytes.next_multiple_of(GRAIN_BYTES) + (part.start % grain) as usize
            }
        }
    }

    fn add(&mut self, part: Part, from: usize) {
        let (volume, start, end) = (part.volume(), part.start, part.end);
        match self.extents.last_mut() {
            Some(last) if (last.volume, last.end) == (volume, start) => last.end = end,
            _ => self.extents.push(Extent { volume, start, end, from }),
        }
        self.parts.push((part, from));
        self.memory_bytes = from + part.bytes() as usize;
    }
}

/// The batches of a plan.
pub struct Batches<'a> {
    source: Source<'a>,
    order: Order,
    locator: Locator<'a>,
    /// In the order of the log: what the pass has left, the first part last.
    pass: Vec<Part>,
    /// Bytes of the plan that are done.
    done_bytes: u64,
    failed: bool,
}

impl<'a> Batches<'a> {
    /// Those of a plan for this journal.
    #[must_use]
    pub fn new(history: &'a History, plan: &'a Plan, order: Order) -> Self {
        Self {
            source: Source::new(history, plan),
            order,
            locator: history.locator(),
            pass: Vec::new(),
            done_bytes: 0,
            failed: false,
        }
    }

    /// The parts that fit into the next batch in the order of addresses.
    fn by_address(&mut self) -> Result<Layout> {
        let mut layout = Layout::default();
        while let Some(part) = self.source.peek()? {
            let from = layout.place(&part);
            let room = BATCH_BYTES_MAX.saturating_sub(from) as u64;
            if layout.parts.len() == BATCH_PIECES_MAX {
                break;
            }
            let Some(taken) = part.first(room) else { break };
            layout.add(taken, from);
            self.source.take(taken.end);
            if taken.end < part.end {
                break;
            }
        }
        self.done_bytes = self.source.done_bytes()?;
        Ok(layout)
    }

    /// The parts that fit into the next batch in the order of the log.
    fn by_log(&mut self) -> Result<Layout> {
        if self.pass.is_empty() {
            self.begin_pass()?;
        }
        let (mut parts, mut room) = (Vec::new(), LOG_BATCH_BYTES_MAX as u64);
        while let Some(part) = self.pass.pop() {
            let bytes = part.grains_bytes();
            // The first is taken however large: no record is cut.
            if !parts.is_empty() && (bytes > room || parts.len() == BATCH_PIECES_MAX) {
                self.pass.push(part);
                break;
            }
            room = room.saturating_sub(bytes);
            self.done_bytes += part.bytes();
            parts.push(part);
        }
        if self.pass.is_empty() {
            self.done_bytes = self.source.done_bytes()?;
        }
        parts.sort_unstable_by_key(|part| (part.volume, part.start));
        Ok(Layout::of(parts))
    }

    fn begin_pass(&mut self) -> Result<()> {
        while self.pass.len() < PASS_PIECES_MAX
            && let Some(part) = self.source.peek()?
        {
            self.pass.push(part);
            self.source.take(part.end);
        }
        self.pass.sort_unstable_by_key(|part| Reverse((part.seq, part.start)));
        Ok(())
    }

    /// Finds the records of parts, and brings them into the order of the journal.
    fn locate(&mut self, layout: Layout) -> Result<Batch> {
        let Layout { parts: mut wanted, extents, memory_bytes } = layout;
        // In the order of numbers, so that each unit's index is needed once.
        wanted.sort_unstable_by_key(|(part, _)| (part.seq, part.start));
        let mut located: Vec<(Entry, usize, Write)> = Vec::with_capacity(wanted.len());
        for (part, mut to) in wanted {
            let mut addr = part.start;
            while addr < part.end {
                let entry = self.locator.locate(part.seq, addr)?;
                let record = &entry.record;
                let end = part.end.min(record.addr.saturating_add(record.len.into()));
                // A record's length is 32 bits wide, and a write lies within its record.
                let (skip, len) = ((addr - record.addr) as u32, (end - addr) as u32);
                located.push((entry, part.volume(), Write { addr, skip, len, to }));
                to += len as usize;
                addr = end;
            }
        }
        located.sort_unstable_by_key(|(entry, _, write)| (entry.unit, entry.at, write.skip));
        let mut reads: Vec<Read> = Vec::new();
        let mut writes = Vec::with_capacity(located.len());
        for (entry, volume, write) in located {
            let at = writes.len();
            writes.push(write);
            match reads.last_mut() {
                Some(last) if last.entry == entry => last.writes.end = at + 1,
                _ => reads.push(Read { volume, entry, writes: at..at + 1 }),
            }
        }
        Ok(Batch { done_bytes: self.done_bytes, extents, reads, writes, memory_bytes })
    }

    fn step(&mut self) -> Result<Option<Batch>> {
        let layout = match self.order {
            Order::Address => self.by_address()?,
            Order::Log => self.by_log()?,
        };
        if layout.parts.is_empty() {
            return Ok(None);
        }
        self.locate(layout).map(Some)
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            // Nothing comes behind what could not be read.
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}
