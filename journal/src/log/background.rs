//! The two threads of an open journal: the keeper (next unit, page faults, sealing) and the
//! syncer (the durable watermark). Neither is ever waited for by an append but for a missing unit.

use super::append::Draft;
use super::{Inner, Stop, lock};
use crate::error::{ErrorKind, Result};
use crate::format::record::Kind;
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::unit::{self, MappedUnit};
use crate::{Seq, layout};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Threads that hold the inner part of a journal.
pub(super) const THREADS: usize = 2;
/// Bytes faulted in ahead of the tail.
pub(super) const PREFAULT_BYTES: u64 = 16 << 20;
/// When less than this lies ahead, the keeper faults in more.
pub(super) const PREFAULT_LOW_BYTES: u64 = 8 << 20;
/// Step of faulting in: a bounded hold of the process's memory map.
const PREFAULT_STEP_BYTES: u64 = 1 << 20;

/// Starts both threads.
pub(super) fn start(inner: &Arc<Inner>) -> std::io::Result<()> {
    let mut threads = lock(&inner.threads);
    let keeper = Arc::clone(inner);
    threads.push(
        std::thread::Builder::new().name("journal-keeper".into()).spawn(move || keeper.keep())?,
    );
    let syncer = Arc::clone(inner);
    let spawned =
        std::thread::Builder::new().name("journal-syncer".into()).spawn(move || syncer.sync_loop());
    drop(threads);
    match spawned {
        Ok(handle) => lock(&inner.threads).push(handle),
        Err(e) => {
            inner.abandon();
            inner.join();
            return Err(e);
        }
    }
    Ok(())
}

enum Work {
    Prefault(Arc<MappedUnit>, u64),
    Prepare(Box<UnitHeader>),
    Seal(Arc<MappedUnit>, u64),
    End,
}

impl Inner {
    fn keep(&self) {
        loop {
            match self.next_work() {
                Work::Prefault(unit, at) => unit.prefault(at, PREFAULT_STEP_BYTES),
                Work::Prepare(header) => self.prepare(*header),
                Work::Seal(unit, at) => self.seal(&unit, at),
                Work::End => return,
            }
        }
    }

