//! From what a person asks for to a position: pure, over a loaded [`History`].

use super::History;
use super::passes::Pass;
use super::units::Unit;
use crate::Seq;
use crate::planted;

/// A wanted moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// The newest recovery point.
    Latest,
    /// The state at this time, nanoseconds since the Unix epoch.
    Time(u64),
    /// A position.
    Seq(Seq),
    /// The checkpoint with this number.
    Checkpoint(u64),
    /// The newest checkpoint with this tag.
    Tag(String),
}

/// A recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its position.
    pub seq: Seq,
    /// Wall time of its newest record, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
}

/// Why a moment can't be restored, and the nearest that can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRestorable {
    /// The reason, for people.
    pub why: String,
    /// The nearest recovery point before it.
    pub before: Option<Point>,
    /// The nearest recovery point behind it.
    pub after: Option<Point>,
    /// The positions that it names, if it is a time that the clock passed more than once.
    pub named: Vec<Point>,
}

impl History {
    /// Finds the position for a wanted moment.
    ///
    /// # Errors
    /// It lies in a gap, outside of the window, in the future, or needs what is damaged; or
    /// there is no such checkpoint.
    pub fn resolve(&self, when: &When) -> Result<Point, Box<NotRestorable>> {
        match when {
            When::Latest => match self.level.last() {
                Some(range) => Ok(self.point(range.to)),
                None => Err(self.refuse(self.head, "there is no recovery point yet".into())),
            },
            When::Seq(seq) => self.resolve_seq(*seq),
            When::Time(ns) => self.resolve_time(*ns),
            When::Checkpoint(id) => {
                let found = self.checkpoints.iter().find(|c| c.checkpoint.id == *id);
                found
                    .map(|c| self.point(c.seq))
                    .ok_or_else(|| self.refuse(self.head, format!("there is no checkpoint #{id}")))
            }
            When::Tag(tag) => {
                let named = |t: &Option<String>| t.as_deref() == Some(tag);
                let found = self.checkpoints.iter().rev().find(|c| named(&c.checkpoint.tag));
                found.map(|c| self.point(c.seq)).ok_or_else(|| {
                    self.refuse(self.head, format!("there is no checkpoint with the tag {tag:?}"))
                })
            }
        }
    }

    /// The point at a position.
    #[must_use]
    pub fn point(&self, seq: Seq) -> Point {
        Point { seq, wall_ns: self.wall_ns(seq) }
    }

    /// Whether the time of a point, asked for, gives that point: not where the clock was set, or another
    /// record has the same time.
    #[must_use]
    pub fn is_named_by_time(&self, point: &Point) -> bool {
        self.resolve_time(point.wall_ns).is_ok_and(|found| found.seq == point.seq)
    }

    /// As [`Self::is_named_by_time`], of many points in the order of their numbers. Only those are looked at
    /// closely that the units' rows do not clear: none, where the clock was never set back. A clock that was
    /// set back and had caught up before its unit ended may go unnoticed; its times are refused when asked
    /// for.
    #[must_use]
    pub fn are_named_by_time(&self, points: &[Point]) -> Vec<bool> {
        if planted::is("times-that-mean-two-are-shown") {
            return vec![true; points.len()];
        }
        let ascends = |row: &Unit| match &row.read {
            Some(read) => read.records.is_sorted_by_key(|(_, record)| record.wall_ns),
            None => row.first_wall_ns == row.wall_min_ns && row.last_wall_ns == row.wall_max_ns,
        };
        let ascend: Vec<bool> = self.units.iter().map(ascends).collect();
        // Behind each row the earliest time that comes.
        let mut coming_ns = vec![u64::MAX; self.units.len() + 1];
        for (at, row) in self.units.iter().enumerate().rev() {
            let min_ns = if row.count > 0 { row.wall_min_ns } else { u64::MAX };
            coming_ns[at] = min_ns.min(coming_ns[at + 1]);
        }
        let (mut at, mut past_ns) = (0, 0);
        let clear = |at: usize, past_ns: u64, point: &Point| {
            let is_in_order = ascend.get(at).is_some_and(|ascends| *ascends);
            is_in_order && past_ns < point.wall_ns && point.wall_ns < coming_ns[at + 1]
        };
        let mut before: Option<Point> = None;
        let mut named = Vec::with_capacity(points.len());
        for (i, point) in points.iter().enumerate() {
            while self.units.get(at).is_some_and(|row| row.last_seq < point.seq) {
                past_ns = past_ns.max(self.units[at].wall_max_ns);
                at += 1;
            }
            let behind = points.get(i + 1);
            let ascends = before.is_none_or(|b| b.wall_ns < point.wall_ns)
                && behind.is_none_or(|b| point.wall_ns < b.wall_ns);
            named.push((ascends && clear(at, past_ns, point)) || self.is_named_by_time(point));
            before = Some(*point);
        }
        named
    }

    /// First and last recovery point of the window; positions that were kept from before it are
    /// not in it.
    #[must_use]
    pub fn window(&self) -> Option<(Point, Point)> {
        let (first, last) = (self.level.iter().find(|r| r.to >= self.edge)?, self.level.last()?);
        Some((self.point(first.from), self.point(last.to)))
    }

