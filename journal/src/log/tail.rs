//! The end of the log: where the next record goes, and what has to be there for it.
//!
//! Positions run on from unit to unit; each unit begins at a multiple of 4096. What always holds,
//! under the tail lock: `written <= ready <= placed <= written + ring`; below `ready` nobody writes
//! any more, below `written` everything is in the units' files.

use super::unit::OpenUnit;
use super::{Inner, Stop, lock};
use crate::Seq;
use crate::error::Result;
use crate::format::record::HEADER_BYTES;
use crate::format::unit_header::BLOCK_BYTES;
use crate::format::{align_up, record};
use crate::ring::SLOTS;
use crate::unit::fits;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

/// Full units whose bytes are in their files and that wait to be sealed; with more, the disk is too
/// slow and appends wait.
const FULL_UNITS_MAX: usize = 4;
/// What goes to a file in one piece is aligned to this many bytes.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Rounds a position up to a page.
pub(super) const fn page_up(position: u64) -> u64 {
    position.div_ceil(PAGE_BYTES) * PAGE_BYTES
}

/// Rounds a position down to a page.
pub(super) const fn page_down(position: u64) -> u64 {
    position & !(PAGE_BYTES - 1)
}

/// How a journal ends: what the flusher still does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The device failed, or the next unit did not come: nothing more.
    Failed,
    /// No space: what was taken is made durable, if that can be had.
    Space,
    /// The last handle is gone: what was taken goes to the files.
    LetGo,
    /// Closed: what was taken is made durable.
    Closed,
}

/// Reservations in the order of their positions; bounded by the records that fit into the ring.
#[derive(Default)]
pub(super) struct Reserved {
    /// Ticket of the first one.
    first: u64,
    /// Position, and once it is committed its number; [`Seq::MAX`] if it was given up, 0 before.
    queue: VecDeque<(u64, Seq)>,
}

impl Reserved {
    fn push(&mut self, position: u64) -> u64 {
        self.queue.push_back((position, 0));
        self.first + self.queue.len() as u64 - 1
    }

    /// The owner of this reservation is done with it: its number, or [`Seq::MAX`] if it has none.
    pub(super) fn end(&mut self, ticket: u64, seq: Seq) {
        if let Some((_, done)) = self.queue.get_mut((ticket - self.first) as usize) {
            *done = seq;
        }
        while self.queue.pop_front_if(|(_, done)| *done > 0).is_some() {
            self.first += 1;
        }
    }

    /// The lowest number of a record behind one that is not committed.
    fn lowest_seq(&self) -> Option<Seq> {
        self.queue.iter().map(|(_, seq)| *seq).filter(|seq| *seq > 0 && *seq < Seq::MAX).min()
    }

    fn lowest(&self) -> Option<u64> {
        self.queue.front().map(|(position, _)| *position)
    }
}

/// A place for one record, handed out.
pub(super) struct Placed {
    pub(super) unit: Arc<OpenUnit>,
    pub(super) at: u64,
    pub(super) ticket: u64,
}

pub(super) struct Tail {
    pub(super) unit: Arc<OpenUnit>,
    /// Byte of the unit at which the next record goes, and how many there are.
    pub(super) at: u64,
    pub(super) count: u64,
    pub(super) next_seq: Seq,
    /// Wall time of the newest record of this opening, nanoseconds since the Unix epoch (0: there is none).
    pub(super) newest_wall_ns: u64,
    pub(super) reserved: Reserved,
    /// Below this position everything is in the units' files, and will not be written again.
    pub(super) written: u64,
    /// Below this position everything is in the units' files.
    pub(super) flushed: u64,
    /// The flusher wants to be woken when `ready` reaches this.
    pub(super) flush_at: u64,
    /// Somebody waits for ring space.
    pub(super) room_wanted: bool,
    /// Units that are prepared, in their order.
    pub(super) next: VecDeque<Arc<OpenUnit>>,
    /// Units that are full and not sealed, in their order.
    pub(super) full: Vec<Arc<OpenUnit>>,
    /// Slots of the ring's header that no unit has.
    pub(super) slots: Vec<usize>,
    pub(super) config: Vec<u8>,
    pub(super) stopped: Option<Stop>,
    /// Whether the next unit could not be made for want of space.
    pub(super) no_space: bool,
    /// The same of one further ahead: there is no room, though the next unit is there.
    pub(super) is_short: bool,
}

