//! A volume at a point that can be written to: what clients write lies in a scratch layer over
//! the point, and is thrown away with the export.
//!
//! What always holds:
//! * the point itself never changes; a second export of it doesn't see what is written here;
//! * all connections share the layer: what was answered to one is read by all;
//! * a block that the layer calls [`State::Zero`] is a hole in the scratch file, so that a part of
//!   it can be written without filling the rest;
//! * a write that fails (the scratch directory is full) is that client's error and nothing more.
//!
//! A flush is done at once: the layer does not outlive its process, so there is nothing that
//! durability could be promised for.

use super::point::PointExport;
use super::scratch::Scratch;
use super::written::{BLOCK_BYTES, State, Written};
use afterimage_nbd::proto::{STATE_HOLE, STATE_ZERO};
use afterimage_nbd::{Errno, Export, ExportInfo, Payload, StatusSink, WriteFlags, ZeroFlags};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes of a payload that are received and written at a time; whole blocks.
const BUFFER_BYTES: usize = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A volume at a point with a layer over it.
pub(super) struct WritableExport {
    point: PointExport,
    scratch: Scratch,
    written: Written,
    /// Shared by writes of whole blocks; exclusive for what fills the rest of a block or makes
    /// holes: neither may run over a neighbour's bytes in the same block. Never held while
    /// waiting for a client.
    gate: RwLock<()>,
    /// Whether anything was ever written: the memory of the point belongs to it no more.
    touched: Arc<AtomicBool>,
}

impl WritableExport {
    /// A layer in `scratch`, which is empty and as large as the volume's blocks.
    pub(super) fn new(point: PointExport, scratch: Scratch) -> Self {
        let written = Written::new(point.bytes());
        Self { point, scratch, written, gate: RwLock::new(()), touched: Arc::default() }
    }

