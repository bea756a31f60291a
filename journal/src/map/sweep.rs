//! One pass over pieces that come by start, so that the highest (rank, number) remains at each byte.
//!
//! [`Sweep`] needs memory only for the pieces that cover one byte; [`ByStart`] puts several sorted
//! sequences in order. Both stop at the first error.

use super::piece::{Piece, Placed};
use crate::VolumeId;
use crate::error::Result;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Ended pieces that may wait below a longer one before they are looked for.
const ENDED_PIECES_MIN: usize = 32;

/// A piece ordered by what decides.
struct Ranked(Piece);

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.precedence().cmp(&other.0.precedence())
    }
}

/// Makes disjoint, ascending pieces of overlapping ones that come ordered by (volume, start).
pub(super) struct Sweep<I> {
    pieces: I,
    ahead: Option<Placed>,
    started: bool,
    volume: VolumeId,
    /// Everything before this byte of `volume` is settled.
    at: u64,
    active: BinaryHeap<Ranked>,
    prune_at: usize,
    /// Settled; what comes next may continue it.
    last: Option<Placed>,
}

impl<I: Iterator<Item = Result<Placed>>> Sweep<I> {
    pub(super) fn new(pieces: I) -> Self {
        Self {
            pieces,
            ahead: None,
            started: false,
            volume: 0,
            at: 0,
            active: BinaryHeap::new(),
            prune_at: ENDED_PIECES_MIN,
            last: None,
        }
    }

    fn advance(&mut self) -> Result<()> {
        self.ahead = self.pieces.next().transpose()?;
        Ok(())
    }

    fn push(&mut self, piece: Piece) {
        // What lies wholly below the highest one never shows.
        let hidden = self
            .active
            .peek()
            .is_some_and(|top| top.0.precedence() > piece.precedence() && top.0.end >= piece.end);
        if hidden {
            return;
        }
        if self.active.len() >= self.prune_at {
            let at = self.at;
            self.active.retain(|p| p.0.end > at);
            self.prune_at = (self.active.len() * 2).max(ENDED_PIECES_MIN);
        }
        self.active.push(Ranked(piece));
    }

    /// The next part in which one piece is the highest and none begins.
    fn step(&mut self) -> Result<Option<Placed>> {
        if !self.started {
            self.started = true;
            self.advance()?;
        }
        loop {
            while self.active.peek().is_some_and(|top| top.0.end <= self.at) {
                self.active.pop();
            }
            while let Some((volume, piece)) = self.ahead
                && volume == self.volume
                && piece.start <= self.at
            {
                if piece.end > self.at {
                    self.push(piece);
                }
                self.advance()?;
            }
            let Some(top) = self.active.peek().map(|p| p.0) else {
                let Some((volume, piece)) = self.ahead else { return Ok(None) };
                (self.volume, self.at) = (volume, piece.start);
                continue;
            };
            if top.end <= self.at {
                continue;
            }
            let until = match self.ahead {
                Some((volume, next)) if volume == self.volume => top.end.min(next.start),
                _ => top.end,
            };
            let part = Piece { start: self.at, end: until, ..top };
            self.at = until;
            return Ok(Some((self.volume, part)));
        }
    }
}

impl<I: Iterator<Item = Result<Placed>>> Iterator for Sweep<I> {
    type Item = Result<Placed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let part = match self.step() {
                Ok(Some(part)) => part,
                Ok(None) => return self.last.take().map(Ok),
                Err(e) => {
                    self.last = None;
                    self.active.clear();
                    self.ahead = None;
                    return Some(Err(e));
                }
            };
            match &mut self.last {
                Some((volume, last))
                    if *volume == part.0
                        && last.end == part.1.start
                        && last.precedence() == part.1.precedence()
                        && last.zero == part.1.zero =>
                {
                    last.end = part.1.end;
                }
                Some(_) => return self.last.replace(part).map(Ok),
                None => self.last = Some(part),
            }
        }
    }
}

/// Several sequences, each ordered by (volume, start), as one.
pub(super) struct ByStart<C> {
    cursors: Vec<C>,
    heads: BinaryHeap<Reverse<(VolumeId, u64, usize)>>,
    pieces: Vec<Option<Piece>>,
    started: bool,
}

impl<C: Iterator<Item = Result<Placed>>> ByStart<C> {
    pub(super) fn new(cursors: Vec<C>) -> Self {
        let pieces = vec![None; cursors.len()];
        Self { cursors, heads: BinaryHeap::new(), pieces, started: false }
    }

    fn refill(&mut self, index: usize) -> Result<()> {
        if let Some(next) = self.cursors[index].next() {
            let (volume, piece) = next?;
            self.pieces[index] = Some(piece);
            self.heads.push(Reverse((volume, piece.start, index)));
        }
        Ok(())
    }

    fn take(&mut self) -> Result<Option<Placed>> {
        if !self.started {
            self.started = true;
            (0..self.cursors.len()).try_for_each(|index| self.refill(index))?;
        }
        let Some(Reverse((volume, _, index))) = self.heads.pop() else { return Ok(None) };
        let piece = self.pieces[index].take();
        self.refill(index)?;
        Ok(piece.map(|p| (volume, p)))
    }
}

impl<C: Iterator<Item = Result<Placed>>> Iterator for ByStart<C> {
    type Item = Result<Placed>;

    fn next(&mut self) -> Option<Self::Item> {
        let taken = self.take();
        if taken.is_err() {
            self.heads.clear();
        }
        taken.transpose()
    }
}
