//! The append path beside what the disk and the kernel give without a journal, and the ways that
//! bytes could take to the disk beside each other: it decides which one the journal takes.
//!
//! What always holds: every way has its turn in each round, forth and back (A B, B A), in files of
//! its own on the same file system; times end when all is durable, but where the name says otherwise.
//! The journal's checksums are included.

use crate::mapped::MappedLog;
use crate::report::{Report, median};
use crate::{Scale, bench_dir, journal};
use afterimage_journal::format::record::Kind;
use afterimage_journal::log::{Backend, Draft};
use afterimage_journal::{Journal, Key, Options};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LARGE: usize = 128 << 10;
const LARGE_BYTES: u64 = 768 << 20;
const SMALL: usize = 4 << 10;
const SMALL_BYTES: u64 = 256 << 20;
/// What a record of 4 KiB takes, its header included.
const SMALL_RECORD: usize = SMALL + 64;
/// How long those who wait for each append go on.
const RUN: Duration = Duration::from_millis(1500);
const WAITERS: usize = 16;

/// How appends get to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Uring,
    Buffered,
    Direct,
    Mapped,
    /// What the journal takes by itself, with encryption.
    Encrypted,
}

/// The one that the journal takes where it can be had comes first, then the one that it falls back to.
const WAYS: [Way; 4] = [Way::Uring, Way::Buffered, Way::Direct, Way::Mapped];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Uring => "direct by io_uring",
            Self::Buffered => "buffered",
            Self::Direct => "direct by pwrite",
            Self::Mapped => "mapped",
            Self::Encrypted => "encrypted",
        }
    }

    fn begin(self, dir: &Path) -> Result<Log> {
        let backend = match self {
            Self::Uring => Backend::Uring,
            Self::Buffered => Backend::Plain,
            Self::Direct => Backend::Direct,
            Self::Encrypted => Backend::Auto,
            Self::Mapped => return Ok(Log::Mapped(MappedLog::begin(dir)?)),
        };
        let key = (self == Self::Encrypted).then(|| Key::new([7; 32].into()));
        let unit_wait = Duration::from_secs(30);
        let options = Options { backend, unit_wait, key, ..Options::default() };
        Ok(Log::Journal(Journal::create(dir, uuid::Uuid::new_v4(), "bench", options)?))
    }
}

enum Log {
    Journal(Journal),
    Mapped(MappedLog),
}

impl Log {
    fn append(&self, payload: &[u8]) -> Result<()> {
        let draft = Draft { volume: 1, len: payload.len() as u32, ..Draft::of(Kind::Write) };
        match self {
            Self::Journal(journal) => drop(journal.append(&draft, payload)?),
            Self::Mapped(log) => drop(log.append(payload)?),
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        match self {
            Self::Journal(journal) => drop(journal.sync()?),
            Self::Mapped(log) => log.sync()?,
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        if let Self::Journal(journal) = self {
            journal.close()?;
        }
        Ok(())
    }
}

/// fio's ways of writing a file in order.
const FIO: [(&str, &str, u32); 4] =
    [("io_uring", "128k", 32), ("io_uring", "1m", 8), ("io_uring", "1m", 32), ("libaio", "1m", 8)];

/// One thing that is measured in each round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Fio(usize),
    Large(Way),
    /// `pwrite` of what a 4 KiB record takes; gives two figures.
    Pwrite,
    Small(Way),
    SyncLoop,
    Waiters(Way),
}

type Figures = BTreeMap<(Step, bool), Vec<f64>>;

/// Measures.
pub fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    journal::need_room(4 << 30)?;
    let dir = TempDir::with_prefix_in("append-", bench_dir())?;
    let ways = available(dir.path())?;
    let each = |of: fn(Way) -> Step| ways.iter().map(move |way| of(*way));
    let mut steps: Vec<Step> = (0..FIO.len()).map(Step::Fio).collect();
    steps.extend(each(Step::Large));
    steps.push(Step::Pwrite);
    steps.extend(each(Step::Small));
    steps.extend([Step::Large(Way::Encrypted), Step::Small(Way::Encrypted)]);
    steps.push(Step::SyncLoop);
    steps.extend(each(Step::Waiters));
    let mut figures = Figures::new();
    for _ in 0..scale.rounds {
        for step in &steps {
            let (figure, unsynced) =
                run(*step, dir.path()).with_context(|| format!("measure {step:?}"))?;
            figures.entry((*step, true)).or_default().push(figure);
            figures.entry((*step, false)).or_default().extend(unsynced);
        }
        steps.reverse();
    }
    add_rows(report, &ways, &figures);
    Ok(())
}

