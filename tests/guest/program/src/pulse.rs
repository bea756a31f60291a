//! Role `pulse`: a thread that wakes up every millisecond and notes how late it was, beside one that
//! changes pages of memory at a rate. Tells how long the guest's processors stood still, by the guest's
//! own clock: which stands still too while QEMU has the guest stopped.
//!
//! Commands: `start [mib=M] [rate=PAGES_PER_SECOND]` (the memory is touched once before it answers; with
//! rate 0 it is left alone then), `pause`, `reset`, `stats`. Events: `started`, `paused`, `reset`, `stats
//! touched=.. count=.. worst_us=..`: pages changed since the start, and how far apart two beats were since
//! the reset.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::latency::Latency;
use crate::port::{Port, number};

const PAGE_BYTES: usize = 4096;
const BEAT: Duration = Duration::from_millis(1);
const MEMORY_MIB_MAX: u64 = 64 << 10;

struct Shared {
    beats: Mutex<Latency>,
    running: AtomicBool,
    /// Pages to change a second.
    rate: AtomicU64,
    touched: AtomicU64,
}

/// The pulse and what it shares with its threads.
pub struct Pulse {
    shared: Arc<Shared>,
    started: AtomicBool,
    port: Arc<Port>,
}

impl Pulse {
    /// Waits for `start`.
    pub fn new(port: Arc<Port>) -> Self {
        let shared = Shared {
            beats: Mutex::new(Latency::new()),
            running: AtomicBool::new(false),
            rate: AtomicU64::new(0),
            touched: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), started: AtomicBool::new(false), port }
    }

    /// Obeys one command.
    pub fn obey(&self, command: &str) {
        match command.split_whitespace().next().unwrap_or_default() {
            "start" => {
                let mib = number(command, "mib").unwrap_or(16).clamp(1, MEMORY_MIB_MAX);
                self.shared.rate.store(number(command, "rate").unwrap_or(0), Ordering::Relaxed);
                if !self.started.swap(true, Ordering::Relaxed) {
                    self.spawn(mib as usize);
                }
                self.shared.running.store(true, Ordering::Relaxed);
                self.port.say(&format!("pulse started mib={mib}"));
            }
            "pause" => {
                self.shared.running.store(false, Ordering::Relaxed);
                self.port.say("pulse paused");
            }
            "reset" => {
                *self.shared.beats.lock().unwrap() = Latency::new();
                self.port.say("pulse reset");
            }
            "stats" => {
                let report = self.shared.beats.lock().unwrap().report();
                let touched = self.shared.touched.load(Ordering::Relaxed);
                self.port.say(&format!("pulse stats touched={touched} errors=0 {report}"));
            }
            other => self.port.say(&format!("pulse unknown command={other}")),
        }
    }

    fn spawn(&self, mib: usize) {
        let mut memory = vec![0u8; mib << 20];
        for (index, page) in memory.chunks_exact_mut(PAGE_BYTES).enumerate() {
            fill(page, index as u64 + 1);
        }
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || beat(&shared));
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || dirty(&shared, &mut memory));
    }
}

/// Content that neither compresses to nothing nor is the same on two pages.
fn fill(page: &mut [u8], seed: u64) {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for bytes in page.chunks_exact_mut(64) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes[..8].copy_from_slice(&word.to_le_bytes());
    }
}

fn beat(shared: &Shared) {
    let mut last = Instant::now();
    loop {
        std::thread::sleep(BEAT);
        let now = Instant::now();
        shared.beats.lock().unwrap().add(now - last);
        last = now;
    }
}

/// Changes pages all over the memory in an order that comes round late.
fn dirty(shared: &Shared, memory: &mut [u8]) {
    let pages = memory.len() / PAGE_BYTES;
    let mut at = 0;
    loop {
        std::thread::sleep(Duration::from_millis(10));
        let rate = shared.rate.load(Ordering::Relaxed);
        if !shared.running.load(Ordering::Relaxed) || rate == 0 {
            continue;
        }
        for _ in 0..rate.div_ceil(100) {
            at = (at + 7919) % pages;
            let touched = shared.touched.fetch_add(1, Ordering::Relaxed);
            let from = at * PAGE_BYTES;
            memory[from..from + 8].copy_from_slice(&(touched + 1).to_le_bytes());
        }
    }
}
