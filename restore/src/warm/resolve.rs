//! Which checkpoints have memory, and which of them a wanted moment means. Pure, over a loaded
//! history.

use crate::error::{Error, Result};
use crate::open::Recovery;
use crate::time::{Moment, wall_clock};
use afterimage_journal::Seq;
use afterimage_journal::history::{CheckpointAt, Point, When};
use afterimage_journal::meta::{CheckpointKind, GuestMemory};
use std::fmt;

/// A checkpoint with memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmPoint {
    /// Its instant: where the disks are read.
    pub point: Point,
    /// The position of the record that commits it: where memory and device state are read.
    pub committed: Seq,
    /// Its number.
    pub id: u64,
    /// Guests' file systems were frozen then, and are in their memory.
    pub quiesced: bool,
    /// What it says of the guests that were asked for.
    pub guests: Vec<GuestMemory>,
}

/// The checkpoints with memory on both sides of a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NearestWarm {
    /// The nearest before it.
    pub before: Option<WarmPoint>,
    /// The nearest behind it.
    pub after: Option<WarmPoint>,
}

impl fmt::Display for WarmPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} ({}, seq:{})", self.id, wall_clock(self.point.wall_ns), self.point.seq)
    }
}

impl fmt::Display for NearestWarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (Some(b), Some(a)) => write!(f, "Nearest with memory: {b} before, {a} after"),
            (Some(b), None) => write!(f, "Nearest with memory: {b} before, none after"),
            (None, Some(a)) => write!(f, "Nearest with memory: none before, {a} after"),
            (None, None) => {
                write!(f, "There is no checkpoint with memory: `mark --memory` makes one")
            }
        }
    }
}

impl Recovery {
    /// The checkpoint with memory that a wanted moment means: `latest` is the newest of them, every
    /// other moment has to be one's own, a time to the millisecond.
    ///
    /// # Errors
    /// [`Error::NotWarm`], with the nearest ones on both sides; [`Error::NewestAway`]; what
    /// [`Recovery::resolve`] says of a moment that is no recovery point at all.
    pub fn resolve_warm(&self, when: &When) -> Result<WarmPoint> {
        let found = match when {
            When::Latest => {
                self.resolve(when)?;
                self.warm_points().last()
            }
            // What was asked for may be at no restorable position at all: times have a tolerance,
            // but a checkpoint's own is exact.
            When::Time(ns) => self.warm_at_time(*ns)?,
            When::Seq(_) | When::Checkpoint(_) | When::Tag(_) => {
                let at = self.resolve(when)?.seq;
                let id = self.named(when);
                self.warm_points().find(|w| w.point.seq == at && id.is_none_or(|id| w.id == id))
            }
        };
        found.map_or_else(|| Err(self.not_warm(when)), Ok)
    }

    /// The checkpoint with memory of a time: of exactly that one, or of its millisecond.
    fn warm_at_time(&self, ns: u64) -> Result<Option<WarmPoint>> {
        let ms = |ns: u64| ns / 1_000_000;
        let mut all: Vec<WarmPoint> =
            self.warm_points().filter(|w| ms(w.point.wall_ns) == ms(ns)).collect();
        if all.iter().any(|w| w.point.wall_ns == ns) {
            all.retain(|w| w.point.wall_ns == ns);
        }
        if all.len() > 1 {
            let moment = |w: &WarmPoint| Moment { point: w.point, is_named_by_time: false };
            let points = all.iter().map(moment).collect();
            return Err(Error::Ambiguous { what: wall_clock(ns), points });
        }
        Ok(all.pop())
    }

    /// The checkpoint with memory at exactly this position, if there is one.
    #[must_use]
    pub fn warm_at(&self, seq: Seq) -> Option<WarmPoint> {
        self.warm_points().find(|w| w.point.seq == seq)
    }

    /// The nearest checkpoints with memory below and above a position.
    #[must_use]
    pub fn nearest_warm(&self, seq: Seq) -> NearestWarm {
        NearestWarm {
            before: self.warm_points().rfind(|w| w.point.seq < seq),
            after: self.warm_points().find(|w| w.point.seq > seq),
        }
    }

    /// The checkpoints with memory, by position.
    fn warm_points(&self) -> impl DoubleEndedIterator<Item = WarmPoint> {
        let ranges = self.ranges();
        let restorable = move |seq: Seq| ranges.iter().any(|r| r.from <= seq && seq <= r.to);
        let all = self.history.checkpoints.iter().filter(move |c| restorable(c.seq));
        all.filter_map(|at| self.memory_of(at))
    }

    /// What a checkpoint has of the memory of the guests that were asked for, if it has any.
    #[must_use]
    pub fn memory_of(&self, at: &CheckpointAt) -> Option<WarmPoint> {
        let memory = at.checkpoint.memory.as_ref()?;
        let wanted = |g: &&GuestMemory| self.guest.as_ref().is_none_or(|name| *name == g.guest);
        let guests: Vec<GuestMemory> = memory.guests.iter().filter(wanted).cloned().collect();
        let point = Point { seq: at.seq, wall_ns: at.wall_ns };
        let (committed, id) = (at.committed, at.checkpoint.id);
        let quiesced = at.checkpoint.kind == CheckpointKind::Application;
        (!guests.is_empty()).then_some(WarmPoint { point, committed, id, quiesced, guests })
    }

    /// The number of the checkpoint that a moment names.
    fn named(&self, when: &When) -> Option<u64> {
        let all = &self.history.checkpoints;
        match when {
            When::Checkpoint(id) => Some(*id),
            When::Tag(tag) => {
                let named = |c: &&CheckpointAt| c.checkpoint.tag.as_ref() == Some(tag);
                all.iter().rev().find(named).map(|c| c.checkpoint.id)
            }
            _ => None,
        }
    }

    fn not_warm(&self, when: &When) -> Error {
        // A moment that can't be restored at all has a better reason.
        let point = match self.resolve(when) {
            Ok(point) => point,
            Err(error) => {
                let When::Time(ns) = when else { return error };
                // Between a checkpoint's neighbours, whatever is restorable there.
                return self.refused(wall_clock(*ns), self.seq_of(*ns));
            }
        };
        let what = match when {
            When::Latest => "the newest point".to_owned(),
            When::Time(ns) => wall_clock(*ns),
            When::Seq(seq) => format!("seq:{seq}"),
            When::Checkpoint(id) => format!("#{id}"),
            When::Tag(tag) => format!("tag:{tag}"),
        };
        self.refused(what, point.seq)
    }

    fn refused(&self, what: String, seq: Seq) -> Error {
        let what = format!(
            "{what} has no memory of {}: without --warm its disks are restored",
            self.name()
        );
        let mut nearest = self.nearest_warm(seq);
        // One at that very position, of another time or number, is no further than its neighbours.
        nearest.before = self.warm_at(seq).or(nearest.before);
        Error::NotWarm { what, nearest: Box::new(nearest) }
    }

    /// The position of the last checkpoint before a time.
    fn seq_of(&self, ns: u64) -> Seq {
        let before = self.history.checkpoints.iter().filter(|c| c.wall_ns <= ns);
        before.map(|c| c.seq + 1).max().unwrap_or(0)
    }
}
