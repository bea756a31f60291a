//! What the guard does about what it sees. Pure: no clock, no I/O.
//!
//! A loop is *stuck* when its oldest unanswered request, or unread bytes that it does not fetch,
//! are older than the threshold. What follows:
//!
//! ```text
//!  no loop stuck ──────────────────────────────► nothing (an idle process has no victim)
//!  some stuck, heartbeat and other loops fine ─► shut their sockets: the others lose nothing
//!       └─ still stuck after the grace ────────► kill
//!  heartbeat stale, or every loop is stuck ────► kill at once
//!  heartbeat stale for two thresholds in a
//!  stopped process that has guests ────────────► kill: between the receipt of a request and
//!                                                its note, or its note's end and the reply, a guest
//!                                                may wait that nobody sees
//!  heartbeat stale for long, though none stuck ► kill: it would never come back by itself
//! ```
//!
//! A loop that waits counts as fine: its guest would lose by the kill and gains nothing from it.

/// Limits that [`decide`] goes by, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Older than this is stuck.
    pub threshold_ns: u64,
    /// How long a loop has to end after its socket was shut.
    pub grace_ns: u64,
    /// How long a held reply is exempt at most, from the request on.
    pub hold_limit_ns: u64,
    /// A process whose heartbeat is older is hung, though no guest waits for it: a guest whose
    /// mirror has paused waits for nobody, and is not protected either.
    pub hung_limit_ns: u64,
}

/// The least that a process is given to come back by itself while nobody waits.
const HUNG_NS_MIN: u64 = 10_000_000_000;

/// How many thresholds a stopped process is given while no guest is seen to wait.
const STOPPED_THRESHOLDS: u64 = 2;

impl Limits {
    /// The limits that keep a guest's stall below `stall_limit_ns`: 0.6 of it to be sure, the rest
    /// for two ticks and the kill itself.
    pub fn new(stall_limit_ns: u64, hold_limit_ns: u64) -> Limits {
        let threshold_ns = stall_limit_ns / 10 * 6;
        let hung_limit_ns = stall_limit_ns.saturating_mul(5).max(HUNG_NS_MIN);
        Limits { threshold_ns, grace_ns: stall_limit_ns, hold_limit_ns, hung_limit_ns }
    }

    /// How much longer the guard looks after it was itself kept from running.
    pub fn look_again_ns(&self) -> u64 {
        self.threshold_ns / 4
    }
}

/// One slot in use, as the guard sees it. Times are of CLOCK_MONOTONIC, 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotView {
    /// Which slot.
    pub index: usize,
    /// When the oldest unanswered request was received.
    pub since_ns: u64,
    /// Since when there are unread bytes and the loop has not moved.
    pub unread_since_ns: u64,
    /// The worker holds the reply until then.
    pub held_until_ns: u64,
    /// When the guard shut this socket.
    pub shut_ns: u64,
    /// Whether the guard has a duplicate of the socket.
    pub has_socket: bool,
    /// Whom it serves; 0: nobody in particular.
    pub guest: u64,
}

/// Everything that is decided upon.
#[derive(Debug)]
pub struct View<'a> {
    /// Slots in use.
    pub slots: &'a [SlotView],
    /// The last heartbeat of the process; 0 when it has none.
    pub heartbeat_ns: u64,
    /// Nothing counts as older than this: raised when the guard itself was kept from running.
    pub floor_ns: u64,
    /// Whether the process was stopped (SIGSTOP, a debugger); asked for only if it [is
    /// silent](View::is_silent).
    pub is_stopped: bool,
    /// Now.
    pub now_ns: u64,
}

impl View<'_> {
    fn silent_ns(&self) -> u64 {
        match self.heartbeat_ns {
            0 => 0,
            heartbeat => age(heartbeat.max(self.floor_ns), self),
        }
    }

    /// Whether the process has not moved for longer than the threshold.
    pub fn is_silent(&self, limits: &Limits) -> bool {
        self.silent_ns() >= limits.threshold_ns
    }
}

/// Why a worker was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillReason {
    /// The whole process stands still, and a guest waits, or it has lasted too long.
    ProcessHung,
    /// Every loop is stuck.
    AllLoopsStuck,
    /// A loop stayed stuck after its socket was shut.
    LoopDidNotEnd,
    /// A loop is stuck, and its socket is not here to be shut.
    NoSocket,
    /// It did not end in time after SIGTERM.
    StopLimit,
}

