//! Time by hand: wall time that jumps, monotonic time that does not, boots that are counted.

use afterimage_journal::clock::Clock;
use std::sync::Mutex;

#[derive(Debug)]
struct Now {
    wall_ns: u64,
    mono_ns: u64,
    boot: u64,
    salts: u64,
}

#[derive(Debug)]
pub struct SimClock(Mutex<Now>);

impl SimClock {
    pub fn new() -> Self {
        Self(Mutex::new(Now { wall_ns: 1_700_000_000_000_000_000, mono_ns: 1, boot: 1, salts: 0 }))
    }

    pub fn pass(&self, ns: u64) {
        let mut now = self.0.lock().unwrap();
        now.wall_ns += ns;
        now.mono_ns += ns;
    }

    /// Somebody sets the clock.
    pub fn jump(&self, seconds: i64) {
        let mut now = self.0.lock().unwrap();
        now.wall_ns = now.wall_ns.saturating_add_signed(seconds * 1_000_000_000);
    }

    pub fn boot(&self, boot: u64) {
        let mut now = self.0.lock().unwrap();
        if now.boot != boot {
            *now = Now { wall_ns: now.wall_ns + 60_000_000_000, mono_ns: 1, boot, ..*now };
        }
    }
}

impl Clock for SimClock {
    fn wall_ns(&self) -> u64 {
        self.0.lock().unwrap().wall_ns
    }

    fn mono_ns(&self) -> u64 {
        self.0.lock().unwrap().mono_ns
    }

    fn boot_id(&self) -> [u8; 16] {
        let mut id = [1; 16];
        id[..8].copy_from_slice(&self.0.lock().unwrap().boot.to_le_bytes());
        id
    }

    fn salt(&self) -> [u8; 16] {
        let mut now = self.0.lock().unwrap();
        now.salts += 1;
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&now.salts.to_le_bytes());
        salt[8..].copy_from_slice(&now.boot.to_be_bytes());
        salt
    }
}
