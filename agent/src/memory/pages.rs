//! Which pages of a stream are to be stored: each is compared with the table as it comes.
//!
//! Of each page one number is kept: not seen, the same as in the journal, zeroes that the journal
//! doesn't have, or its place in the spool. So memory is bounded by 4 bytes a page, a page that
//! comes more than once counts as it came last, and what is to be stored is found in the order of
//! addresses, in whatever order it came.

use super::spool::{Patience, Slot, Spool, SpoolAt, Spooled};
use super::table::{Known, Table, UNKNOWN, Version, ZERO, is_zero, pages_of};
use super::{Block, Error, PAGE_BYTES, Progress, Result};
use afterimage_journal::VolumeId;
use afterimage_migration::Sink;
use std::sync::atomic::Ordering;

/// What is to be done with a page; anything from [`STORED_FROM`] on is a place in the spool.
type Fate = u32;
const NOT_SEEN: Fate = 0;
const SAME: Fate = 1;
const ZEROES: Fate = 2;
const STORED_FROM: Fate = 3;

/// What a stream's pages are compared with, and where they go.
pub(super) struct Sorter<F> {
    table: Table,
    /// QEMU's name and the volume of each block that has one.
    volumes: Vec<(String, VolumeId)>,
    at: SpoolAt,
    patience: Patience,
    /// Called at the first page.
    first_page: Option<F>,
    counts: Counts,
    /// From the list of blocks on.
    sorted: Option<(Vec<Sorted>, Spool)>,
}

/// See [`Progress`].
#[derive(Default)]
struct Counts {
    total_bytes: u64,
    pages: u64,
    changed_pages: u64,
    zero_pages: u64,
}

/// A block's pages.
struct Sorted {
    block: Block,
    against: Against,
    fates: Vec<Fate>,
}

/// What a block's pages are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Against {
    /// What the journal holds of this volume.
    Volume(VolumeId),
    /// A volume that is yet to be made, and reads as zeroes.
    Zeroes,
    /// Nothing: all of it is stored.
    Nothing,
}

/// What is to be stored of a whole stream.
pub struct Changed {
    pub(super) version: Version,
    blocks: Vec<Sorted>,
    spool: Spooled,
}

/// Pages of a block that follow each other and are stored in one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) page: usize,
    pub(super) pages: usize,
    pub(super) is_zero: bool,
}

impl<F: FnOnce()> Sorter<F> {
    pub(super) fn new(
        table: Table,
        volumes: Vec<(String, VolumeId)>,
        at: SpoolAt,
        patience: Patience,
        first_page: F,
    ) -> Self {
        let first_page = Some(first_page);
        let counts = Counts::default();
        Self { table, volumes, at, patience, first_page, counts, sorted: None }
    }

    /// Makes its counts seen.
    pub(super) fn publish(&self, progress: &Progress) {
        progress.total_bytes.store(self.counts.total_bytes, Ordering::Relaxed);
        progress.pages.store(self.counts.pages, Ordering::Relaxed);
        progress.changed_pages.store(self.counts.changed_pages, Ordering::Relaxed);
        progress.zero_pages.store(self.counts.zero_pages, Ordering::Relaxed);
    }

    fn came(&mut self) {
        self.counts.pages += 1;
        if let Some(first_page) = self.first_page.take() {
            first_page();
        }
    }

    fn against(&self, block: &Block) -> Against {
        match self.volumes.iter().find(|(id, _)| *id == block.id) {
            None => Against::Zeroes,
            Some(&(_, volume)) if self.table.bytes(volume) == Some(block.bytes) => {
                Against::Volume(volume)
            }
            Some(_) => Against::Nothing,
        }
    }

    /// The stream ended whole.
    pub(super) fn finish(&mut self) -> Result<Changed> {
        let Some((blocks, spool)) = self.sorted.take() else { return Err(out_of_place()) };
        for sorted in &blocks {
            sorted.check_all_seen()?;
        }
        Ok(Changed { version: self.table.version(), blocks, spool: spool.finish()? })
    }

    pub(super) fn into_table(self) -> Table {
        self.table
    }
}

impl<F: FnOnce()> Sink for Sorter<F> {
    type Error = Error;

