//! What a plan needs of the journal, part by part: in the order of volumes and addresses.

use super::CUT_BYTES;
use crate::direct::GRAIN_BYTES;
use crate::plan::Plan;
use afterimage_journal::map::Piece;
use afterimage_journal::{History, Result, Seq};

/// A range of a volume whose bytes records of one number hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Index in [`Plan::volumes`].
    pub volume: u32,
    /// Byte address of its start.
    pub start: u64,
    /// Byte address behind its end.
    pub end: u64,
    /// The records' number.
    pub seq: Seq,
}

impl Part {
    pub fn volume(&self) -> usize {
        self.volume as usize
    }

    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Bytes of the grains that it touches: what it takes at most in the memory of a batch.
    pub fn grains_bytes(&self) -> u64 {
        let grain = GRAIN_BYTES as u64;
        self.end.next_multiple_of(grain) - self.start / grain * grain
    }

    /// What of it fits into so many bytes, all or up to a multiple of [`CUT_BYTES`]; `None`: nothing.
    pub fn first(&self, room_bytes: u64) -> Option<Self> {
        if self.bytes() <= room_bytes {
            return Some(*self);
        }
        let end = self.start.saturating_add(room_bytes) / CUT_BYTES * CUT_BYTES;
        (end > self.start).then_some(Self { end, ..*self })
    }
}

type Pieces = Box<dyn Iterator<Item = Result<Piece>> + Send>;

/// See the module.
pub(super) struct Source<'a> {
    history: &'a History,
    plan: &'a Plan,
    /// Index of the volume whose turn it is.
    volume: usize,
    /// What is left of its map; `None`: not begun.
    pieces: Option<Pieces>,
    /// The part that comes next, or what was left of it.
    ahead: Option<Part>,
}

impl<'a> Source<'a> {
    pub fn new(history: &'a History, plan: &'a Plan) -> Self {
        Self { history, plan, volume: 0, pieces: None, ahead: None }
    }

    /// The part that comes next; `None`: that was all.
    pub fn peek(&mut self) -> Result<Option<Part>> {
        while self.ahead.is_none() {
            let Some(volume) = self.plan.volumes.get(self.volume) else { return Ok(None) };
            let pieces = match &mut self.pieces {
                Some(pieces) => pieces,
                none => {
                    let map = self.history.map(volume.volume.id, self.plan.point.seq)?;
                    none.insert(Box::new(map.pieces(0..map.bytes())))
                }
            };
            match pieces.next().transpose()? {
                Some(Piece { zero: true, .. }) => {}
                Some(Piece { start, end, seq, .. }) => {
                    // A plan has fewer volumes than a group has numbers for them.
                    let volume = self.volume as u32;
                    self.ahead = Some(Part { volume, start, end, seq });
                }
                None => (self.pieces, self.volume) = (None, self.volume + 1),
            }
        }
        Ok(self.ahead)
    }

    /// Takes the next part up to an address.
    pub fn take(&mut self, upto: u64) {
        self.ahead = self.ahead.filter(|part| upto < part.end);
        if let Some(part) = &mut self.ahead {
            part.start = upto;
        }
    }

    /// Bytes of the plan's volumes in front of the next part.
    pub fn done_bytes(&mut self) -> Result<u64> {
        let within = self.peek()?.map_or(0, |part| part.start);
        let before = self.plan.volumes.iter().take(self.volume).map(|v| v.volume.bytes);
        Ok(before.sum::<u64>() + within)
    }
}
