//! A sorted run in a file: disjoint pieces, found by a few block reads.
//!
//! What always holds:
//! * a run has its name only when all of it is durable, and never changes after that;
//! * every block is checked when it is read; one that is bad is an error that names the file and
//!   the offset, and the caller makes do with the units' indexes;
//! * memory: 16 bytes for 32,258 pieces, and a small cache of blocks.

mod cursor;
mod format;
mod name;
mod writer;

pub(super) use cursor::Cursor;
pub use name::{LEVEL_BASE, LEVEL_MAX, RunName, Span};
pub use writer::RunWriter;

use super::piece::{Piece, Placed};
use crate::error::{Error, Result};
use crate::format::VERSION;
use crate::storage::{Access, Storage, StoredFile};
use crate::{Seq, VolumeId};
use format::{BLOCK_BYTES, Block, KEYS_MAX, Key, Totals};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// Blocks that a run keeps at hand.
const CACHED_BLOCKS_MAX: usize = 32;

/// A checked block.
#[derive(Debug)]
struct Checked {
    bytes: Block,
    /// Number of its entries.
    count: usize,
}

/// The blocks used last, the newest at the end.
type Cache = Mutex<Vec<(u64, Arc<Checked>)>>;

/// An open run.
#[derive(Debug)]
pub struct Run {
    path: PathBuf,
    file: Arc<dyn StoredFile>,
    id: [u8; 16],
    span: Span,
    totals: Totals,
    /// First key of each index block.
    top: Vec<Key>,
    cache: Cache,
}

impl Run {
    /// Opens a run of a group's journal.
    ///
    /// # Errors
    /// [`Error::BadRun`] when it is damaged or of another group; a newer program wrote it; or it
    /// can't be read.
    pub fn open(storage: &Arc<dyn Storage>, path: &Path, group: Uuid) -> Result<Self> {
        let io = |e| Error::io("open map run", path, e);
        let bad = |at: u64, why| Error::BadRun { path: path.to_owned(), at, why };
        let file = storage.open(path, Access::Read).map_err(io)?;
        let blocks = file.bytes().map_err(io)? / BLOCK_BYTES as u64;
        let mut block = Box::new([0; BLOCK_BYTES]);
        let read = |number: u64, block: &mut Block| {
            let at = number * BLOCK_BYTES as u64;
            file.read_exact_at(block, at).map_err(io)?;
            format::check_block(block, number).map_err(|why| bad(at, why))
        };
        if blocks < 2 {
            return Err(bad(0, "it is too short for a run"));
        }
        let (_, id) = read(0, &mut block)?;
        let (version, of, span) =
            format::decode_header(&block).ok_or_else(|| bad(0, "it isn't a run's header"))?;
        if version > VERSION {
            let path = path.to_owned();
            return Err(Error::NewerFormat { path, found: version, supported: VERSION });
        }
        if of != group.into_bytes() {
            return Err(bad(0, "it is of another group"));
        }
        span.check().map_err(|_| bad(0, "it covers what no run can"))?;
        let end = (blocks - 1) * BLOCK_BYTES as u64;
        // The footer, and the top before it, which has one block unless the run is huge: one read.
        let mut tail = Box::new([0; 2 * BLOCK_BYTES]);
        file.read_exact_at(&mut tail[..], end - BLOCK_BYTES as u64).map_err(io)?;
        block.copy_from_slice(&tail[BLOCK_BYTES..]);
        let owner = format::check_block(&block, blocks - 1).map_err(|why| bad(end, why))?.1;
        let totals =
            format::decode_footer(&block).ok_or_else(|| bad(end, "it isn't a run's footer"))?;
        // Bounded before anything is counted up: a checksum proves no intention.
        let fits = totals.pieces <= blocks * format::PIECES_MAX as u64 && totals.blocks() == blocks;
        if owner != id || !fits {
            return Err(bad(end, "it doesn't belong to what is before it"));
        }
        // Grows with the blocks that pass their check: a sparse file may claim any number of them.
        let mut top = Vec::new();
        for number in totals.top_at()..totals.top_at() + totals.top_blocks() {
            let (count, owner) = if number == blocks - 2 {
                block.copy_from_slice(&tail[..BLOCK_BYTES]);
                let at = number * BLOCK_BYTES as u64;
                format::check_block(&block, number).map_err(|why| bad(at, why))?
            } else {
                read(number, &mut block)?
            };
            let keys = (0..count as usize).map_while(|i| format::decode_key(&block, i));
            top.extend(keys);
            if owner != id {
                return Err(bad(number * BLOCK_BYTES as u64, "it is a block of another run"));
            }
        }
        if top.len() as u64 != totals.index_blocks() || !top.is_sorted() {
            return Err(bad(totals.top_at() * BLOCK_BYTES as u64, "its keys are not in order"));
        }
        let cache = Mutex::new(Vec::new());
        Ok(Self { path: path.to_owned(), file, id, span, totals, top, cache })
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it covers.
    #[must_use]
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Number of its pieces.
    #[must_use]
    pub fn pieces(&self) -> u64 {
        self.totals.pieces
    }

    /// Size of its file, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.totals.blocks() * BLOCK_BYTES as u64
    }

