//! Thinning: which positions stay restorable beyond the part of the window that keeps every write.
//!
//! `24h,1m:7d,1h:30d` keeps every write for a day, then one checkpoint a minute up to a week, then one
//! an hour up to a month. Tagged checkpoints stay as long as the last step reaches.
//!
//! What always holds: of each slot of the wall clock (the minute, the hour) the first checkpoint that is
//! still there is kept, and the first one with memory: those are few, and would seldom be the first. So
//! choosing again among what was kept gives the same, and nothing that an earlier choice gave up is ever
//! wanted again.

use crate::Seq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Steps of thinning, from new to old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    every_write_ns: u64,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    every_ns: u64,
    upto_ns: u64,
}

/// Most steps that make sense to anybody.
const STEPS_MAX: usize = 8;
/// Most checkpoints that all steps together may ask for: the catalogue lists them.
const CHECKPOINTS_MAX: u64 = 100_000;
const SECOND_NS: u64 = 1_000_000_000;

/// A checkpoint as the choice sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its position.
    pub seq: Seq,
    /// Its time, nanoseconds since the Unix epoch: names its slot.
    pub wall_ns: u64,
    /// Its proved age, nanoseconds: tells its step.
    pub age_ns: u64,
    /// Whether a person named it.
    pub tagged: bool,
    /// Whether it has guests' memory.
    pub warm: bool,
}

/// Records in `after+1..=upto` of which only the newest of each byte is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// The kept position before it (or the edge of the base).
    pub after: Seq,
    /// The kept position that it ends in.
    pub upto: Seq,
}

impl Keep {
    /// Every write for this long, nothing beyond.
    #[must_use]
    pub fn every_write(ns: u64) -> Self {
        Self { every_write_ns: ns, steps: Vec::new() }
    }

    /// How far back every write is kept, nanoseconds.
    #[must_use]
    pub fn every_write_ns(&self) -> u64 {
        self.every_write_ns
    }

    /// How far back anything is kept, nanoseconds.
    #[must_use]
    pub fn upto_ns(&self) -> u64 {
        self.steps.last().map_or(self.every_write_ns, |s| s.upto_ns)
    }

    /// Whether it asks for checkpoints beyond what keeps every write.
    #[must_use]
    pub fn thins(&self) -> bool {
        !self.steps.is_empty()
    }

    /// The same with another length of what keeps every write; steps that reach no further go.
    #[must_use]
    pub fn with_every_write(mut self, ns: u64) -> Self {
        self.every_write_ns = ns;
        self.steps.retain(|s| s.upto_ns > ns);
        self
    }

    /// What keeps all that either keeps: at each age the finer of the two.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut all = Self::every_write(self.every_write_ns.max(other.every_write_ns));
        let mut steps: Vec<Step> = self.steps.iter().chain(&other.steps).copied().collect();
        steps.sort_unstable_by_key(|s| (s.every_ns, std::cmp::Reverse(s.upto_ns)));
        for step in steps {
            if step.upto_ns > all.upto_ns() {
                all.steps.push(step);
            }
        }
        all
    }

    /// Positions to be kept among checkpoints, which ascend by position. Those younger than
    /// [`Keep::every_write_ns`] are not chosen from: every position is restorable there.
    #[must_use]
    pub fn choose(&self, checkpoints: &[Candidate]) -> Vec<Seq> {
        let mut kept = Vec::new();
        let (mut before, mut warm_before): (Option<u64>, Option<u64>) = (None, None);
        for point in checkpoints.iter().filter(|c| c.age_ns >= self.every_write_ns) {
            // One before it in its slot, in whatever step and however old, was the slot's first.
            let earlier = before.replace(point.wall_ns);
            let earlier_warm = match point.warm {
                true => warm_before.replace(point.wall_ns),
                false => None,
            };
            let step = self.steps.iter().find(|s| point.age_ns <= s.upto_ns);
            let Some(every_ns) = step.map(|s| s.every_ns) else { continue };
            let slot = |wall_ns: u64| wall_ns / every_ns;
            let is_first = |earlier: Option<u64>| earlier.map(slot) != Some(slot(point.wall_ns));
            if point.tagged || is_first(earlier) || (point.warm && is_first(earlier_warm)) {
                kept.push(point.seq);
            }
        }
        kept
    }
}

