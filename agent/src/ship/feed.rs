//! A live journal as a [`Source`].
//!
//! A feed asks for a `Sync` itself, whenever it has caught up. What it says there is noted, and the link
//! asks in its own time.
//!
//! What always holds: it does not keep the journal open, so that a journal that stopped can be opened
//! anew; once another opening is there, it is over.

use super::Journals;
use super::source::{Covered, Left, Source};
use afterimage_journal::feed::Feed;
use afterimage_journal::wire::{Ack, Inventory, Op};
use afterimage_journal::{Journal, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked whether the journal was opened anew.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// See the module.
pub(super) struct FeedSource {
    feed: Feed,
    covered: Covered,
    epoch: u64,
    journals: Arc<dyn Journals>,
    looked: Instant,
}

impl FeedSource {
    pub(super) fn new(journal: &Journal, journals: Arc<dyn Journals>) -> Self {
        let (feed, epoch) = (Feed::new(journal), journal.epoch());
        let (covered, looked) = (Covered::default(), Instant::now());
        Self { feed, covered, epoch, journals, looked }
    }
}

impl Source for FeedSource {
    fn start(&mut self, inventory: &Inventory, mirror: bool) -> Result<()> {
        self.covered = Covered { watermark: inventory.watermark, wall_ns: 0 };
        self.feed.start(inventory, mirror)
    }

    fn fresh(&mut self) -> Result<Option<Op>> {
        while let Some(op) = self.feed.fresh()? {
            match op {
                Op::Sync { watermark, wall_ns, .. } => {
                    self.covered = Covered { watermark, wall_ns }
                }
                op => return Ok(Some(op)),
            }
        }
        Ok(None)
    }

    fn background(&mut self) -> Result<Option<Op>> {
        self.feed.background()
    }

    fn left(&self) -> Left {
        let backlog = self.feed.backlog();
        Left { fresh_bytes: backlog.fresh_bytes, background_bytes: backlog.background_bytes }
    }

    fn covered(&self) -> Covered {
        self.covered
    }

    fn acked(&mut self, ack: &Ack) {
        self.feed.acked(ack);
    }

    fn wait(&mut self, limit: Duration) {
        let begun = Instant::now();
        // Where it has ended there is nothing to wait for.
        if !self.feed.wait(limit) || self.feed.is_done() {
            std::thread::sleep(limit.saturating_sub(begun.elapsed()));
        }
    }

    fn is_over(&mut self) -> bool {
        if self.looked.elapsed() < LOOK_EVERY {
            return false;
        }
        self.looked = Instant::now();
        self.journals.now().is_some_and(|journal| journal.epoch() != self.epoch)
    }
}