impl Tail {
    /// A tail in a unit without records, the first of a ring.
    pub(super) fn new(unit: Arc<OpenUnit>, next_seq: Seq) -> Self {
        Self {
            unit,
            at: BLOCK_BYTES,
            count: 0,
            next_seq,
            newest_wall_ns: 0,
            reserved: Reserved::default(),
            written: BLOCK_BYTES,
            flushed: BLOCK_BYTES,
            flush_at: u64::MAX,
            room_wanted: false,
            next: VecDeque::new(),
            full: Vec::new(),
            slots: (0..SLOTS).rev().collect(),
            config: Vec::new(),
            stopped: None,
            no_space: false,
            is_short: false,
        }
    }

    /// The position up to which space is handed out.
    pub(super) fn placed(&self) -> u64 {
        self.unit.position(self.at)
    }

    /// The position below which nobody writes any more.
    pub(super) fn ready(&self) -> u64 {
        self.reserved.lowest().unwrap_or_else(|| self.placed())
    }

    /// The same as a unit's number and a byte of it; and the number up to which every record lies below.
    pub(super) fn ready_in_unit(&self) -> ((u64, u64), Seq) {
        let ready = self.ready();
        let mut units = self.full.iter().chain([&self.unit]).rev();
        let unit = units.find(|u| u.start() <= ready).unwrap_or(&self.unit);
        let behind = self.reserved.lowest_seq().unwrap_or(self.next_seq);
        ((unit.header.number, unit.offset(ready)), behind.min(self.next_seq) - 1)
    }

    fn written_full(&self) -> usize {
        self.full.iter().filter(|u| u.is_written.load(Ordering::Relaxed)).count()
    }
}

