//! Time as the journal sees it: wall time for people, monotonic time and boot id for truth.
//!
//! Order never comes from a clock (I-9); times only label positions. Everything that needs time
//! takes a [`Clock`], so that tests and the simulator can bring their own.

use std::sync::OnceLock;

/// A source of time.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the Unix epoch.
    fn wall_ns(&self) -> u64;
    /// Nanoseconds since some fixed instant of this boot; never goes back.
    fn mono_ns(&self) -> u64;
    /// Identity of this boot: monotonic times compare only within one.
    fn boot_id(&self) -> [u8; 16];
    /// Sixteen bytes that nobody can guess, for a new unit's checksums. They come from here so that
    /// a simulation can repeat itself to the byte; everybody else leaves this as it is.
    fn salt(&self) -> [u8; 16] {
        uuid::Uuid::new_v4().into_bytes()
    }
}

/// The machine's clocks (`CLOCK_REALTIME`, `CLOCK_MONOTONIC`, `/proc/sys/kernel/random/boot_id`).
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

fn nanoseconds(id: rustix::time::ClockId) -> u64 {
    let t = rustix::time::clock_gettime(id);
    let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(t.tv_nsec).unwrap_or(0))
}

impl Clock for SystemClock {
    fn wall_ns(&self) -> u64 {
        nanoseconds(rustix::time::ClockId::Realtime)
    }

    fn mono_ns(&self) -> u64 {
        nanoseconds(rustix::time::ClockId::Monotonic)
    }

    fn boot_id(&self) -> [u8; 16] {
        static ID: OnceLock<[u8; 16]> = OnceLock::new();
        if let Some(id) = ID.get() {
            return *id;
        }
        // One that can't be read now (no file descriptors, say) may be read later.
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let read = text.and_then(|text| uuid::Uuid::parse_str(text.trim()).ok());
        read.map_or([0; 16], |id| *ID.get_or_init(|| id.into_bytes()))
    }
}
