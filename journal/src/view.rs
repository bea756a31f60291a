//! A volume as it was at a position: its map, and reads through it.
//!
//! What always holds: captured records count in the order of their numbers; copied ones rank
//! where their copy began, below every record captured after that (I-5). What no record covers
//! reads as zeroes. No byte is handed out whose record fails its checksum (I-12).

use crate::error::{Error, Result};
use crate::history::{History, Map};
use crate::map::Piece;
use crate::{Seq, VolumeId};
use std::ops::Range;

pub use crate::history::rank;

/// The blocks of a volume at a position, apart from the history that they were made from: reads
/// are handed that history again.
#[derive(Debug, Clone)]
pub struct Blocks {
    map: Map,
}

/// A volume at a position.
#[derive(Debug)]
pub struct View<'h> {
    history: &'h History,
    blocks: Blocks,
}

impl<'h> View<'h> {
    /// Maps a volume at a position (which need not be restorable: a resync compares there).
    ///
    /// # Errors
    /// The volume isn't in the configuration of that position; an index can't be read.
    pub fn at(history: &'h History, volume: VolumeId, seq: Seq) -> Result<Self> {
        Ok(Self { history, blocks: Blocks::at(history, volume, seq)? })
    }

    /// Size of the volume at that position.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.bytes()
    }

    /// The history it was made from.
    #[must_use]
    pub fn history(&self) -> &'h History {
        self.history
    }

    /// The blocks, apart from the history.
    #[must_use]
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// See [`Blocks::extents`].
    pub fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Result<Piece>> + Send + use<> {
        self.blocks.extents(range)
    }

    /// See [`Blocks::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        self.blocks.read(self.history, at, buffer)
    }
}

impl Blocks {
    /// See [`View::at`].
    ///
    /// # Errors
    /// As there.
    pub fn at(history: &History, volume: VolumeId, seq: Seq) -> Result<Self> {
        Ok(Self { map: history.map(volume, seq)? })
    }

    /// Size of the volume at that position.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.map.bytes()
    }

    /// What covers a range (in bytes), ascending, disjoint, cut to it, in bounded memory; what lies
    /// between is zero, and so is a piece with `zero`.
    pub fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Result<Piece>> + Send + use<> {
        self.map.pieces(range)
    }

    /// Whether a range is known to be all zeroes without reading any data.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn is_hole(&self, range: Range<u64>) -> Result<bool> {
        for piece in self.extents(range) {
            if !piece?.zero {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fills `buffer` with the bytes at `at`; `history` is the one that the map was made from.
    ///
    /// # Errors
    /// The range lies outside of the volume, or a record that it needs is damaged.
    pub fn read(&self, history: &History, at: u64, buffer: &mut [u8]) -> Result<()> {
        let end = at.checked_add(buffer.len() as u64).filter(|end| *end <= self.bytes());
        let Some(end) = end else {
            return Err(Error::Invalid(format!(
                "{} bytes at {at} lie outside of a volume of {} bytes",
                buffer.len(),
                self.bytes()
            )));
        };
        buffer.fill(0);
        for piece in self.map.find(at..end)? {
            if !piece.zero {
                let target = (piece.start - at) as usize..(piece.end - at) as usize;
                history.read_piece(piece.seq, piece.start, &mut buffer[target])?;
            }
        }
        Ok(())
    }
}