impl Inner {
    /// The tail lock, with room for a payload of this size; waits a bounded time for it.
    pub(super) fn tail_with_room(&self, payload_bytes: u32) -> Result<MutexGuard<'_, Tail>> {
        let mut tail = lock(&self.tail);
        let mut deadline = None;
        loop {
            self.check(&tail)?;
            let Some(missing) = self.make_room(&mut tail, payload_bytes) else { return Ok(tail) };
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.options.unit_wait);
            tail = self.wait_for(missing, tail, deadline)?;
        }
    }

    /// The tail lock, with room for a payload of this size if that takes no waiting.
    pub(super) fn tail_if_room(&self, payload_bytes: u32) -> Option<MutexGuard<'_, Tail>> {
        let mut tail = lock(&self.tail);
        let is_free =
            self.check(&tail).is_ok() && self.make_room(&mut tail, payload_bytes).is_none();
        is_free.then_some(tail)
    }

    /// Sees to it that a record of this payload fits where the tail is; says what is missing.
    pub(super) fn make_room(&self, tail: &mut Tail, payload_bytes: u32) -> Option<Missing> {
        let end = |tail: &Tail| align_up(tail.at + HEADER_BYTES + u64::from(payload_bytes));
        while !fits(self.identity.unit_bytes, end(tail), tail.count + 1) {
            if tail.next.is_empty()
                || tail.slots.is_empty()
                || tail.written_full() >= FULL_UNITS_MAX
            {
                return Some(Missing::Unit);
            }
            // The repeated configuration goes into the new unit at once.
            let config_bytes = align_up(HEADER_BYTES + tail.config.len() as u64);
            if !self.has_ring_room(tail, page_up(tail.placed()) + config_bytes) {
                return Some(Missing::Ring);
            }
            self.turn(tail);
        }
        let has_room = self.has_ring_room(tail, tail.unit.position(end(tail)));
        (!has_room).then_some(Missing::Ring)
    }

    fn has_ring_room(&self, tail: &Tail, end: u64) -> bool {
        // The rest of the last page is cleared when it is written.
        page_up(end) - page_down(tail.written) <= self.ring.bytes()
    }

    fn wait_for<'a>(
        &'a self,
        missing: Missing,
        mut tail: MutexGuard<'a, Tail>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, Tail>> {
        if self.options.inline {
            return self.help(missing, tail);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let ending = if tail.no_space { Ending::Space } else { Ending::Failed };
            let cause = if tail.no_space { "has no space left" } else { "is too slow" };
            let why = format!(
                "{} was not ready within {:?}: the disk of {} {cause}",
                missing.name(),
                self.options.unit_wait,
                self.dir.display()
            );
            self.stop(&mut tail, why, ending);
            return Err(self.stop_error_under(&tail));
        }
        match missing {
            Missing::Unit => {
                self.preparer_wake.notify_one();
                self.sealer_wake.notify_one();
            }
            Missing::Ring => {}
        }
        tail.room_wanted = true;
        self.flusher_wake.notify_one();
        Ok(self.room.wait_timeout(tail, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Does what the threads would do, where there are none.
    fn help<'a>(
        &'a self,
        missing: Missing,
        mut tail: MutexGuard<'a, Tail>,
    ) -> Result<MutexGuard<'a, Tail>> {
        let before = (tail.written, tail.next.len(), tail.full.len());
        tail.room_wanted = true;
        drop(tail);
        self.flush_inline();
        self.seal_ready();
        if missing == Missing::Unit {
            self.prepare_missing();
        }
        let mut tail = lock(&self.tail);
        if before == (tail.written, tail.next.len(), tail.full.len()) {
            let ending = if tail.no_space { Ending::Space } else { Ending::Failed };
            self.stop(&mut tail, format!("{} can't be had", missing.name()), ending);
        }
        Ok(tail)
    }

    /// Goes on in the next unit, if that takes no waiting; whether it did.
    pub(super) fn turn_if_ready(&self) -> bool {
        let mut tail = lock(&self.tail);
        let config_bytes = align_up(HEADER_BYTES + tail.config.len() as u64);
        let is_ready = self.check(&tail).is_ok()
            && tail.count > 0
            && !tail.next.is_empty()
            && !tail.slots.is_empty()
            && tail.written_full() < FULL_UNITS_MAX
            && self.has_ring_room(&tail, page_up(tail.placed()) + config_bytes);
        if is_ready {
            self.turn(&mut tail);
        }
        is_ready
    }

    /// Turns to the next unit, which is there, and repeats the configuration in it, for which there
    /// is room: it needs no older one.
    fn turn(&self, tail: &mut Tail) {
        let Some(next) = tail.next.pop_front() else { return };
        let end = tail.placed();
        self.clear_page(end);
        let old = std::mem::replace(&mut tail.unit, next);
        old.end.store(end, Ordering::Relaxed);
        tail.full.push(old);
        self.enter(tail, page_up(end));
        self.write_config(tail);
        self.preparer_wake.notify_one();
        self.flusher_wake.notify_one();
    }

    /// Begins the tail's unit at a position.
    pub(super) fn enter(&self, tail: &mut Tail, position: u64) {
        tail.at = BLOCK_BYTES;
        tail.count = 0;
        let slot = tail.slots.pop().unwrap_or_default();
        tail.unit.begin(&self.ring, slot, position);
    }

    /// Clears the rest of the page behind the last byte that is handed out; the caller has the tail
    /// lock.
    pub(super) fn clear_page(&self, position: u64) {
        let bytes = page_up(position) - position;
        // SAFETY: nothing at or above `position` is handed out, and there is room for whole pages.
        unsafe { self.ring.range_mut(position, bytes) }.fill(0);
    }

    /// Hands out the place at the tail, where there is room for it.
    pub(super) fn place(&self, tail: &mut Tail, payload_bytes: u32) -> Placed {
        let at = tail.at;
        let unit = Arc::clone(&tail.unit);
        unit.hand_out(at, payload_bytes);
        let position = unit.position(at);
        let end = at + HEADER_BYTES + u64::from(payload_bytes);
        let frame = record::encode_frame(&unit.header.salt, at, payload_bytes);
        // SAFETY: the tail lock is held and nothing from `position` on was handed out.
        unsafe {
            let header = self.ring.range_mut(position, HEADER_BYTES);
            header.fill(0);
            header[..frame.len()].copy_from_slice(&frame);
            self.ring.range_mut(unit.position(end), align_up(end) - end).fill(0);
        }
        tail.at = align_up(end);
        tail.count += 1;
        self.ring.set_placed(unit.slot(), unit.position(tail.at));
        Placed { ticket: tail.reserved.push(position), unit, at }
    }

    /// Wakes the flusher, which looks at everything.
    pub(super) fn wake_flusher(&self, tail: MutexGuard<'_, Tail>) {
        self.flusher_wake.notify_one();
        drop(tail);
    }
}

/// What an append has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Unit,
    Ring,
}

impl Missing {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "the next unit",
            Self::Ring => "space in the ring",
        }
    }
}