    fn blocks(&mut self, blocks: &[Block]) -> Result<()> {
        let mut sorted = Vec::with_capacity(blocks.len());
        let mut total_bytes = 0u64;
        for block in blocks {
            let pages = pages_of(block.bytes)?;
            total_bytes = total_bytes.saturating_add(block.bytes);
            let fates = vec![NOT_SEEN; pages];
            sorted.push(Sorted { block: block.clone(), against: self.against(block), fates });
        }
        self.counts.total_bytes = total_bytes;
        let limit_bytes = self.at.spool_bytes_max.unwrap_or(total_bytes);
        let is_encrypted = self.table.is_encrypted();
        let spool = Spool::create(&self.at.dir, limit_bytes, self.patience.clone(), is_encrypted)?;
        self.sorted = Some((sorted, spool));
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if is_zero(bytes) {
            return self.zero(block, offset);
        }
        self.came();
        let Some((sorted, spool)) = &mut self.sorted else { return Err(out_of_place()) };
        let (against, fate) = place(sorted, block, offset)?;
        let is_same = known(&self.table, against).is_some_and(|known| {
            let old = known.hashes[(offset / PAGE_BYTES as u64) as usize];
            // Hashed only when there is something to compare it with.
            old != ZERO && old != UNKNOWN && old == self.table.hash(bytes)
        });
        if is_same {
            *fate = SAME;
            return Ok(());
        }
        self.counts.changed_pages += 1;
        *fate = STORED_FROM + spool.push(bytes)?;
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64) -> Result<()> {
        self.came();
        let Some((sorted, _)) = &mut self.sorted else { return Err(out_of_place()) };
        let (against, fate) = place(sorted, block, offset)?;
        self.counts.zero_pages += 1;
        let is_same = match known(&self.table, against) {
            Some(known) => known.hashes[(offset / PAGE_BYTES as u64) as usize] == ZERO,
            None => against == Against::Zeroes,
        };
        *fate = if is_same { SAME } else { ZEROES };
        Ok(())
    }
}

fn known(table: &Table, against: Against) -> Option<&Known> {
    match against {
        Against::Volume(volume) => table.known(volume),
        Against::Zeroes | Against::Nothing => None,
    }
}

fn place(sorted: &mut [Sorted], block: usize, offset: u64) -> Result<(Against, &mut Fate)> {
    let sorted = sorted.get_mut(block).ok_or_else(out_of_place)?;
    let page = usize::try_from(offset / PAGE_BYTES as u64).map_err(|_| out_of_place())?;
    let fate = sorted.fates.get_mut(page).ok_or_else(out_of_place)?;
    Ok((sorted.against, fate))
}

/// The parser checks all that; a mistake of ours must not become a wrong page.
fn out_of_place() -> Error {
    Error::Invalid("a page outside of the blocks that QEMU listed: report this".into())
}

impl Sorted {
    fn check_all_seen(&self) -> Result<()> {
        let missing = self.fates.iter().filter(|f| **f == NOT_SEEN).count();
        match self.fates.iter().position(|f| *f == NOT_SEEN) {
            None => Ok(()),
            Some(first) => Err(Error::Missing {
                block: self.block.id.clone(),
                pages: self.fates.len() as u64,
                missing: missing as u64,
                offset: (first * PAGE_BYTES) as u64,
            }),
        }
    }
}

impl Changed {
    /// What a block was compared with, by its place in the stream's list.
    pub(super) fn against(&self, block: usize) -> Option<Against> {
        self.blocks.get(block).map(|b| b.against)
    }

    /// Bytes in the spool.
    #[must_use]
    pub fn spool_bytes(&self) -> u64 {
        self.spool.bytes()
    }

    /// The next run of a block to be stored, from a page on: at most so many pages of data, or so
    /// many zero pages.
    pub(super) fn next_run(
        &self,
        block: usize,
        from: usize,
        data_pages_max: usize,
        zero_pages_max: usize,
    ) -> Option<Run> {
        let fates = &self.blocks.get(block)?.fates;
        let skipped = fates.get(from..)?.iter().position(|f| *f > SAME)?;
        let page = from + skipped;
        let is_zero = fates[page] == ZEROES;
        let max = if is_zero { zero_pages_max } else { data_pages_max };
        let alike = |f: &Fate| *f > SAME && (*f == ZEROES) == is_zero;
        let pages = fates[page..].iter().take(max).take_while(|f| alike(f)).count();
        Some(Run { page, pages, is_zero })
    }

    /// Reads a run of data.
    pub(super) fn read(&self, block: usize, run: Run, bytes: &mut [u8]) -> Result<()> {
        let sorted = self.blocks.get(block).ok_or_else(out_of_place)?;
        let mut fates = &sorted.fates[run.page..run.page + run.pages];
        let mut rest = bytes;
        while let Some(&first) = fates.first() {
            // What came together lies together.
            let pages = (first..).zip(fates).take_while(|(due, f)| due == *f).count();
            let (part, behind) = rest.split_at_mut(pages * PAGE_BYTES);
            self.spool.read(slot(first)?, part)?;
            (fates, rest) = (&fates[pages..], behind);
        }
        Ok(())
    }
}

fn slot(fate: Fate) -> Result<Slot> {
    fate.checked_sub(STORED_FROM).ok_or_else(out_of_place)
}
