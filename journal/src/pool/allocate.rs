//! Where the next unit of a journal goes: asked by the log each time it prepares one.
//!
//! What always holds: an allocator only names places. The log makes the file, or takes the spare one
//! over, and a unit gets its own name only when its new header is durable.

use crate::error::Result;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

/// A place for one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The directory that the unit gets its name in; it is there.
    pub dir: PathBuf,
    /// A file of exactly the unit's size, on the same file system, whose blocks were all written
    /// before: it is renamed into `dir`. It is the journal's from now on, whatever becomes of it.
    pub spare: Option<PathBuf>,
}

/// What finds places for units.
pub trait Allocate: Send + Sync + Debug {
    /// A place for one more unit of `unit_bytes` of the journal in `journal`.
    ///
    /// # Errors
    /// `FreeSpace` when no place may be used any more: the log goes on in the unit that it has, and
    /// asks again.
    fn allocate(&self, journal: &Path, unit_bytes: u64) -> Result<Slot>;
}

/// Every unit lies in the journal's own directory, in a file of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct HomeAllocator;

impl Allocate for HomeAllocator {
    fn allocate(&self, journal: &Path, _unit_bytes: u64) -> Result<Slot> {
        Ok(Slot { dir: journal.to_owned(), spare: None })
    }
}
