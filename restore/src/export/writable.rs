//! A volume at a point that can be written to: what clients write lies in a scratch layer over
//! the point, and is thrown away with the export.
//!
//! What always holds:
//! * the point itself never changes; a second export of it doesn't see what is written here;
//! * all connections share the layer: what was answered to one is read by all;
//! * a write that fails (the scratch directory is full) leaves each block of [`BLOCK_BYTES`] as it was
//!   or as it was to be. Data is written first, whole blocks at a time, and counts once the map says
//!   so; of a block that counts already and was overwritten in part, the new bytes are held in memory;
//! * what the scratch file has where the map says [`State::Zero`] or [`State::Base`] is never read.
//!
//! A flush is done at once: the layer does not outlive its process, so there is nothing that
//! durability could be promised for.

use super::scratch::{Scratch, Short};
use super::written::{BLOCK_BYTES, State, Written};
use afterimage_nbd::proto::{BASE_ALLOCATION, STATE_HOLE, STATE_ZERO};
use afterimage_nbd::{Errno, Export, ExportInfo, Payload, StatusSink, WriteFlags, ZeroFlags};
use afterimage_planted as planted;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes of a payload that are received and written at a time; whole blocks.
const BUFFER_BYTES: usize = 1 << 20;
/// Zeroes that are written at a time where the file system can't take room for them, in bytes.
const ZEROES_BYTES: u64 = 64 << 10;
/// Blocks that are held in memory since writing them broke off in the middle. Once there are so many,
/// the layer takes no more writes.
const HELD_MAX: usize = 256;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A volume at a point with a layer over it.
pub(super) struct WritableExport {
    point: Arc<dyn Export>,
    scratch: Scratch,
    written: Written,
    /// Shared by writes of whole blocks; exclusive for what keeps the rest of a block, makes
    /// zeroes, or tidies up after a failure: none may run over a neighbour's bytes in the same
    /// block. Never held while waiting for a client.
    gate: RwLock<()>,
    /// Blocks whose last write broke off in the middle, with what was to be written.
    held: Mutex<BTreeMap<u64, Box<[u8]>>>,
    /// How many are held: 0 as a rule, and then nobody needs the lock.
    held_count: AtomicUsize,
    /// Whether anything was ever written: the memory of the point belongs to it no more.
    touched: Arc<AtomicBool>,
}

impl WritableExport {
    /// A layer in `scratch`, which is as large as the volume.
    pub(super) fn new(point: Arc<dyn Export>, scratch: Scratch) -> Self {
        Self {
            written: Written::new(point.bytes()),
            point,
            scratch,
            gate: RwLock::new(()),
            held: Mutex::default(),
            held_count: AtomicUsize::new(0),
            touched: Arc::default(),
        }
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

    fn held(&self) -> MutexGuard<'_, BTreeMap<u64, Box<[u8]>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first block that begins in the range, and the one behind the last that ends in it; the
    /// volume's last block may be a short one.
    fn whole_blocks(&self, at: u64, end: u64) -> (u64, u64) {
        let behind =
            if end == self.bytes() { end.div_ceil(BLOCK_BYTES) } else { end / BLOCK_BYTES };
        (at.div_ceil(BLOCK_BYTES), behind)
    }

    /// Whether a range begins and ends with blocks.
    fn is_whole(&self, at: u64, end: u64) -> bool {
        self.whole_blocks(at, end) == (at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES))
    }

    /// The blocks `first..behind` as bytes of the volume.
    fn bytes_of(&self, first: u64, behind: u64) -> (u64, u64) {
        (first * BLOCK_BYTES, (behind * BLOCK_BYTES).min(self.bytes()))
    }

