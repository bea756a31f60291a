//! What a look at the tail leads to: writes begun, writes that landed, and a run from its begin to
//! the watermark.

use super::device::Write;
use super::{Flusher, Flying};
use crate::Seq;
use crate::error::Error;
use crate::log::tail::{Ending, page_down, page_up};
use crate::log::unit::OpenUnit;
use crate::log::{Inner, lock};
use crate::planted;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Writes in flight at most.
const WRITES_MAX: usize = 8;
/// Marks the tokens of syncs.
const SYNC: u64 = 1 << 63;
const LOST: &str = "what was not durable yet may be lost";

/// Everything up to the tail on its way to the disk.
pub(super) struct Run {
    /// Every record up to this number was committed when it began.
    head: Seq,
    /// The tail then.
    target: u64,
    /// Nobody wrote below this position then.
    clean: u64,
    /// The same as a unit's number and a byte of it, and the number up to which every record lies below.
    finality: ((u64, u64), Seq),
    /// Whether it syncs, too.
    is_durable: bool,
    /// Whether everything is written.
    is_written: bool,
}

impl Flusher {
    /// Begins a run; there is none.
    pub(super) fn begin_run(&mut self, inner: &Inner, is_durable: bool) {
        let tail = lock(&inner.tail);
        let target = tail.placed();
        // What an earlier turn of the ring left behind the tail is nobody's business on the disk.
        inner.clear_page(target);
        let (head, clean, finality) = (tail.next_seq - 1, tail.ready(), tail.ready_in_unit());
        self.run = Some(Run { head, target, clean, finality, is_durable, is_written: false });
    }

    /// Takes what the disk has done; says whether that was anything.
    pub(super) fn reap(&mut self, inner: &Inner) -> bool {
        let ended = std::mem::take(&mut self.done);
        for done in &ended {
            if done.token & SYNC != 0 {
                self.syncing -= 1;
            } else if let Some(flying) = self.flying.iter_mut().find(|f| f.token == done.token) {
                flying.is_done = true;
            }
            if let Err(error) = &done.result {
                self.fail(inner, done.token & SYNC != 0, error);
            }
        }
        while self.flying.pop_front_if(|flying| flying.is_done).is_some() {}
        !ended.is_empty()
    }

    /// The disk failed. Where only space is missing, nothing that was taken is lost.
    fn fail(&mut self, inner: &Inner, is_sync: bool, error: &io::Error) {
        if self.failed.is_some() {
            return;
        }
        let what = if is_sync { "sync" } else { "write" };
        let is_space = !is_sync
            && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let why = format!("{what} units of {}: {error}: {LOST}", inner.dir.display());
        self.failed = Some(why.clone());
        if !is_space {
            // Before anybody can take the stop for harmless.
            inner.leave_distrust(&why);
        }
        let ending = if is_space { Ending::Space } else { Ending::Failed };
        inner.stop(&mut lock(&inner.tail), why, ending);
    }

    fn token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    /// Begins what can be written now; says whether there was anything.
    pub(super) fn begin_writes(&mut self, inner: &Inner) -> bool {
        let mut begun = false;
        if self.failed.is_some() {
            return false;
        }
        let (units, ready, room_wanted) = {
            let mut tail = lock(&inner.tail);
            let room_wanted = std::mem::take(&mut tail.room_wanted);
            let units: Vec<_> = tail.full.iter().chain([&tail.unit]).cloned().collect();
            (units, tail.ready(), room_wanted)
        };
        while self.flying.len() < WRITES_MAX {
            let Some(unit) = units.iter().find(|unit| unit.end_page() > self.next) else { break };
            let unit_end = unit.end_page();
            let run = self.run.as_ref().filter(|run| !run.is_written);
            let limit = match run {
                Some(run) => page_up(run.target).min(unit_end),
                None if ready >= unit_end => unit_end,
                None => page_down(ready),
            };
            let to = limit.min(self.next + self.chunk_bytes);
            let is_due = run.is_some() || room_wanted || to == unit_end;
            if to <= self.next || (to - self.next < self.chunk_bytes && !is_due) {
                break;
            }
            self.begin_write(inner, unit, to, ready);
            begun = true;
        }
        begun
    }

