//! `make bench`: Afterimage beside its peers, in one run on one machine.
//!
//! ```text
//! mirror   fio ─► qemu-storage-daemon ─mirror─► our capture        A B B A ..
//!                                     ─mirror─► nbdkit memory
//! direct   fio ─► our capture, nbdkit file, qemu-nbd               in turn
//! guest    8 writers in a real guest; the agent killed or stopped, and left alone, in turn
//! checkpoint  a guest's memory by us, and by QEMU alone            A B C A B C ..
//! append   the journal's append path by each way to the disk, fio, pwrite   A .. Z, Z .. A ..
//! lookup   a block of a file by pread, through a mapping
//! stream   a migration stream in memory: read, hashed, written, copied   in turn
//! export   the first block of a random moment: a long journal, a short one   A B B A ..
//! restore  afterimage restore, cp of what it restored
//! s3       a restore from a bucket, a plain download of its objects; shipping to it at a steady rate
//! ship     capture with its journal on its way to a site and without; nbdcopy over TLS; an outage
//! space    bytes kept for bytes captured
//! sliding  capture at a steady rate, with merging behind it and without
//! memory-intake  a guest's memory over a unix socket: compared and spooled, read to nowhere
//! ```
//!
//! What always holds: both sides of a figure are measured in the same run, in short rounds that
//! take turns, under the same load; the figures are medians over the rounds. Our side is always
//! the real way of a write: NBD server, journal on the file system of the target directory, guard.
//! What could not be measured makes the run fail in the end: no figure is left out silently.

mod append;
mod capture;
mod checkpoint;
mod direct;
mod export;
mod fio;
mod guest;
mod journal;
#[path = "../tests/kit/mod.rs"]
mod kit;
mod lookup;
mod mapped;
mod memory;
mod mirror;
mod peers;
mod report;
mod restore;
mod s3;
mod ship;
mod sliding;
mod space;
mod stream;

use anyhow::{Context, Result, bail};
use report::Report;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// The volume that the loads write to, in bytes.
pub const VOLUME_BYTES: u64 = 512 << 20;

/// How much is measured; each has an environment variable, so that a change can be tried quickly.
pub struct Scale {
    /// Rounds of each load (`AFTERIMAGE_BENCH_ROUNDS`).
    pub rounds: usize,
    /// Length of one run of a load, in milliseconds (`AFTERIMAGE_BENCH_RUN_MS`).
    pub run_ms: u64,
    /// Rounds of each fault under the guest (`AFTERIMAGE_BENCH_GUEST_ROUNDS`).
    pub guest_rounds: usize,
}

impl Scale {
    fn from_env() -> Result<Self> {
        Ok(Self {
            rounds: number("AFTERIMAGE_BENCH_ROUNDS", 5)?.max(1) as usize,
            run_ms: number("AFTERIMAGE_BENCH_RUN_MS", 1000)?.max(100),
            guest_rounds: number("AFTERIMAGE_BENCH_GUEST_ROUNDS", 20)?.max(1) as usize,
        })
    }
}

fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}: give a number")),
        Err(_) => Ok(default),
    }
}

/// Where journals, the peers' files and the report lie: on a real file system.
pub fn bench_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench")
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == capture::ROLE) {
        return capture::main(&words[1..]);
    }
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

type Measure = fn(&Scale, &mut Report) -> Result<()>;

/// In the order in which they run; what each one measures, for errors.
const SECTIONS: [(&str, &str, Measure); 14] = [
    ("mirror", "hot attach beside nbdkit memory", mirror::measure),
    ("direct", "NBD server beside its peers", direct::measure),
    ("guest", "worst write of a guest", guest::measure),
    ("checkpoint", "checkpoints of a guest's memory", |_, report| checkpoint::measure(report)),
    ("append", "appends beside fio and pwrite", append::measure),
    ("lookup", "blocks by pread and by mapping", lookup::measure),
    ("stream", "migration stream beside memcpy", stream::measure),
    ("export", "first block of an export", |_, report| export::measure(report)),
    ("restore", "restore beside cp", |_, report| restore::measure(report)),
    ("s3", "restore from a bucket and lag to it", |_, report| s3::measure(report)),
    ("ship", "shipping to a site", |_, report| ship::measure(report)),
    ("space", "bytes kept for bytes captured", |_, report| space::measure(report)),
    ("sliding", "capture beside merging", |_, report| sliding::measure(report)),
    ("memory-intake", "guest memory taken in", memory::measure),
];

fn run(words: &[String]) -> Result<()> {
    // Cargo adds `--bench`.
    let wanted: Vec<&str> = words.iter().map(String::as_str).filter(|w| *w != "--bench").collect();
    let names = SECTIONS.map(|(name, ..)| name);
    if let Some(unknown) = wanted.iter().find(|word| !names.contains(word)) {
        bail!("there is no section {unknown:?}: choose of {names:?}, or give none for all");
    }
    let scale = Scale::from_env()?;
    std::fs::create_dir_all(bench_dir()).context("make target/bench")?;
    let begun = Instant::now();
    let mut report = Report::default();
    let mut failed = Vec::new();
    println!("{}", report::machine());
    for (name, what, measure) in SECTIONS {
        if !wanted.is_empty() && !wanted.contains(&name) {
            continue;
        }
        let section_begun = Instant::now();
        // The others are worth having, but the run has failed.
        if let Err(error) = measure(&scale, &mut report) {
            eprintln!("bench: {name}: {what}: {error:#}");
            failed.push(name);
        }
        println!("{name}: {:.0} s", section_begun.elapsed().as_secs_f64());
        report.save(&bench_dir())?;
    }
    report.print();
    let path = report.save(&bench_dir())?;
    println!("{}", report::machine());
    println!("{:.0} s; written to {}", begun.elapsed().as_secs_f64(), path.display());
    if !failed.is_empty() {
        bail!("not measured, or not all of it: {}", failed.join(", "));
    }
    Ok(())
}
