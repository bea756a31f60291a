//! What a sliding window costs capture: appends at a steady rate with the keeper moving the edge and
//! merging behind it, beside the same with nothing behind it. And whether the disk use of a window
//! that slides stays flat.
//!
//! What always holds: the volume is written once before anything counts, and several windows pass
//! before and while it does, so that what is measured is a window that slides, not one that fills.

use crate::journal::{self, Rng, Writing};
use crate::number;
use crate::report::{Report, median};
use afterimage_journal::clock::SystemClock;
use afterimage_journal::keeper::{Home, KeeperThread, Occupancy, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::storage::RealStorage;
use afterimage_journal::window::Limits;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What the guest writes to, over and over: small enough for the base to be whole soon.
const VOLUME_BYTES: u64 = 1 << 30;
const RECORD_BYTES: usize = 16 << 10;
const PLACES: u64 = VOLUME_BYTES / RECORD_BYTES as u64;
const RATE_BYTES_PER_S: f64 = 150e6;
/// How far back the window reaches.
const WINDOW: Duration = Duration::from_secs(4);
/// Windows that pass after the volume is written and before anything counts.
const WARM_WINDOWS: u32 = 3;
/// For so many records the guest stays in one part of the volume: units differ in how much of them
/// dies, and how soon.
const STRETCH_RECORDS: u64 = 4096;
/// How often disk use is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What the keeper may lag behind before the journal has to stop: the bench looks on.
const ROOM_BYTES: u64 = 8 << 30;

/// One run; times and disk use without the time before anything counts.
struct Run {
    /// How long each append took, nanoseconds, ascending.
    took_ns: Vec<u64>,
    /// How long after it was due each one had ended, nanoseconds, ascending: one that has to wait
    /// delays those behind it.
    late_ns: Vec<u64>,
    mb_per_s: f64,
    /// Disk use, MiB, in the order of time.
    used_mib: Vec<f64>,
    /// What the keeper had done when it began to count, and in the end.
    kept: (Occupancy, Occupancy),
}

/// The rate's own clock: what is due by when.
struct Load {
    writing: Writing,
    rng: Rng,
    begun: Instant,
    written: u64,
}

/// Measures; for how long, `AFTERIMAGE_BENCH_SLIDING_S` says.
pub fn measure(report: &mut Report) -> Result<()> {
    let seconds = number("AFTERIMAGE_BENCH_SLIDING_S", 48)?.max(16);
    let alone = Duration::from_secs((seconds / 3).min(20));
    let fill_bytes = VOLUME_BYTES + (alone.as_secs() + 1) * RATE_BYTES_PER_S as u64;
    journal::need_room(fill_bytes.max(ROOM_BYTES))?;
    // In the middle: whatever changes with time hits both.
    let before = run(alone, false).context("without a keeper")?;
    let ours = run(Duration::from_secs(seconds), true).context("with a keeper")?;
    let after = run(alone, false).context("without a keeper")?;
    add_rows(report, seconds, &ours, &[before, after]);
    Ok(())
}

fn add_rows(report: &mut Report, seconds: u64, ours: &Run, alone: &[Run; 2]) {
    let windows = seconds / WINDOW.as_secs();
    let what = format!("capture at 150 MB/s, window of {} s, {windows} windows", WINDOW.as_secs());
    let peer = "nothing merged";
    let beside = |figure: fn(&Run) -> f64| (figure(ours), median(alone.iter().map(figure)));
    let mut add = |name: &str, sides, peer: &str, unit| {
        report.add(format!("{what}: {name}"), sides, peer, unit);
    };
    let p99 = |run: &Run| per_mille(&run.took_ns, 990);
    add("p99 of an append of 16 KiB (aim: ratio <= 2)", beside(p99), peer, "us");
    add("p99.9 of an append", beside(|run| per_mille(&run.took_ns, 999)), peer, "us");
    add("p99 from when it was due", beside(|run| per_mille(&run.late_ns, 990)), peer, "us");
    add("rate", beside(|run| run.mb_per_s), peer, "MB/s");
    let used = &ours.used_mib;
    let quarter = used.len() / 4;
    let (first, last) = (&used[..quarter], &used[used.len() - quarter..]);
    let medians = (median(last.iter().copied()), median(first.iter().copied()));
    add("disk use, last quarter (aim: ratio <= 1.1)", medians, "its first quarter", "MiB");
    let half = &used[used.len() / 2..];
    let highest = half.iter().copied().fold(0.0, f64::max);
    let lowest = half.iter().copied().fold(f64::MAX, f64::min);
    add("disk use, highest of the second half", (highest, lowest), "its lowest", "MiB");
    let needed = VOLUME_BYTES as f64 + RATE_BYTES_PER_S * WINDOW.as_secs_f64();
    add(
        "disk use, all of the time",
        (median(used.iter().copied()), mib(needed)),
        "volume and window",
        "MiB",
    );
    let (began, ended) = (&ours.kept.0, &ours.kept.1);
    let written = mib((ended.merged_bytes - began.merged_bytes) as f64);
    let captured = mib(ours.mb_per_s * 1e6 * seconds as f64);
    add("written by merging", (written, captured), "captured", "MiB");
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Of ascending nanoseconds, in microseconds.
fn per_mille(sorted_ns: &[u64], per_mille: usize) -> f64 {
    sorted_ns.get(sorted_ns.len() * per_mille / 1000).map_or(0.0, |ns| *ns as f64 / 1e3)
}

fn keeper_of(writing: &Writing) -> Result<KeeperThread> {
    let storage = RealStorage::shared();
    let window_ns = WINDOW.as_nanos() as u64;
    let keeper = KeeperThread::start(Setup {
        storage: Arc::clone(&storage),
        dir: writing.journal().dir().to_owned(),
        clock: Arc::new(SystemClock),
        ground: Arc::new(Home { storage }),
        pace: Arc::new(Unpaced),
        key: None,
        limits: Limits::new(window_ns, None),
    })?;
    let shared = keeper.shared();
    writing.journal().on_sealed(move |number| shared.sealed(number));
    Ok(keeper)
}

impl Load {
    /// The next place: first all in order, then anywhere in a part of the volume that is small for a
    /// while, or larger, or all of it.
    fn place(&mut self) -> u64 {
        if self.written < PLACES {
            return self.written;
        }
        let part = [PLACES / 16, PLACES / 4, PLACES][(self.written / STRETCH_RECORDS % 3) as usize];
        self.rng.next() % part
    }

    /// Writes what is due in this time; says of each write when it began and when it was due.
    fn go_on(&mut self, time: Duration, mut took: impl FnMut(Instant, Duration)) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let due = |written: u64| {
                Duration::from_secs_f64(written as f64 * RECORD_BYTES as f64 / RATE_BYTES_PER_S)
            };
            while due(self.written) <= self.begun.elapsed() && Instant::now() < end {
                let addr = self.place() * RECORD_BYTES as u64;
                let started = Instant::now();
                self.writing.write(addr, RECORD_BYTES)?;
                took(started, due(self.written));
                self.written += 1;
            }
            sleep(Duration::from_micros(500));
        }
        Ok(())
    }
}