    /// The highest rank of a piece; 0: there is none.
    #[must_use]
    pub fn rank_max(&self) -> Seq {
        self.totals.rank_max
    }

    /// The lowest rank of a piece; 0: there is none.
    #[must_use]
    pub fn rank_min(&self) -> Seq {
        self.totals.rank_min
    }

    /// The piece that covers a byte.
    ///
    /// # Errors
    /// A block is damaged or can't be read.
    pub fn find(self: &Arc<Self>, volume: VolumeId, at: u64) -> Result<Option<Piece>> {
        let Some(data) = self.locate((volume, at))? else { return Ok(None) };
        let block = self.data_block(data)?;
        let found = self.piece(&block, data, first_behind(&block, (volume, at)));
        let covers = |(v, p): &Placed| *v == volume && p.start <= at && at < p.end;
        Ok(found?.filter(covers).map(|(_, p)| p))
    }

    /// The pieces of a range of a volume (in bytes), ascending, cut to it.
    pub fn iter(
        self: &Arc<Self>,
        volume: VolumeId,
        range: Range<u64>,
    ) -> impl Iterator<Item = Result<Piece>> + Send + use<> {
        let (from, to) = ((volume, range.start), (volume, range.end));
        Cursor::new(Arc::clone(self), from, to).map(|placed| placed.map(|(_, piece)| piece))
    }

    /// All pieces, ascending.
    pub fn all(self: &Arc<Self>) -> impl Iterator<Item = Result<Placed>> + Send + use<> {
        Cursor::new(Arc::clone(self), (0, 0), (VolumeId::MAX, u64::MAX))
    }

    /// The data block in which the piece that covers a key lies, if there is one; `None`: the run
    /// begins behind the key.
    fn locate(&self, key: Key) -> Result<Option<u64>> {
        let index = self.top.partition_point(|first| *first <= key);
        let Some(index) = index.checked_sub(1) else { return Ok(None) };
        let number = self.totals.index_at(index as u64);
        let block = self.cached(number)?;
        let within = partition(block.count, |i| {
            format::decode_key(&block.bytes, i).is_some_and(|first| first <= key)
        });
        let Some(within) = within.checked_sub(1).filter(|_| block.count <= KEYS_MAX) else {
            return Err(self.bad(number, "its keys are not in order"));
        };
        Ok(Some(index as u64 * KEYS_MAX as u64 + within as u64))
    }

    fn data_block(&self, data: u64) -> Result<Arc<Checked>> {
        self.cached(format::data_at(data))
    }

    fn piece(&self, block: &Checked, data: u64, index: usize) -> Result<Option<Placed>> {
        if index >= block.count {
            return Ok(None);
        }
        match format::decode_piece(&block.bytes, index) {
            Some(placed) => Ok(Some(placed)),
            None => Err(self.bad(format::data_at(data), "it has a piece that can't be one")),
        }
    }

    fn cached(&self, number: u64) -> Result<Arc<Checked>> {
        {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(i) = cache.iter().position(|(n, _)| *n == number) {
                let hit = cache.remove(i);
                let block = Arc::clone(&hit.1);
                cache.push(hit);
                return Ok(block);
            }
        }
        let mut bytes = [0; BLOCK_BYTES];
        self.read(number, &mut bytes)?;
        let block = Arc::new(self.checked(number, &bytes)?);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED_BLOCKS_MAX {
            cache.remove(0);
        }
        cache.push((number, Arc::clone(&block)));
        Ok(block)
    }

    fn read(&self, number: u64, buffer: &mut [u8]) -> Result<()> {
        let at = number * BLOCK_BYTES as u64;
        let read = self.file.read_exact_at(buffer, at);
        read.map_err(|e| Error::io("read map run", &self.path, e))
    }

    fn checked(&self, number: u64, bytes: &Block) -> Result<Checked> {
        match format::check_block(bytes, number) {
            Ok((count, run)) if run == self.id => {
                Ok(Checked { bytes: *bytes, count: count as usize })
            }
            Ok(_) => Err(self.bad(number, "it is a block of another run")),
            Err(why) => Err(self.bad(number, why)),
        }
    }

    fn bad(&self, number: u64, why: &'static str) -> Error {
        Error::BadRun { path: self.path.clone(), at: number * BLOCK_BYTES as u64, why }
    }
}

/// Index of the first piece of a block that ends behind a key.
fn first_behind(block: &Checked, key: Key) -> usize {
    partition(block.count, |i| {
        format::decode_piece(&block.bytes, i).is_some_and(|(v, p)| (v, p.end) <= key)
    })
}

/// First index for which it doesn't hold, of those for which it does come first.
fn partition(count: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = usize::midpoint(low, high);
        if holds(middle) { low = middle + 1 } else { high = middle }
    }
    low
}
