//! A plan's reads and writes, a *batch* at a time: the next stretch of a volume, as long as what it
//! needs fits into bounded memory, with the records that hold it in the order in which they lie.
//!
//! What always holds:
//! * batches come in the order of volumes and addresses, and no two cover the same byte; what none
//!   covers is zero and stays a hole;
//! * within a batch each record is read once, in the order of units and offsets; one that two
//!   batches need is read for each;
//! * memory: [`BATCH_BYTES_MAX`] and [`BATCH_PIECES_MAX`], however long the journal is.

use crate::direct::GRAIN_BYTES;
use crate::plan::Plan;
use afterimage_journal::history::{Entry, Locator};
use afterimage_journal::map::Piece;
use afterimage_journal::{History, Result};
use std::ops::Range;

/// Most memory for the data of a batch, in bytes. The more, the more of its records are neighbours.
pub const BATCH_BYTES_MAX: usize = 128 << 20;
/// Most pieces of records in a batch: some 400 bytes of memory each.
pub const BATCH_PIECES_MAX: usize = 64 << 10;
/// A batch that ends within a record ends on a multiple of this many bytes: what images are
/// allocated in.
const CUT_BYTES: u64 = 64 << 10;

/// A record to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
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
    /// Index in [`Plan::volumes`].
    pub volume: usize,
    /// The stretch of the volume, in bytes.
    pub range: Range<u64>,
    /// What of it holds data: ascending, disjoint, not touching each other.
    pub extents: Vec<Extent>,
    /// The records, in the order of the journal.
    pub reads: Vec<Read>,
    /// Where their bytes go, grouped by record.
    pub writes: Vec<Write>,
    /// Memory that it takes, in bytes.
    pub memory_bytes: usize,
}

/// Where pieces come to lie in memory.
#[derive(Default)]
struct Layout {
    /// With where in memory they begin.
    pieces: Vec<(Piece, usize)>,
    extents: Vec<Extent>,
    memory_bytes: usize,
}

impl Layout {
    /// Where the bytes from an address on would begin.
    fn place(&self, start: u64) -> usize {
        match self.extents.last() {
            Some(last) if last.end == start => self.memory_bytes,
            _ => {
                let grain = GRAIN_BYTES as u64;
                self.memory_bytes.next_multiple_of(GRAIN_BYTES) + (start % grain) as usize
            }
        }
    }

    fn add(&mut self, piece: Piece, from: usize) {
        match self.extents.last_mut() {
            Some(last) if last.end == piece.start => last.end = piece.end,
            _ => self.extents.push(Extent { start: piece.start, end: piece.end, from }),
        }
        self.pieces.push((piece, from));
        self.memory_bytes = from + piece.bytes() as usize;
    }
}

type Pieces = Box<dyn Iterator<Item = Result<Piece>> + Send>;

/// The batches of a plan, in order.
pub struct Batches<'a> {
    history: &'a History,
    plan: &'a Plan,
    /// Index of the volume whose turn it is.
    volume: usize,
    /// What is left of its map; `None`: not begun.
    pieces: Option<Pieces>,
    /// The piece that comes next, or what was cut off from one.
    ahead: Option<Piece>,
    /// Up to here the volume is done, in bytes.
    at: u64,
    locator: Locator<'a>,
}

impl<'a> Batches<'a> {
    /// Those of a plan for this journal.
    #[must_use]
    pub fn new(history: &'a History, plan: &'a Plan) -> Self {
        let locator = history.locator();
        Self { history, plan, volume: 0, pieces: None, ahead: None, at: 0, locator }
    }

    fn peek(&mut self, pieces: &mut Pieces) -> Result<Option<Piece>> {
        while self.ahead.is_none() {
            match pieces.next().transpose()? {
                Some(piece) if piece.zero => {}
                Some(piece) => self.ahead = Some(piece),
                None => break,
            }
        }
        Ok(self.ahead)
    }

    /// The pieces that fit into the next batch of a volume, and where it ends.
    fn gather(&mut self, pieces: &mut Pieces, bytes: u64) -> Result<(Layout, u64)> {
        let mut layout = Layout::default();
        while let Some(piece) = self.peek(pieces)? {
            let from = layout.place(piece.start);
            let room = BATCH_BYTES_MAX.saturating_sub(from) as u64;
            if layout.pieces.len() == BATCH_PIECES_MAX || room == 0 {
                return Ok((layout, piece.start));
            }
            let mut end = piece.end;
            if piece.bytes() > room {
                end = (piece.start + room) / CUT_BYTES * CUT_BYTES;
                if end <= piece.start {
                    return Ok((layout, piece.start));
                }
            }
            layout.add(Piece { end, ..piece }, from);
            self.ahead = (end < piece.end).then_some(Piece { start: end, ..piece });
            if end < piece.end {
                return Ok((layout, end));
            }
        }
        Ok((layout, bytes))
    }

    fn step(&mut self) -> Result<Option<Batch>> {
        let Some(volume) = self.plan.volumes.get(self.volume) else { return Ok(None) };
        let bytes = volume.volume.bytes;
        let mut pieces = match self.pieces.take() {
            Some(pieces) => pieces,
            None => {
                let map = self.history.map(volume.volume.id, self.plan.point.seq)?;
                self.at = 0;
                Box::new(map.pieces(0..map.bytes()))
            }
        };
        let (layout, end) = self.gather(&mut pieces, bytes)?;
        let range = self.at..end;
        let batch = self.locate(layout, range)?;
        self.at = end;
        if end < bytes {
            self.pieces = Some(pieces);
        } else {
            self.volume += 1;
        }
        Ok(Some(batch))
    }

    /// Finds the records of pieces, and brings them into the order of the journal.
    fn locate(&mut self, layout: Layout, range: Range<u64>) -> Result<Batch> {
        let Layout { pieces: mut wanted, extents, memory_bytes } = layout;
        // In the order of numbers, so that each unit's index is needed once.
        wanted.sort_unstable_by_key(|(piece, _)| (piece.seq, piece.start));
        let mut located: Vec<(Entry, Write)> = Vec::with_capacity(wanted.len());
        for (piece, mut to) in wanted {
            let mut addr = piece.start;
            while addr < piece.end {
                let entry = self.locator.locate(piece.seq, addr)?;
                let record = &entry.record;
                let end = piece.end.min(record.addr.saturating_add(record.len.into()));
                // A record's length is 32 bits wide, and a write lies within its record.
                let (skip, len) = ((addr - record.addr) as u32, (end - addr) as u32);
                located.push((entry, Write { addr, skip, len, to }));
                to += len as usize;
                addr = end;
            }
        }
        located.sort_unstable_by_key(|(entry, write)| (entry.unit, entry.at, write.skip));
        let mut reads: Vec<Read> = Vec::new();
        let mut writes = Vec::with_capacity(located.len());
        for (entry, write) in located {
            let at = writes.len();
            writes.push(write);
            match reads.last_mut() {
                Some(last) if last.entry == entry => last.writes.end = at + 1,
                _ => reads.push(Read { entry, writes: at..at + 1 }),
            }
        }
        Ok(Batch { volume: self.volume, range, extents, reads, writes, memory_bytes })
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            // Nothing comes behind what could not be read.
            self.volume = self.plan.volumes.len();
        }
        step.transpose()
    }
}
