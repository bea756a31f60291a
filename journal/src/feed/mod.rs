//! What a journal sends to a sink next: the log's end as it happens, and the files that the sink lacks.

use crate::error::Result;
use crate::log::{Final, Finals, Journal};
use crate::wire::{Ack, Inventory, Op};
use std::sync::Arc;
use std::time::Duration;

/// What a sink lacks, as of the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Bytes of the log's end that were not sent.
    pub fresh_bytes: u64,
    /// Bytes of files that were not sent, holes included.
    pub background_bytes: u64,
    /// Files of which something was not sent.
    pub background_files: u64,
    /// When the oldest record that was not sent was written, nanoseconds since the Unix epoch; `None`:
    /// all that is final was.
    pub oldest_ns: Option<u64>,
}

/// See the module.
pub struct Feed {
    finals: Arc<Finals>,
    seen: Final,
}

impl Feed {
    /// A feed of an open journal. It does not keep it open.
    #[must_use]
    pub fn new(journal: &Journal) -> Self {
        let finals = journal.finals();
        let seen = finals.now();
        Self { finals, seen }
    }

    /// Begins anew from what a sink holds; after each [`crate::wire::Sink::open`].
    ///
    /// # Errors
    /// The sink has records that the journal doesn't; or the journal's files can't be read.
    pub fn start(&mut self, _inventory: &Inventory, _mirror: bool) -> Result<()> {
        Ok(())
    }

    /// The next op of the log's end; `None`: all that is final was sent.
    ///
    /// # Errors
    /// The journal's files can't be read.
    pub fn fresh(&mut self) -> Result<Option<Op>> {
        self.seen = self.finals.now();
        Ok(None)
    }

    /// The next op of the files that the sink lacks; `None`: there is nothing left for now.
    ///
    /// # Errors
    /// The journal's files can't be read.
    pub fn background(&mut self) -> Result<Option<Op>> {
        Ok(None)
    }

    /// Waits until there may be something fresh, for at most so long; whether there may.
    #[must_use]
    pub fn wait(&self, wait: Duration) -> bool {
        self.finals.wait(&self.seen, wait) != self.seen
    }

    /// Whether the journal ended and all of its log was sent.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.seen.ended
    }

    /// What was not sent.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        Backlog::default()
    }

    /// Takes an ack: what it covers is not kept any more.
    pub fn acked(&mut self, _ack: &Ack) {}
}
