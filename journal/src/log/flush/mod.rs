//! The flusher: from the ring into the units' files, and the durable watermark.
//!
//! What always holds:
//! * whole chunks go out as soon as all in them is committed or given up; a *run* (every sync
//!   interval, or when somebody waits) writes all up to the tail, syncs, and moves the watermark;
//! * a run writes what is not committed yet along with the rest; all from the lowest such place on is
//!   written again by the next;
//! * no two writes in flight overlap: the last page of a run is written again only when it landed.

mod choose;
mod device;
mod plain;
mod run;
mod uring;

pub use choose::Backend;
pub(super) use choose::choose;
pub(super) use device::{Device, Done};

use super::append::Draft;
use super::tail::{Ending, PAGE_BYTES, Tail, page_down};
use super::{Inner, lock};
use crate::Seq;
use crate::format::record::Kind;
use run::Run;
use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes that go to the disk in one piece while records keep coming.
const CHUNK_BYTES: u64 = 1 << 20;
/// How soon the flusher looks at the tail again while the disk works.
const LOOK_AGAIN: Duration = Duration::from_micros(300);
/// How soon a watermark record that found no room is tried again.
const WATERMARK_AGAIN: Duration = Duration::from_millis(5);
/// Longest interval that counts; one that is meant as "never" does no harm.
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);

/// A write in flight.
struct Flying {
    token: u64,
    from: u64,
    is_done: bool,
}

pub(super) struct Flusher {
    device: Box<dyn Device>,
    chunk_bytes: u64,
    /// Writes were begun up to this position.
    next: u64,
    /// Everything below this position was in the files when the last run was written.
    clean: u64,
    flying: VecDeque<Flying>,
    /// Syncs in flight.
    syncing: usize,
    last_token: u64,
    run: Option<Run>,
    /// Everything below this position is durable.
    synced: u64,
    /// When the last run began.
    ran_at: Instant,
    /// A watermark record is to be written for this number.
    watermark_due: Option<Seq>,
    /// The last position that a watermark record names, and that record's own number.
    watermark: Seq,
    watermark_seq: Seq,
    /// The head at which the journal ticked or took a record last, and when.
    moved: Option<(Seq, Instant)>,
    /// Why it does nothing any more.
    failed: Option<String>,
    done: Vec<Done>,
}

impl Flusher {
    pub(super) fn new(device: Box<dyn Device>, ring_bytes: u64, first: u64) -> Self {
        Self {
            device,
            chunk_bytes: CHUNK_BYTES.min(page_down(ring_bytes / 8)).max(PAGE_BYTES),
            next: first,
            clean: first,
            flying: VecDeque::new(),
            syncing: 0,
            last_token: 0,
            run: None,
            synced: first,
            ran_at: Instant::now(),
            watermark_due: None,
            watermark: 0,
            watermark_seq: 0,
            moved: None,
            failed: None,
            done: Vec::new(),
        }
    }

    /// Why it failed, if it did.
    pub(super) fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    fn is_working(&self) -> bool {
        !self.flying.is_empty() || self.syncing > 0
    }

    /// What happens by itself as time passes.
    fn keep_time(&mut self, inner: &Inner) {
        let now = Instant::now();
        if self.tick_due(inner) <= now {
            // Without room there are records enough to show that the journal lives.
            let _ = inner.append_at_once(&Draft::of(Kind::Tick));
        }
        let interval = inner.options.sync_interval.min(INTERVAL_MAX);
        if self.run.is_none() && now >= self.ran_at + interval {
            self.ran_at = now;
            // A watermark record alone is no reason to sync again.
            if inner.head.load(Ordering::Acquire) > self.watermark_seq {
                self.begin_run(inner, true);
            }
        }
    }

    /// Begins a run if somebody waits for what is not durable.
    fn serve(&mut self, inner: &Inner) {
        let wanted = inner.wanted.load(Ordering::Acquire);
        if self.run.is_none() && wanted > inner.durable.load(Ordering::Acquire) {
            self.ran_at = Instant::now();
            self.begin_run(inner, true);
        }
    }

    pub(super) fn write_watermark(&mut self, inner: &Inner) {
        let Some(head) = self.watermark_due else { return };
        let mut draft = Draft::of(Kind::Watermark);
        draft.addr = head;
        if let Some(seq) = inner.append_at_once(&draft) {
            self.watermark_due = None;
            (self.watermark, self.watermark_seq) = (head, seq);
        }
    }

