//! The next units, made ahead of the tail.
//!
//! What always holds: a unit has its name only when its header is durable; at most [`UNITS_AHEAD`]
//! are there without a record, so that the numbers which a lost record may have had are bounded.

use super::tail::Ending;
use super::unit::OpenUnit;
use super::whereabouts::LOOK_EVERY;
use super::{Inner, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::unit_header::UnitHeader;
use crate::{Seq, planted, unit};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Units that are made ahead: while one is filled, another may wait for its blocks.
pub(super) const UNITS_AHEAD: usize = 2;
/// Pause between tries to make the next unit.
const PREPARE_RETRY: Duration = Duration::from_secs(1);

impl Inner {
    /// The preparer's thread.
    pub(super) fn prepare_loop(&self) {
        while let Some(wanted) = self.wait_for_wanted() {
            if !self.is_in_place() {
                return;
            }
            if let Some(header) = wanted
                && let Err(e) = self.prepare(header)
            {
                self.prepare_failed(&e);
            }
        }
    }

    /// Waits until a unit is missing, and gives its header; or until the journal's directory is to be looked
    /// at. `None` in the end.
    fn wait_for_wanted(&self) -> Option<Option<UnitHeader>> {
        let mut tail = lock(&self.tail);
        let begun = Instant::now();
        while tail.stopped.is_none() {
            if tail.next.len() < UNITS_AHEAD {
                let newest = tail.next.back().unwrap_or(&tail.unit).header;
                return Some(Some(self.header_after(&newest, tail.next_seq.saturating_sub(1))));
            }
            let Some(wait) = LOOK_EVERY.checked_sub(begun.elapsed()) else { return Some(None) };
            let woken = self.preparer_wake.wait_timeout(tail, wait);
            tail = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }

    /// Makes the next unit if there is none; where there is no thread for it.
    pub(super) fn prepare_missing(&self) {
        let header = {
            let tail = lock(&self.tail);
            if tail.stopped.is_some() || !tail.next.is_empty() {
                return;
            }
            self.header_after(&tail.unit.header, tail.next_seq.saturating_sub(1))
        };
        if let Err(e) = self.prepare(header) {
            let is_space = e.kind() == ErrorKind::FreeSpace;
            let ending = if is_space { Ending::Space } else { Ending::Failed };
            self.stop(&mut lock(&self.tail), e.to_string(), ending);
        }
    }

    /// Makes units until so many are prepared; where there is no thread for it. That it can't be done
    /// stops nothing.
    pub(super) fn prepare_ahead(&self, count: usize) -> Result<()> {
        loop {
            let header = {
                let tail = lock(&self.tail);
                if tail.stopped.is_some() || tail.next.len() >= count.min(UNITS_AHEAD) {
                    return Ok(());
                }
                let newest = tail.next.back().unwrap_or(&tail.unit).header;
                self.header_after(&newest, tail.next_seq.saturating_sub(1))
            };
            self.prepare(header)?;
        }
    }

    /// The next unit's header, without its mount: that is known with its place.
    fn header_after(&self, newest: &UnitHeader, after: Seq) -> UnitHeader {
        UnitHeader {
            group: self.identity.group.into_bytes(),
            salt: self.salt_after(newest),
            number: newest.number + 1,
            unit_bytes: self.identity.unit_bytes,
            epoch: self.epoch,
            flags: 0,
            after_seq: after,
            prev_last_seq: newest.prev_last_seq,
            wall_ns: self.options.clock.wall_ns(),
            mono_ns: self.options.clock.mono_ns(),
            boot_id: self.options.clock.boot_id(),
            mount_id: 0,
        }
    }

    /// A unit's salt is never another one's: with it comes the unit's key.
    fn salt_after(&self, newest: &UnitHeader) -> [u8; 16] {
        match planted::is("nonce-used-again") {
            true => newest.salt,
            false => self.options.clock.salt(),
        }
    }

    fn prepare(&self, mut header: UnitHeader) -> Result<()> {
        let storage = &*self.options.storage;
        let slot = self.options.allocator.allocate(&self.dir, header.unit_bytes)?;
        header.mount_id = storage.mount_id(&slot.dir);
        let path = unit::create(&self.options.storage, &self.dir, &slot, &header)?;
        let how = (self.is_direct, self.options.key.as_ref());
        let unit = OpenUnit::new(storage, header, path, how)?;
        self.units.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(header.unit_bytes, Ordering::Relaxed);
        let mut tail = lock(&self.tail);
        tail.next.push_back(Arc::new(unit));
        (tail.no_space, tail.is_short) = (false, false);
        self.room.notify_all();
        Ok(())
    }

    /// There is room in the current unit: goes on with it until it is nearly full, and tries again
    /// meanwhile. Capture must not end before it has to.
    fn prepare_failed(&self, e: &Error) {
        let is_space = e.kind() == ErrorKind::FreeSpace;
        let mut tail = lock(&self.tail);
        let has_next = !tail.next.is_empty();
        tail.no_space = is_space && !has_next;
        tail.is_short = is_space;
        if is_space {
            // Memory that waits for the next unit gives up.
            self.room.notify_all();
        }
        let is_near = tail.at + self.identity.unit_bytes / 4 >= self.identity.unit_bytes;
        if is_near && !has_next {
            let ending = if is_space { Ending::Space } else { Ending::Failed };
            self.stop(&mut tail, e.to_string(), ending);
        }
        if tail.stopped.is_none() {
            if !has_next {
                tracing::warn!(error = %e, "can't prepare the next unit yet");
            }
            let wait = self.preparer_wake.wait_timeout(tail, PREPARE_RETRY);
            drop(wait.unwrap_or_else(PoisonError::into_inner));
        }
    }
}
