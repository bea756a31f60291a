//! What a link needs of a journal.
//!
//! [`Feed`](afterimage_journal::feed::Feed) is the one real source; tests have others.

use afterimage_journal::wire::{Ack, Inventory, Op};
use afterimage_journal::{Result, Seq};
use std::time::Duration;

/// What is still to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Of the log's end, in bytes.
    pub(super) fresh_bytes: u64,
    /// Of older files, in bytes.
    pub(super) background_bytes: u64,
}

/// A position with its time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Covered {
    /// Every number up to this one was in the ops so far, or the sink has it.
    pub(super) watermark: Seq,
    /// When the newest record up to there was written, nanoseconds since the Unix epoch; 0: unknown.
    pub(super) wall_ns: u64,
}

/// A journal as it is to be sent. No call waits for anything but [`Source::wait`].
pub(super) trait Source: Send {
    /// Begins behind what a sink holds.
    fn start(&mut self, inventory: &Inventory, mirror: bool) -> Result<()>;
    /// The next op of the log's end; `None`: caught up.
    fn fresh(&mut self) -> Result<Option<Op>>;
    /// The next piece of what else the sink lacks; `None`: nothing is left.
    fn background(&mut self) -> Result<Option<Op>>;
    /// What is still to be sent.
    fn left(&self) -> Left;
    /// What the ops so far hold.
    fn covered(&self) -> Covered;
    /// The sink has it.
    fn acked(&mut self, ack: &Ack);
    /// Waits until there is more of the log's end, for at most so long.
    fn wait(&mut self, limit: Duration);
    /// Whether the journal is to be let go of.
    fn is_over(&mut self) -> bool;
}
