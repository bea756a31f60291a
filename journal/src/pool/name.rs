//! Names of units' files. What always holds: a name has one spelling, so that a file that is not ours is
//! never taken for a unit.

use std::path::PathBuf;

/// What the name of a unit's file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileName {
    /// `unit-N`: unit N of the log.
    Unit(u64),
    /// `merged-A-B`: what is left of the units A to B.
    Merged(u64, u64),
}

impl FileName {
    /// Reads a file's name; one spelling each, anything else is somebody else's file.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let found = if let Some(rest) = name.strip_prefix("unit-") {
            Self::Unit(rest.parse().ok()?)
        } else {
            let (first, last) = name.strip_prefix("merged-")?.split_once('-')?;
            Self::Merged(first.parse().ok()?, last.parse().ok()?)
        };
        let (first, last) = found.numbers();
        (found.to_string() == name && 0 < first && first <= last).then_some(found)
    }

    /// First and last number of the log's units that it stands for.
    #[must_use]
    pub fn numbers(self) -> (u64, u64) {
        match self {
            Self::Unit(number) => (number, number),
            Self::Merged(first, last) => (first, last),
        }
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unit(number) => write!(f, "unit-{number:010}"),
            Self::Merged(first, last) => write!(f, "merged-{first:010}-{last:010}"),
        }
    }
}

/// A unit's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What its name says.
    pub name: FileName,
    /// Its path.
    pub path: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        for name in ["unit-0000000012", "merged-0000000003-0000000009"] {
            assert_eq!(FileName::parse(name).unwrap().to_string(), name);
        }
        for name in
            ["unit-12", "unit-0000000000", "merged-0000000009-0000000003", "unit-+000000001"]
        {
            assert_eq!(FileName::parse(name), None, "{name}");
        }
    }
}
