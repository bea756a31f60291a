//! What the guard sees of one worker: the shared memory, and its duplicates of guest sockets.
//!
//! Nothing here waits: the control socket is read without blocking and boundedly, and a socket
//! is asked for its unread bytes, never read.

use crate::decide::{Limits, SlotView, View};
use crate::shared::{IN_USE, Message, Region, SLOTS};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, recvmsg, shutdown,
};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

/// Control messages that are read in one tick at most.
const MESSAGES_PER_TICK_MAX: usize = 2 * SLOTS;
/// Descriptors that one control message can bring; what is beyond is closed by the kernel.
const SOCKETS_PER_MESSAGE_MAX: usize = 1;

/// What the guard remembers of a slot between two ticks.
#[derive(Default)]
struct Watched {
    socket: Option<OwnedFd>,
    generation: u64,
    beats: u64,
    unread_since_ns: u64,
    shut_ns: u64,
}

pub(crate) struct Watch {
    pub(crate) region: Region,
    /// None once the worker closed its end: it would be readable for ever.
    pub(crate) control: Option<OwnedFd>,
    watched: Vec<Watched>,
    views: Vec<SlotView>,
    pace: Pace,
}

impl Watch {
    pub(crate) fn new(region: Region, control: OwnedFd, tick: Duration, limits: &Limits) -> Watch {
        let watched = std::iter::repeat_with(Watched::default).take(SLOTS).collect();
        let views = Vec::with_capacity(SLOTS);
        Watch { region, control: Some(control), watched, views, pace: Pace::new(tick, limits) }
    }

    /// One look: takes in what the worker sent, then every slot.
    pub(crate) fn look(&mut self, now_ns: u64) -> View<'_> {
        self.pace.step(now_ns);
        self.receive();
        self.views.clear();
        for (index, (line, watched)) in self.region.slots.iter().zip(&mut self.watched).enumerate()
        {
            if line.state.load(Acquire) != IN_USE {
                *watched = Watched::default();
                continue;
            }
            let generation = line.generation.load(Acquire);
            if watched.generation != generation {
                *watched = Watched { generation, ..Watched::default() };
            }
            let beats = line.beats.load(Acquire);
            let unread = watched.socket.as_ref().is_some_and(has_unread);
            if !unread || watched.beats != beats {
                watched.unread_since_ns = 0;
            }
            if unread && watched.unread_since_ns == 0 {
                watched.unread_since_ns = now_ns;
            }
            watched.beats = beats;
            self.views.push(SlotView {
                index,
                since_ns: line.since_ns.load(Acquire),
                unread_since_ns: watched.unread_since_ns,
                held_until_ns: line.held_until_ns.load(Relaxed),
                shut_ns: watched.shut_ns,
                has_socket: watched.socket.is_some(),
            });
        }
        View {
            slots: &self.views,
            heartbeat_ns: self.region.worker.heartbeat_ns.load(Acquire),
            floor_ns: self.pace.floor_ns,
            now_ns,
        }
    }

    /// Shuts the socket of one slot: its peer sees the end of the connection at once.
    pub(crate) fn shut(&mut self, slot: usize, now_ns: u64) {
        let Some(watched) = self.watched.get_mut(slot) else { return };
        if let Some(socket) = &watched.socket {
            let _ = shutdown(socket, Shutdown::Both);
            watched.shut_ns = now_ns.max(1);
        }
    }

    /// Shuts every socket, so that no guest waits for a process that takes long to die.
    pub(crate) fn shut_all(&mut self, now_ns: u64) {
        self.receive();
        for slot in 0..SLOTS {
            self.shut(slot, now_ns);
        }
    }

    fn receive(&mut self) {
        for _ in 0..MESSAGES_PER_TICK_MAX {
            let mut bytes = [0; Message::BYTES];
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE_MAX))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut into = [IoSliceMut::new(&mut bytes)];
            let Some(control) = &self.control else { return };
            let received = match recvmsg(control, &mut into, &mut ancillary, flags) {
                Ok(received) if received.bytes > 0 => received.bytes,
                Err(Errno::AGAIN | Errno::INTR) => return,
                Ok(_) | Err(_) => {
                    self.control = None;
                    return;
                }
            };
            let socket = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
                _ => None,
            });
            match Message::decode(&bytes[..received]) {
                Some(Message::Hold { slot, generation }) => {
                    self.watched[slot] = Watched { socket, generation, ..Watched::default() };
                }
                Some(Message::Freed { slot, generation })
                    if self.watched[slot].generation == generation =>
                {
                    self.watched[slot].socket = None;
                }
                Some(Message::Freed { .. }) | None => {}
            }
        }
    }
}

/// Whether something waits to be fetched: bytes on a connection, a peer on a listening socket
/// (which has no FIONREAD).
fn has_unread(socket: &OwnedFd) -> bool {
    match ioctl_fionread(socket) {
        Ok(bytes) => bytes > 0,
        Err(Errno::INVAL) => {
            let mut fds = [PollFd::new(socket, PollFlags::IN)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut fds, Some(&at_once)) == Ok(1) && fds[0].revents() == PollFlags::IN
        }
        Err(_) => false,
    }
}

/// Notices that the guard itself was kept from running (the machine was paused or overloaded).
/// Then the worker most likely was too, and the ages seen are not its fault: nothing counts as
/// older than leaves a little more time to look. One such pardon in a while, or a machine that
/// is slow for good would never see a kill.
struct Pace {
    threshold_ns: u64,
    look_again_ns: u64,
    late_ns: u64,
    pardon_every_ns: u64,
    last_ns: u64,
    pardon_from_ns: u64,
    floor_ns: u64,
}

impl Pace {
    fn new(tick: Duration, limits: &Limits) -> Pace {
        let look_again_ns = limits.look_again_ns();
        Pace {
            threshold_ns: limits.threshold_ns,
            look_again_ns,
            late_ns: tick.as_nanos() as u64 + look_again_ns,
            pardon_every_ns: 3 * limits.threshold_ns,
            last_ns: 0,
            pardon_from_ns: 0,
            floor_ns: 0,
        }
    }

    fn step(&mut self, now_ns: u64) {
        let late = self.last_ns != 0 && now_ns.saturating_sub(self.last_ns) > self.late_ns;
        self.last_ns = now_ns;
        if late && now_ns >= self.pardon_from_ns {
            self.floor_ns = now_ns.saturating_sub(self.threshold_ns - self.look_again_ns);
            self.pardon_from_ns = now_ns + self.pardon_every_ns;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn pace() -> Pace {
        Pace::new(Duration::from_millis(50), &Limits::new(1000 * MS, 5000 * MS))
    }

    #[test]
    fn ticks_in_time_pardon_nothing() {
        let mut pace = pace();
        (1..100).for_each(|tick| pace.step(tick * 60 * MS));
        assert_eq!(pace.floor_ns, 0);
    }

    #[test]
    fn late_tick_leaves_a_quarter_of_the_threshold_to_look_again() {
        let mut pace = pace();
        pace.step(50 * MS);
        pace.step(2050 * MS);
        assert_eq!(pace.floor_ns, (2050 - 450) * MS);
    }

    #[test]
    fn guard_that_is_late_for_good_still_acts() {
        let mut pace = pace();
        let floors: Vec<u64> = (1..=8)
            .map(|tick| {
                pace.step(tick * 700 * MS);
                pace.floor_ns
            })
            .collect();
        assert_eq!(floors[1], floors[2], "the tick after a pardon gets none");
    }
}
