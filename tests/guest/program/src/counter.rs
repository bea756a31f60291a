//! Role `counter`: a number that is raised on each disk in turn, written and synced, and only then
//! in memory. So wherever a copy goes on, no disk may ever be found behind the memory, or ahead of
//! it by more than the one that was under way. A file in tmpfs is memory that must not change.
//!
//! Each number has a slot of its own on the disks, which comes round: a copy that went on in the
//! middle of a round writes over nothing that would have shown that its disks are not of its
//! memory's instant. Before each round the disks are read; what is not right is an error, and it
//! stays paused.
//!
//! Commands: `start [rate=PER_SECOND] [tmpfs=BYTES]` (the file is made by the first one), `pause`,
//! `raise to=N` (while it is paused: to that number), `stats`. Events: `started from=N`,
//! `paused ram=N`, `raised ram=N`, `stats ram=N disk=N,.. tmpfs=HASH boot=ID`, `error ..`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::disk::{Buffer, Disk};
use crate::port::{Port, number};

/// What each number lies in, from the start of each disk.
const BLOCK_BYTES: usize = 4096;
/// Numbers that a disk holds: the last ones.
const SLOTS: usize = 64;
const FILE: &str = "/tmp/counter";
const FILE_BYTES: u64 = 16 << 20;
const PIECE_BYTES: usize = 64 << 10;

struct State {
    running: bool,
    in_flight: bool,
    pace: Option<Duration>,
    ram: u64,
    has_file: bool,
}

/// The counter and what it shares with its thread.
pub struct Counter {
    state: Arc<(Mutex<State>, Condvar)>,
    port: Arc<Port>,
    disks: Arc<Vec<Disk>>,
}

impl Counter {
    /// Finds the number on its disks, and waits for `start`.
    pub fn new(paths: &[String], port: Arc<Port>) -> io::Result<Self> {
        let disks = paths.iter().map(|path| Disk::open(path)).collect::<io::Result<Vec<_>>>()?;
        if disks.is_empty() {
            return Err(io::Error::other("no disk to count on"));
        }
        let ram = numbers(&disks)?.into_iter().min().unwrap_or(0);
        let state = State { running: false, in_flight: false, pace: None, ram, has_file: false };
        let state = Arc::new((Mutex::new(state), Condvar::new()));
        let counter = Self { state, port, disks: Arc::new(disks) };
        let (state, port, disks) =
            (counter.state.clone(), counter.port.clone(), counter.disks.clone());
        std::thread::spawn(move || work(&state, &port, &disks));
        Ok(counter)
    }

    /// Obeys one command.
    pub fn obey(&self, command: &str) {
        let (lock, changed) = &*self.state;
        let mut state = lock.lock().unwrap();
        match command.split_whitespace().next().unwrap_or_default() {
            "start" => {
                if !state.has_file {
                    let bytes = number(command, "tmpfs").unwrap_or(FILE_BYTES);
                    if let Err(e) = fill(bytes) {
                        self.port.say(&format!("counter error op=fill {e}"));
                        return;
                    }
                    state.has_file = true;
                }
                let rate = number(command, "rate").filter(|&rate| rate > 0);
                state.pace = rate.map(|rate| Duration::from_secs(1) / rate as u32);
                state.running = true;
                self.port.say(&format!("counter started from={}", state.ram + 1));
                changed.notify_all();
            }
            "pause" => {
                state.running = false;
                while state.in_flight {
                    state = changed.wait(state).unwrap();
                }
                self.port.say(&format!("counter paused ram={}", state.ram));
            }
            "raise" if !state.running => {
                let to = number(command, "to").unwrap_or(0);
                let mut block = Buffer::new(BLOCK_BYTES);
                while state.ram < to {
                    if let Err(e) = raise(&self.disks, state.ram, &mut block) {
                        self.port.say(&format!("counter error op=raise {e}"));
                        return;
                    }
                    state.ram += 1;
                }
                self.port.say(&format!("counter raised ram={}", state.ram));
            }
            "stats" => {
                let ram = state.ram;
                drop(state);
                match self.stats(ram) {
                    Ok(line) => self.port.say(&format!("counter stats {line}")),
                    Err(e) => self.port.say(&format!("counter error op=stats {e}")),
                }
            }
            other => self.port.say(&format!("counter unknown command={other}")),
        }
    }

