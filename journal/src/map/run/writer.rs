//! Writing a run: a draft that gets its name when all of it is durable.

use super::Run;
use super::format::{self, BLOCK_BYTES, Block, KEYS_MAX, Key, PIECE_BYTES_MAX, PIECES_MAX, Totals};
use super::name::Span;
use crate::VolumeId;
use crate::error::{Error, Result};
use crate::map::piece::Piece;
use crate::storage::{Access, Storage, StoredFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// What is gathered before it is written.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// Writes pieces that come sorted and disjoint. Dropped before [`RunWriter::finish`], nothing is
/// left.
#[derive(Debug)]
pub struct RunWriter {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    draft: PathBuf,
    file: Arc<dyn StoredFile>,
    group: Uuid,
    run: [u8; 16],
    totals: Totals,
    buffer: Vec<u8>,
    /// Blocks that were put into the buffer so far.
    blocks: u64,
    data: Box<Block>,
    data_pieces: usize,
    index: Box<Block>,
    index_keys: usize,
    top: Vec<Key>,
    /// End of the newest piece: the next one may not begin before it.
    last: (VolumeId, u64),
    finished: bool,
}

impl RunWriter {
    /// Begins a run in the directory of a journal; one of the same name is replaced at the end.
    ///
    /// # Errors
    /// Nothing can cover this; or the draft can't be made.
    pub fn create(
        storage: &Arc<dyn Storage>,
        dir: &Path,
        group: Uuid,
        span: &Span,
    ) -> Result<Self> {
        span.check()?;
        let path = dir.join(span.name().to_string());
        let draft = path.with_extension("tmp");
        let file = storage
            .open(&draft, Access::Replace)
            .map_err(|e| Error::io("create map run", &draft, e))?;
        let mut writer = Self {
            storage: Arc::clone(storage),
            path,
            draft,
            file,
            group,
            run: Uuid::new_v4().into_bytes(),
            totals: Totals { pieces: 0, rank_min: 0, rank_max: 0 },
            buffer: Vec::with_capacity(BUFFER_BYTES_MAX),
            blocks: 0,
            data: Box::new([0; BLOCK_BYTES]),
            data_pieces: 0,
            index: Box::new([0; BLOCK_BYTES]),
            index_keys: 0,
            top: Vec::new(),
            last: (0, 0),
            finished: false,
        };
        let mut header = Box::new([0; BLOCK_BYTES]);
        format::encode_header(&mut header, group.into_bytes(), span);
        writer.put(&mut header, 0)?;
        Ok(writer)
    }

    /// Adds a piece behind the last one; one that is very long goes in as several.
    ///
    /// # Errors
    /// It isn't behind the last one; or a write failed.
    pub fn push(&mut self, volume: VolumeId, piece: &Piece) -> Result<()> {
        if piece.start >= piece.end || (volume, piece.start) < self.last {
            let (run, last) = (self.path.display(), self.last);
            return Err(Error::Invalid(format!("{run}: {piece:?} can't follow {last:?}")));
        }
        let mut rest = *piece;
        while rest.bytes() > PIECE_BYTES_MAX && rest.end < u64::MAX {
            let end = rest.start + PIECE_BYTES_MAX;
            self.add(volume, &Piece { end, ..rest })?;
            rest.start = end;
        }
        self.add(volume, &rest)
    }

    fn add(&mut self, volume: VolumeId, piece: &Piece) -> Result<()> {
        if self.data_pieces == PIECES_MAX {
            self.put_data()?;
        }
        if self.data_pieces == 0 {
            if self.index_keys == 0 {
                self.top.push((volume, piece.start));
            }
            format::encode_key(&mut self.index, self.index_keys, (volume, piece.start));
            self.index_keys += 1;
        }
        format::encode_piece(&mut self.data, self.data_pieces, volume, piece);
        self.data_pieces += 1;
        self.last = (volume, piece.end);
        let totals = &mut self.totals;
        let lowest = if totals.pieces == 0 { piece.rank } else { totals.rank_min };
        totals.rank_min = lowest.min(piece.rank);
        totals.rank_max = totals.rank_max.max(piece.rank);
        totals.pieces += 1;
        Ok(())
    }

    /// Makes the run durable under its name, and opens it.
    ///
    /// # Errors
    /// A write, sync or rename failed; nothing is left but what was there before.
    pub fn finish(mut self) -> Result<Run> {
        if self.data_pieces > 0 {
            self.put_data()?;
        }
        if self.index_keys > 0 {
            self.put_index()?;
        }
        let top = std::mem::take(&mut self.top);
        for keys in top.chunks(KEYS_MAX) {
            let mut block = Box::new([0; BLOCK_BYTES]);
            for (i, key) in keys.iter().enumerate() {
                format::encode_key(&mut block, i, *key);
            }
            self.put(&mut block, keys.len())?;
        }
        let mut footer = Box::new([0; BLOCK_BYTES]);
        format::encode_footer(&mut footer, &self.totals);
        self.put(&mut footer, 0)?;
        self.write_out()?;
        let (draft, path) = (&self.draft, &self.path);
        self.file.sync_data().map_err(|e| Error::io("sync map run", draft, e))?;
        self.storage.rename(draft, path).map_err(|e| Error::io("rename to", path, e))?;
        self.finished = true;
        let dir = path.parent().unwrap_or(Path::new("."));
        self.storage.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))?;
        Run::open(&self.storage, path, self.group)
    }

    fn put_data(&mut self) -> Result<()> {
        let mut block = std::mem::replace(&mut self.data, Box::new([0; BLOCK_BYTES]));
        self.put(&mut block, self.data_pieces)?;
        self.data_pieces = 0;
        if self.index_keys == KEYS_MAX { self.put_index() } else { Ok(()) }
    }

    fn put_index(&mut self) -> Result<()> {
        let mut block = std::mem::replace(&mut self.index, Box::new([0; BLOCK_BYTES]));
        self.put(&mut block, self.index_keys)?;
        self.index_keys = 0;
        Ok(())
    }

    fn put(&mut self, block: &mut Block, count: usize) -> Result<()> {
        format::close_block(block, self.run, self.blocks, count as u32);
        self.buffer.extend_from_slice(block);
        self.blocks += 1;
        if self.buffer.len() >= BUFFER_BYTES_MAX { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<()> {
        let at = self.blocks * BLOCK_BYTES as u64 - self.buffer.len() as u64;
        self.file
            .write_all_at(&self.buffer, at)
            .map_err(|e| Error::io("write map run", &self.draft, e))?;
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for RunWriter {
    fn drop(&mut self) {
        if !self.finished {
            // A draft that stays counts for nothing.
            let _ = self.storage.remove(&self.draft);
        }
    }
}