fn run(measured: Duration, keep: bool) -> Result<Run> {
    let writing = Writing::begin(VOLUME_BYTES)?;
    let begun = Instant::now();
    let mut load = Load { writing, rng: Rng(0x2545_f491_4f6c_dd1d), begun, written: 0 };
    let keeper = if keep { Some(keeper_of(&load.writing)?) } else { None };
    let occupancy = || keeper.as_ref().map(|k| k.shared().occupancy()).unwrap_or_default();
    load.go_on(Duration::from_secs_f64(VOLUME_BYTES as f64 / RATE_BYTES_PER_S), |_, _| ())?;
    if keep {
        load.go_on(WINDOW * WARM_WINDOWS, |_, _| ())?;
    }
    let (mut took_ns, mut late_ns) = (Vec::new(), Vec::new());
    let (from, written, before) = (Instant::now(), load.written, occupancy());
    let state = load.writing.state().to_owned();
    let is_ended = AtomicBool::new(false);
    let used = std::thread::scope(|scope| {
        let looks = scope.spawn(|| look(&state, &is_ended));
        let went = load.go_on(measured, |started, due| {
            took_ns.push(started.elapsed().as_nanos() as u64);
            late_ns.push(begun.elapsed().saturating_sub(due).as_nanos() as u64);
        });
        is_ended.store(true, Ordering::Relaxed);
        let used = looks.join().map_err(|_| anyhow::anyhow!("looking at the disk panicked"))?;
        went.and(used)
    })?;
    let bytes = (load.written - written) as f64 * RECORD_BYTES as f64;
    let mb_per_s = bytes / 1e6 / from.elapsed().as_secs_f64();
    let after = occupancy();
    if let Some(error) = &after.error {
        bail!("the keeper failed: {error}");
    }
    if let Some(damage) = after.damage.first() {
        bail!("the keeper found damage: {damage}");
    }
    // Before the journal that it keeps.
    drop(keeper);
    took_ns.sort_unstable();
    late_ns.sort_unstable();
    Ok(Run { took_ns, late_ns, mb_per_s, used_mib: used, kept: (before, after) })
}

/// Disk use now and then, MiB.
fn look(state: &Path, is_ended: &AtomicBool) -> Result<Vec<f64>> {
    let mut used = Vec::new();
    while !is_ended.load(Ordering::Relaxed) {
        used.push(mib(journal::disk_bytes(state)? as f64));
        sleep(LOOK_EVERY);
    }
    Ok(used)
}
