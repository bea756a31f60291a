//! The worker's side: what the agent calls so that the guard can see it.
//!
//! [`Worker`] is what was inherited; a [`SlotGuard`] is one I/O loop's line in shared memory. What
//! a loop calls for each request is a few stores to its own cache line and one lock that nobody
//! else holds (a loop may share its `SlotGuard` between a reading and an answering task); no
//! system calls but [`now_ns`], which is none on most machines.

use crate::decide::KillReason;
use crate::shared::{
    Counters, ENVIRONMENT, FREE, IN_USE, Message, Region, SLOTS, SlotLine, now_ns,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the start of a loop waits for the guard to take its socket.
const HAND_OVER_LIMIT_MS: i64 = 100;

/// What an I/O loop serves; for display alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum SlotKind {
    /// A connection of the NBD server.
    Nbd = 1,
    /// A vhost-user connection and its queues.
    VhostUser = 2,
    /// A listening socket: peers that wait to be accepted count as unread.
    Listener = 3,
    /// A guest that is frozen or stopped: `received` before, `replied` after.
    Freeze = 4,
}

/// The tie of a worker to its guard. Cheap to clone; one process has one.
#[derive(Clone)]
pub struct Worker {
    inner: Arc<Inner>,
}

struct Inner {
    region: Region,
    control: OwnedFd,
    free: Mutex<Vec<usize>>,
}

impl Worker {
    /// What the guard handed down; `None` when this process was not started by a guard, or was
    /// asked before. To be called at the start, before other threads open descriptors.
    pub fn from_env() -> Option<Worker> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let value = std::env::var(ENVIRONMENT).ok()?;
        let mut parts = value.split(':').map(str::parse::<i32>);
        let (Some(Ok(guard)), Some(Ok(memory)), Some(Ok(control)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        // A child of the worker inherits the variable, but not the descriptors.
        let parent = rustix::process::getppid()?;
        if parent.as_raw_nonzero().get() != guard || TAKEN.swap(true, SeqCst) {
            return None;
        }
        let inherited = || Ok((inherit(memory)?, inherit(control)?));
        let opened = inherited().and_then(|(memory, control): (OwnedFd, OwnedFd)| {
            let region = Region::open(memory)?;
            let free = Mutex::new((0..SLOTS).rev().collect());
            Ok(Worker { inner: Arc::new(Inner { region, control, free }) })
        });
        opened
            .inspect_err(|error: &io::Error| {
                tracing::error!(
                    "what the guard handed down is unusable, running unguarded: {error}"
                )
            })
            .ok()
    }

    /// Registers an I/O loop that serves `socket`, of which the guard gets a duplicate. When all
    /// slots are taken, the loop works unwatched, with a warning.
    ///
    /// As long as the `SlotGuard` lives, closing `socket` does not end the connection: drop the
    /// `SlotGuard` first, or `shutdown` the socket.
    pub fn slot(&self, kind: SlotKind, socket: BorrowedFd<'_>) -> SlotGuard {
        self.slot_of(kind, socket, 0)
    }

    /// As [`Worker::slot`], for one of several loops of a guest (a number of the caller's, not
    /// 0): when one of them is stuck, the others' sockets are shut before its own.
    pub fn slot_of(&self, kind: SlotKind, socket: BorrowedFd<'_>, guest: u64) -> SlotGuard {
        let slot = self.slot_without_socket(kind);
        if let Some(line) = slot.line() {
            line.guest.store(guest, Relaxed);
        }
        let handed_over = slot.tie.as_ref().map_or(Ok(()), |tie| tie.hand_over(socket));
        if let Err(error) = handed_over {
            tracing::warn!("the guard did not take a socket, it cannot shut it alone: {error}");
        }
        slot
    }

    /// Registers something else that a guest waits for without a request of its own, above all
    /// a freeze: a worker that hangs while a guest is frozen is killed, and `on_death` thaws it.
    /// What takes longer than the threshold by design says so with [`SlotGuard::hold`].
    pub fn slot_without_socket(&self, kind: SlotKind) -> SlotGuard {
        let Some(index) = lock(&self.inner.free).pop() else {
            tracing::warn!("all {SLOTS} slots of the guard are taken: a loop works unwatched");
            return SlotGuard::unguarded();
        };
        let line = &self.inner.region.slots[index];
        let generation = line.generation.load(Relaxed) + 1;
        line.kind.store(kind as u64, Relaxed);
        line.since_ns.store(0, Relaxed);
        line.held_until_ns.store(0, Relaxed);
        line.guest.store(0, Relaxed);
        line.generation.store(generation, Release);
        line.state.store(IN_USE, Release);
        let tie = Tie { inner: Arc::clone(&self.inner), index, generation };
        SlotGuard { tie: Some(tie), waiting: Mutex::default() }
    }

    /// Starts the thread that shows that this process runs at all.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start_heartbeat(&self) -> io::Result<()> {
        let inner = Arc::clone(&self.inner);
        let every_ms = inner.region.guard.heartbeat_every_ms.load(Acquire).clamp(1, 1000);
        inner.region.worker.heartbeat_ns.store(now_ns(), Release);
        std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            loop {
                inner.region.worker.heartbeat_ns.store(now_ns(), Release);
                std::thread::sleep(Duration::from_millis(every_ms));
            }
        })?;
        Ok(())
    }

    /// Says that the start went well: from here on every unclean end leads to a restart. Before,
    /// the exit codes 2 to 4 end the guard too.
    pub fn ready(&self) {
        self.inner.region.worker.ready.store(1, Release);
    }

    /// What became of the workers before this one.
    pub fn counters(&self) -> Counters {
        let line = &self.inner.region.guard;
        Counters {
            restarts: line.restarts.load(Acquire),
            kills_by_stall: line.kills_by_stall.load(Acquire),
            shutdowns: line.shutdowns.load(Acquire),
            last_kill: KillReason::from_number(line.last_kill_reason.load(Acquire)),
            stall_ms_max: line.stall_ms_max.load(Acquire),
        }
    }
}

