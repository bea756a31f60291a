//! Where a journal's units lie: one directory a member of the pool.
//!
//! What always holds: a member that is missing, stale or of another pool is never read; its units
//! are missing, by name.

use crate::error::{Error, Result};
use crate::storage::Storage;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// The directories that hold a journal's units.
#[derive(Debug, Clone)]
pub struct Places {
    storage: Arc<dyn Storage>,
    /// The first is the journal's own.
    dirs: Vec<PathBuf>,
}

impl Places {
    /// Those of the journal in `dir`.
    ///
    /// # Errors
    /// The pool's description can't be read.
    pub fn of(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Self> {
        Ok(Self { storage: Arc::clone(storage), dirs: vec![dir.to_owned()] })
    }

    /// All units' files, by number.
    ///
    /// # Errors
    /// A directory can't be read.
    pub fn units(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for dir in &self.dirs {
            let names = match self.storage.list(dir) {
                Ok(names) => names,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("list journal", dir, e)),
            };
            let named = names.iter().filter_map(|n| Some((FileName::parse(n)?, n)));
            found.extend(named.map(|(name, n)| Found { name, path: dir.join(n) }));
        }
        found.sort_by_key(|f| f.name.numbers());
        Ok(found)
    }

    /// The file of this name, if it is there.
    #[must_use]
    pub fn find(&self, name: FileName) -> Option<PathBuf> {
        let text = name.to_string();
        self.dirs.iter().map(|d| d.join(&text)).find(|p| self.storage.exists(p))
    }
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
