//! The threads of an open journal: the keeper (next unit), the faulter (page faults ahead of the
//! tail), the sealer (full units) and the syncer (the durable watermark, ticks). An append waits
//! for none of them, but for a missing unit.
//!
//! Locks: `sync` may be held when `tail` is taken, never the other way round.

use super::append::Draft;
use super::{Inner, Stop, SyncState, lock};
use crate::error::{ErrorKind, Result};
use crate::format::record::Kind;
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::unit::{self, MappedUnit};
use crate::{Seq, layout};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Bytes faulted in ahead of the tail.
pub(super) const PREFAULT_BYTES: u64 = 16 << 20;
/// When less than this lies ahead, the faulter faults in more.
pub(super) const PREFAULT_LOW_BYTES: u64 = 8 << 20;
/// Step of faulting in: a bounded hold of the process's memory map.
const PREFAULT_STEP_BYTES: u64 = 1 << 20;

/// Longest interval that counts; one that is meant as "never" does no harm.
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Pause between tries to make the next unit.
const PREPARE_RETRY: Duration = Duration::from_secs(1);
const LOST: &str = "what was not durable yet may be lost";

type Work = fn(&Inner);

/// Starts the threads.
pub(super) fn start(inner: &Arc<Inner>) -> std::io::Result<()> {
    let works: [(&str, Work); 4] = [
        ("keeper", Inner::keep),
        ("faulter", Inner::fault_loop),
        ("sealer", Inner::seal_loop),
        ("syncer", Inner::sync_loop),
    ];
    for (name, work) in works {
        let inner_of_thread = Arc::clone(inner);
        let spawned = std::thread::Builder::new()
            .name(format!("journal-{name}"))
            .spawn(move || work(&inner_of_thread));
        match spawned {
            Ok(handle) => lock(&inner.threads).push(handle),
            Err(e) => {
                inner.abandon();
                inner.join();
                return Err(e);
            }
        }
    }
    Ok(())
}

impl Inner {
    /// Waits for the disk most of the time: page faults are left to another thread, so that
    /// neither is late for the other.
    fn keep(&self) {
        while let Some(header) = self.wanted_unit() {
            self.prepare(header);
        }
    }

