//! Role `load`: several threads that write all over the disks at once, in every way that a guest
//! has: 4 to 64 KiB, 512 bytes, write-zeroes, discards, flushes. What it leaves has no order to
//! check; it is compared image against image.
//!
//! Commands: `start [threads=K] [seed=N] [rate=PER_SECOND] [span=BYTES] [discard=0|1]`, `pause`,
//! `stats`, `reset`. Threads are made by the first `start`; later ones go on with them. Events:
//! `started`, `paused`, `stats ..`, `error ..`.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::disk::{Buffer, Disk};
use crate::latency::Latency;
use crate::port::{Port, number};

const THREADS_MAX: u64 = 64;
const WRITE_BYTES_MAX: usize = 64 << 10;

struct State {
    threads: u64,
    running: bool,
    busy: u64,
    pace: Option<Duration>,
    span_bytes: u64,
    discard: bool,
    errors: u64,
    bytes: u64,
    operations: Latency,
}

/// The load and what it shares with its threads.
pub struct Load {
    state: Arc<(Mutex<State>, Condvar)>,
    port: Arc<Port>,
    disks: Arc<Vec<Disk>>,
}

impl Load {
    /// Opens the disks and waits for `start`.
    pub fn new(paths: &[String], port: Arc<Port>) -> io::Result<Self> {
        let disks = paths.iter().map(|path| Disk::open(path)).collect::<io::Result<Vec<_>>>()?;
        if disks.is_empty() {
            return Err(io::Error::other("no disk to write to"));
        }
        let state = State {
            threads: 0,
            running: false,
            busy: 0,
            pace: None,
            span_bytes: u64::MAX,
            discard: true,
            errors: 0,
            bytes: 0,
            operations: Latency::new(),
        };
        Ok(Self {
            state: Arc::new((Mutex::new(state), Condvar::new())),
            port,
            disks: Arc::new(disks),
        })
    }

    /// Obeys one command.
    pub fn obey(&self, command: &str) {
        let (lock, changed) = &*self.state;
        let mut state = lock.lock().unwrap();
        match command.split_whitespace().next().unwrap_or_default() {
            "start" => {
                let threads = number(command, "threads").unwrap_or(4).clamp(1, THREADS_MAX);
                let rate = number(command, "rate").filter(|&rate| rate > 0);
                state.span_bytes = number(command, "span").unwrap_or(u64::MAX).max(1 << 20);
                state.discard = number(command, "discard").unwrap_or(1) != 0;
                state.running = true;
                if state.threads == 0 {
                    state.threads = threads;
                    self.spawn(threads, number(command, "seed").unwrap_or(1));
                }
                let total = state.threads;
                state.pace = rate.map(|rate| Duration::from_secs(total) / rate as u32);
                self.port.say(&format!("load started threads={total}"));
                changed.notify_all();
            }
            "pause" => {
                state.running = false;
                while state.busy > 0 {
                    state = changed.wait(state).unwrap();
                }
                self.port.say(&format!("load paused bytes={}", state.bytes));
            }
            "stats" => self.port.say(&format!(
                "load stats bytes={} errors={} running={} {}",
                state.bytes,
                state.errors,
                u8::from(state.running),
                state.operations.report()
            )),
            "reset" => {
                state.operations = Latency::new();
                self.port.say("load reset");
            }
            other => self.port.say(&format!("load unknown command={other}")),
        }
    }

    fn spawn(&self, threads: u64, seed: u64) {
        for index in 0..threads {
            let (state, port, disks) = (self.state.clone(), self.port.clone(), self.disks.clone());
            std::thread::spawn(move || work(&state, &port, &disks, Random::new(seed, index)));
        }
    }
}

struct Random(u64);

impl Random {
    fn new(seed: u64, thread: u64) -> Self {
        Self(
            (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (thread + 1).wrapping_mul(0xd134_2543)) | 1,
        )
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

fn work(state: &(Mutex<State>, Condvar), port: &Port, disks: &[Disk], mut random: Random) {
    let (lock, changed) = state;
    let mut buffer = Buffer::new(WRITE_BYTES_MAX);
    loop {
        let (pace, span, discard) = {
            let mut state = lock.lock().unwrap();
            while !state.running {
                state = changed.wait(state).unwrap();
            }
            state.busy += 1;
            (state.pace, state.span_bytes, state.discard)
        };
        let disk = &disks[random.below(disks.len() as u64) as usize];
        let begin = Instant::now();
        let (what, result) =
            operate(disk, span.min(disk.bytes), discard, buffer.bytes(), &mut random);
        let took = begin.elapsed();

        let mut state = lock.lock().unwrap();
        state.busy -= 1;
        changed.notify_all();
        match result {
            Ok(bytes) => {
                state.bytes += bytes;
                state.operations.add(took);
            }
            Err(e) => {
                state.errors += 1;
                port.say(&format!("load error op={what} {e}"));
            }
        }
        drop(state);
        if let Some(rest) = pace.and_then(|pace| pace.checked_sub(begin.elapsed())) {
            std::thread::sleep(rest);
        }
    }
}

/// One operation of a kind, place and size that `random` picks. Gives its name and its bytes.
fn operate(
    disk: &Disk,
    span: u64,
    discard: bool,
    buffer: &mut [u8],
    random: &mut Random,
) -> (&'static str, io::Result<u64>) {
    let pages = 1 + random.below(16);
    let length = pages * 4096;
    let offset = random.below((span - length) / 4096) * 4096;
    match random.below(100) {
        0..70 => {
            let block = &mut buffer[..length as usize];
            for word in block.chunks_exact_mut(512) {
                word[..8].copy_from_slice(&random.next().to_le_bytes());
            }
            ("write", disk.write(block, offset).map(|()| length))
        }
        70..82 => {
            let sector = random.below(span / 512) * 512;
            buffer[..8].copy_from_slice(&random.next().to_le_bytes());
            ("write-512", disk.write(&buffer[..512], sector).map(|()| 512))
        }
        82..92 => ("write-zeroes", disk.write_zeroes(offset, length).map(|()| length)),
        92..97 if discard => ("discard", disk.discard(offset, length).map(|()| length)),
        _ => ("flush", disk.sync().map(|()| 0)),
    }
}
