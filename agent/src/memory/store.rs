//! Making records of what a stream changed.
//!
//! What always holds: an entry of the table is written behind its append, never before it, and is
//! unknown when that failed; what is cut short leaves whole records that no mark names, and a table
//! that is still true. The pages are
//! hashed a second time, from the bytes that were appended: 2 GB/s, on a thread that may wait.

use super::pages::{Against, Changed, Run};
use super::table::{Hash, Table, UNKNOWN, ZERO, is_zero};
use super::{Error, PAGE_BYTES, Result, STATE_BYTES_MAX, Taken};
use afterimage_journal::meta::RamBlock;
use afterimage_journal::{Journal, VolumeId};
use std::sync::atomic::{AtomicBool, Ordering};

/// Pages of one record of data: 64 KiB. A payload is checked whole before any of it is used, and
/// what a restore wants of it later may be one page.
const RUN_PAGES_MAX: usize = 16;
/// Pages of one record of zeroes: 1 GiB.
const ZERO_PAGES_MAX: usize = (1 << 30) / PAGE_BYTES;

/// What became records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Pages of RAM with data.
    pub pages: u64,
    /// Pages of RAM that became zeroes.
    pub zero_pages: u64,
    /// Pages of the device state.
    pub state_pages: u64,
    /// Records.
    pub records: u64,
    /// Bytes of guest memory and device state in records with data, before any compression.
    pub bytes: u64,
}

/// Appends what a stream changed: pages by volume and address, then the device state. Blocks on the
/// journal: for a thread that may wait. The caller then writes the mark.
///
/// `blocks` are those of the stream, in its order, each with its volume, and `state` the volume of
/// the device state: all in the journal's configuration and in the table ([`Table::add`]).
///
/// # Errors
/// `cancel` was set, the blocks are not the stream's, the device state is larger than
/// [`STATE_BYTES_MAX`], the table was not the one that the stream was compared with or doesn't
/// serve this journal, the spool can't be read, the journal stopped. See [`Table::serves`] before
/// the table is used again.
pub fn store(
    journal: &Journal,
    table: &mut Table,
    taken: &Taken,
    blocks: &[RamBlock],
    state: VolumeId,
    cancel: &AtomicBool,
) -> Result<Stored> {
    check(journal, table, taken, blocks, state)?;
    let mut work = Store { journal, table, cancel, stored: Stored::default(), hashes: Vec::new() };
    work.table.unsettle();
    let done = work.all(taken, blocks, state);
    let stored = work.stored;
    // Between two runs all that was appended is known, and what failed is known to be unknown.
    table.settle();
    done.map(|()| stored)
}

fn check(
    journal: &Journal,
    table: &Table,
    taken: &Taken,
    blocks: &[RamBlock],
    state: VolumeId,
) -> Result<()> {
    if !table.serves(journal) || table.version() != taken.changed.version {
        let what = "the table changed while the guest's memory was taken";
        return Err(Error::StaleTable(what.into()));
    }
    let bytes = taken.state_bytes();
    if bytes > STATE_BYTES_MAX {
        return Err(Error::StateTooLarge { bytes, limit_bytes: STATE_BYTES_MAX });
    }
    if table.bytes(state).is_none_or(|room| room < bytes) {
        let what = format!("volume {state} has no room for a device state of {bytes} bytes");
        return Err(Error::Invalid(what));
    }
    if blocks.len() != taken.blocks.len() {
        let (listed, given) = (taken.blocks.len(), blocks.len());
        return Err(Error::Invalid(format!(
            "the stream has {listed} RAM blocks, {given} were named"
        )));
    }
    for (index, (ours, theirs)) in blocks.iter().zip(&taken.blocks).enumerate() {
        let fits = ours.id == theirs.id && ours.bytes == theirs.bytes;
        let is_table = table.bytes(ours.volume) == Some(ours.bytes);
        let is_alone = blocks[..index].iter().all(|b| b.volume != ours.volume);
        let compared = match taken.changed.against(index) {
            Some(Against::Volume(volume)) => volume == ours.volume,
            Some(Against::Zeroes) => table.known(ours.volume).is_some_and(|v| v.is_new),
            Some(Against::Nothing) => true,
            None => false,
        };
        if !(fits && is_table && is_alone && compared && ours.volume != state) {
            let what = format!("volume {} is not that of RAM block {}", ours.volume, theirs.id);
            return Err(Error::Invalid(what));
        }
    }
    Ok(())
}

