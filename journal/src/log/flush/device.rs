//! What moves bytes from the ring to a disk, one interface for all ways of doing it.
//!
//! What always holds: an operation that was begun is reported exactly once, however it ended; its
//! memory and its file are kept until then. No two writes that overlap are ever begun.

use super::super::unit::OpenUnit;
use crate::ring::Span;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Bytes on their way from the ring to a unit's file.
#[derive(Clone)]
pub(in crate::log) struct Write {
    /// The unit.
    pub(in crate::log) unit: Arc<OpenUnit>,
    /// Byte offset in its file, a multiple of 4096.
    pub(in crate::log) at: u64,
    /// The bytes, a multiple of 4096.
    pub(in crate::log) span: Span,
}

/// How an operation ended.
pub(in crate::log) struct Done {
    /// Which one.
    pub(in crate::log) token: u64,
    /// Its verdict.
    pub(in crate::log) result: io::Result<()>,
}

/// A way to write and to sync.
pub(in crate::log) trait Device: Send {
    /// Begins a write.
    fn write(&mut self, token: u64, write: Write);

    /// Begins to make durable what was written to the unit before.
    fn sync(&mut self, token: u64, unit: Arc<OpenUnit>);

    /// Waits until an operation has ended or `limit` has passed, and appends all that have ended.
    fn wait(&mut self, limit: Duration, done: &mut Vec<Done>);
}
