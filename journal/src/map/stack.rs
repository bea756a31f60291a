//! Several runs seen as one.
//!
//! What always holds: at each byte the highest (rank, number) of all layers is the answer, in
//! whatever order the layers are given; memory depends on the number of layers, not on theirs.

use super::mem::{MemCursor, MemRun};
use super::piece::{Piece, Placed};
use super::run::{Cursor, Run};
use super::sweep::{ByStart, Sweep};
use crate::error::Result;
use crate::{Seq, VolumeId};
use std::ops::Range;
use std::sync::Arc;

/// One run.
#[derive(Debug, Clone)]
pub enum Layer {
    /// In a file.
    File(Arc<Run>),
    /// In memory.
    Memory(Arc<MemRun>),
}

impl From<Arc<Run>> for Layer {
    fn from(run: Arc<Run>) -> Self {
        Self::File(run)
    }
}

impl From<Arc<MemRun>> for Layer {
    fn from(run: Arc<MemRun>) -> Self {
        Self::Memory(run)
    }
}

impl Layer {
    /// The highest rank of a piece in it.
    #[must_use]
    pub fn rank_max(&self) -> Seq {
        match self {
            Self::File(run) => run.rank_max(),
            Self::Memory(run) => run.rank_max(),
        }
    }

    fn between(&self, from: (VolumeId, u64), to: (VolumeId, u64)) -> LayerCursor {
        match self {
            Self::File(run) => LayerCursor::File(Cursor::new(Arc::clone(run), from, to)),
            Self::Memory(run) => LayerCursor::Memory(MemCursor::new(Arc::clone(run), from, to)),
        }
    }

    pub(super) fn all(&self) -> LayerCursor {
        self.between((0, 0), (VolumeId::MAX, u64::MAX))
    }
}

pub(super) enum LayerCursor {
    File(Cursor),
    Memory(MemCursor),
}

impl Iterator for LayerCursor {
    type Item = Result<Placed>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::File(cursor) => cursor.next(),
            Self::Memory(cursor) => cursor.next().map(Ok),
        }
    }
}

/// Runs, the one with the highest rank first.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    layers: Vec<Layer>,
}

impl Stack {
    /// Of these layers, in any order.
    #[must_use]
    pub fn new(mut layers: Vec<Layer>) -> Self {
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.rank_max()));
        Self { layers }
    }

    /// Number of layers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there is no layer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// What covers a range (in bytes): disjoint pieces, ascending, cut to it; what lies between
    /// them no record covers. Each layer is read on as needed, through a buffer of at most 64 KiB.
    pub fn resolve(
        &self,
        volume: VolumeId,
        range: Range<u64>,
    ) -> impl Iterator<Item = Result<Piece>> + Send + use<> {
        let (from, to) = ((volume, range.start), (volume, range.end));
        let cursors = self.layers.iter().map(|layer| layer.between(from, to)).collect();
        Sweep::new(ByStart::new(cursors)).map(|placed| placed.map(|(_, piece)| piece))
    }

    /// As [`Stack::resolve`], for everything of all volumes.
    pub fn all(&self) -> impl Iterator<Item = Result<Placed>> + Send + use<> {
        Sweep::new(ByStart::new(self.layers.iter().map(Layer::all).collect()))
    }

    /// As [`Stack::resolve`], for a range of one request: layers that can't win any more are not
    /// asked.
    ///
    /// # Errors
    /// A block of a run is damaged or can't be read.
    pub fn find(&self, volume: VolumeId, range: Range<u64>) -> Result<Vec<Piece>> {
        let mut found: Vec<Piece> = Vec::new();
        for layer in &self.layers {
            let Some(open) = undecided(&found, &range, layer.rank_max()) else { break };
            let known = found.len();
            for placed in layer.between((volume, open.start), (volume, open.end)) {
                found.push(placed?.1);
            }
            if known > 0 && found.len() > known {
                found.sort_unstable_by_key(|p| p.start);
                let placed = found.drain(..).map(|p| Ok((volume, p))).collect::<Vec<_>>();
                for settled in Sweep::new(placed.into_iter()) {
                    found.push(settled?.1);
                }
            }
        }
        Ok(found)
    }
}

/// The smallest range outside of which `found` outranks everything of at most `rank`.
fn undecided(found: &[Piece], range: &Range<u64>, rank: Seq) -> Option<Range<u64>> {
    let mut open: Option<Range<u64>> = None;
    let mut add = |from: u64, to: u64| {
        if from < to {
            open = Some(open.take().map_or(from, |o| o.start)..to);
        }
    };
    let mut at = range.start;
    for piece in found {
        add(at, piece.start);
        if piece.rank <= rank {
            add(piece.start, piece.end);
        }
        at = piece.end;
    }
    add(at, range.end);
    open
}