    fn begin_write(&mut self, inner: &Inner, unit: &Arc<OpenUnit>, to: u64, ready: u64) {
        let (from, token) = (self.next, self.token());
        let whole = page_down(ready).clamp(from, to) - from;
        let span = inner.ring.span(from, to - from, whole);
        let write = Write { unit: Arc::clone(unit), at: unit.offset(from), span };
        self.flying.push_back(Flying { token, from, is_done: false });
        self.device.write(token, write);
        self.next = to;
    }

    /// Draws the conclusions; says whether there were any.
    pub(super) fn advance(&mut self, inner: &Inner) -> bool {
        if self.failed.is_some() {
            // Its data counts as not written: it may be in the ring only.
            return false;
        }
        let mut turned = false;
        let mut clean = u64::MAX;
        if let Some(run) = self.run.as_mut().filter(|run| !run.is_written) {
            clean = page_down(run.clean);
            if self.flying.is_empty() && self.next >= page_up(run.target) {
                run.is_written = true;
                self.next = clean;
                self.clean = run.clean;
                let (is_durable, target) = (run.is_durable, run.target);
                turned = true;
                if is_durable {
                    self.begin_syncs(inner, target);
                }
            }
        }
        let low = self.flying.front().map_or(self.next, |flying| flying.from).min(clean);
        turned |= inner.set_written(low, self.clean.max(low));
        if self.syncing == 0
            && let Some(run) = self.run.take_if(|run| run.is_written)
        {
            if run.is_durable {
                // What was not committed when the run began is written again, and synced by the next one.
                self.synced = match planted::is("synced-to-target") {
                    true => run.target,
                    false => run.clean,
                };
                // The record before anybody is told: whoever was finds it, unless there is no room.
                self.watermark_due = Some(run.head);
                self.write_watermark(inner);
                inner.set_durable(run.head, run.finality);
            }
            turned = true;
        }
        turned
    }

    fn begin_syncs(&mut self, inner: &Inner, target: u64) {
        let units: Vec<_> = {
            let tail = lock(&inner.tail);
            tail.full.iter().chain([&tail.unit]).cloned().collect()
        };
        // Those that are sealed meanwhile are synced.
        for unit in units {
            if unit.start() < target && unit.end_page() > self.synced {
                let token = self.token() | SYNC;
                self.syncing += 1;
                self.device.sync(token, unit);
            }
        }
    }
}

impl Inner {
    /// Everything below `flushed` is in the units' files, and the space below `position`, the start
    /// of its page, can be handed out again. Says whether that is news.
    fn set_written(&self, position: u64, flushed: u64) -> bool {
        let mut tail = lock(&self.tail);
        if flushed <= tail.flushed {
            return false;
        }
        let tail = &mut *tail;
        for unit in tail.full.iter().chain([&tail.unit]) {
            if unit.is_written.load(Ordering::Relaxed) || unit.start() >= flushed {
                continue;
            }
            self.ring.set_flushed(unit.slot(), flushed.min(unit.end.load(Ordering::Relaxed)));
            if unit.end_page() <= position {
                self.ring.end_unit(unit.slot());
                tail.slots.push(unit.slot());
                unit.is_written.store(true, Ordering::Relaxed);
                self.sealer_wake.notify_one();
            }
        }
        (tail.written, tail.flushed) = (position.max(tail.written), flushed);
        self.room.notify_all();
        true
    }

    /// Everything is in the files, and nothing more will come: the ring counts no more.
    pub(super) fn leave_ring(&self) {
        let tail = lock(&self.tail);
        for unit in tail.full.iter().chain([&tail.unit]) {
            if !unit.is_written.load(Ordering::Relaxed) {
                self.ring.end_unit(unit.slot());
            }
        }
    }

    fn set_durable(&self, head: Seq, (place, watermark): ((u64, u64), Seq)) {
        let end = lock(&self.sync_ended);
        if end.distrusted.is_none() {
            self.durable.fetch_max(head, Ordering::AcqRel);
            self.finals.reach(place, watermark);
        }
        self.sync_done.notify_all();
        drop(end);
    }

    /// A failure while something else than a run was written.
    pub(in crate::log) fn stop_for(&self, error: &Error) {
        // Before anybody can take the stop for harmless.
        let why = format!("{error}: {LOST}");
        self.leave_distrust(&why);
        self.stop(&mut lock(&self.tail), why, Ending::Failed);
    }
}
