//! What a sliding window costs capture: appends at a steady rate, with the keeper moving the edge
//! and merging behind it, beside the same with nothing behind it. And whether the disk use of a
//! window that slides stays flat.

use crate::journal::{self, Rng, Writing};
use crate::number;
use crate::report::{Report, median};
use afterimage_journal::clock::SystemClock;
use afterimage_journal::keeper::{Home, KeeperThread, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::storage::RealStorage;
use afterimage_journal::window::Limits;
use anyhow::{Context, Result, bail};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What the guest writes to, over and over: small enough for the base to become whole soon.
const VOLUME_BYTES: u64 = 1 << 30;
const RECORD_BYTES: usize = 16 << 10;
const RATE_BYTES_PER_S: f64 = 150e6;
/// How far back the window reaches.
const WINDOW: Duration = Duration::from_secs(4);
/// How often disk use is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One run.
struct Run {
    p99_us: f64,
    mb_per_s: f64,
    /// Disk use in the first and in the last third, MiB: medians.
    first_mib: f64,
    last_mib: f64,
    merged_mib: f64,
}

/// Measures; for how long each, `AFTERIMAGE_BENCH_SLIDING_S` says: a quarter of it warms up.
pub fn measure(report: &mut Report) -> Result<()> {
    let seconds = number("AFTERIMAGE_BENCH_SLIDING_S", 60)?.max(16);
    journal::need_room((seconds * RATE_BYTES_PER_S as u64) * 5 / 4 + (4 << 30))?;
    let total = Duration::from_secs(seconds);
    let peer = run(total, false).context("without a keeper")?;
    let ours = run(total, true).context("with a keeper")?;
    let what = format!("capture at 150 MB/s for {seconds} s, window of {} s", WINDOW.as_secs());
    let alone = "nothing merged";
    report.add(
        format!("{what}: p99 of an append of 16 KiB (aim: ratio <= 1.2)"),
        (ours.p99_us, peer.p99_us),
        alone,
        "us",
    );
    report.add(format!("{what}: rate"), (ours.mb_per_s, peer.mb_per_s), alone, "MB/s");
    report.add(
        format!("{what}: disk use, last third (aim: ratio <= 1.1)"),
        (ours.last_mib, ours.first_mib),
        "its first third",
        "MiB",
    );
    report.add(
        format!("{what}: written by merging"),
        (ours.merged_mib, RATE_BYTES_PER_S * seconds as f64 / f64::from(1 << 20)),
        "captured",
        "MiB",
    );
    Ok(())
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
        limits: Limits::new(window_ns, None),
    })?;
    let shared = keeper.shared();
    writing.journal().on_sealed(move |number| shared.sealed(number));
    Ok(keeper)
}

fn run(total: Duration, keep: bool) -> Result<Run> {
    let mut writing = Writing::begin(VOLUME_BYTES)?;
    let keeper = if keep { Some(keeper_of(&writing)?) } else { None };
    let mut rng = Rng(0x2545_f491_4f6c_dd1d);
    let mut took_ns: Vec<u64> = Vec::new();
    let mut used: Vec<(Duration, f64)> = Vec::new();
    let begun = Instant::now();
    let (mut bytes, mut looked) = (0.0, Duration::ZERO);
    while begun.elapsed() < total {
        let due = begun.elapsed().as_secs_f64() * RATE_BYTES_PER_S;
        while bytes < due {
            let addr = rng.next() % (VOLUME_BYTES / RECORD_BYTES as u64) * RECORD_BYTES as u64;
            let started = Instant::now();
            writing.write(addr, RECORD_BYTES)?;
            took_ns.push(started.elapsed().as_nanos() as u64);
            bytes += RECORD_BYTES as f64;
        }
        let now = begun.elapsed();
        if now >= looked + LOOK_EVERY {
            looked = now;
            used.push((now, journal::disk_bytes(writing.state())? as f64 / f64::from(1 << 20)));
        }
        sleep(Duration::from_micros(500));
    }
    let mb_per_s = bytes / 1e6 / begun.elapsed().as_secs_f64();
    let occupancy = keeper.as_ref().map(|k| k.shared().occupancy()).unwrap_or_default();
    if let Some(error) = occupancy.error {
        bail!("the keeper failed: {error}");
    }
    drop(keeper);
    // The first quarter fills the window and the base.
    let warm = took_ns.len() / 4;
    let mut warm_ns = took_ns.split_off(warm);
    warm_ns.sort_unstable();
    let p99_us = warm_ns[warm_ns.len() * 99 / 100] as f64 / 1e3;
    let (from, third) = (total / 4, total / 4);
    let between = |from: Duration| {
        let inside = used.iter().filter(move |(at, _)| (from..from + third).contains(at));
        median(inside.map(|(_, mib)| *mib))
    };
    let merged_mib = occupancy.merged_bytes as f64 / f64::from(1 << 20);
    Ok(Run {
        p99_us,
        mb_per_s,
        first_mib: between(from),
        last_mib: between(total - third),
        merged_mib,
    })
}
