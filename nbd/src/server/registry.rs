//! Who is connected: counts connections, knows the export of each, and can end them.
//!
//! What always holds: a connection has a seat from before its thread starts until its export and
//! its stream are let go of; once stopping, nobody gets a seat.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::transport::Transport;

/// Clients that are told at a time that there is no place for them.
const REFUSED_MAX: usize = 16;

struct Entry {
    transport: Arc<dyn Transport>,
    export: Option<String>,
    thread: Option<JoinHandle<()>>,
    ended: bool,
    /// It is not served: it is being told that there is no place for it.
    is_refused: bool,
}

#[derive(Default)]
struct Seats {
    next: u64,
    stopping: bool,
    by_id: HashMap<u64, Entry>,
}

#[derive(Default)]
pub(super) struct Registry {
    seats: Mutex<Seats>,
    left: Condvar,
}

/// Why a connection was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Stopping,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn admit(
        self: &Arc<Self>,
        transport: Arc<dyn Transport>,
        seats_max: usize,
    ) -> Result<Seat, Refused> {
        self.seat(transport, seats_max, false)
    }

    /// A seat for a client that only hears that it is refused.
    pub(super) fn admit_refused(
        self: &Arc<Self>,
        transport: Arc<dyn Transport>,
    ) -> Result<Seat, Refused> {
        self.seat(transport, REFUSED_MAX, true)
    }

    fn seat(
        self: &Arc<Self>,
        transport: Arc<dyn Transport>,
        seats_max: usize,
        is_refused: bool,
    ) -> Result<Seat, Refused> {
        let mut seats = self.lock();
        if seats.stopping {
            return Err(Refused::Stopping);
        }
        if seats.by_id.values().filter(|entry| entry.is_refused == is_refused).count() >= seats_max
        {
            return Err(Refused::Full);
        }
        let id = seats.next;
        seats.next += 1;
        let entry = Entry { transport, export: None, thread: None, ended: false, is_refused };
        seats.by_id.insert(id, entry);
        Ok(Seat { registry: Arc::clone(self), id })
    }

    /// Keeps the thread of a seat, so that stopping can join it.
    pub(super) fn seat_thread(&self, id: u64, thread: JoinHandle<()>) {
        if let Some(entry) = self.lock().by_id.get_mut(&id) {
            entry.thread = Some(thread);
        }
    }

    pub(super) fn count(&self) -> usize {
        self.lock().by_id.values().filter(|entry| !entry.is_refused).count()
    }

    /// Waits until no seat is counted, or the time is over; gives how many still are.
    fn wait(&self, limit: Duration, is_counted: impl Fn(&Entry) -> bool) -> usize {
        let until = Instant::now() + limit;
        let mut seats = self.lock();
        loop {
            let count = seats.by_id.values().filter(|entry| is_counted(entry)).count();
            let left = until.saturating_duration_since(Instant::now());
            if count == 0 || left.is_zero() {
                return count;
            }
            seats = self
                .left
                .wait_timeout(seats, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(seats, _)| seats);
        }
    }

    /// Cuts the connections of an export and waits for their threads; gives how many are left.
    pub(super) fn end_export(&self, name: &str, limit: Duration) -> usize {
        for entry in self.lock().by_id.values_mut() {
            if entry.export.as_deref() == Some(name) {
                entry.ended = true;
                entry.transport.end();
            }
        }
        self.wait(limit, |entry| entry.ended && entry.export.as_deref() == Some(name))
    }

    /// Admits nobody any more; lets what has arrived be answered, then cuts and joins.
    pub(super) fn stop(&self, drain_max: Duration) {
        let mut threads = Vec::new();
        {
            let mut seats = self.lock();
            seats.stopping = true;
            for entry in seats.by_id.values_mut() {
                entry.ended = true;
                entry.transport.end_receive();
                threads.extend(entry.thread.take());
            }
        }
        if self.wait(drain_max, |_| true) > 0 {
            for entry in self.lock().by_id.values() {
                entry.transport.end();
            }
        }
        for thread in threads {
            // A panic was caught and reported in the thread itself.
            let _ = thread.join();
        }
    }
}

/// A connection's place in the registry; given back when dropped.
pub(super) struct Seat {
    registry: Arc<Registry>,
    pub(super) id: u64,
}

impl Seat {
    /// Records that the connection is about to use the export of that name.
    pub(super) fn claim(&self, export: &str) {
        if let Some(entry) = self.registry.lock().by_id.get_mut(&self.id) {
            entry.export = Some(export.to_owned());
        }
    }

    /// Whether the server ended the connection.
    pub(super) fn is_ended(&self) -> bool {
        self.registry.lock().by_id.get(&self.id).is_some_and(|entry| entry.ended)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let entry = self.registry.lock().by_id.remove(&self.id);
        // The stream goes with it, and not under the lock.
        drop(entry);
        self.registry.left.notify_all();
    }
}
