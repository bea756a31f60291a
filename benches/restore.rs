//! How fast `afterimage restore` writes an image, beside `cp` of that image: both read from cold
//! caches, and both end when what they wrote is durable. And how much memory it takes, for a long
//! journal and a short one.

use crate::journal::{self, NAME, Rng, Writing, Written};
use crate::number;
use crate::report::{Report, median};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What initial sync copies at a time.
const COPY_BYTES: usize = 256 << 10;
const BLOCK_BYTES: u64 = 4096;
/// A guest's longest write, in blocks.
const WRITE_BLOCKS_MAX: u64 = 32;
/// The volume of a journal that has only writes of a block each.
const SMALL_VOLUME_BYTES: u64 = 4 << 30;

/// Measures; the image's size, `AFTERIMAGE_BENCH_RESTORE_GIB` says (2; 8 is the aim's), and how many
/// records the long journal has, `AFTERIMAGE_BENCH_RESTORE_RECORDS` (1,200,000).
pub fn measure(report: &mut Report) -> Result<()> {
    duration(report)?;
    memory(report)
}

fn duration(report: &mut Report) -> Result<()> {
    let gib = number("AFTERIMAGE_BENCH_RESTORE_GIB", 2)?.max(1);
    let bytes = gib << 30;
    journal::need_room(bytes * 4)?;
    let journal = half_overwritten(bytes)?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..journal::rounds()? {
        let dir = TempDir::with_prefix_in("restored-", crate::bench_dir())?;
        let to = dir.path().join("ours");
        ours.push(restore(&journal, &to)?.seconds);
        let image = image_in(&to)?;
        let copy = dir.path().join("copy");
        peers.push(copy_of(&image, &copy)?);
        if File::open(&copy)?.metadata()?.len() != bytes {
            bail!("the restored image is not of {bytes} bytes");
        }
    }
    report.add(
        format!(
            "restore, {gib} GiB, half of them overwritten by writes of 4 to 128 KiB, cold to \
             synced: duration (aim: ratio <= 1.25)"
        ),
        (median(ours), median(peers)),
        "cp --reflink=never of the image",
        "s",
    );
    Ok(())
}

fn memory(report: &mut Report) -> Result<()> {
    let records = number("AFTERIMAGE_BENCH_RESTORE_RECORDS", 1_200_000)?.max(10_000);
    journal::need_room(records * 4500 + SMALL_VOLUME_BYTES)?;
    let mut took = Vec::new();
    for records in [records, records / 10] {
        let journal = journal::random(SMALL_VOLUME_BYTES, records, BLOCK_BYTES as usize)?;
        let dir = TempDir::with_prefix_in("restored-", crate::bench_dir())?;
        took.push(restore(&journal, &dir.path().join("ours"))?);
    }
    let [long, short] = &took[..] else { bail!("two journals are restored") };
    let peer = format!("the same, {} records", records / 10);
    report.add(
        format!("restore, {records} records of 4 KiB over 4 GiB: peak memory (aim: <= 512 MiB)"),
        (long.rss_mib, short.rss_mib),
        &peer,
        "MiB",
    );
    report.add("the same: duration".to_owned(), (long.seconds, short.seconds), &peer, "s");
    Ok(())
}

/// A volume that was copied whole, and then overwritten by random writes of 4 to 128 KiB, half as
/// many bytes as it has.
pub fn half_overwritten(bytes: u64) -> Result<Written> {
    let mut writing = Writing::begin(bytes)?;
    for addr in (0..bytes).step_by(COPY_BYTES) {
        writing.write(addr, COPY_BYTES)?;
    }
    let mut rng = Rng(0x2545_f491_4f6c_dd1d);
    let mut left = bytes / 2;
    while left > 0 {
        let blocks = 1 + rng.next() % WRITE_BLOCKS_MAX.min(left / BLOCK_BYTES);
        let addr = rng.next() % (bytes / BLOCK_BYTES - blocks) * BLOCK_BYTES;
        writing.write(addr, (blocks * BLOCK_BYTES) as usize)?;
        left -= blocks * BLOCK_BYTES;
    }
    writing.finish(bytes + bytes / 2)
}

/// What a restore took.
struct Took {
    seconds: f64,
    rss_mib: f64,
}

fn restore(journal: &Written, to: &Path) -> Result<Took> {
    journal::make_cold(journal.state())?;
    let started = Instant::now();
    let mut command = journal.command(&["restore", NAME, "--at", "latest"]);
    command.arg("--to").arg(to).stdout(Stdio::null());
    let mut child = command.spawn().context("start afterimage restore")?;
    let mut rss_mib = 0.0;
    let status = loop {
        // What it has had at most only grows: what was read last is nearly the end's.
        rss_mib = journal::peak_rss_mib(child.id()).unwrap_or(0.0).max(rss_mib);
        match child.try_wait()? {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    if !status.success() {
        bail!("afterimage restore: {status}");
    }
    File::open(image_in(to)?)?.sync_all()?;
    Ok(Took { seconds: started.elapsed().as_secs_f64(), rss_mib })
}

fn copy_of(image: &Path, copy: &Path) -> Result<f64> {
    journal::make_cold(image.parent().context("an image lies in a directory")?)?;
    let started = Instant::now();
    let status =
        Command::new("cp").arg("--reflink=never").args([image, copy]).status().context("run cp")?;
    if !status.success() {
        bail!("cp: {status}");
    }
    File::open(copy)?.sync_all()?;
    Ok(started.elapsed().as_secs_f64())
}

/// The largest file of a restore: the image; the other ones are scripts.
pub fn image_in(dir: &Path) -> Result<std::path::PathBuf> {
    let mut found: Vec<(u64, std::path::PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        found.push((entry.metadata()?.len(), entry.path()));
    }
    found.into_iter().max().map(|(_, path)| path).context("a restore leaves an image")
}