    fn next_work(&self) -> Work {
        let mut tail = lock(&self.tail);
        loop {
            if tail.closing || tail.stopped.is_some() {
                return Work::End;
            }
            if tail.prefaulted < (tail.at + PREFAULT_BYTES).min(self.identity.unit_bytes) {
                let at = tail.prefaulted.max(tail.at & !4095);
                tail.prefaulted = at + PREFAULT_STEP_BYTES;
                return Work::Prefault(Arc::clone(&tail.unit), at);
            }
            if tail.next.is_none() {
                return Work::Prepare(Box::new(self.header_after(
                    tail.unit.header.number,
                    tail.next_seq.saturating_sub(1),
                    tail.unit.header.prev_last_seq,
                )));
            }
            let idle = tail.full.iter().position(|(u, _)| u.in_flight.load(Ordering::Acquire) == 0);
            if let Some(i) = idle {
                let (unit, at) = &tail.full[i];
                return Work::Seal(Arc::clone(unit), *at);
            }
            tail = self.keeper_wake.wait(tail).unwrap_or_else(PoisonError::into_inner);
        }
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
                lock(&self.tail).next = Some(Arc::new(unit));
                self.unit_ready.notify_all();
            }
            Err(e) => {
                let space = e.kind() == ErrorKind::FreeSpace;
                let mut tail = lock(&self.tail);
                // There is room in the current unit: go on with it until it is full, and try
                // again meanwhile. Capture must not end before it has to.
                let end = tail.at + self.identity.unit_bytes / 4;
                if end < self.identity.unit_bytes && !tail.closing {
                    tracing::warn!(error = %e, "can't prepare the next unit yet");
                    let _ = self
                        .keeper_wake
                        .wait_timeout(tail, Duration::from_secs(1))
                        .unwrap_or_else(PoisonError::into_inner);
                } else {
                    self.stop(&mut tail, e.to_string(), space);
                }
            }
        }
    }

    fn seal(&self, unit: &Arc<MappedUnit>, at: u64) {
        let sealed = unit.seal(at);
        let mut tail = lock(&self.tail);
        match sealed {
            Ok(()) => tail.full.retain(|(u, _)| u.header.number != unit.header.number),
            Err(e) => self.stop(&mut tail, e.to_string(), false),
        }
    }

    fn sync_loop(&self) {
        loop {
            let state = lock(&self.sync);
            let waits = state.wanted <= self.durable.load(Ordering::Acquire);
            let mut state = if waits && !lock(&self.tail).closing {
                self.sync_wake
                    .wait_timeout(state, self.options.sync_interval)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            } else {
                state
            };
            let (closing, stopped) = {
                let tail = lock(&self.tail);
                (tail.closing, tail.stopped.is_some())
            };
            if stopped || closing {
                state.ended = true;
                self.sync_done.notify_all();
                return;
            }
            let head = self.head.load(Ordering::Acquire);
            // A watermark record alone is no reason to sync again.
            let news = head > state.watermark_seq || state.wanted > state.watermark;
            drop(state);
            if news && let Err(e) = self.sync_now() {
                let why = format!("{e}: what was not durable yet may be lost");
                let mut tail = lock(&self.tail);
                self.stop(&mut tail, why, false);
            }
        }
    }

    /// Syncs everything committed at the time of the call and moves the watermark.
    pub(super) fn sync_now(&self) -> Result<()> {
        let (head, open) = {
            let tail = lock(&self.tail);
            let mut open: Vec<_> = tail.full.iter().map(|(u, at)| (Arc::clone(u), *at)).collect();
            open.push((Arc::clone(&tail.unit), tail.at));
            (self.head.load(Ordering::Acquire), open)
        };
        for (unit, to) in open {
            // From the last page that may have changed: reservations below the tail can still be
            // filled after a sync, so that their start is not a bound; clean pages cost nothing.
            if let Err(e) = unit.sync(0, to) {
                self.leave_distrust();
                return Err(e);
            }
        }
        self.durable.store(head, Ordering::Release);
        let mut draft = Draft::of(Kind::Watermark);
        draft.addr = head;
        let seq = self.append_bare(&draft);
        let mut state = lock(&self.sync);
        state.watermark = head;
        state.watermark_seq = seq.unwrap_or(head);
        self.sync_done.notify_all();
        Ok(())
    }

    /// Ends both threads without syncing: what is committed survives in the page cache.
    pub(super) fn abandon(&self) {
        lock(&self.tail).closing = true;
        self.unit_ready.notify_all();
        self.keeper_wake.notify_all();
        self.sync_wake.notify_all();
        self.sync_done.notify_all();
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
        self.sync_now()?;
        self.append_bare(&Draft::of(Kind::Close))?;
        self.abandon();
        self.join();
        let mut tail = lock(&self.tail);
        if let Some(stop) = &tail.stopped {
            let why = stop.why.clone();
            return Err(crate::Error::Stopped { last_seq: tail.next_seq - 1, why });
        }
        tail.stopped = Some(Stop { why: "it was closed".into(), space: false });
        let mut open = std::mem::take(&mut tail.full);
        open.push((Arc::clone(&tail.unit), tail.at));
        let next = tail.next.take();
        drop(tail);
        for (unit, at) in open {
            unit.seal(at)?;
        }
        self.durable.store(self.head.load(Ordering::Acquire), Ordering::Release);
        if let Some(next) = next {
            let path = layout::unit_path(&self.dir, next.header.number);
            std::fs::remove_file(&path)
                .map_err(|e| crate::Error::io("remove unused unit", &path, e))?;
            layout::sync_dir(&self.dir)?;
        }
        Ok(())
    }
}
