//! What the guard sees of one worker: the shared memory, and its duplicates of guest sockets.
//!
//! Nothing here waits: the control socket is read without blocking and boundedly, and a socket
//! is asked for its unread bytes, never read.

use crate::config::ns;
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
    pub(crate) fn new(region: Region, control: OwnedFd, pace: Pace) -> Watch {
        let watched = std::iter::repeat_with(Watched::default).take(SLOTS).collect();
        let views = Vec::with_capacity(SLOTS);
        Watch { region, control: Some(control), watched, views, pace }
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
                guest: line.guest.load(Relaxed),
            });
        }
        View {
            slots: &self.views,
            heartbeat_ns: self.region.worker.heartbeat_ns.load(Acquire),
            floor_ns: self.pace.floor_ns,
            is_stopped: false,
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

    /// What the loop of `slot` serves, for display.
    pub(crate) fn kind(&self, slot: usize) -> &'static str {
        match self.region.slots.get(slot).map(|line| line.kind.load(Relaxed)) {
            Some(1) => "NBD connection",
            Some(2) => "vhost-user connection",
            Some(3) => "listening socket",
            _ => "loop",
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
pub(crate) struct Pace {
    threshold_ns: u64,
    look_again_ns: u64,
    late_ns: u64,
    pardon_every_ns: u64,
    last_ns: u64,
    pardon_from_ns: u64,
    floor_ns: u64,
}

impl Pace {
    pub(crate) fn new(tick: Duration, limits: &Limits, now_ns: u64) -> Pace {
        let look_again_ns = limits.look_again_ns();
        Pace {
            threshold_ns: limits.threshold_ns,
            look_again_ns,
            late_ns: ns(tick) + look_again_ns,
            pardon_every_ns: limits.threshold_ns.saturating_mul(3),
            last_ns: now_ns,
            pardon_from_ns: 0,
            floor_ns: 0,
        }
    }

    fn step(&mut self, now_ns: u64) {
        let late = now_ns.saturating_sub(self.last_ns) > self.late_ns;
        self.last_ns = now_ns;
        if late && now_ns >= self.pardon_from_ns {
            self.floor_ns = now_ns.saturating_sub(self.threshold_ns - self.look_again_ns);
            self.pardon_from_ns = now_ns.saturating_add(self.pardon_every_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::Ordering::Release;

    const MS: u64 = 1_000_000;

    /// A watch, the worker's end of its control socket, and a guest's end of a connection of
    /// slot 7, generation 1.
    fn watch() -> (Watch, OwnedFd, UnixStream) {
        let (_, region) = Region::create(50).unwrap();
        let (ours, control) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        region.slots[7].generation.store(1, Release);
        region.slots[7].state.store(IN_USE, Release);
        let (socket, guest) = UnixStream::pair().unwrap();
        let hold = Message::Hold { slot: 7, generation: 1 }.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let sockets = [socket.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
        sendmsg(&control, &[IoSlice::new(&hold)], &mut ancillary, SendFlags::empty()).unwrap();
        guest.set_nonblocking(true).unwrap();
        (Watch::new(region, ours, pace()), control, guest)
    }

    fn connected(mut guest: &UnixStream) -> bool {
        std::io::Read::read(&mut guest, &mut [0]).is_err()
    }

    #[test]
    fn duplicate_is_kept_while_its_slot_is_used_and_closed_with_it() {
        let (mut watch, _control, guest) = watch();
        assert!(watch.look(MS).slots[0].has_socket);
        assert!(connected(&guest));
        watch.region.slots[7].state.store(crate::shared::FREE, Release);
        assert_eq!(watch.look(2 * MS).slots, []);
        assert!(!connected(&guest));
    }

    #[test]
    fn duplicate_of_an_earlier_use_of_a_slot_is_closed() {
        let (mut watch, _control, guest) = watch();
        assert!(watch.look(MS).slots[0].has_socket);
        watch.region.slots[7].generation.store(2, Release);
        assert!(!watch.look(2 * MS).slots[0].has_socket);
        assert!(!connected(&guest));
    }

    #[test]
    fn packets_that_make_no_sense_change_nothing() {
        let (mut watch, control, guest) = watch();
        let send = |packet: &[u8]| {
            rustix::net::send(&control, packet, SendFlags::empty()).unwrap();
        };
        for packet in [&[1, 2, 3][..], &[0xff; 16], &[2; 64]] {
            send(packet);
        }
        send(&Message::Freed { slot: 7, generation: 9 }.encode());
        assert!(watch.look(MS).slots[0].has_socket);
        assert!(connected(&guest));
        send(&Message::Freed { slot: 7, generation: 1 }.encode());
        assert!(!watch.look(2 * MS).slots[0].has_socket, "it goes on reading");
    }

    fn pace() -> Pace {
        Pace::new(Duration::from_millis(50), &Limits::new(1000 * MS, 5000 * MS), 0)
    }

    #[test]
    fn peer_that_waits_to_be_accepted_counts_as_unread() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("listening.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let duplicate = listener.try_clone().unwrap().into();
        assert!(!has_unread(&duplicate));
        let _peer = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(has_unread(&duplicate));
        listener.accept().unwrap();
        assert!(!has_unread(&duplicate));
    }

    #[test]
    fn end_of_a_connection_is_nothing_unread() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(theirs);
        assert!(!has_unread(&ours.into()));
    }

    #[test]
    fn ticks_in_time_pardon_nothing() {
        let mut pace = pace();
        (1..100).for_each(|tick| pace.step(tick * 60 * MS));
        assert_eq!(pace.floor_ns, 0);
    }

    #[test]
    fn late_tick_leaves_a_quarter_of_the_threshold_to_look_again() {
        for first_ns in [0, 50 * MS] {
            let mut pace = pace();
            pace.step(first_ns);
            pace.step(2050 * MS);
            assert_eq!(pace.floor_ns, (2050 - 450) * MS);
        }
    }

    #[test]
    fn late_first_look_is_pardoned_too() {
        let mut pace = pace();
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
