//! Shipping, by the agent's own shippers: what it costs capture, how old what a site holds is, how fast it
//! goes beside `nbdcopy` over TLS, and what is sent after an outage.
//!
//! What always holds: the site's server is a process of its own on this machine, reached over TLS; what
//! counts as there is what it acknowledged as durable.

use crate::journal::{self, NAME, Rng, Writing};
use crate::kit::Site as Server;
use crate::number;
use crate::peers::{Running, written_file};
use crate::report::{Report, median};
use afterimage_agent::api::SiteStatus;
use afterimage_agent::ship::{
    Ages, GroupSettings, Journals, Moment, Shipping, Site, Window, target,
};
use afterimage_journal::format::record::Kind;
use afterimage_journal::log::Draft;
use afterimage_journal::window::Limits;
use afterimage_journal::{Journal, Key, Seq};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");
/// Longest that a site may take to get level.
const LEVEL_LIMIT: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Capture beside shipping, as the aim has it.
const CAPTURE_BYTES_S: f64 = 100e6;
const CAPTURE_RECORD_BYTES: usize = 16 << 10;
/// What a guest writes while the age of what is there is looked at.
const LAG_BYTES_S: f64 = 50e6;
const BLOCK_BYTES: usize = 4096;
const VOLUME_BYTES: u64 = 4 << 30;
/// What is written in one piece, and how much random data there is, when it goes as fast as it can.
const PIECE_BYTES: usize = 128 << 10;
const RANDOM_BYTES: usize = 64 << 20;
/// What the disk loses touch with during the outage: a twentieth.
const TOUCHED_BYTES: u64 = VOLUME_BYTES / 20;

/// Measures. `AFTERIMAGE_BENCH_SHIP_RUN_MS` is the length of a run (10,000),
/// `AFTERIMAGE_BENCH_SHIP_MIB` what is sent in one go (1024).
pub fn measure(report: &mut Report) -> Result<()> {
    journal::need_room(8 << 30)?;
    let run = Duration::from_millis(number("AFTERIMAGE_BENCH_SHIP_RUN_MS", 10_000)?);
    capture(run, report).context("capture beside shipping")?;
    for kind in [Place::Directory, Place::Server] {
        lag(kind, run, report).context("the age of what is there")?;
    }
    steady(report).context("as fast as it goes")?;
    outage(report).context("after an outage")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Directory,
    Server,
}

/// A journal on its way to one site.
struct Shipped {
    watch: Watch,
    writing: Writing,
    server: Option<Server>,
    _dir: TempDir,
}

/// What its shipper says.
struct Watch {
    shipping: Shipping,
    journal: Journal,
    /// When the head was where.
    heads: VecDeque<(Instant, Seq)>,
}

struct Open(Journal);

impl Journals for Open {
    fn now(&self) -> Option<Journal> {
        Some(self.0.clone())
    }
}

impl Window for Open {
    fn limits(&self) -> Option<Limits> {
        Some(Limits::new(86_400_000_000_000, None))
    }

    fn key(&self) -> Option<Key> {
        None
    }
}

struct Unseen;

impl Ages for Unseen {
    fn behind_ms(&self, _: Seq) -> Option<u64> {
        None
    }

    fn newest_ms(&self, _: Seq) -> u64 {
        0
    }
}

impl Shipped {
    fn begin(kind: Place) -> Result<Self> {
        let writing = Writing::begin(VOLUME_BYTES)?;
        let dir = TempDir::with_prefix_in("site-", crate::bench_dir())?;
        let server = match kind {
            Place::Directory => None,
            Place::Server => Some(Server::start(PROGRAM, dir.path().join("far"), None)),
        };
        let place = match &server {
            None => dir.path().join("near").display().to_string(),
            Some(server) => format!("tls://{}#{}", server.addr, server.invite(NAME)),
        };
        let site = Site::parse(&place).map_err(anyhow::Error::msg)?;
        let home = writing.state().to_owned();
        let adopted = target::adopt(&site, &home, NAME)?;
        let settings = GroupSettings { sites: vec![adopted], ..GroupSettings::default() };
        let shipping = Shipping::default();
        let journals: Arc<dyn Journals> = Arc::new(Open(writing.journal().clone()));
        let window: Arc<dyn Window> = Arc::new(Open(writing.journal().clone()));
        shipping.set(&settings, (&home, NAME), &journals, &window);
        let watch = Watch { shipping, journal: writing.journal().clone(), heads: VecDeque::new() };
        let shipped = Self { watch, writing, server, _dir: dir };
        shipped.watch.wait_level()?;
        Ok(shipped)
    }
}