/// Takes an inherited descriptor over, and keeps it from this process's own children.
fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: only looked at; a number that is not open is an error of the call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl_getfd(borrowed)?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: open, made for this process by its parent, and taken once (`TAKEN`).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A request that was received and not yet answered.
#[must_use = "a request that is never `replied` gets the worker killed"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// One I/O loop's slot, freed when dropped. Times are of [`now_ns`].
pub struct SlotGuard {
    tie: Option<Tie>,
    waiting: Mutex<Waiting>,
}

struct Tie {
    inner: Arc<Inner>,
    index: usize,
    generation: u64,
}

/// Requests that wait for an answer, in the order of arrival; an answered one behind the oldest
/// is 0 until the oldest is answered too. As long as what the loop has in flight, no longer.
#[derive(Default)]
struct Waiting {
    first: u64,
    since_ns: VecDeque<u64>,
}

impl Waiting {
    fn received(&mut self, now_ns: u64) -> Ticket {
        self.since_ns.push_back(now_ns.max(1));
        Ticket(self.first + self.since_ns.len() as u64 - 1)
    }

    fn replied(&mut self, ticket: Ticket) {
        let index = ticket.0.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(since_ns) = index.and_then(|at| self.since_ns.get_mut(at)) {
            *since_ns = 0;
        }
        while self.since_ns.front() == Some(&0) {
            self.since_ns.pop_front();
            self.first += 1;
        }
    }

    /// When the oldest one had been received; 0 when none waits.
    fn oldest_ns(&self) -> u64 {
        self.since_ns.front().copied().unwrap_or(0)
    }
}

impl SlotGuard {
    /// A slot of no guard: does nothing. For a process without a guard, so that loops need not
    /// care.
    pub fn unguarded() -> SlotGuard {
        SlotGuard { tie: None, waiting: Mutex::default() }
    }

    /// A request was received *whole*: from here on its guest waits for us, not for itself.
    pub fn received(&self, now_ns: u64) -> Ticket {
        let Some(line) = self.line() else { return Ticket(0) };
        let mut waiting = lock(&self.waiting);
        let ticket = waiting.received(now_ns);
        line.since_ns.store(waiting.oldest_ns(), Relaxed);
        beat(line);
        ticket
    }

