//! Which record holds each byte of a volume.
//!
//! [`extents`] is a map in memory, in which later insertions win.

pub mod extents;

pub use extents::{Extent, ExtentMap};