    /// Set with the first write.
    pub(super) fn touched(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.touched)
    }

    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first block that begins in the range, and the one behind the last that ends in it; the
    /// volume's last block may be a short one.
    fn whole_blocks(&self, at: u64, end: u64) -> (u64, u64) {
        let behind =
            if end == self.bytes() { end.div_ceil(BLOCK_BYTES) } else { end / BLOCK_BYTES };
        (at.div_ceil(BLOCK_BYTES), behind)
    }

    /// Brings a block of which only a part is going to be written into the layer.
    fn fill(&self, block: u64) -> Result<(), Errno> {
        if self.written.run(block, block + 1).0 == State::Base {
            let at = block * BLOCK_BYTES;
            let mut rest = [0; BLOCK_BYTES as usize];
            let rest = &mut rest[..BLOCK_BYTES.min(self.bytes() - at) as usize];
            self.point.read(at, rest)?;
            self.scratch.write(at, rest)?;
        }
        self.written.mark(block, block + 1, State::Data);
        Ok(())
    }

    /// Fills the blocks at both ends of a range that it covers in part.
    fn fill_edges(&self, at: u64, end: u64, whole: (u64, u64)) -> Result<(), Errno> {
        let (first, last) = (at / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
        for block in [first, last] {
            if !(whole.0..whole.1).contains(&block) {
                self.fill(block)?;
            }
        }
        Ok(())
    }

    fn put(&self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let end = at + bytes.len() as u64;
        let (first, behind) = (at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        let whole = self.whole_blocks(at, end);
        if whole == (first, behind) {
            let _gate = self.shared();
            self.scratch.write(at, bytes)?;
            self.written.mark(first, behind, State::Data);
            return Ok(());
        }
        let _gate = self.exclusive();
        self.fill_edges(at, end, whole)?;
        self.scratch.write(at, bytes)?;
        self.written.mark(first, behind, State::Data);
        Ok(())
    }

    /// Makes a range zero; `keep` takes its space too.
    fn zero(&self, at: u64, end: u64, keep: bool) -> Result<(), Errno> {
        let _gate = self.exclusive();
        let whole = self.whole_blocks(at, end);
        self.fill_edges(at, end, whole)?;
        if whole.0 >= whole.1 {
            return Ok(self.scratch.write_zeroes(at, end - at)?);
        }
        let (from, behind) = (whole.0 * BLOCK_BYTES, whole.1 * BLOCK_BYTES);
        for (start, end) in [(at, from), (behind.min(end), end)] {
            if start < end {
                self.scratch.write_zeroes(start, end - start)?;
            }
        }
        let state = if !keep && self.scratch.punch(from, behind - from)? {
            State::Zero
        } else {
            self.scratch.write_zeroes(from, behind - from)?;
            State::Data
        };
        self.written.mark(whole.0, whole.1, state);
        Ok(())
    }

    /// Calls `take` with each run of blocks of one state in the range, until it has enough.
    fn each_run(
        &self,
        at: u64,
        end: u64,
        mut take: impl FnMut(u64, u64, State) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let behind = end.div_ceil(BLOCK_BYTES);
        let mut at = at;
        while at < end {
            let (state, upto) = self.written.run(at / BLOCK_BYTES, behind);
            let upto = (upto * BLOCK_BYTES).min(end);
            if !take(at, upto, state)? {
                return Ok(());
            }
            at = upto;
        }
        Ok(())
    }
}

impl Export for WritableExport {
    fn bytes(&self) -> u64 {
        self.point.bytes()
    }

    fn info(&self) -> ExportInfo {
        ExportInfo {
            description: self.point.description().to_owned(),
            can_fast_zero: true,
            // One layer for all, and nothing is held back from it.
            multi_conn: true,
            ..ExportInfo::default()
        }
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.each_run(at, at + buf.len() as u64, |from, upto, state| {
            let part = &mut buf[(from - at) as usize..(upto - at) as usize];
            match state {
                State::Base => self.point.read(from, part)?,
                State::Data => self.scratch.read(from, part)?,
                State::Zero => part.fill(0),
            }
            Ok(true)
        })
    }

    fn write(&self, at: u64, payload: &mut Payload<'_>, _: WriteFlags) -> Result<(), Errno> {
        self.touched.store(true, Ordering::Relaxed);
        BUFFER.with_borrow_mut(|buffer| {
            let mut at = at;
            while payload.left() > 0 {
                // Up to a block's border, so that only the ends of the whole write are edges.
                let into_block = (at % BLOCK_BYTES) as usize;
                let bytes = payload.left().min(BUFFER_BYTES - into_block);
                if buffer.len() < bytes {
                    buffer.resize(bytes, 0);
                }
                payload.read_into(&mut buffer[..bytes])?;
                self.put(at, &buffer[..bytes])?;
                at += bytes as u64;
            }
            Ok(())
        })
    }

    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        self.touched.store(true, Ordering::Relaxed);
        self.zero(at, at + len, flags.no_hole)
    }

    fn trim(&self, at: u64, len: u64, _: WriteFlags) -> Result<(), Errno> {
        self.touched.store(true, Ordering::Relaxed);
        // What is forgotten reads as zeroes; the ends of the range, where it covers a block in
        // part, may stay as they are.
        let (first, behind) = self.whole_blocks(at, at + len);
        if first >= behind {
            return Ok(());
        }
        let end = (behind * BLOCK_BYTES).min(self.bytes());
        self.zero(first * BLOCK_BYTES, end, false)
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn block_status(
        &self,
        _context: &str,
        at: u64,
        len: u64,
        sink: &mut StatusSink<'_>,
    ) -> Result<(), Errno> {
        self.each_run(at, at + len, |from, upto, state| match state {
            State::Base => self.point.status(from, upto, sink),
            State::Data => Ok(sink.push(upto - from, 0)),
            State::Zero => Ok(sink.push(upto - from, STATE_HOLE | STATE_ZERO)),
        })
    }
}