    /// The answer to a request was handed to the kernel. Answers may come in any order.
    pub fn replied(&self, ticket: Ticket) {
        let Some(line) = self.line() else { return };
        let mut waiting = lock(&self.waiting);
        waiting.replied(ticket);
        line.since_ns.store(waiting.oldest_ns(), Relaxed);
        beat(line);
    }

    /// The loop moves: to be called before it waits for the socket, and for each part of a long
    /// request that it took in.
    pub fn waiting(&self) {
        let Some(line) = self.line() else { return };
        let _waiting = lock(&self.waiting);
        beat(line);
    }

    /// Exempts the loop from the guard until then (0: no longer), because a reply is held back
    /// on purpose. Bounded by the guard's `hold_limit` from the oldest request on; when it is
    /// over and the request is older than the guard's threshold, the guard acts at once.
    pub fn hold(&self, until_ns: u64) {
        if let Some(line) = self.line() {
            line.held_until_ns.store(until_ns, Relaxed);
        }
    }

    fn line(&self) -> Option<&SlotLine> {
        self.tie.as_ref().map(Tie::line)
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let Some(tie) = self.tie.take() else { return };
        tie.line().since_ns.store(0, Relaxed);
        tie.line().state.store(FREE, Release);
        // Lost, it costs the peer a tick: the guard looks at the state then.
        let _ = tie.send(Message::Freed { slot: tie.index, generation: tie.generation }, None);
        lock(&tie.inner.free).push(tie.index);
    }
}

impl Tie {
    fn line(&self) -> &SlotLine {
        &self.inner.region.slots[self.index]
    }

    fn hand_over(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let message = Message::Hold { slot: self.index, generation: self.generation };
        match self.send(message, Some(socket)) {
            Err(Errno::AGAIN) => {}
            done => return Ok(done?),
        }
        let mut fds = [PollFd::new(&self.inner.control, PollFlags::OUT)];
        let limit = Timespec { tv_sec: 0, tv_nsec: HAND_OVER_LIMIT_MS * 1_000_000 };
        poll(&mut fds, Some(&limit))?;
        Ok(self.send(message, Some(socket))?)
    }

    fn send(&self, message: Message, socket: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let bytes = message.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let sockets = socket.as_slice();
        if !sockets.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(sockets));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let control = self.inner.control.as_fd();
        sendmsg(control, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
        Ok(())
    }
}

/// One writer a line, under its `waiting` lock: no read-modify-write is needed.
fn beat(line: &SlotLine) {
    line.beats.store(line.beats.load(Relaxed).wrapping_add(1), Release);
}

/// A panic in another thread of the loop leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_in_a_new_generation() {
        let (_, region) = Region::create(50).unwrap();
        let (_guard, control) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let free = Mutex::new((0..SLOTS).rev().collect());
        let worker = Worker { inner: Arc::new(Inner { region, control: control.into(), free }) };
        let held: Vec<SlotGuard> =
            (0..SLOTS).map(|_| worker.slot_without_socket(SlotKind::Nbd)).collect();
        assert!(worker.slot_without_socket(SlotKind::Nbd).tie.is_none());
        drop(held);
        let again = worker.slot_without_socket(SlotKind::Nbd);
        assert_eq!(again.tie.as_ref().map(|tie| tie.generation), Some(2));
    }

    #[test]
    fn oldest_unanswered_request_is_known_when_answers_come_out_of_order() {
        let mut waiting = Waiting::default();
        let tickets: Vec<Ticket> = [10, 20, 30, 40].map(|ns| waiting.received(ns)).into();
        waiting.replied(tickets[1]);
        assert_eq!(waiting.oldest_ns(), 10);
        waiting.replied(tickets[0]);
        assert_eq!(waiting.oldest_ns(), 30);
        waiting.replied(tickets[3]);
        waiting.replied(tickets[2]);
        assert_eq!(waiting.oldest_ns(), 0);
        assert!(waiting.since_ns.is_empty());
        let late = waiting.received(50);
        waiting.replied(tickets[3]);
        assert_eq!(waiting.oldest_ns(), 50);
        waiting.replied(late);
        assert_eq!(waiting.oldest_ns(), 0);
    }
}