impl Watch {
    fn status(&self) -> Result<SiteStatus> {
        let head = Some(self.journal.head());
        let moment = Moment { head, now_ns: 0, alarm_ms: u64::MAX, local_rpo_ms: Some(0) };
        self.shipping.statuses(&moment, &Unseen).pop().context("a site has a status")
    }

    /// Waits until all that was written is durable there.
    fn wait_level(&self) -> Result<()> {
        let (begun, head) = (Instant::now(), self.journal.sync()?);
        loop {
            let status = self.status()?;
            if status.watermark.is_some_and(|w| w >= head) && status.background_bytes == 0 {
                return Ok(());
            }
            if begun.elapsed() > LEVEL_LIMIT {
                bail!("the site is not level after {LEVEL_LIMIT:?}: {status:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Age of the oldest record that the site lacks, in seconds.
    fn age_s(&mut self) -> Result<f64> {
        let head = self.journal.head();
        self.heads.push_back((Instant::now(), head));
        let there = self.status()?.watermark.unwrap_or(0);
        if there >= head {
            self.heads.clear();
            return Ok(0.0);
        }
        while self.heads.front().is_some_and(|(_, seq)| *seq <= there) {
            self.heads.pop_front();
        }
        Ok(self.heads.front().map_or(0.0, |(when, _)| when.elapsed().as_secs_f64()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shipping.end();
    }
}

/// Appends at a rate; what each one took, in nanoseconds.
fn append(
    writing: &mut Writing,
    (bytes_per_s, record_bytes): (f64, usize),
    run: Duration,
    mut look: impl FnMut(),
) -> Result<Vec<u64>> {
    let places = VOLUME_BYTES / record_bytes as u64;
    let (mut rng, begun, mut took, mut written) =
        (Rng(0x1234_5678_9abc_def1), Instant::now(), Vec::new(), 0.0);
    while begun.elapsed() < run {
        while written < begun.elapsed().as_secs_f64() * bytes_per_s {
            let started = Instant::now();
            writing.write(rng.next() % places * record_bytes as u64, record_bytes)?;
            took.push(started.elapsed().as_nanos() as u64);
            written += record_bytes as f64;
        }
        look();
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(took)
}

fn p99<T: PartialOrd + Copy>(mut all: Vec<T>) -> Option<T> {
    all.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    all.get(all.len() * 99 / 100).copied()
}

/// Appends of 16 KiB at 100 MB/s with a journal on its way and without, in turn.
fn capture(run: Duration, report: &mut Report) -> Result<()> {
    let load = (CAPTURE_BYTES_S, CAPTURE_RECORD_BYTES);
    let (mut alone, mut near, mut far) = (Vec::new(), Vec::new(), Vec::new());
    let us = |took: Vec<u64>| p99(took).map_or(0.0, |ns| ns as f64 / 1e3);
    for _ in 0..journal::rounds()? {
        let mut writing = Writing::begin(VOLUME_BYTES)?;
        alone.push(us(append(&mut writing, load, run, || ())?));
        drop(writing);
        for (kind, figures) in [(Place::Directory, &mut near), (Place::Server, &mut far)] {
            let mut shipped = Shipped::begin(kind)?;
            figures.push(us(append(&mut shipped.writing, load, run, || ())?));
            shipped.watch.wait_level()?;
        }
    }
    let name = "capture at 100 MB/s: p99 of an append of 16 KiB";
    for (where_to, figures) in [("a directory", near), ("a server over TLS", far)] {
        report.add(
            format!("{name}, shipped to {where_to} (aim: ratio <= 1.5)"),
            (median(figures), median(alone.clone())),
            "nothing shipped",
            "us",
        );
    }
    Ok(())
}

/// How old what the site lacks is while a guest writes 50 MB/s in blocks of 4 KiB.
fn lag(kind: Place, run: Duration, report: &mut Report) -> Result<()> {
    let mut shipped = Shipped::begin(kind)?;
    let Shipped { watch, writing, .. } = &mut shipped;
    let (mut ages, mut looked, mut failed) = (Vec::new(), Instant::now(), None);
    append(writing, (LAG_BYTES_S, BLOCK_BYTES), run, || {
        if looked.elapsed() >= LOOK_EVERY {
            looked = Instant::now();
            match watch.age_s() {
                Ok(age) => ages.push(age),
                Err(e) => failed = Some(e),
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let place = if kind == Place::Directory { "a directory" } else { "a server over TLS" };
    let name = format!("{place}, 50 MB/s of 4 KiB writes: age of the oldest write that it lacks");
    let middle = median(ages.iter().copied());
    let worst = p99(ages).unwrap_or(f64::INFINITY);
    report.add(format!("{name}, p99 (aim: <= 1)"), (worst, 0.0), "-", "s");
    report.add(format!("{name}, median"), (middle, 0.0), "-", "s");
    shipped.watch.wait_level()
}

/// As much as is written at once, until it is durable there, beside `nbdcopy` of as much to a file.
fn steady(report: &mut Report) -> Result<()> {
    let mib = number("AFTERIMAGE_BENCH_SHIP_MIB", 1024)?.max(64) / 64 * 64;
    let bytes = mib << 20;
    // No compression shortens it: what comes again does so far behind.
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let random: Vec<u8> = (0..RANDOM_BYTES / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..journal::rounds()? {
        peers.push(bytes as f64 / nbdcopy(bytes, &random)? / 1e6);
        let shipped = Shipped::begin(Place::Server)?;
        let begun = Instant::now();
        for (at, piece) in (0..bytes).step_by(PIECE_BYTES).zip(random.chunks(PIECE_BYTES).cycle()) {
            let draft =
                Draft { volume: 1, addr: at, len: PIECE_BYTES as u32, ..Draft::of(Kind::Write) };
            shipped.watch.journal.append(&draft, piece)?;
        }
        shipped.watch.wait_level()?;
        ours.push(bytes as f64 / begun.elapsed().as_secs_f64() / 1e6);
    }
    report.add(
        format!(
            "{mib} MiB of 128 KiB writes over TLS, captured to durable there (aim: ratio >= 0.8)"
        ),
        (median(ours), median(peers)),
        "nbdcopy over TLS into nbdkit file, flushed",
        "MB/s",
    );
    Ok(())
}

/// Seconds for a file of so many bytes, as random as what we write.
fn nbdcopy(bytes: u64, random: &[u8]) -> Result<f64> {
    let dir = TempDir::with_prefix_in("nbdcopy-", crate::bench_dir())?;
    let path = |name: &str| dir.path().join(name);
    let (socket, psk) = (path("s"), path("psk"));
    let mut from = std::fs::File::create(path("from")).context("make a file")?;
    for _ in 0..bytes / random.len() as u64 {
        from.write_all(random).context("fill a file")?;
    }
    from.sync_all().context("sync a file")?;
    written_file(&path("to"), bytes)?;
    let mut keys = std::fs::File::create(&psk).context("make a key")?;
    writeln!(keys, "bench:{}", "5a".repeat(32)).context("write the key")?;
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--tls=require", "--tls-psk"]).arg(&psk);
    command.arg("--unix").arg(&socket).arg("file").arg(path("to"));
    let mut server = Running::start(command, &path("log"), &socket)?;
    let uri = format!("nbds+unix://bench@/?socket={}&tls-psk-file={}", show(&socket), show(&psk));
    let begun = Instant::now();
    let copied = Command::new("nbdcopy").arg("--flush").arg(path("from")).arg(&uri).status();
    let seconds = begun.elapsed().as_secs_f64();
    if !copied.context("run nbdcopy")?.success() {
        bail!("nbdcopy over TLS failed: {}", std::fs::read_to_string(path("log"))?);
    }
    server.terminate()?;
    Ok(seconds)
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// The site stands still while a twentieth of the disk is written to, block by block; what is sent then.
fn outage(report: &mut Report) -> Result<()> {
    let mut shipped = Shipped::begin(Place::Server)?;
    let places = VOLUME_BYTES / BLOCK_BYTES as u64;
    let server = shipped.server.as_ref().context("there is a server")?;
    server.signal(Signal::STOP);
    let before = shipped.watch.status()?.sent_bytes;
    // Odd: each block once, in no order.
    for n in 0..TOUCHED_BYTES / BLOCK_BYTES as u64 {
        let place = n.wrapping_mul(0x9e37_79b1) % places;
        shipped.writing.write(place * BLOCK_BYTES as u64, BLOCK_BYTES)?;
    }
    shipped.watch.journal.sync()?;
    let server = shipped.server.as_ref().context("there is a server")?;
    server.signal(Signal::CONT);
    let begun = Instant::now();
    shipped.watch.wait_level()?;
    let seconds = begun.elapsed().as_secs_f64();
    let sent = shipped.watch.status()?.sent_bytes - before;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    report.add(
        "after an outage that touched 5 % of 4 GiB: sent (aim: ratio <= 1.1)",
        (mb(sent), mb(TOUCHED_BYTES)),
        "changed",
        "MB",
    );
    report.add("the same: time to level", (seconds, 0.0), "-", "s");
    Ok(())
}
