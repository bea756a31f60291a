//! The memory that guard and worker share, and the messages of the control socket.
//!
//! One memfd a worker: a line that the guard writes, a line that the worker writes, then one
//! line a slot, each of 64 bytes (one cache line, one writer). Every field is an atomic of 64 bits,
//! so that a reader sees old or new, never half. The guard takes all of it for data, never for
//! truth: a worker that scribbles over it can at worst get itself killed.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

/// How many I/O loops the guard can watch.
pub const SLOTS: usize = 256;

/// Names the layout below; another layout gets another number.
const LAYOUT: u64 = u64::from_le_bytes(*b"AIGUARD1");

/// Where the worker finds its inheritance: text, `guard pid:memfd:socket`.
pub(crate) const ENVIRONMENT: &str = "AFTERIMAGE_GUARD";

/// `SlotLine::state` of a slot that no loop uses.
pub(crate) const FREE: u64 = 0;
/// `SlotLine::state` of a slot that a loop uses.
pub(crate) const IN_USE: u64 = 1;

/// Nanoseconds of CLOCK_MONOTONIC, the one clock that both processes share. It stands still
/// while the machine is suspended, so that a suspend is no stall.
pub fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Written by the guard.
#[repr(C, align(64))]
pub(crate) struct GuardLine {
    pub layout: AtomicU64,
    pub heartbeat_every_ms: AtomicU64,
    pub restarts: AtomicU64,
    pub kills_by_stall: AtomicU64,
    pub shutdowns: AtomicU64,
    pub last_kill_reason: AtomicU64,
    pub stall_ms_max: AtomicU64,
}

/// Written by the worker.
#[repr(C, align(64))]
pub(crate) struct WorkerLine {
    pub heartbeat_ns: AtomicU64,
    pub ready: AtomicU64,
}

/// Written by one I/O loop of the worker.
#[repr(C, align(64))]
pub(crate) struct SlotLine {
    pub state: AtomicU64,
    pub generation: AtomicU64,
    pub kind: AtomicU64,
    /// When the oldest unanswered request had been received; 0 when none is unanswered.
    pub since_ns: AtomicU64,
    /// Grows with each step of the loop.
    pub beats: AtomicU64,
    pub held_until_ns: AtomicU64,
    /// Whom the loop serves; loops of one guest have the same number. 0: nobody in particular.
    pub guest: AtomicU64,
}

/// The whole of it.
#[repr(C)]
pub(crate) struct Shared {
    pub guard: GuardLine,
    pub worker: WorkerLine,
    pub slots: [SlotLine; SLOTS],
}

const BYTES: usize = size_of::<Shared>();

/// What earlier workers of this guard met with, for `status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Workers that were started before this one.
    pub restarts: u64,
    /// How many of them the guard killed because a guest waited.
    pub kills_by_stall: u64,
    /// Single sockets that the guard shut down because their loop was stuck.
    pub shutdowns: u64,
    /// Why the guard killed last; none when it never did.
    pub last_kill: Option<crate::KillReason>,
    /// The longest stall of a guest that the guard ended, in milliseconds, as far as it knows.
    pub stall_ms_max: u64,
}

/// A mapping of the shared memory.
pub(crate) struct Region(NonNull<Shared>);

// SAFETY: the region is atomics alone, and lives until the mapping is dropped.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// The guard's side: a new memfd, all zeros, that nobody can shrink under a reader.
    pub(crate) fn create(heartbeat_every_ms: u64) -> io::Result<(OwnedFd, Region)> {
        let file =
            memfd_create("afterimage-guard", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, BYTES as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let region = Region::map(&file)?;
        region.guard.heartbeat_every_ms.store(heartbeat_every_ms, Release);
        region.guard.layout.store(LAYOUT, Release);
        Ok((file, region))
    }

    /// Tells the worker what earlier ones met with.
    pub(crate) fn store_counters(&self, counters: &Counters) {
        let line = &self.guard;
        let last_kill = counters.last_kill.map_or(0, crate::KillReason::number);
        line.restarts.store(counters.restarts, Release);
        line.kills_by_stall.store(counters.kills_by_stall, Release);
        line.shutdowns.store(counters.shutdowns, Release);
        line.last_kill_reason.store(last_kill, Release);
        line.stall_ms_max.store(counters.stall_ms_max, Release);
    }

    /// The worker's side: the memory that was inherited, if it is of this layout.
    pub(crate) fn open(file: impl AsFd) -> io::Result<Region> {
        if fstat(&file)?.st_size != BYTES as i64 {
            return Err(io::Error::other("the shared memory has another size"));
        }
        let region = Region::map(file)?;
        if region.guard.layout.load(Acquire) != LAYOUT {
            return Err(io::Error::other("the shared memory has another layout"));
        }
        Ok(region)
    }

    fn map(file: impl AsFd) -> io::Result<Region> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new shared mapping at an address of the kernel's choice; the file has BYTES
        // bytes (sealed), and they are zero or atomics of the same layout.
        let address =
            unsafe { mmap(std::ptr::null_mut(), BYTES, protection, MapFlags::SHARED, file, 0)? };
        // Swapped out, it would make the guard wait for a disk. Refused under a small
        // RLIMIT_MEMLOCK, which is no reason not to run.
        // SAFETY: the range was mapped just now.
        let _ = unsafe { mlock(address, BYTES) };
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Region(address))
    }
}

impl Deref for Region {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        // SAFETY: mapped, aligned to a page, of the right size, and of atomics alone.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; no reference outlives `self`.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), BYTES) };
    }
}

/// What the worker tells the guard: one packet of 16 bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// The slot is in use; its socket comes along (SCM_RIGHTS).
    Hold { slot: usize, generation: u64 },
    /// The slot was freed: close the duplicate at once, so that the peer sees the end.
    Freed { slot: usize, generation: u64 },
}

impl Message {
    /// The size of each.
    pub(crate) const BYTES: usize = 16;

    pub(crate) fn encode(self) -> [u8; Message::BYTES] {
        let (verb, slot, generation) = match self {
            Message::Hold { slot, generation } => (1u32, slot, generation),
            Message::Freed { slot, generation } => (2u32, slot, generation),
        };
        let mut bytes = [0; Message::BYTES];
        bytes[..4].copy_from_slice(&verb.to_le_bytes());
        bytes[4..8].copy_from_slice(&(slot as u32).to_le_bytes());
        bytes[8..].copy_from_slice(&generation.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        let bytes: &[u8; Message::BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let slot = word(4) as usize;
        let generation = u64::from(word(8)) | u64::from(word(12)) << 32;
        match word(0) {
            _ if slot >= SLOTS => None,
            1 => Some(Message::Hold { slot, generation }),
            2 => Some(Message::Freed { slot, generation }),
            _ => None,
        }
    }
}