/// The ways that can be had on this machine and file system.
fn available(dir: &Path) -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    for way in WAYS {
        let dir = dir.join("try");
        match way.begin(&dir) {
            Ok(log) => {
                log.end()?;
                ways.push(way);
            }
            Err(error) => println!("append: not measured: {}: {error:#}", way.name()),
        }
        let _ = std::fs::remove_dir_all(&dir);
    }
    if !ways.contains(&Way::Buffered) {
        bail!("no journal can be written to {}", dir.display());
    }
    Ok(ways)
}

fn add_rows(report: &mut Report, ways: &[Way], figures: &Figures) {
    let of = |step: Step, durable: bool| {
        median(figures.get(&(step, durable)).into_iter().flatten().copied())
    };
    let fios = FIO.iter().enumerate().map(|(i, way)| (of(Step::Fio(i), true), *way));
    let best = fios.max_by(|a, b| a.0.total_cmp(&b.0));
    let (fio, (engine, block, depth)) = best.unwrap_or((0.0, FIO[0]));
    let fio_name = format!("fio, sequential direct writes, best of 4: {engine} {block} QD{depth}");
    if let Some(plain) = ways.first() {
        add_encrypted(report, *plain, |step| of(step, true));
    }
    for (i, way) in ways.iter().enumerate() {
        // Aims are for what the journal does by itself.
        let aim = |text: &str| if i == 0 { format!(" (aim: ratio {text})") } else { String::new() };
        let name = way.name();
        report.add(
            format!("append of 128 KiB, durable: {name}{}", aim(">= 0.85")),
            (of(Step::Large(*way), true), fio),
            &fio_name,
            "MiB/s",
        );
        let small = of(Step::Small(*way), true);
        report.add(
            format!("append of 4 KiB, durable: {name}{}", aim(">= 0.7")),
            (small, of(Step::Pwrite, false)),
            "pwrite of the same, nothing durable",
            "MiB/s",
        );
        if i == 0 {
            report.add(
                format!("append of 4 KiB, durable: {name}"),
                (small, of(Step::Pwrite, true)),
                "pwrite of the same, one fdatasync in the end",
                "MiB/s",
            );
        }
        report.add(
            format!("{WAITERS} writers of 4 KiB that wait for each: {name}{}", aim(">= 8")),
            (of(Step::Waiters(*way), true), of(Step::SyncLoop, true)),
            "one loop of pwrite and fdatasync",
            "1/s",
        );
    }
}

/// What encryption costs: the same appends with it and without.
fn add_encrypted(report: &mut Report, plain: Way, of: impl Fn(Step) -> f64) {
    let large = ("128 KiB", of(Step::Large(Way::Encrypted)), of(Step::Large(plain)));
    let small = ("4 KiB", of(Step::Small(Way::Encrypted)), of(Step::Small(plain)));
    for (size, encrypted, clear) in [large, small] {
        report.add(
            format!("append of {size}, durable, encrypted"),
            (encrypted, clear),
            "the same in the clear",
            "MiB/s",
        );
    }
}

/// Does one thing; a second figure is what it was before anything had to be durable.
fn run(step: Step, dir: &Path) -> Result<(f64, Option<f64>)> {
    let (log, file) = (dir.join("log"), dir.join("file"));
    let figure = match step {
        Step::Fio(way) => fio(&file, FIO[way])?,
        Step::Large(way) => appends(way, &log, LARGE, LARGE_BYTES)?,
        Step::Small(way) => appends(way, &log, SMALL, SMALL_BYTES)?,
        Step::Waiters(way) => waiters(way, &log)?,
        Step::SyncLoop => sync_loop(&file)?,
        Step::Pwrite => {
            let (unsynced, synced) = pwrites(&file)?;
            return Ok((synced, Some(unsynced)));
        }
    };
    Ok((figure, None))
}

