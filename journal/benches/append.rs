//! The append path beside what the disk and the kernel give without a journal.
//!
//! ```text
//! cargo bench -p afterimage-journal --bench append [-- DIR]      DIR on the disk that counts
//! ```
//!
//! Each figure is the median of some rounds (`AFTERIMAGE_BENCH_ROUNDS`); in each round, all ways take
//! their turn, in files of their own on the same file system. The journal's checksums are included.

use afterimage_journal::format::record::Kind;
use afterimage_journal::log::{Backend, Draft};
use afterimage_journal::{Journal, Options};
use std::error::Error;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const LARGE_BYTES: u64 = 768 << 20;
const SMALL_BYTES: u64 = 256 << 20;
const RUN: Duration = Duration::from_millis(1500);
const WAITERS: usize = 16;
const BACKENDS: [Backend; 3] = [Backend::Uring, Backend::Direct, Backend::Plain];

fn journal(dir: &Path, backend: Backend) -> Result<Journal> {
    let unit_wait = Duration::from_secs(30);
    let options = Options { backend, unit_wait, ..Options::default() };
    Ok(Journal::create(dir, uuid::Uuid::new_v4(), "bench", options)?)
}

fn draft(bytes: usize) -> Draft {
    Draft { volume: 1, len: bytes as u32, ..Draft::of(Kind::Write) }
}

/// MiB/s of appends of this size, all durable in the end.
fn appends(dir: &Path, backend: Backend, bytes: usize, total: u64) -> Result<f64> {
    let journal = journal(dir, backend)?;
    let payload = vec![7; bytes];
    let start = Instant::now();
    for _ in 0..total / bytes as u64 {
        journal.append(&draft(bytes), &payload)?;
    }
    journal.sync()?;
    let took = start.elapsed();
    journal.close()?;
    std::fs::remove_dir_all(dir)?;
    Ok(rate(total, took))
}

fn rate(total: u64, took: Duration) -> f64 {
    total as f64 / f64::from(1 << 20) / took.as_secs_f64()
}

/// MiB/s of plain writes of the same bytes, into the page cache; `synced`: durable in the end.
fn pwrites(path: &Path, bytes: usize, total: u64) -> Result<(f64, f64)> {
    let file = std::fs::File::create(path)?;
    let payload = vec![7; bytes + 64];
    let start = Instant::now();
    for i in 0..total / bytes as u64 {
        file.write_all_at(&payload, i * payload.len() as u64)?;
    }
    let unsynced = start.elapsed();
    file.sync_data()?;
    let synced = start.elapsed();
    std::fs::remove_file(path)?;
    Ok((rate(total, unsynced), rate(total, synced)))
}

/// Appends a second that are each waited for, by several threads.
fn waiters(dir: &Path, backend: Backend, threads: usize) -> Result<f64> {
    let journal = journal(dir, backend)?;
    let count = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while start.elapsed() < RUN {
                    let appended = journal.append(&draft(4096), &[7; 4096]);
                    if appended.is_err() || journal.sync().is_err() {
                        return;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let each = count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    journal.close()?;
    std::fs::remove_dir_all(dir)?;
    Ok(each)
}

/// Writes a second of one loop that waits for each, into blocks that were written before: the file
/// system has nothing to note but the data.
fn sync_loop(path: &Path) -> Result<f64> {
    let file = std::fs::File::create(path)?;
    const PLACES: u64 = 4096;
    file.write_all_at(&vec![1; PLACES as usize * 4160], 0)?;
    file.sync_all()?;
    let (mut count, start) = (0u64, Instant::now());
    while start.elapsed() < RUN {
        file.write_all_at(&[7; 4160], count % PLACES * 4160)?;
        file.sync_data()?;
        count += 1;
    }
    let each = count as f64 / start.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(each)
}

/// MiB/s of fio's sequential direct writes, durable in the end; the best of a few ways.
fn fio(dir: &Path) -> Result<(f64, String)> {
    let mut best = (0.0, String::new());
    for (engine, block, depth) in [
        ("io_uring", "128k", 32),
        ("io_uring", "1m", 8),
        ("io_uring", "1m", 32),
        ("libaio", "1m", 8),
    ] {
        let path = dir.join("fio");
        let output = Command::new("fio")
            .args(["--name=w", "--rw=write", "--direct=1", "--end_fsync=1", "--fallocate=native"])
            .arg(format!("--filename={}", path.display()))
            .arg(format!("--ioengine={engine}"))
            .args([format!("--bs={block}"), format!("--iodepth={depth}")])
            .args([format!("--size={LARGE_BYTES}"), "--output-format=terse".to_owned()])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Field 48 of the terse format, from 0: KiB/s of writes.
        let kib: f64 = text.trim().split(';').nth(47).and_then(|f| f.parse().ok()).unwrap_or(0.0);
        if kib / 1024.0 > best.0 {
            best = (kib / 1024.0, format!("fio {engine} {block} depth {depth}"));
        }
        let _ = std::fs::remove_file(&path);
    }
    Ok(best)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

fn main() -> Result<()> {
    let dir = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let dir = dir.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../target").to_owned());
    let dir = Path::new(&dir).join(format!("append-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let rounds = std::env::var("AFTERIMAGE_BENCH_ROUNDS").ok().and_then(|r| r.parse().ok());
    let (mut peers, mut ours) = (vec![vec![]; 4], vec![vec![]; 3 * BACKENDS.len()]);
    let mut best = String::new();
    for _ in 0..rounds.unwrap_or(3) {
        let (figure, way) = fio(&dir)?;
        best = way;
        peers[0].push(figure);
        let (unsynced, synced) = pwrites(&dir.join("f"), 4096, SMALL_BYTES)?;
        peers[1].push(unsynced);
        peers[2].push(synced);
        peers[3].push(sync_loop(&dir.join("f"))?);
        for (i, backend) in BACKENDS.into_iter().enumerate() {
            let journal = dir.join("j");
            ours[3 * i].push(appends(&journal, backend, 128 << 10, LARGE_BYTES)?);
            ours[3 * i + 1].push(appends(&journal, backend, 4096, SMALL_BYTES)?);
            ours[3 * i + 2].push(waiters(&journal, backend, WAITERS)?);
        }
    }
    std::fs::remove_dir(&dir)?;
    let peers: Vec<f64> = peers.into_iter().map(median).collect();
    println!(
        "peers: {best} {:.0} MiB/s; pwrite of 4 KiB {:.0} MiB/s, with one",
        peers[0], peers[1]
    );
    println!("fdatasync {:.0} MiB/s; pwrite + fdatasync loop {:.0}/s", peers[2], peers[3]);
    println!(
        "{:8} {:>22} {:>22} {:>22}",
        "backend", "128 KiB MiB/s (fio)", "4 KiB (pwrite)", "waiters"
    );
    let mut ours = ours.into_iter().map(median);
    for backend in BACKENDS {
        print!("{:8}", format!("{backend:?}"));
        for peer in [peers[0], peers[1], peers[3]] {
            let figure = ours.next().unwrap_or(0.0);
            print!(" {:>22}", format!("{figure:.0} ({:.2})", figure / peer));
        }
        println!();
    }
    Ok(())
}