    /// Writes bytes anywhere.
    fn put(&self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let end = at + bytes.len() as u64;
        if self.held_count.load(Ordering::Relaxed) >= HELD_MAX {
            return Err(Errno::Io);
        }
        if self.is_whole(at, end) {
            let gate = self.shared();
            let stored = self.scratch.write(at, bytes);
            return match stored {
                Ok(()) => {
                    self.count(at, end);
                    Ok(())
                }
                Err(short) => {
                    drop(gate);
                    let _gate = self.exclusive();
                    Err(self.tidy_up(at, bytes, short))
                }
            };
        }
        let _gate = self.exclusive();
        let (first, behind) = (at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        let (from, upto) = self.bytes_of(first, behind);
        let mut blocks = vec![0; (upto - from) as usize];
        let whole = self.whole_blocks(at, end);
        for block in BTreeSet::from([first, behind - 1]) {
            if !(whole.0..whole.1).contains(&block) {
                let (start, end) = self.bytes_of(block, block + 1);
                let room = &mut blocks[(start - from) as usize..(end - from) as usize];
                let is_zero = self.written.run(block, block + 1).0 == State::Zero;
                if is_zero && planted::is("zero-block-from-scratch") {
                    self.scratch.read(start, room)?;
                } else {
                    self.read(start, room)?;
                }
            }
        }
        blocks[(at - from) as usize..(end - from) as usize].copy_from_slice(bytes);
        match self.scratch.write(from, &blocks) {
            Ok(()) => {
                self.count(from, upto);
                Ok(())
            }
            Err(short) => Err(self.tidy_up(from, &blocks, short)),
        }
    }

    /// Whole blocks were written: from now on they count.
    fn count(&self, at: u64, end: u64) {
        let (first, behind) = (at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        self.written.mark(first, behind, State::Data);
        self.let_go(first, behind);
    }

    /// Forgets what is held of blocks that are as they should be.
    fn let_go(&self, first: u64, behind: u64) {
        if self.held_count.load(Ordering::Relaxed) > 0 {
            let mut held = self.held();
            held.retain(|block, _| !(first..behind).contains(block));
            self.held_count.store(held.len(), Ordering::Relaxed);
        }
    }

    /// After a write of whole blocks that failed, which nobody else does anything beside: holds the
    /// block that it broke off in, and gives the room of those back that don't count.
    fn tidy_up(&self, at: u64, bytes: &[u8], short: Short) -> Errno {
        let (first, behind) = (at / BLOCK_BYTES, (at + bytes.len() as u64).div_ceil(BLOCK_BYTES));
        let torn = (at + short.done as u64) / BLOCK_BYTES;
        let counts = torn < behind && self.written.run(torn, torn + 1).0 == State::Data;
        if counts && !planted::is("torn-block-not-held") {
            let (from, upto) = self.bytes_of(torn, torn + 1);
            let block = &bytes[(from - at) as usize..(upto - at) as usize];
            let mut held = self.held();
            held.insert(torn, block.into());
            self.held_count.store(held.len(), Ordering::Relaxed);
        }
        // Those before it are as they were to be; of these, too, the older version is not to be seen.
        self.let_go(first, torn);
        let mut block = first;
        while block < behind {
            let (state, end) = self.written.run(block, behind);
            if state != State::Data {
                let (from, upto) = self.bytes_of(block, end);
                self.scratch.release(from, upto - from);
            }
            block = end;
        }
        short.error.into()
    }

    /// Makes a part of one or two blocks zero.
    fn zero_part(&self, at: u64, end: u64) -> Result<(), Errno> {
        let behind = end.div_ceil(BLOCK_BYTES);
        match self.written.run(at / BLOCK_BYTES, behind) {
            (State::Zero, upto) if upto == behind => Ok(()),
            _ => self.put(at, &vec![0; (end - at) as usize]),
        }
    }

    /// Makes a range zero; `keep` takes its space too.
    fn zero(&self, at: u64, end: u64, keep: bool) -> Result<(), Errno> {
        let (first, behind) = self.whole_blocks(at, end);
        if first >= behind {
            return self.zero_part(at, end);
        }
        let (from, upto) = self.bytes_of(first, behind);
        for (start, end) in [(at, from), (upto, end)] {
            if start < end {
                self.zero_part(start, end)?;
            }
        }
        let _gate = self.exclusive();
        self.written.mark(first, behind, State::Zero);
        self.let_go(first, behind);
        if !keep {
            self.scratch.release(from, upto - from);
            return Ok(());
        }
        if !self.scratch.allocate_zeroes(from, upto - from)? {
            let zeroes = [0; ZEROES_BYTES as usize];
            let mut at = from;
            while at < upto {
                let bytes = ZEROES_BYTES.min(upto - at);
                // It counts as zero whatever becomes of this.
                self.scratch.write(at, &zeroes[..bytes as usize]).map_err(|short| short.error)?;
                at += bytes;
            }
        }
        self.written.mark(first, behind, State::Data);
        Ok(())
    }

    /// Reads bytes that the scratch file has, or should have.
    fn read_ours(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        if self.held_count.load(Ordering::Relaxed) == 0 {
            return Ok(self.scratch.read(at, buf)?);
        }
        // Taken before the file is read: a block that is let go of meanwhile is whole in the file.
        let end = at + buf.len() as u64;
        let blocks = at / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let held: Vec<(u64, Box<[u8]>)> =
            self.held().range(blocks).map(|(block, bytes)| (*block, bytes.clone())).collect();
        self.scratch.read(at, buf)?;
        for (block, bytes) in held {
            let start = block * BLOCK_BYTES;
            let (from, upto) = (start.max(at), (start + bytes.len() as u64).min(end));
            buf[(from - at) as usize..(upto - at) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(upto - start) as usize]);
        }
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
            description: self.point.info().description,
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
                State::Data => self.read_ours(from, part)?,
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
        // A mark in the map is fast; a block that is covered in part, and room that is to be taken,
        // are written.
        let is_fast = !flags.no_hole && self.is_whole(at, at + len);
        if flags.fast && !is_fast && !planted::is("fast-zero-that-is-slow") {
            return Err(Errno::NotSup);
        }
        self.touched.store(true, Ordering::Relaxed);
        self.zero(at, at + len, flags.no_hole)
    }

    /// What is forgotten reads as zeroes, to the byte: clients that punch holes rely on it.
    fn trim(&self, at: u64, len: u64, _: WriteFlags) -> Result<(), Errno> {
        self.touched.store(true, Ordering::Relaxed);
        if planted::is("trim-leaves-edges") {
            let (first, behind) = self.whole_blocks(at, at + len);
            let (from, upto) = self.bytes_of(first, behind.max(first));
            return if from < upto { self.zero(from, upto, false) } else { Ok(()) };
        }
        self.zero(at, at + len, false)
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
            State::Base => {
                self.point.block_status(BASE_ALLOCATION, from, upto - from, sink)?;
                Ok(sink.wants_more())
            }
            State::Data => Ok(sink.push(upto - from, 0)),
            State::Zero => Ok(sink.push(upto - from, STATE_HOLE | STATE_ZERO)),
        })
    }
}

#[cfg(test)]
#[path = "writable_tests.rs"]
mod tests;
