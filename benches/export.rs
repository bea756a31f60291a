//! How soon `afterimage export` serves: a random moment of a long journal, from cold caches, beside
//! the same of a journal a tenth as long. A window that is longer must not make it slower.

use crate::journal::{self, NAME, Rng, Written};
use crate::number;
use crate::report::{Report, median};
use afterimage_nbd::client::{Client, ClientOptions};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const VOLUME_BYTES: u64 = 100 << 30;
const BLOCK_BYTES: usize = 4096;
/// How often each journal is exported, by default: the caches are cold each time. It depends on the
/// moment how many units no run covers (15 at most), so it takes many to compare.
const ROUNDS: u64 = 21;
const LIMIT: Duration = Duration::from_secs(120);

/// One start.
struct First {
    ms: f64,
    rss_mib: f64,
}

/// Measures; how many records, `AFTERIMAGE_BENCH_EXPORT_RECORDS` says.
pub fn measure(report: &mut Report) -> Result<()> {
    let records = number("AFTERIMAGE_BENCH_EXPORT_RECORDS", 1_000_000)?.max(10_000);
    let rounds = number("AFTERIMAGE_BENCH_EXPORT_ROUNDS", ROUNDS)?.max(1);
    journal::need_room(records * 11 / 10 * 4500 + (1 << 30))?;
    let long = journal::random(VOLUME_BYTES, records, BLOCK_BYTES)?;
    let short = journal::random(VOLUME_BYTES, records / 10, BLOCK_BYTES)?;
    let mut rng = Rng(0x5851_f42d_4c95_7f2d);
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // A B, B A, ..: whatever changes with time hits both.
        for long_now in [round % 2 == 0, round % 2 != 0] {
            let (journal, firsts) =
                if long_now { (&long, &mut ours) } else { (&short, &mut peers) };
            firsts.push(first_block(journal, &mut rng)?);
        }
    }
    let what = format!("export, {records} records of 4 KiB over 100 GiB, cold");
    let peer = format!("the same, {} records", records / 10);
    let of = |firsts: &[First], what: fn(&First) -> f64| median(firsts.iter().map(what));
    report.add(
        format!("{what}: first block, from the command's start (aim: ratio <= 1.5, <= 1000 ms)"),
        (of(&ours, |f| f.ms), of(&peers, |f| f.ms)),
        &peer,
        "ms",
    );
    let worst = |firsts: &[First]| firsts.iter().map(|f| f.ms).fold(0.0, f64::max);
    report.add(
        format!("{what}: slowest first block of {rounds} moments"),
        (worst(&ours), worst(&peers)),
        &peer,
        "ms",
    );
    report.add(
        format!("{what}: peak memory (aim: ratio <= 1.5)"),
        (of(&ours, |f| f.rss_mib), of(&peers, |f| f.rss_mib)),
        &peer,
        "MiB",
    );
    Ok(())
}

/// Kills what it holds.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// From the start of the command to the first block, which is checked.
fn first_block(journal: &Written, rng: &mut Rng) -> Result<First> {
    let sample = journal.samples[(rng.next() % journal.samples.len() as u64) as usize];
    let dir = tempfile::TempDir::with_prefix("export-")?;
    let socket = dir.path().join("s");
    let at = format!("seq:{}", sample.seq);
    let mut command = journal.command(&["export", NAME, "--at", &at]);
    command.arg("--socket").arg(&socket);
    journal::make_cold(journal.state())?;
    let started = Instant::now();
    let child = command.stdout(Stdio::null()).spawn().context("start afterimage export")?;
    let mut export = Killed(child);
    let mut client = connect(&mut export.0, &socket)?;
    let mut block = vec![0; BLOCK_BYTES];
    client.read(sample.addr, &mut block).context("read the first block")?;
    let ms = started.elapsed().as_secs_f64() * 1e3;
    if block[..16] != journal::stamp(sample.addr) {
        bail!("wrong data at {} of seq:{}", sample.addr, sample.seq);
    }
    let rss_mib = journal::peak_rss_mib(export.0.id())?;
    Ok(First { ms, rss_mib })
}

fn connect(child: &mut Child, socket: &Path) -> Result<Client> {
    let begun = Instant::now();
    let options = ClientOptions { export: "disk0".into(), ..ClientOptions::default() };
    while begun.elapsed() < LIMIT {
        if let Some(status) = child.try_wait()? {
            bail!("afterimage export ended: {status}");
        }
        if socket.exists() {
            return Client::connect(socket, &options).context("connect to the export");
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    bail!("afterimage export did not listen in {} s", LIMIT.as_secs())
}
