//! A sorted run in memory: what the newest units hold, for which no file has been written.

use super::piece::{Piece, Placed};
use super::sweep::Sweep;
use crate::{Seq, VolumeId};
use std::sync::Arc;

/// Disjoint pieces, sorted by (volume, start).
#[derive(Debug, Default)]
pub struct MemRun {
    pieces: Vec<Placed>,
    rank_max: Seq,
}

impl MemRun {
    /// Made of pieces in any order, that may overlap: the highest (rank, number) wins.
    #[must_use]
    pub fn build(mut pieces: Vec<Placed>) -> Self {
        pieces.retain(|(_, p)| p.start < p.end);
        pieces.sort_unstable_by_key(|(volume, p)| (*volume, p.start));
        // There is nothing here that could fail.
        let pieces: Vec<Placed> = Sweep::new(pieces.into_iter().map(Ok)).flatten().collect();
        let rank_max = pieces.iter().map(|(_, p)| p.rank).max().unwrap_or(0);
        Self { pieces, rank_max }
    }

    /// All pieces.
    #[must_use]
    pub fn pieces(&self) -> &[Placed] {
        &self.pieces
    }

    /// The highest rank of a piece; 0: there is none.
    #[must_use]
    pub fn rank_max(&self) -> Seq {
        self.rank_max
    }

    /// The piece that covers a byte.
    #[must_use]
    pub fn find(&self, volume: VolumeId, at: u64) -> Option<Piece> {
        let (found, piece) = self.pieces.get(self.first(volume, at))?;
        (*found == volume && piece.start <= at).then_some(*piece)
    }

    /// Index of the first piece that ends behind `at`.
    fn first(&self, volume: VolumeId, at: u64) -> usize {
        self.pieces.partition_point(|(v, p)| (*v, p.end) <= (volume, at))
    }
}

/// Pieces from one (volume, byte) to another, cut to it.
#[derive(Debug)]
pub(super) struct MemCursor {
    run: Arc<MemRun>,
    next: usize,
    from: (VolumeId, u64),
    to: (VolumeId, u64),
}

impl MemCursor {
    pub(super) fn new(run: Arc<MemRun>, from: (VolumeId, u64), to: (VolumeId, u64)) -> Self {
        let next = run.first(from.0, from.1);
        Self { run, next, from, to }
    }
}

impl Iterator for MemCursor {
    type Item = Placed;

    fn next(&mut self) -> Option<Placed> {
        let placed = *self.run.pieces.get(self.next)?;
        self.next += 1;
        clip(placed, self.from, self.to)
    }
}

/// What of a piece lies between two (volume, byte).
pub(super) fn clip(
    (volume, piece): Placed,
    from: (VolumeId, u64),
    to: (VolumeId, u64),
) -> Option<Placed> {
    let low = if volume == from.0 { from.1 } else { 0 };
    let high = if volume == to.0 { to.1 } else { u64::MAX };
    if volume < from.0 || volume > to.0 {
        return None;
    }
    piece.cut(low, high).map(|p| (volume, p))
}
