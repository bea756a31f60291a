//! What a sink and the thread of its link share: two queues, credit, acks, and how it ended.

use crate::error::Error;
use crate::frame::convert::{Class, INVENTORY_FILES_MAX, failed_of, read_failed, take_part};
use crate::frame::message as m;
use afterimage_journal::wire::{Ack, Inventory, SinkError};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Most bytes of a class that a site may have us keep under way.
const UNDER_WAY_BYTES_MAX: u64 = 64 << 20;

/// The frames of one class.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Vec<u8>>,
    put_bytes: u64,
    credited_bytes: u64,
    bytes_max: u64,
}

impl Lane {
    /// At least one frame may always be under way.
    fn has_room(&self, bytes: u64) -> bool {
        let under_way = self.put_bytes - self.credited_bytes;
        under_way == 0 || under_way + bytes <= self.bytes_max
    }

    fn credit(&mut self, bytes: u64) -> Result<(), Error> {
        // Neither backwards nor for what was not sent.
        if bytes < self.credited_bytes || bytes > self.put_bytes {
            return Err(Error::Broken("the site took bytes that were never sent".into()));
        }
        self.credited_bytes = bytes;
        Ok(())
    }
}

#[derive(Debug, Default)]
struct State {
    fresh: Lane,
    background: Lane,
    welcome: Option<bool>,
    inventory: Inventory,
    is_open: bool,
    acks: Option<Ack>,
    ended: Option<m::Failed>,
    rate: Option<u64>,
    stop: bool,
}

impl State {
    fn lane(&mut self, class: Class) -> &mut Lane {
        match class {
            Class::Fresh => &mut self.fresh,
            Class::Background => &mut self.background,
        }
    }

    fn check(&self) -> Result<(), SinkError> {
        match &self.ended {
            Some(failed) => Err(read_failed(failed.clone())),
            None => Ok(()),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// The caller waits for it.
    changed: Condvar,
    /// The link waits for it.
    wake: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values, whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` says something, or the link ended.
    fn wait<T>(
        &self,
        limit: Duration,
        mut done: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>, SinkError> {
        let until = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(value) = done(&mut state) {
                return Ok(Some(value));
            }
            state.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    // What the caller does.

    pub(super) fn opened(&self, limit: Duration) -> Result<(Inventory, bool), SinkError> {
        let opened = self.wait(limit, |s| {
            s.is_open.then(|| (std::mem::take(&mut s.inventory), s.welcome.unwrap_or(false)))
        })?;
        let limit = limit.as_secs();
        opened.ok_or_else(|| {
            SinkError::Away(format!("the site did not say within {limit} s what it holds"))
        })
    }

    pub(super) fn put(
        &self,
        class: Class,
        frame: Vec<u8>,
        limit: Duration,
    ) -> Result<(), SinkError> {
        let bytes = frame.len() as u64;
        let mut frame = Some(frame);
        let put = self.wait(limit, |state| {
            // What failed before is said now.
            let lane = state.ended.is_none().then(|| state.lane(class))?;
            if !lane.has_room(bytes) {
                return None;
            }
            lane.put_bytes += bytes;
            lane.waiting.extend(frame.take());
            Some(())
        })?;
        self.wake.notify_one();
        put.ok_or_else(|| {
            let limit = limit.as_secs();
            SinkError::Away(format!("the site took nothing of what was sent for {limit} s"))
        })
    }

    pub(super) fn ack(&self, wait: Duration) -> Result<Option<Ack>, SinkError> {
        self.wait(wait, |state| state.acks.take())
    }

    pub(super) fn rate(&self) -> Option<u64> {
        self.lock().rate
    }

    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    // What the link does.

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn stopped(&self) -> bool {
        self.lock().stop
    }

    /// The next frame to be sent: what is fresh first.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        state.fresh.waiting.pop_front().or_else(|| state.background.waiting.pop_front())
    }

    pub(super) fn set_rate(&self, rate: Option<u64>) {
        self.lock().rate = rate;
    }

    pub(super) fn welcome(&self, welcome: &m::Welcome) -> Result<(), Error> {
        let mut state = self.lock();
        if state.welcome.is_some() || welcome.version == 0 || welcome.version > m::VERSION {
            return Err(Error::Broken("the site welcomes us in a way that we don't know".into()));
        }
        state.fresh.bytes_max = welcome.fresh_bytes_max.min(UNDER_WAY_BYTES_MAX);
        state.background.bytes_max = welcome.background_bytes_max.min(UNDER_WAY_BYTES_MAX);
        state.welcome = Some(welcome.mirrors);
        Ok(())
    }

    pub(super) fn held(&self, part: m::Held) -> Result<(), Error> {
        let mut state = self.lock();
        if state.welcome.is_none() || state.is_open {
            return Err(Error::Broken("the site says what it holds at a wrong time".into()));
        }
        if take_part(&mut state.inventory, part)? {
            state.is_open = true;
            self.changed.notify_all();
        }
        Ok(())
    }

    pub(super) fn acked(&self, ack: Ack) -> Result<(), Error> {
        let mut state = self.lock();
        if !state.is_open {
            return Err(Error::Broken("the site acknowledges what it was not sent".into()));
        }
        let merged = state.acks.get_or_insert_default();
        merged.token = merged.token.max(ack.token);
        merged.watermark = merged.watermark.max(ack.watermark);
        merged.whole.extend(ack.whole);
        if merged.whole.len() > INVENTORY_FILES_MAX {
            return Err(Error::Broken("the site says that more files count than can be".into()));
        }
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn credited(&self, credit: &m::Credit) -> Result<(), Error> {
        let mut state = self.lock();
        state.fresh.credit(credit.fresh_bytes)?;
        state.background.credit(credit.background_bytes)?;
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn ended(&self, error: &SinkError) {
        let mut state = self.lock();
        state.ended.get_or_insert_with(|| failed_of(error));
        self.changed.notify_all();
    }
}