    /// When the journal has to tick, unless a record comes before.
    fn tick_due(&mut self, inner: &Inner) -> Instant {
        // The watermark that follows a tick is not news either.
        let head = inner.head.load(Ordering::Acquire);
        let seen = if head == self.watermark_seq { self.watermark } else { head };
        let since = match self.moved {
            Some((at, since)) if at >= seen => since,
            _ => {
                let now = Instant::now();
                self.moved = Some((seen, now));
                now
            }
        };
        since + inner.options.tick_interval.min(INTERVAL_MAX)
    }

    /// One look at everything; says whether anything came of it.
    fn step(&mut self, inner: &Inner) -> bool {
        let reaped = self.reap(inner);
        let begun = self.begin_writes(inner);
        let turned = self.advance(inner);
        self.write_watermark(inner);
        (reaped || begun || turned) && self.failed.is_none()
    }

    /// Waits for the disk, if it works.
    fn wait_for_disk(&mut self, limit: Duration) {
        if self.is_working() {
            self.device.wait(limit, &mut self.done);
        }
    }

    /// Waits for work.
    fn sleep(&mut self, inner: &Inner) {
        let mut wake = self.ran_at + inner.options.sync_interval.min(INTERVAL_MAX);
        wake = wake.min(self.tick_due(inner));
        if self.watermark_due.is_some() {
            wake = wake.min(Instant::now() + WATERMARK_AGAIN);
        }
        let mut tail = lock(&inner.tail);
        let is_wanted =
            inner.wanted.load(Ordering::Acquire) > inner.durable.load(Ordering::Acquire);
        let flush_at = self.wake_at(&tail);
        if is_wanted || tail.stopped.is_some() || tail.room_wanted || tail.ready() >= flush_at {
            return;
        }
        tail.flush_at = flush_at;
        let left = wake.saturating_duration_since(Instant::now());
        let waited = inner.flusher_wake.wait_timeout(tail, left);
        waited.unwrap_or_else(PoisonError::into_inner).0.flush_at = u64::MAX;
    }

    /// The position that is worth a write when nobody writes below it any more.
    fn wake_at(&self, tail: &Tail) -> u64 {
        let units = tail.full.iter().chain([&tail.unit]);
        let end = units.map(|u| u.end_page()).find(|end| *end > self.next).unwrap_or(u64::MAX);
        end.min(self.next + self.chunk_bytes)
    }

    /// What is left to do when the journal has stopped.
    fn finish(&mut self, inner: &Inner) {
        let ending = lock(&inner.tail).stopped.as_ref().map(|stop| stop.ending);
        self.watermark_due = None;
        let is_durable = match ending {
            Some(Ending::LetGo) => Some(false),
            Some(Ending::Space | Ending::Closed) => Some(true),
            Some(Ending::Failed) | None => None,
        };
        // The run that is under way ends first.
        while self.run.is_some() && self.failed.is_none() {
            self.step(inner);
            self.wait_for_disk(LOOK_AGAIN);
        }
        if let Some(is_durable) = is_durable.filter(|_| self.failed.is_none()) {
            self.begin_run(inner, is_durable);
        }
        while self.is_working() || (self.run.is_some() && self.failed.is_none()) {
            self.step(inner);
            self.wait_for_disk(LOOK_AGAIN);
        }
        if is_durable.is_some() && self.failed.is_none() {
            inner.leave_ring();
        }
        lock(&inner.sync_ended).ended = true;
        if ending != Some(Ending::Closed) {
            inner.finals.end();
        }
        inner.sync_done.notify_all();
    }
}

impl Inner {
    /// The flusher's thread.
    pub(super) fn flush_loop(&self) {
        let mut flusher = lock(&self.flusher);
        while lock(&self.tail).stopped.is_none() {
            flusher.serve(self);
            flusher.keep_time(self);
            if flusher.is_working() {
                flusher.wait_for_disk(LOOK_AGAIN);
                flusher.step(self);
            } else if !flusher.step(self) {
                flusher.sleep(self);
            }
        }
        flusher.finish(self);
    }

    /// The flusher's work, done by the caller: all that can be written, and synced if somebody waits.
    pub(super) fn flush_inline(&self) {
        let mut flusher = lock(&self.flusher);
        loop {
            if lock(&self.tail).stopped.is_some() {
                return flusher.finish(self);
            }
            flusher.serve(self);
            let has_moved = flusher.step(self);
            flusher.wait_for_disk(LOOK_AGAIN);
            if !has_moved
                && !flusher.is_working()
                && flusher.run.is_none()
                && flusher.done.is_empty()
            {
                return;
            }
        }
    }
}