fn rate(total: u64, took: Duration) -> f64 {
    total as f64 / f64::from(1 << 20) / took.as_secs_f64()
}

/// MiB/s of appends of this size, all durable in the end.
fn appends(way: Way, dir: &Path, bytes: usize, total: u64) -> Result<f64> {
    let log = way.begin(dir)?;
    let payload = vec![7; bytes];
    let start = Instant::now();
    for _ in 0..total / bytes as u64 {
        log.append(&payload)?;
    }
    log.sync()?;
    let took = start.elapsed();
    log.end()?;
    std::fs::remove_dir_all(dir)?;
    Ok(rate(total, took))
}

/// MiB/s of plain writes of the same bytes in the same pieces into the page cache, and with one sync
/// in the end.
fn pwrites(path: &Path) -> Result<(f64, f64)> {
    let file = File::create(path)?;
    let record = vec![7; SMALL_RECORD];
    let start = Instant::now();
    for i in 0..SMALL_BYTES / SMALL as u64 {
        file.write_all_at(&record, i * SMALL_RECORD as u64)?;
    }
    let unsynced = start.elapsed();
    file.sync_data()?;
    let synced = start.elapsed();
    std::fs::remove_file(path)?;
    Ok((rate(SMALL_BYTES, unsynced), rate(SMALL_BYTES, synced)))
}

/// Appends a second that are each waited for, by several threads.
fn waiters(way: Way, dir: &Path) -> Result<f64> {
    let log = way.begin(dir)?;
    let count = AtomicU64::new(0);
    let start = Instant::now();
    let ended: Vec<Result<()>> = std::thread::scope(|scope| {
        let wait = || {
            while start.elapsed() < RUN {
                log.append(&[7; SMALL])?;
                log.sync()?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..WAITERS).map(|_| scope.spawn(wait)).collect();
        let panicked = || anyhow::anyhow!("a writer panicked");
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(panicked()))).collect()
    });
    let each = count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    ended.into_iter().collect::<Result<()>>()?;
    log.end()?;
    std::fs::remove_dir_all(dir)?;
    Ok(each)
}

/// Writes a second of one loop that waits for each, into blocks that were written before: the file
/// system has nothing to note but the data.
fn sync_loop(path: &Path) -> Result<f64> {
    const PLACES: u64 = 4096;
    let file = File::create(path)?;
    file.write_all_at(&vec![1; PLACES as usize * SMALL_RECORD], 0)?;
    file.sync_all()?;
    let (mut count, start) = (0u64, Instant::now());
    while start.elapsed() < RUN {
        file.write_all_at(&[7; SMALL_RECORD], count % PLACES * SMALL_RECORD as u64)?;
        file.sync_data()?;
        count += 1;
    }
    let each = count as f64 / start.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(each)
}

/// MiB/s of fio's sequential direct writes, durable in the end.
fn fio(path: &Path, (engine, block, depth): (&str, &str, u32)) -> Result<f64> {
    let output = Command::new("fio")
        .args(["--name=w", "--rw=write", "--direct=1", "--end_fsync=1", "--fallocate=native"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--ioengine={engine}"))
        .args([format!("--bs={block}"), format!("--iodepth={depth}")])
        .args([format!("--size={LARGE_BYTES}"), "--output-format=terse".to_owned()])
        .output()
        .context("start fio (tests/guest/install.sh installs it)")?;
    let _ = std::fs::remove_file(path);
    let text = String::from_utf8_lossy(&output.stdout);
    // Field 48 of the terse format: KiB/s of writes.
    let kib = text.lines().find_map(|line| line.split(';').nth(47)?.parse::<f64>().ok());
    match kib.filter(|kib| *kib > 0.0) {
        Some(kib) => Ok(kib / 1024.0),
        None => bail!("fio: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}
