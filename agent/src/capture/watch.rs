//! What others see of a capture connection: the guard its unanswered requests, the guest's task
//! its beginning and end.
//!
//! What always holds: the mirror's connection owns the volume from its GO to its end. Whoever else comes
//! meanwhile is refused before it could write, and changes nothing; QEMU itself comes anew only when it
//! has lost its connection, and that is a loss.

use super::{Tap, TapCounters, TapShared};
use afterimage_guard::{SlotGuard, SlotKind, Ticket, Worker, now_ns};
use afterimage_journal::VolumeId;
use afterimage_nbd::server::{CloseReason, ConnectionObserver, Observer};
use afterimage_planted as planted;
use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::mpsc;

/// What happened to a capture connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaptureEvent {
    /// A client writes from now on.
    Connected(VolumeId),
    /// It is gone.
    Closed {
        /// The volume.
        volume: VolumeId,
        /// It said goodbye: an orderly end.
        orderly: bool,
        /// Why, for people.
        reason: String,
    },
}

/// Observes the connections of one volume's server.
pub struct Watch {
    volume: VolumeId,
    counters: Arc<TapCounters>,
    shared: TapShared,
    worker: Option<Worker>,
    guest: u64,
    /// Process of QEMU, where it can be told.
    qemu: Option<u32>,
    /// Connections that transmit, or are about to.
    owners: Arc<AtomicU32>,
    events: mpsc::UnboundedSender<CaptureEvent>,
}

impl Watch {
    /// An observer; without a guard, `worker` is `None`. `guest` is the same number for all
    /// volumes of a guest, `qemu` the process that the mirror is expected from.
    #[must_use]
    pub fn new(
        tap: &Tap,
        worker: Option<Worker>,
        (guest, qemu): (u64, Option<u32>),
        events: mpsc::UnboundedSender<CaptureEvent>,
    ) -> Self {
        let (counters, shared) = (Arc::clone(tap.counters()), tap.shared().clone());
        let owners = Arc::default();
        Self { volume: tap.volume(), counters, shared, worker, guest, qemu, owners, events }
    }
}

impl Observer for Watch {
    fn connected(&self, fd: BorrowedFd<'_>) -> Box<dyn ConnectionObserver> {
        let slot = match &self.worker {
            Some(worker) => worker.slot_of(SlotKind::Nbd, fd, self.guest),
            None => SlotGuard::unguarded(),
        };
        let peer = rustix::net::sockopt::socket_peercred(fd).ok();
        let peer = peer.map(|p| p.pid.as_raw_nonzero().get().unsigned_abs());
        Box::new(Connection {
            is_qemu: peer.is_some() && peer == self.qemu,
            owners: Arc::clone(&self.owners),
            owns: Cell::new(false),
            volume: self.volume,
            counters: Arc::clone(&self.counters),
            shared: self.shared.clone(),
            slot,
            exempt: Cell::new(false),
            open: Cell::new(None),
            exporting: Cell::new(false),
            events: self.events.clone(),
        })
    }
}

struct Connection {
    /// QEMU itself is at the other end.
    is_qemu: bool,
    owners: Arc<AtomicU32>,
    /// It is counted among the owners.
    owns: Cell<bool>,
    volume: VolumeId,
    counters: Arc<TapCounters>,
    shared: TapShared,
    slot: SlotGuard,
    /// The guard was told to leave it alone for a while.
    exempt: Cell<bool>,
    /// The batch that is being answered, and when it arrived.
    open: Cell<Option<(Ticket, u64)>>,
    exporting: Cell<bool>,
    events: mpsc::UnboundedSender<CaptureEvent>,
}

impl Connection {
    /// Says that it is gone, once.
    fn gone(&self, orderly: bool, reason: &str) {
        self.settle();
        if self.exporting.take() {
            self.shared.gate.trip();
            self.counters.connected.fetch_sub(1, Ordering::AcqRel);
            let _ = self.events.send(CaptureEvent::Closed {
                volume: self.volume,
                orderly,
                reason: reason.to_owned(),
            });
        }
        if self.owns.take() {
            self.owners.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn settle(&self) {
        if let Some((ticket, since_ns)) = self.open.take() {
            self.slot.replied(ticket);
            let us = now_ns().saturating_sub(since_ns) / 1000;
            self.counters.answer_us_max.fetch_max(us, Ordering::Relaxed);
        }
    }
}

impl ConnectionObserver for Connection {
    fn refusal(&self, _name: &str) -> Option<String> {
        if self.owns.get() {
            return None;
        }
        let others = self.owners.fetch_add(1, Ordering::AcqRel);
        if others > 0 && !self.is_qemu && !planted::is("a-stranger-shares-the-mirrors-socket") {
            self.owners.fetch_sub(1, Ordering::AcqRel);
            return Some("the guest's mirror is connected, and is the only one that writes".into());
        }
        self.owns.set(true);
        None
    }

    fn exporting(&self, _name: &str) {
        // A level mirror has its connection: another one means that it lost that.
        self.shared.gate.trip();
        self.exporting.set(true);
        self.counters.connected.fetch_add(1, Ordering::AcqRel);
        let _ = self.events.send(CaptureEvent::Connected(self.volume));
    }

    fn waiting(&self) {
        self.settle();
        self.slot.waiting();
    }

    fn received(&self) {
        if self.open.get().is_none() {
            let until_ns = self.shared.latch.exempt_until_ns();
            if until_ns > 0 || self.exempt.get() {
                self.slot.hold(until_ns);
                self.exempt.set(until_ns > 0);
            }
            let now = now_ns();
            self.open.set(Some((self.slot.received(now), now)));
        }
    }

    /// From here on we wait for the client to read, not it for us.
    fn sending(&self) {
        self.settle();
    }

    fn replied(&self) {
        self.settle();
    }

    fn closed(self: Box<Self>, reason: CloseReason) {
        self.gone(matches!(reason, CloseReason::Disconnected), &reason.to_string());
    }
}

/// A thread that fell before it could say so is gone as well.
impl Drop for Connection {
    fn drop(&mut self) {
        self.gone(false, "its thread ended");
    }
}