/// What may be coalesced between kept positions (ascending): from the base's edge to each of them, up to
/// `every_write_from`, behind which every write stays.
#[must_use]
pub fn intervals(kept: &[Seq], base: Seq, every_write_from: Seq) -> Vec<Interval> {
    let ends = kept.iter().copied().filter(|s| *s > base && *s < every_write_from);
    let mut after = base;
    let mut found = Vec::new();
    for upto in ends.chain((every_write_from > base).then_some(every_write_from)) {
        if upto > after {
            found.push(Interval { after, upto });
            after = upto;
        }
    }
    found
}

/// The positions by which the numbers `first` to `last` are judged: ends of intervals, ascending. What
/// is visible at none of them is not needed.
#[must_use]
pub fn judges(kept: &[Seq], every_write_from: Seq, first: Seq, last: Seq) -> Vec<Seq> {
    let from = kept.partition_point(|s| *s < first);
    let behind = kept.partition_point(|s| *s < last);
    let end = kept.get(behind).copied().unwrap_or(every_write_from).min(every_write_from);
    let inside = kept[from..behind.max(from)].iter().copied().filter(|s| *s < end);
    inside.chain([end]).collect()
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let first = parts.next().unwrap_or_default();
        if first.contains(':') {
            return Err(format!("begin with how long every write is kept, like 24h: {text:?}"));
        }
        let mut keep = Self::every_write(duration_ns(first)?);
        for part in parts {
            let Some((every, upto)) = part.split_once(':') else {
                return Err(format!("{part:?} should be EVERY:FOR, like 1m:7d"));
            };
            let step = Step { every_ns: duration_ns(every)?, upto_ns: duration_ns(upto)? };
            let before = keep
                .steps
                .last()
                .copied()
                .unwrap_or(Step { every_ns: 0, upto_ns: keep.every_write_ns });
            if step.every_ns <= before.every_ns || step.upto_ns <= before.upto_ns {
                return Err(format!(
                    "{part:?} should keep fewer, and for longer, than what is before it"
                ));
            }
            if step.every_ns > step.upto_ns {
                return Err(format!("{part:?} keeps nothing: EVERY is longer than FOR"));
            }
            keep.steps.push(step);
        }
        if keep.steps.len() > STEPS_MAX {
            return Err(format!("at most {STEPS_MAX} steps"));
        }
        let count: u64 = keep.steps.iter().map(|s| s.upto_ns / s.every_ns).sum();
        if count > CHECKPOINTS_MAX {
            return Err(format!("that is {count} checkpoints: at most {CHECKPOINTS_MAX} are kept"));
        }
        Ok(keep)
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", duration(self.every_write_ns))?;
        self.steps
            .iter()
            .try_for_each(|s| write!(f, ",{}:{}", duration(s.every_ns), duration(s.upto_ns)))
    }
}

impl Serialize for Keep {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

const UNITS: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

fn duration_ns(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no length of time: write it like 30s, 5m, 24h, 7d");
    let unit = UNITS.iter().find(|(name, _)| text.ends_with(name)).ok_or_else(bad)?;
    let number = &text[..text.len() - unit.0.len()];
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let count: u64 = number.parse().map_err(|_| bad())?;
    let seconds = count.checked_mul(unit.1).filter(|s| *s > 0).ok_or_else(bad)?;
    seconds.checked_mul(SECOND_NS).ok_or_else(bad)
}

fn duration(ns: u64) -> String {
    let seconds = ns / SECOND_NS;
    let unit = UNITS.iter().skip(1).find(|(_, s)| seconds > 0 && seconds.is_multiple_of(*s));
    let (name, size) = unit.copied().unwrap_or(("s", 1));
    format!("{}{name}", seconds / size)
}
