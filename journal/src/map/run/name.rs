//! What a run covers, and the name of its file.

use crate::Seq;
use crate::error::{Error, Result};

/// Level of a base run.
pub const LEVEL_BASE: u8 = 0;
/// The highest level that there is: 4096 units.
pub const LEVEL_MAX: u8 = 4;

/// What a run covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// 0: a base run; L from 1: 8^L aligned units.
    pub level: u8,
    /// Number of the first unit; 1 of a base run.
    pub first_unit: u64,
    /// Number of the last unit.
    pub last_unit: u64,
    /// The lowest record number in these units.
    pub first_seq: Seq,
    /// The highest record number in these units; of a base run, the edge.
    pub last_seq: Seq,
}

impl Span {
    /// Whether it is that of a base run.
    #[must_use]
    pub fn is_base(&self) -> bool {
        self.level == LEVEL_BASE
    }

    /// The name of its file.
    #[must_use]
    pub fn name(&self) -> RunName {
        match self.level {
            LEVEL_BASE => RunName::Base(self.last_seq),
            level => RunName::Level(level, self.first_unit, self.last_unit),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let fits = (0 < self.first_unit && self.first_unit <= self.last_unit)
            && self.level <= LEVEL_MAX
            && (!self.is_base() || self.first_unit == 1);
        if fits { Ok(()) } else { Err(Error::Invalid(format!("no run can cover {self:?}"))) }
    }
}

/// The name of a run's file in the journal's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RunName {
    /// `map-base-SEQ`: everything at or below the edge SEQ.
    Base(Seq),
    /// `map-L-A-B`: level L, units A to B.
    Level(u8, u64, u64),
}

impl RunName {
    /// Reads a file's name; one spelling each, anything else is somebody else's file.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("map-")?;
        let found = if let Some(seq) = rest.strip_prefix("base-") {
            Self::Base(seq.parse().ok()?)
        } else {
            let mut parts = rest.split('-');
            let mut part = || parts.next();
            let level = part()?.parse().ok().filter(|l| (1..=LEVEL_MAX).contains(l))?;
            Self::Level(level, part()?.parse().ok()?, part()?.parse().ok()?)
        };
        (found.to_string() == name).then_some(found)
    }
}

impl std::fmt::Display for RunName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Base(seq) => write!(f, "map-base-{seq:010}"),
            Self::Level(level, first, last) => write!(f, "map-{level}-{first:010}-{last:010}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        for name in ["map-base-0000000012", "map-2-0000000001-0000000064"] {
            assert_eq!(RunName::parse(name).unwrap().to_string(), name);
        }
        for name in [
            "map-base-12",
            "map-0-0000000001-0000000016",
            "map-5-0000000001-0000032768",
            "map-1-0000000001-0000000016-7",
            "map-1-0000000001-0000000016.tmp",
            "map-+1-0000000001-0000000016",
        ] {
            assert_eq!(RunName::parse(name), None, "{name}");
        }
    }
}
