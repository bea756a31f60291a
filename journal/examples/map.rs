//! How fast map runs are: writes runs of random 4 KiB pieces, merges them, looks pieces up.
//!
//! `cargo run --release -p afterimage-journal --example map -- [PIECES] [DIR]`; DIR defaults to the
//! temporary directory, PIECES to ten million over 100 GiB.

use afterimage_journal::Result;
use afterimage_journal::map::{Layer, MemRun, Piece, RunWriter, Span, Stack, compact};
use afterimage_journal::storage::RealStorage;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

const VOLUME_BLOCKS: u64 = (100 << 30) / 4096;
const RUN_PIECES: u64 = 262_144;

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let pieces: u64 = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let dir = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join(format!("afterimage-map-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| afterimage_journal::Error::io("make", &dir, e))?;
    let result = measure(pieces, &dir);
    let _ = std::fs::remove_dir_all(&dir);
    result
}

fn measure(pieces: u64, dir: &std::path::Path) -> Result<()> {
    let (storage, group) = (RealStorage::shared(), uuid::Uuid::from_u128(1));
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut layers: Vec<Layer> = Vec::new();
    let (mut built_ms, mut seq) = (0, 0);
    let started = Instant::now();
    for run in 0..pieces.div_ceil(RUN_PIECES) {
        let records = (0..RUN_PIECES.min(pieces - seq)).map(|_| {
            seq += 1;
            let start = random(&mut state) % VOLUME_BLOCKS * 4096;
            (0, Piece { start, end: start + 4096, rank: seq, seq, zero: false })
        });
        let records: Vec<_> = records.collect();
        let building = Instant::now();
        let mem = MemRun::build(records);
        built_ms += building.elapsed().as_millis();
        let span = Span {
            level: 1,
            first_unit: run * 16 + 1,
            last_unit: run * 16 + 16,
            first_seq: 1,
            last_seq: seq,
        };
        let mut writer = RunWriter::create(&storage, dir, group, &span)?;
        mem.pieces().iter().try_for_each(|(volume, piece)| writer.push(*volume, piece))?;
        layers.push(Arc::new(writer.finish()?).into());
    }
    println!(
        "{} runs of {RUN_PIECES} pieces: {:?}, of that sorting {built_ms} ms",
        layers.len(),
        started.elapsed()
    );
    println!("peak RSS so far {} MiB", rss_mib());
    look_up("all of them", &Stack::new(layers.clone()), &mut state)?;
    let started = Instant::now();
    let span = Span { level: 0, first_unit: 1, last_unit: 9999, first_seq: 1, last_seq: seq };
    let writer = RunWriter::create(&storage, dir, group, &span)?;
    let run = Arc::new(compact(&layers, writer, |_, _| Ok(()))?);
    println!(
        "merged into one of {} pieces, {} MiB: {:?}",
        run.pieces(),
        run.bytes() >> 20,
        started.elapsed()
    );
    look_up("the merged one", &Stack::new(vec![run.into()]), &mut state)?;
    println!("peak RSS {} MiB", rss_mib());
    Ok(())
}

fn look_up(what: &str, stack: &Stack, state: &mut u64) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..5000 {
        let at = random(state) % VOLUME_BLOCKS * 4096;
        let started = Instant::now();
        std::hint::black_box(stack.find(0, at..at + 4096)?);
        took.push(started.elapsed());
    }
    took.sort_unstable();
    let (median, high) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!("find in {what}: median {median:?}, p99 {high:?}");
    Ok(())
}
