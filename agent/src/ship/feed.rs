//! A live journal as a [`Source`].
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
    epoch: u64,
    journals: Arc<dyn Journals>,
    looked: Instant,
}

impl FeedSource {
    pub(super) fn new(journal: &Journal, journals: Arc<dyn Journals>) -> Self {
        let (feed, epoch) = (Feed::new(journal), journal.epoch());
        Self { feed, epoch, journals, looked: Instant::now() }
    }
}

impl Source for FeedSource {
    fn start(&mut self, inventory: &Inventory, mirror: bool) -> Result<()> {
        self.feed.start(inventory, mirror)
    }

    fn fresh(&mut self) -> Result<Option<Op>> {
        self.feed.fresh()
    }

    fn background(&mut self) -> Result<Option<Op>> {
        self.feed.background()
    }

    fn left(&self) -> Left {
        let backlog = self.feed.backlog();
        Left { fresh_bytes: backlog.fresh_bytes, background_bytes: backlog.background_bytes }
    }

    fn covered(&self) -> Covered {
        let (watermark, wall_ns) = self.feed.covered();
        Covered { watermark, wall_ns }
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