    /// Waits until there is no next unit, and gives its header; `None` in the end.
    fn wanted_unit(&self) -> Option<UnitHeader> {
        let mut tail = lock(&self.tail);
        while tail.stopped.is_none() {
            if tail.next.is_none() {
                let (number, after) = (tail.unit.header.number, tail.next_seq.saturating_sub(1));
                return Some(self.header_after(number, after, tail.unit.header.prev_last_seq));
            }
            tail = self.keeper_wake.wait(tail).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn fault_loop(&self) {
        while let Some((unit, at)) = self.wanted_pages() {
            unit.prefault(at, PREFAULT_STEP_BYTES);
        }
    }

    /// Waits until pages are wanted ahead of the tail, and gives the first; `None` in the end.
    fn wanted_pages(&self) -> Option<(Arc<MappedUnit>, u64)> {
        let mut tail = lock(&self.tail);
        while tail.stopped.is_none() {
            let end = (tail.at + PREFAULT_BYTES).min(self.identity.unit_bytes);
            if tail.prefaulted < end {
                let at = tail.prefaulted.max(tail.at & !4095);
                tail.prefaulted = at + PREFAULT_STEP_BYTES;
                return Some((Arc::clone(&tail.unit), at));
            }
            tail = self.faulter_wake.wait(tail).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    pub(super) fn header_after(&self, number: u64, after: Seq, prev_last_seq: Seq) -> UnitHeader {
        UnitHeader {
            group: self.identity.group.into_bytes(),
            salt: uuid::Uuid::new_v4().into_bytes(),
            number: number + 1,
            unit_bytes: self.identity.unit_bytes,
            epoch: self.epoch,
            flags: 0,
            after_seq: after,
            prev_last_seq,
            wall_ns: self.options.clock.wall_ns(),
            mono_ns: self.options.clock.mono_ns(),
            boot_id: self.options.clock.boot_id(),
            mount_id: self.mount_id,
        }
    }

    fn prepare(&self, header: UnitHeader) {
        let made = unit::create(&self.dir, &header)
            .and_then(|file| MappedUnit::new(&self.dir, header, file));
        match made {
            Ok(unit) => {
                unit.prefault(0, BLOCK_BYTES + PREFAULT_BYTES);
                self.units.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(header.unit_bytes, Ordering::Relaxed);
                let mut tail = lock(&self.tail);
                tail.next = Some(Arc::new(unit));
                tail.no_space = false;
                drop(tail);
                self.unit_ready.notify_all();
            }
            Err(e) => self.prepare_failed(&e),
        }
    }

    /// There is room in the current unit: goes on with it until it is nearly full, and tries again
    /// meanwhile. Capture must not end before it has to.
    fn prepare_failed(&self, e: &crate::Error) {
        let space = e.kind() == ErrorKind::FreeSpace;
        let mut tail = lock(&self.tail);
        tail.no_space = space;
        if tail.at + self.identity.unit_bytes / 4 >= self.identity.unit_bytes {
            self.stop(&mut tail, e.to_string(), space);
        }
        if tail.stopped.is_none() {
            tracing::warn!(error = %e, "can't prepare the next unit yet");
            let wait = self.keeper_wake.wait_timeout(tail, PREPARE_RETRY);
            drop(wait.unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn seal_loop(&self) {
        loop {
            let Some((unit, at)) = self.next_full() else { return };
            match unit.seal(at) {
                Ok(()) => {
                    let mut tail = lock(&self.tail);
                    tail.full.retain(|(u, _)| u.header.number != unit.header.number);
                    self.unit_ready.notify_all();
                }
                Err(e) => {
                    // Before anybody can take the stop for harmless.
                    self.leave_distrust();
                    self.stop(&mut lock(&self.tail), format!("{e}: {LOST}"), false);
                }
            }
        }
    }

    fn next_full(&self) -> Option<(Arc<MappedUnit>, u64)> {
        let mut tail = lock(&self.tail);
        loop {
            if tail.stopped.is_some() {
                return None;
            }
            let idle = tail.full.iter().find(|(u, _)| u.in_flight.load(Ordering::SeqCst) == 0);
            if let Some((unit, at)) = idle {
                return Some((Arc::clone(unit), *at));
            }
            tail = self.sealer_wake.wait(tail).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn sync_loop(&self) {
        let interval = self.options.sync_interval.min(INTERVAL_MAX);
        let mut synced = Instant::now();
        loop {
            let mut state = lock(&self.sync);
            let wanted = state.wanted > self.durable.load(Ordering::Acquire);
            let wake = (synced + interval).min(self.tick_due(&mut state));
            let left = wake.saturating_duration_since(Instant::now());
            if !wanted && !left.is_zero() && lock(&self.tail).stopped.is_none() {
                let waited = self.sync_wake.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if lock(&self.tail).stopped.is_some() {
                drop(state);
                self.last_sync();
                lock(&self.sync).ended = true;
                self.sync_done.notify_all();
                return;
            }
            let wanted = state.wanted > self.durable.load(Ordering::Acquire);
            let now = Instant::now();
            // A watermark record alone is no reason to sync again.
            let news = self.head.load(Ordering::Acquire) > state.watermark_seq;
            let ticks = self.tick_due(&mut state) <= now;
            drop(state);
            if ticks {
                // A failure shows at the next round: the journal stopped.
                let _ = self.append_bare(&Draft::of(Kind::Tick));
            }
            if wanted || (news && now >= synced + interval) {
                if let Err(e) = self.sync_now() {
                    self.stop(&mut lock(&self.tail), format!("{e}: {LOST}"), false);
                }
                synced = Instant::now();
            } else if now >= synced + interval {
                synced = now;
            }
        }
    }

    /// When the journal has to tick, unless a record comes before.
    fn tick_due(&self, state: &mut SyncState) -> Instant {
        // The watermark that follows a tick is not news either.
        let head = self.head.load(Ordering::Acquire);
        let seen = if head == state.watermark_seq { state.watermark } else { head };
        let now = Instant::now();
        let since = match state.moved {
            Some((at, since)) if at >= seen => since,
            _ => {
                state.moved = Some((seen, now));
                now
            }
        };
        since + self.options.tick_interval.min(INTERVAL_MAX)
    }

    /// What was taken before the journal stopped is made durable if that can be had; there is no
    /// place left to say so.
    fn last_sync(&self) {
        let stopped = lock(&self.tail).stopped.clone();
        if stopped.is_some_and(|s| s.space)
            && let Err(e) = self.sync_units()
        {
            tracing::error!(error = %e, "the last sync of a full journal failed");
        }
    }

    /// Syncs everything committed at the time of the call and moves the watermark.
    pub(super) fn sync_now(&self) -> Result<()> {
        let head = self.sync_units()?;
        let mut draft = Draft::of(Kind::Watermark);
        draft.addr = head;
        let seq = self.append_bare(&draft);
        let mut state = lock(&self.sync);
        if head >= state.watermark {
            state.watermark = head;
            state.watermark_seq = seq.unwrap_or(head);
        }
        self.sync_done.notify_all();
        Ok(())
    }

    /// Makes everything committed at the time of the call durable; returns its last number.
    fn sync_units(&self) -> Result<Seq> {
        let (head, open) = {
            let tail = lock(&self.tail);
            let mut open: Vec<_> = tail.full.iter().map(|(u, at)| (Arc::clone(u), *at)).collect();
            open.push((Arc::clone(&tail.unit), tail.at));
            (tail.next_seq - 1, open)
        };
        for (unit, to) in open {
            // From the unit's start: reservations far below the tail may have been filled since the
            // last sync; clean pages cost nothing. Units that are sealed are synced already.
            if let Err(e) = unit.sync(0, to) {
                self.leave_distrust();
                return Err(e);
            }
        }
        self.durable.fetch_max(head, Ordering::AcqRel);
        Ok(head)
    }

    /// Ends the threads without syncing: what is committed survives in the page cache.
    pub(super) fn abandon(&self) {
        let mut tail = lock(&self.tail);
        if tail.stopped.is_none() {
            tail.stopped = Some(Stop { why: "it was let go".into(), space: false });
        }
        drop(tail);
        // The syncer looks at `stopped` under its own lock: it can't miss this.
        drop(lock(&self.sync));
        self.wake_all();
    }

    pub(super) fn join(&self) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }

    /// See [`Journal::close`].
    pub(super) fn close(&self) -> Result<()> {
        let closed = self.write_close();
        self.abandon();
        self.join();
        closed?;
        let mut tail = lock(&self.tail);
        let mut open = std::mem::take(&mut tail.full);
        open.push((Arc::clone(&tail.unit), tail.at));
        let (head, next) = (tail.next_seq - 1, tail.next.take());
        drop(tail);
        for (unit, at) in open {
            if let Err(e) = unit.seal(at) {
                self.leave_distrust();
                return Err(e);
            }
        }
        self.durable.fetch_max(head, Ordering::AcqRel);
        if let Some(next) = next {
            let path = layout::unit_path(&self.dir, next.header.number);
            std::fs::remove_file(&path)
                .map_err(|e| crate::Error::io("remove unused unit", &path, e))?;
            layout::sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// Appends the last record and ends the taking of more, in one step.
    fn write_close(&self) -> Result<()> {
        self.sync_now()?;
        let mut tail = self.tail_with_room(0)?;
        self.append_under(&mut tail, &Draft::of(Kind::Close));
        tail.stopped = Some(Stop { why: "it was closed".into(), space: false });
        Ok(())
    }
}