struct Store<'a> {
    journal: &'a Journal,
    table: &'a mut Table,
    cancel: &'a AtomicBool,
    stored: Stored,
    /// Of one run.
    hashes: Vec<Hash>,
}

impl Store<'_> {
    fn all(&mut self, taken: &Taken, blocks: &[RamBlock], state: VolumeId) -> Result<()> {
        let mut buffer = vec![0; RUN_PAGES_MAX * PAGE_BYTES];
        for (index, block) in blocks.iter().enumerate() {
            self.block(&taken.changed, index, block.volume, &mut buffer)?;
        }
        self.state(taken, state, &mut buffer)
    }

    fn block(
        &mut self,
        changed: &Changed,
        index: usize,
        volume: VolumeId,
        buffer: &mut [u8],
    ) -> Result<()> {
        let mut from = 0;
        while let Some(run) = changed.next_run(index, from, RUN_PAGES_MAX, ZERO_PAGES_MAX) {
            if run.is_zero {
                self.zero(volume, run)?;
            } else {
                let bytes = &mut buffer[..run.pages * PAGE_BYTES];
                changed.read(index, run, bytes)?;
                self.data(volume, run.page, bytes)?;
                self.stored.pages += run.pages as u64;
            }
            from = run.page + run.pages;
        }
        Ok(())
    }

    fn look(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn data(&mut self, volume: VolumeId, page: usize, bytes: &[u8]) -> Result<()> {
        self.look()?;
        self.hashes.clear();
        if let Err(error) = self.journal.append_memory(volume, address(page), bytes) {
            // A part of it may be in the journal.
            self.hashes.resize(bytes.len() / PAGE_BYTES, UNKNOWN);
            self.table.set(volume, page, &self.hashes);
            return Err(error.into());
        }
        for page in bytes.chunks(PAGE_BYTES) {
            self.hashes.push(if is_zero(page) { ZERO } else { self.table.hash(page) });
        }
        self.table.set(volume, page, &self.hashes);
        self.stored.records += 1;
        self.stored.bytes += bytes.len() as u64;
        Ok(())
    }

    fn zero(&mut self, volume: VolumeId, run: Run) -> Result<()> {
        self.look()?;
        let bytes = (run.pages * PAGE_BYTES) as u32;
        // One record: it is there or it is not.
        self.journal.append_memory_zero(volume, address(run.page), bytes)?;
        self.table.set_zero(volume, run.page, run.pages);
        self.stored.records += 1;
        self.stored.zero_pages += run.pages as u64;
        Ok(())
    }

    /// Head and tail, one behind the other from byte 0, filled up with zeroes to a whole page.
    fn state(&mut self, taken: &Taken, volume: VolumeId, buffer: &mut [u8]) -> Result<()> {
        let mut bytes = taken.head.iter().chain(&taken.tail).copied();
        let pages = taken.state_bytes().div_ceil(PAGE_BYTES as u64) as usize;
        let (mut run, mut from) = (0, 0);
        for page in 0..=pages {
            let differs = page < pages && {
                let place = &mut buffer[run * PAGE_BYTES..][..PAGE_BYTES];
                place.iter_mut().for_each(|byte| *byte = bytes.next().unwrap_or(0));
                self.differs(volume, page, place)
            };
            if differs {
                from = if run == 0 { page } else { from };
                run += 1;
            }
            if run > 0 && (!differs || run == RUN_PAGES_MAX) {
                self.data(volume, from, &buffer[..run * PAGE_BYTES])?;
                self.stored.state_pages += run as u64;
                run = 0;
            }
        }
        Ok(())
    }

    fn differs(&self, volume: VolumeId, page: usize, bytes: &[u8]) -> bool {
        let new = if is_zero(bytes) { ZERO } else { self.table.hash(bytes) };
        self.table.known(volume).and_then(|v| v.hashes.get(page)) != Some(&new)
    }
}

fn address(page: usize) -> u64 {
    page as u64 * PAGE_BYTES as u64
}
