//! How fast `afterimage restore` writes an image, beside `cp` of that image: both read from cold
//! caches, and both end when what they wrote is durable.

use crate::journal::{self, NAME, Writing, Written};
use crate::number;
use crate::report::{Report, median};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

/// What initial sync copies at a time.
const COPY_BYTES: usize = 256 << 10;
const BLOCK_BYTES: usize = 4096;

/// Measures; the image's size, `AFTERIMAGE_BENCH_RESTORE_GIB` says (2; 8 is the aim's).
pub fn measure(report: &mut Report) -> Result<()> {
    let gib = number("AFTERIMAGE_BENCH_RESTORE_GIB", 2)?.max(1);
    let bytes = gib << 30;
    journal::need_room(bytes * 4)?;
    let journal = half_overwritten(bytes)?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..journal::rounds()? {
        let dir = TempDir::with_prefix_in("restored-", crate::bench_dir())?;
        let to = dir.path().join("ours");
        ours.push(restore(&journal, &to)?);
        let image = image_in(&to)?;
        let copy = dir.path().join("copy");
        peers.push(copy_of(&image, &copy)?);
        if File::open(&copy)?.metadata()?.len() != bytes {
            bail!("the restored image is not of {bytes} bytes");
        }
    }
    report.add(
        format!("restore, {gib} GiB, half its blocks overwritten, cold to synced: duration"),
        (median(ours), median(peers)),
        "cp --reflink=never of the image",
        "s",
    );
    Ok(())
}

/// A volume that was copied whole, and then half of its blocks overwritten, in random order.
fn half_overwritten(bytes: u64) -> Result<Written> {
    let mut writing = Writing::begin(bytes)?;
    for addr in (0..bytes).step_by(COPY_BYTES) {
        writing.write(addr, COPY_BYTES)?;
    }
    let blocks = bytes / BLOCK_BYTES as u64;
    // An odd step through a power of two meets each block once, in no order a disk could guess;
    // of another number of blocks it may meet some twice, which changes nothing that is measured.
    let step = (0x9e37_79b1 % blocks) | 1;
    for i in 0..blocks / 2 {
        let block = i.wrapping_mul(step) % blocks;
        writing.write(block * BLOCK_BYTES as u64, BLOCK_BYTES)?;
    }
    writing.finish(bytes + bytes / 2)
}

fn restore(journal: &Written, to: &Path) -> Result<f64> {
    journal::make_cold(journal.state())?;
    let started = Instant::now();
    let mut command = journal.command(&["restore", NAME, "--at", "latest"]);
    command.arg("--to").arg(to);
    run(command)?;
    File::open(image_in(to)?)?.sync_all()?;
    Ok(started.elapsed().as_secs_f64())
}

fn copy_of(image: &Path, copy: &Path) -> Result<f64> {
    journal::make_cold(image.parent().context("an image lies in a directory")?)?;
    let started = Instant::now();
    let mut command = Command::new("cp");
    command.arg("--reflink=never").arg(image).arg(copy);
    run(command)?;
    File::open(copy)?.sync_all()?;
    Ok(started.elapsed().as_secs_f64())
}

fn run(mut command: Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.stdout(Stdio::null()).status().with_context(|| format!("run {name}"))?;
    if status.success() { Ok(()) } else { bail!("{name}: {status}") }
}

/// The largest file of a restore: the image; the other ones are scripts.
fn image_in(dir: &Path) -> Result<std::path::PathBuf> {
    let mut found: Vec<(u64, std::path::PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        found.push((entry.metadata()?.len(), entry.path()));
    }
    found.into_iter().max().map(|(_, path)| path).context("a restore leaves an image")
}
