//! Journals to measure restores, exports and space on, written through the real append path; and
//! what all of these need: cold caches, bytes on disk, a program's time and memory.

use crate::{bench_dir, number};
use afterimage_journal::clock::SystemClock;
use afterimage_journal::format::record::Kind;
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::log::Draft;
use afterimage_journal::merge::Unpaced;
use afterimage_journal::meta::{Config, Guest, Meta, Session, SessionEvent, Volume, VolumeKind};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::window::Limits;
use afterimage_journal::{Journal, Options, Seq, layout};
use anyhow::{Context, Result, bail};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use uuid::Uuid;

/// The group and the guest of a written journal.
pub const NAME: &str = "bench";
/// How long an append may wait for the disk: nothing here has a guest behind it.
const UNIT_WAIT: Duration = Duration::from_secs(120);
/// A window that nothing here grows out of: a day.
const WINDOW_NS: u64 = 86_400 * 1_000_000_000;
/// One of so many records is remembered, to be asked for.
const SAMPLE_EVERY: u64 = 499;

/// xorshift64.
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A record whose content is known: at its own position it is the newest at its address.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Its position.
    pub seq: Seq,
    /// Its byte address.
    pub addr: u64,
}

/// A journal being written, in a state directory of its own, which goes when the journal is closed.
pub struct Writing {
    journal: Journal,
    state: TempDir,
    volume_bytes: u64,
    payload: Vec<u8>,
    written: u64,
    samples: Vec<Sample>,
}

/// A closed one. Dropping it removes it.
pub struct Written {
    state: TempDir,
    /// Payload bytes of all records.
    pub captured_bytes: u64,
    /// Some of its records.
    pub samples: Vec<Sample>,
}

impl Writing {
    /// Begins a journal with one volume and a session in which every position counts.
    pub fn begin(volume_bytes: u64) -> Result<Self> {
        let state = TempDir::with_prefix_in("state-", bench_dir())?;
        layout::check_state(state.path(), true)?;
        let group = Uuid::new_v4();
        let options = Options { unit_wait: UNIT_WAIT, ..Options::default() };
        let journal =
            Journal::create(&layout::journal_dir(state.path(), NAME)?, group, NAME, options)?;
        journal.set_config(&config(group, volume_bytes))?;
        journal.append_meta(&Meta::Session(Session {
            id: 1,
            guest: NAME.into(),
            event: SessionEvent::Open,
            reason: "bench".into(),
            upto: None,
            full: true,
            images: vec![],
            maps: vec![],
        }))?;
        // Bytes that no compression shortens, so that what is measured holds for any guest.
        let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
        let payload = (0..(1 << 20) / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
        Ok(Self { state, journal, volume_bytes, payload, written: 0, samples: Vec::new() })
    }

    /// Appends one write: its address in the first 8 bytes of each 4 KiB, and its number behind.
    pub fn write(&mut self, addr: u64, bytes: usize) -> Result<Seq> {
        let from = (self.written as usize * 4096) % (self.payload.len() / 2);
        let payload = &mut self.payload[from..from + bytes];
        for (i, block) in (0..).zip(payload.chunks_exact_mut(4096)) {
            let stamp = stamp(addr + i * 4096);
            block[..16].copy_from_slice(&stamp);
        }
        let draft = Draft { volume: 1, addr, len: bytes as u32, ..Draft::of(Kind::Write) };
        let seq = self.journal.append(&draft, payload)?;
        if self.written.is_multiple_of(SAMPLE_EVERY) {
            self.samples.push(Sample { seq, addr });
        }
        self.written += 1;
        Ok(seq)
    }

    /// The journal itself.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// Appends `records` writes of `bytes` each, at random places.
    pub fn write_random(&mut self, records: u64, bytes: usize) -> Result<()> {
        let places = self.volume_bytes / bytes as u64;
        let mut rng = Rng(0xda94_2042_e4dd_58b5);
        for _ in 0..records {
            self.write(rng.next() % places * bytes as u64, bytes)?;
        }
        Ok(())
    }

    /// Closes it.
    pub fn finish(self, captured_bytes: u64) -> Result<Written> {
        let dir = self.journal.dir().to_owned();
        self.journal.close()?;
        keep(&dir).context("keep the journal")?;
        Ok(Written { state: self.state, captured_bytes, samples: self.samples })
    }
}

/// A journal of `records` random writes of `bytes` each, with everything made that the agent makes
/// in the background.
pub fn random(volume_bytes: u64, records: u64, bytes: usize) -> Result<Written> {
    let mut writing = Writing::begin(volume_bytes)?;
    writing.write_random(records, bytes).context("write a journal")?;
    writing.finish(records * bytes as u64)
}

impl Written {
    /// The state directory.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// A command of the program on this journal.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
        command.args(words).arg("--state").arg(self.state());
        command
    }
}