    fn resolve_seq(&self, seq: Seq) -> Result<Point, Box<NotRestorable>> {
        if self.is_restorable(seq) {
            return Ok(self.point(seq));
        }
        let why = if seq > self.head {
            format!("record {seq} doesn't exist yet: the newest is {}", self.head)
        } else {
            self.why_not(seq)
        };
        Err(self.refuse(seq, why))
    }

    fn resolve_time(&self, ns: u64) -> Result<Point, Box<NotRestorable>> {
        let passes = self.passes(ns);
        let passes =
            passes.map_err(|e| self.refuse(0, format!("its records can't be read: {e}")))?;
        // What was merged away is not meant.
        let is_there = |p: &&Pass| p.seq >= self.edge || self.is_restorable(p.seq);
        let mut there: Vec<Pass> = passes.iter().filter(is_there).copied().collect();
        if there.iter().any(|p| p.jumped_to.is_none()) {
            // Set forward over it once, it was shown another time.
            there.retain(|p| p.jumped_to.is_none());
        }
        if let ([first, _, ..], false) = (&there[..], planted::is("last-pass-counts")) {
            let why = format!("the clock showed it {} times, since it was set back", there.len());
            let mut refusal = self.refuse(first.seq, why);
            refusal.named = there.iter().map(|p| self.point(p.seq)).collect();
            return Err(refusal);
        }
        match there.last().or(passes.last()) {
            Some(pass) => self.resolve_pass(ns, pass),
            None => self.resolve_outside(ns),
        }
    }

    /// A time that no record answers for.
    fn resolve_outside(&self, ns: u64) -> Result<Point, Box<NotRestorable>> {
        let known = self.first_wall_ns()..=self.wall_ns(self.head);
        if self.floor < self.edge && known.contains(&ns) {
            return self.resolve_thinned(ns);
        }
        let (seq, why) = match ns < self.first_wall_ns() {
            true => (0, "it lies before the journal's window"),
            false => (self.head, "it lies behind the newest recovery point"),
        };
        Err(self.refuse(seq, why.into()))
    }

    /// A time that one position answers for.
    fn resolve_pass(&self, ns: u64, pass: &Pass) -> Result<Point, Box<NotRestorable>> {
        let (seq, wall_ns) = (pass.seq, pass.wall_ns);
        if pass.is_checkpoint && self.is_restorable(seq) {
            return Ok(self.point(seq));
        }
        if (self.floor..self.edge).contains(&seq) && !self.is_followed(seq) {
            return self.resolve_thinned(ns);
        }
        if !self.is_restorable(seq) {
            // The last moment before a gap is restorable, whatever else has its time.
            let before = self.level.iter().rev().find(|r| r.to < seq).map(|r| self.point(r.to));
            return match before.filter(|p| p.wall_ns == ns && p.seq >= self.edge) {
                Some(point) => Ok(point),
                None => Err(self.refuse(seq, self.why_not(seq))),
            };
        }
        // A session that ended here says nothing about the time behind its last record.
        let range_end = seq < self.head && self.level.iter().any(|r| r.to == seq);
        if range_end && ns > wall_ns {
            return Err(self.refuse(seq, self.why_not(seq + 1)));
        }
        if let Some(next) = pass.jumped_to {
            let why = "the clock never showed it: it was set forward over it";
            let (before, after) = (Some(self.point(seq)), Some(self.point(next)));
            let named = Vec::new();
            return Err(Box::new(NotRestorable { why: why.into(), before, after, named }));
        }
        Ok(self.point(seq))
    }

    pub(super) fn why_not(&self, seq: Seq) -> String {
        if let Some(damage) =
            self.damage.iter().find(|d| d.from <= seq && d.to.is_none_or(|to| seq < to))
        {
            let what = if damage.unread { "could not be read" } else { "is damaged" };
            return format!("it needs what {what}: {}", damage.what);
        }
        if seq < self.edge {
            return self.why_merged(seq);
        }
        let gap = self.gaps.iter().find(|g| g.from < seq && g.to.is_none_or(|to| seq < to));
        match gap {
            Some(gap) => format!("it lies in a gap ({})", gap.reason),
            None => "it lies before the journal's window".into(),
        }
    }

    /// Why a position before the edge can't be restored.
    fn why_merged(&self, seq: Seq) -> String {
        let before = self.level.iter().rev().find(|r| r.to < seq && r.from < self.edge);
        let Some(before) = before else { return "it lies before the journal's window".into() };
        let after = self.level.iter().find(|r| r.from > seq).map_or(self.edge, |r| r.from);
        format!("it was merged away, as all between seq:{} and seq:{after}", before.to)
    }

    pub(super) fn refuse(&self, seq: Seq, why: String) -> Box<NotRestorable> {
        let before = self.level.iter().rev().find(|r| r.from <= seq).map(|r| r.to.min(seq));
        let after = self.level.iter().find(|r| r.to > seq).map(|r| r.from.max(seq));
        Box::new(NotRestorable {
            why,
            before: before.map(|s| self.point(s)),
            after: after.filter(|s| Some(*s) != before).map(|s| self.point(s)),
            named: Vec::new(),
        })
    }
}
