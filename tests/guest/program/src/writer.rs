//! Role `writer`: numbered blocks to all its disks in turn, one at a time, each acknowledged before
//! the next is issued. What a restored copy holds must be an exact prefix of them (see
//! `record.rs`).
//!
//! Commands: `start [until=N] [fsync=1] [rate=PER_SECOND]`, `pause`, `stats`, `reset`, `sync`.
//! Events: `started from=N`, `ack last=N` (about four times a second), `done last=N` (`until` was
//! reached), `paused last=N`, `stats ..`, `error ..`. After an error it stays paused.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::disk::{Buffer, Disk};
use crate::latency::Latency;
use crate::port::{Port, number};
use crate::record::{self, SLOT_BYTES};

const ACK_EVERY: Duration = Duration::from_millis(250);

struct State {
    running: bool,
    until: u64,
    fsync: bool,
    rate: Option<u64>,
    last: u64,
    errors: u64,
    in_flight: bool,
    writes: Latency,
}

/// The writer and what it shares with its thread.
pub struct Writer {
    state: Arc<(Mutex<State>, Condvar)>,
    port: Arc<Port>,
    disks: Arc<Vec<Disk>>,
}

impl Writer {
    /// Finds out where an earlier run on these disks stopped, and waits for `start`.
    pub fn new(paths: &[String], slots: u64, port: Arc<Port>) -> io::Result<Self> {
        let disks = paths.iter().map(|path| Disk::open(path)).collect::<io::Result<Vec<_>>>()?;
        if disks.is_empty() {
            return Err(io::Error::other("no disk to write to"));
        }
        let last = last_record(&disks, slots)?;
        let state = State {
            running: false,
            until: u64::MAX,
            fsync: false,
            rate: None,
            last,
            errors: 0,
            in_flight: false,
            writes: Latency::new(),
        };
        let state = Arc::new((Mutex::new(state), Condvar::new()));
        let writer = Self { state, port, disks: Arc::new(disks) };
        let (state, port, disks) =
            (writer.state.clone(), writer.port.clone(), writer.disks.clone());
        std::thread::spawn(move || work(&state, &port, &disks, slots));
        Ok(writer)
    }

    /// For the `ready` line: the last record that is on the disks.
    pub fn last(&self) -> u64 {
        self.state.0.lock().unwrap().last
    }

    /// Obeys one command.
    pub fn obey(&self, command: &str) {
        let (lock, changed) = &*self.state;
        let mut state = lock.lock().unwrap();
        match command.split_whitespace().next().unwrap_or_default() {
            "start" => {
                state.until = number(command, "until").unwrap_or(u64::MAX);
                state.fsync = number(command, "fsync").unwrap_or(0) != 0;
                state.rate = number(command, "rate").filter(|&rate| rate > 0);
                state.running = true;
                self.port.say(&format!("writer started from={}", state.last + 1));
                changed.notify_all();
            }
            "pause" => {
                state.running = false;
                while state.in_flight {
                    state = changed.wait(state).unwrap();
                }
                self.port.say(&format!("writer paused last={}", state.last));
            }
            "stats" => self.port.say(&format!(
                "writer stats last={} errors={} running={} {}",
                state.last,
                state.errors,
                u8::from(state.running),
                state.writes.report()
            )),
            "reset" => {
                state.writes = Latency::new();
                self.port.say("writer reset");
            }
            "sync" => {
                let last = state.last;
                drop(state);
                match self.disks.iter().try_for_each(Disk::sync) {
                    Ok(()) => self.port.say(&format!("writer synced last={last}")),
                    Err(e) => self.port.say(&format!("writer error op=sync {e}")),
                }
            }
            other => self.port.say(&format!("writer unknown command={other}")),
        }
    }
}

fn work(state: &(Mutex<State>, Condvar), port: &Port, disks: &[Disk], slots: u64) {
    let (lock, changed) = state;
    let mut block = Buffer::new(SLOT_BYTES);
    let mut said = Instant::now();
    loop {
        let (n, fsync, pace) = {
            let mut state = lock.lock().unwrap();
            while !state.running {
                state = changed.wait(state).unwrap();
            }
            state.in_flight = true;
            (
                state.last + 1,
                state.fsync,
                state.rate.map(|rate| Duration::from_secs(1) / rate as u32),
            )
        };
        let place = record::place(n, disks.len() as u64, slots);
        let disk = &disks[place.disk as usize];
        record::encode(block.bytes(), n, place);
        let begin = Instant::now();
        let mut result = disk.write(block.bytes(), place.slot * SLOT_BYTES as u64);
        if fsync && result.is_ok() {
            result = disk.sync();
        }
        let took = begin.elapsed();

        let mut state = lock.lock().unwrap();
        state.in_flight = false;
        changed.notify_all();
        match result {
            Ok(()) => {
                state.last = n;
                state.writes.add(took);
                if n >= state.until {
                    state.running = false;
                    port.say(&format!("writer done last={n}"));
                } else if said.elapsed() >= ACK_EVERY {
                    said = Instant::now();
                    port.say(&format!("writer ack last={n}"));
                }
            }
            Err(e) => {
                state.errors += 1;
                state.running = false;
                port.say(&format!("writer error op=write disk={} n={n} {e}", place.disk));
            }
        }
        drop(state);
        if let Some(rest) = pace.and_then(|pace| pace.checked_sub(begin.elapsed())) {
            std::thread::sleep(rest);
        }
    }
}

fn last_record(disks: &[Disk], slots: u64) -> io::Result<u64> {
    let mut block = Buffer::new(256 * SLOT_BYTES);
    let mut last = 0;
    for (disk_index, disk) in disks.iter().enumerate() {
        if disk.bytes < slots * SLOT_BYTES as u64 {
            return Err(io::Error::other(format!(
                "disk {disk_index} is too small for {slots} slots"
            )));
        }
        for chunk in (0..slots).step_by(256) {
            let count = (slots - chunk).min(256) as usize;
            let bytes = &mut block.bytes()[..count * SLOT_BYTES];
            disk.read(bytes, chunk * SLOT_BYTES as u64)?;
            for (index, slot) in bytes.chunks_exact(SLOT_BYTES).enumerate() {
                let place = record::Place { disk: disk_index as u64, slot: chunk + index as u64 };
                // What is no record is left for the judge on the host; here it only is not counted.
                last = last.max(record::decode(slot, place).unwrap_or(0));
            }
        }
    }
    Ok(last)
}