    fn stats(&self, ram: u64) -> io::Result<String> {
        let disks = numbers(&self.disks)?;
        let disks: Vec<String> = disks.iter().map(u64::to_string).collect();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let (disks, hash) = (disks.join(","), hash()?);
        Ok(format!("ram={ram} disk={disks} tmpfs={hash:016x} boot={}", boot.trim()))
    }
}

fn work(state: &(Mutex<State>, Condvar), port: &Port, disks: &[Disk]) {
    let (lock, changed) = state;
    let mut block = Buffer::new(BLOCK_BYTES);
    loop {
        let (ram, pace) = {
            let mut state = lock.lock().unwrap();
            while !state.running {
                state = changed.wait(state).unwrap();
            }
            state.in_flight = true;
            (state.ram, state.pace)
        };
        let begin = Instant::now();
        let result = raise(disks, ram, &mut block);
        let mut state = lock.lock().unwrap();
        state.in_flight = false;
        changed.notify_all();
        match result {
            Ok(()) => state.ram = ram + 1,
            Err(e) => {
                state.running = false;
                port.say(&format!("counter error op=count {e}"));
            }
        }
        drop(state);
        if let Some(rest) = pace.and_then(|pace| pace.checked_sub(begin.elapsed())) {
            std::thread::sleep(rest);
        }
    }
}

/// The number after `ram`, to each disk.
fn raise(disks: &[Disk], ram: u64, block: &mut Buffer) -> io::Result<()> {
    check(disks, ram)?;
    let next = ram + 1;
    block.bytes()[..8].copy_from_slice(&next.to_le_bytes());
    disks.iter().try_for_each(|disk| {
        disk.write(block.bytes(), (next % SLOTS as u64) * BLOCK_BYTES as u64)?;
        disk.sync()
    })
}

/// What must hold at any instant.
fn check(disks: &[Disk], ram: u64) -> io::Result<()> {
    let found = numbers(disks)?;
    let in_order = found.is_sorted_by(|a, b| a >= b);
    if in_order && found.iter().all(|disk| (ram..=ram + 1).contains(disk)) {
        return Ok(());
    }
    Err(io::Error::other(format!("ram={ram} disks={found:?}: not of one instant")))
}

/// The last number on each disk.
fn numbers(disks: &[Disk]) -> io::Result<Vec<u64>> {
    let mut blocks = Buffer::new(SLOTS * BLOCK_BYTES);
    disks.iter().map(|disk| last(disk, &mut blocks)).collect()
}

/// The last number on a disk, which must have all that came before it.
fn last(disk: &Disk, blocks: &mut Buffer) -> io::Result<u64> {
    disk.read(blocks.bytes(), 0)?;
    let number = |block: &[u8]| u64::from_le_bytes(std::array::from_fn(|at| block[at]));
    let found: Vec<u64> = blocks.bytes().chunks(BLOCK_BYTES).map(number).collect();
    let last = found.iter().copied().max().unwrap_or(0);
    let slots = SLOTS as u64;
    for (slot, found) in found.into_iter().enumerate() {
        // The newest number up to the last that has this slot; 0 is there from the beginning.
        let back = (last % slots + slots - slot as u64) % slots;
        let wanted = last.saturating_sub(back);
        if found != wanted {
            let text = format!("after number {last}: {found} where {wanted} was written");
            return Err(io::Error::other(text));
        }
    }
    Ok(last)
}

/// Numbers that look random, into the file.
fn fill(bytes: u64) -> io::Result<()> {
    let mut file = File::create(FILE)?;
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    let mut left = bytes;
    while left > 0 {
        piece.clear();
        while piece.len() < PIECE_BYTES {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            piece.extend(word.to_le_bytes());
        }
        let len = left.min(PIECE_BYTES as u64) as usize;
        file.write_all(&piece[..len])?;
        left -= len as u64;
    }
    Ok(())
}

/// FNV-1a of the file, 0 where there is none.
fn hash() -> io::Result<u64> {
    if !fs::exists(FILE)? {
        return Ok(0);
    }
    let mut file = File::open(FILE)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(hash);
        }
        for byte in &piece[..read] {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