impl KillReason {
    const ALL: [KillReason; 5] = [
        KillReason::ProcessHung,
        KillReason::AllLoopsStuck,
        KillReason::LoopDidNotEnd,
        KillReason::NoSocket,
        KillReason::StopLimit,
    ];

    /// From its number in shared memory; 0 is none.
    pub(crate) fn from_number(number: u64) -> Option<KillReason> {
        KillReason::ALL.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
    }

    /// Its number in shared memory.
    pub(crate) fn number(self) -> u64 {
        self as u64 + 1
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Shut this slot's socket, nothing else.
    Shut {
        /// Which slot.
        slot: usize,
        /// How long its guest has waited.
        stall_ns: u64,
    },
    /// SIGKILL the worker.
    Kill {
        /// Why.
        reason: KillReason,
        /// How long the longest waiting guest has waited.
        stall_ns: u64,
    },
}

/// What to do about `view`: nothing, the sockets to shut, or one kill.
pub fn decide(view: &View<'_>, limits: &Limits) -> Vec<Action> {
    let mut shut = Vec::new();
    let (mut stuck_count, mut stall_ns, mut kill) = (0, 0, None);
    for slot in view.slots {
        let Some(waited_ns) = stuck_for(slot, view, limits) else { continue };
        stuck_count += 1;
        if slot.shut_ns == 0 {
            stall_ns = stall_ns.max(waited_ns);
            match slot.has_socket {
                true => {
                    shut.extend(
                        siblings(slot, view).map(|index| Action::Shut { slot: index, stall_ns: 0 }),
                    );
                    shut.push(Action::Shut { slot: slot.index, stall_ns: waited_ns });
                }
                false => kill = Some(KillReason::NoSocket),
            }
        } else if age(slot.shut_ns, view) >= limits.grace_ns {
            kill = kill.or(Some(KillReason::LoopDidNotEnd));
        }
    }
    if stuck_count == 0 {
        let for_long = view.silent_ns() >= STOPPED_THRESHOLDS.saturating_mul(limits.threshold_ns);
        let is_stopped = view.is_stopped && for_long && !view.slots.is_empty();
        return match is_stopped || view.silent_ns() >= limits.hung_limit_ns {
            true => vec![Action::Kill { reason: KillReason::ProcessHung, stall_ns: 0 }],
            false => shut,
        };
    }
    if view.is_silent(limits) {
        kill = Some(KillReason::ProcessHung);
    } else if stuck_count == view.slots.len() {
        kill = Some(KillReason::AllLoopsStuck);
    }
    match kill {
        Some(reason) => vec![Action::Kill { reason, stall_ns }],
        None => shut,
    }
}

/// The other sockets of the slot's guest, to be shut before it: once the stuck one is shut, the
/// guest goes on without the write that it waited for, and what it writes to another disk after
/// that must not be taken in as if nothing were missing before it (I-2, I-4).
fn siblings<'v>(slot: &SlotView, view: &'v View<'_>) -> impl Iterator<Item = usize> + 'v {
    let (index, guest) = (slot.index, slot.guest);
    view.slots
        .iter()
        .filter(move |s| guest != 0 && s.guest == guest && s.index != index)
        .filter(|s| s.has_socket && s.shut_ns == 0)
        .map(|s| s.index)
}

/// How long this slot's guest has waited, if that is too long and not by intent.
fn stuck_for(slot: &SlotView, view: &View<'_>, limits: &Limits) -> Option<u64> {
    let began_ns = match (slot.since_ns, slot.unread_since_ns) {
        (0, 0) => return None,
        (0, began) | (began, 0) => began,
        (since, unread) => since.min(unread),
    };
    let exempt_until_ns = slot.held_until_ns.min(began_ns.saturating_add(limits.hold_limit_ns));
    if view.now_ns < exempt_until_ns {
        return None;
    }
    let seen_ns = age(began_ns.max(view.floor_ns), view);
    (seen_ns >= limits.threshold_ns).then(|| age(began_ns, view))
}

fn age(of_ns: u64, view: &View<'_>) -> u64 {
    view.now_ns.saturating_sub(of_ns)
}
