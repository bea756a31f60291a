//! Which record holds each byte of a volume.
//!
//! An LSM of extents: [`run`] is a sorted run in a file, [`mem`] one in memory, [`stack`] sees
//! several as one, [`compact`](mod@compact) makes one of several, [`levels`] says which are to be
//! built and which answer for a position. What always holds: the highest (rank, number) wins at
//! each byte, whatever run it comes from, and runs are derived from the units' indexes: one that
//! is bad or gone costs time, never data. [`extents`] is a map in which later insertions win.

pub mod compact;
pub mod extents;
pub mod levels;
pub mod mem;
pub mod piece;
pub mod run;
pub mod stack;
mod sweep;
#[cfg(test)]
mod tests;

pub use compact::compact;
pub use extents::{Extent, ExtentMap};
pub use mem::MemRun;
pub use piece::{Piece, Placed, record_pieces};
pub use run::{Run, RunName, RunWriter, Span};
pub use stack::{Layer, Stack};