/// Makes what the agent makes in the background: catalogue and runs. Nothing is old enough to be
/// merged.
fn keep(dir: &Path) -> Result<()> {
    let storage = RealStorage::shared();
    let mut keeper = Keeper::open(Setup {
        storage: Arc::clone(&storage),
        dir: dir.to_owned(),
        clock: Arc::new(SystemClock),
        ground: Arc::new(Home { storage }),
        pace: Arc::new(Unpaced),
        key: None,
        limits: Limits::new(WINDOW_NS, None),
    })?;
    keeper.sealed(layout::units(dir)?.last().copied().unwrap_or(0));
    while keeper.step()? {}
    Ok(())
}

/// What a written block begins with.
pub fn stamp(addr: u64) -> [u8; 16] {
    let mut stamp = [0x5a; 16];
    stamp[..8].copy_from_slice(&addr.to_le_bytes());
    stamp
}

fn config(group: Uuid, bytes: u64) -> Config {
    let volume = Volume {
        id: 1,
        kind: VolumeKind::Disk,
        uuid: Uuid::new_v4(),
        guest: NAME.into(),
        disk: "vda".into(),
        node: "disk0".into(),
        bytes,
        format: "raw".into(),
        source: String::new(),
        active: true,
    };
    let guest = Guest {
        name: NAME.into(),
        command_line: vec![],
        libvirt_xml: None,
        qemu_version: String::new(),
    };
    Config { group, name: NAME.into(), guests: vec![guest], volumes: vec![volume] }
}

/// All files below a directory.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// Makes durable what lies below a directory, and drops it from the page cache.
pub fn make_cold(dir: &Path) -> Result<()> {
    for path in files(dir)? {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        file.sync_all().with_context(|| format!("sync {}", path.display()))?;
        fadvise(&file, 0, None, Advice::DontNeed)
            .with_context(|| format!("drop {} from the page cache", path.display()))?;
    }
    Ok(())
}

/// Bytes that everything below a directory takes on the disk.
pub fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for path in files(dir)? {
        // What the keeper removed in the meantime takes nothing.
        bytes += std::fs::metadata(&path).map_or(0, |meta| meta.blocks() * 512);
    }
    Ok(bytes)
}

/// Fails unless the file system of `target/bench` has this much room.
pub fn need_room(bytes: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(bench_dir())?;
    let free = stat.f_bavail * stat.f_frsize;
    if free < bytes {
        bail!("{} MiB are needed in target/bench, {} MiB are free", bytes >> 20, free >> 20);
    }
    Ok(())
}

/// Rounds of what takes seconds (`AFTERIMAGE_BENCH_JOURNAL_ROUNDS`).
pub fn rounds() -> Result<usize> {
    Ok(number("AFTERIMAGE_BENCH_JOURNAL_ROUNDS", 3)?.max(1) as usize)
}

/// The most memory that a process has had, in MiB.
pub fn peak_rss_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("VmHWM is there")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}
