//! A bucket on a real server on this machine (seaweedfs): how fast a restore comes from it, beside a plain
//! download of the same objects in as many streams; how old what it holds is while a guest writes
//! 50 MB/s, and how many requests that takes.

use crate::journal::{self, NAME, Rng, Writing, Written};
use crate::kit::s3::{Server, bring};
use crate::number;
use crate::report::{Report, median};
use crate::restore::{half_overwritten, image_in};
use afterimage_journal::feed::Feed;
use afterimage_journal::layout;
use afterimage_journal::wire::{Op, Sink};
use afterimage_s3::S3Sink;
use afterimage_s3::sink::UPLOADS_MAX;
use afterimage_s3::store::Patient;
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// What the guest writes a second, in bytes.
const RATE_BYTES_S: u64 = 50_000_000;
const BLOCK_BYTES: usize = 4096;
/// The volume of the writing guest.
const VOLUME_BYTES: u64 = 4 << 30;
/// How often the age of what the bucket holds is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Measures. `AFTERIMAGE_BENCH_S3_MIB` is the size of the restored volume (512; 4096 is the aim's),
/// `AFTERIMAGE_BENCH_S3_RUN_MS` for how long is shipped (20,000).
pub fn measure(report: &mut Report) -> Result<()> {
    let server = Server::start();
    restore(&server, report)?;
    drop(server);
    // Another one, which is not busy with what the first got.
    lag(&Server::start(), report)
}

fn restore(server: &Server, report: &mut Report) -> Result<()> {
    let mib = number("AFTERIMAGE_BENCH_S3_MIB", 512)?.max(16);
    let bytes = mib << 20;
    journal::need_room(bytes * 6)?;
    let journal = half_overwritten(bytes)?;
    let store = server.patient();
    let mut sink = S3Sink::connect(&server.url()).context("connect")?;
    bring(&layout::journal_dir(journal.state(), NAME)?, &mut sink, 1 << 20);
    drop(sink);
    let (mut ours, mut peers, mut objects_mb) = (Vec::new(), Vec::new(), 0.0);
    for _ in 0..journal::rounds()? {
        let dir = TempDir::with_prefix_in("restored-", crate::bench_dir())?;
        let (got, seconds) = download(&store, &dir.path().join("objects"))?;
        objects_mb = got as f64 / 1e6;
        peers.push(seconds);
        ours.push(restored(server, &journal, &dir.path().join("ours"))?);
    }
    report.add(
        format!(
            "restore from S3, {mib} MiB, half of them overwritten by writes of 4 to 128 KiB, to synced: \
             duration (aim: ratio <= 1.25)"
        ),
        (median(ours), median(peers)),
        &format!("all {objects_mb:.0} MB of objects, GET in {UPLOADS_MAX} streams to a synced file"),
        "s",
    );
    Ok(())
}

fn restored(server: &Server, journal: &Written, to: &Path) -> Result<f64> {
    let begin = Instant::now();
    let mut command = journal.command(&["restore", NAME, "--at", "latest"]);
    command.arg("--to").arg(to).stdout(Stdio::null());
    // The bucket in place of the state directory.
    let mut bare = Command::new(command.get_program());
    let words: Vec<_> = command.get_args().collect();
    let state = words.iter().position(|w| *w == "--state").context("a command has a state")?;
    bare.args(&words[..state]).args(&words[state + 2..]);
    let status = bare.arg("--state").arg(server.place()).stdout(Stdio::null()).status()?;
    if !status.success() {
        bail!("afterimage restore: {status}");
    }
    File::open(image_in(to)?)?.sync_all()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Gets all objects, in as many streams as a restore has; bytes and seconds.
fn download(store: &Patient, to: &Path) -> Result<(u64, f64)> {
    let (mut keys, mut after) = (Vec::new(), String::new());
    loop {
        let page = store.list(&format!("site/{NAME}/object/"), &after, false)?;
        keys.extend(page.keys);
        match keys.last() {
            Some(last) if page.more => after.clone_from(last),
            _ => break,
        }
    }
    let (next, at) = (AtomicU64::new(0), AtomicU64::new(0));
    let file = File::create(to)?;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let stream = || -> Result<()> {
            while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                let object = store.get(key, None)?;
                let place = at.fetch_add(object.len() as u64, Ordering::Relaxed);
                file.write_all_at(&object, place)?;
            }
            Ok(())
        };
        let running: Vec<_> = (0..UPLOADS_MAX).map(|_| scope.spawn(stream)).collect();
        let ended =
            running.into_iter().map(|r| r.join().unwrap_or_else(|_| bail!("a stream fell")));
        ended.collect::<Result<Vec<()>>>()
    })?;
    file.sync_all()?;
    Ok((at.into_inner(), begin.elapsed().as_secs_f64()))
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn lag(server: &Server, report: &mut Report) -> Result<()> {
    let run = Duration::from_millis(number("AFTERIMAGE_BENCH_S3_RUN_MS", 20_000)?.max(5000));
    journal::need_room(run.as_secs() * RATE_BYTES_S * 3)?;
    let mut writing = Writing::begin(VOLUME_BYTES)?;
    let mut feed = Feed::new(writing.journal());
    let mut sink = S3Sink::connect(&server.url()).context("connect")?;
    let inventory = sink.open(&feed.hello())?;
    feed.start(&inventory, sink.mirrors())?;
    let before = sink.stats().now();
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let ages = std::thread::scope(|scope| {
        let over = &over;
        let shipping = scope.spawn(|| ship(&mut feed, &mut sink, over));
        let written = write_steadily(&mut writing, begin, run);
        over.store(true, Ordering::Relaxed);
        let ages = shipping.join().unwrap_or_else(|_| bail!("shipping fell"));
        written.and(ages)
    })?;
    let now = sink.stats().now();
    let (puts, sent) = (now.puts - before.puts, now.sent_bytes - before.sent_bytes);
    let seconds = begin.elapsed().as_secs_f64();
    let mut sorted = ages;
    sorted.sort_by(f64::total_cmp);
    let p99 = sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(f64::INFINITY);
    let name = "S3, 50 MB/s of 4 KiB writes";
    report.add(
        format!("{name}: age of the newest record there, p99 (aim: <= 5)"),
        (p99, 0.0),
        "-",
        "s",
    );
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::INFINITY);
    report.add(format!("{name}: the same, median"), (middle, 0.0), "-", "s");
    report.add(format!("{name}: writes a second"), (puts as f64 / seconds, 0.0), "-", "1/s");
    let mean = sent as f64 / puts.max(1) as f64 / 1e6;
    report.add(
        format!("{name}: bytes of a write, mean, manifests among them"),
        (mean, 0.0),
        "-",
        "MB",
    );
    let captured = run.as_secs_f64() * RATE_BYTES_S as f64;
    report.add(
        format!("{name}: sent for captured"),
        (sent as f64 / 1e6, captured / 1e6),
        "captured",
        "MB",
    );
    Ok(())
}

fn write_steadily(writing: &mut Writing, begin: Instant, run: Duration) -> Result<()> {
    let mut rng = Rng(0x1234_5678_9abc_def1);
    let mut written = 0;
    while begin.elapsed() < run {
        let due = begin.elapsed().as_secs_f64() * RATE_BYTES_S as f64;
        while (written as f64) < due {
            let place = rng.next() % (VOLUME_BYTES / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
            writing.write(place, BLOCK_BYTES)?;
            written += BLOCK_BYTES as u64;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Ships until it is over; the ages of the newest record in the bucket, in seconds, each time that was
/// looked at.
fn ship(feed: &mut Feed, sink: &mut S3Sink, over: &AtomicBool) -> Result<Vec<f64>> {
    let (mut ages, mut looked) = (Vec::new(), Instant::now());
    let mut syncs: VecDeque<(u64, u64)> = VecDeque::new();
    let mut there_ns = None;
    while !over.load(Ordering::Relaxed) {
        match feed.fresh()? {
            Some(op) => {
                if let Op::Sync { token, wall_ns, .. } = &op {
                    syncs.push_back((*token, *wall_ns));
                }
                sink.apply(op)?;
            }
            None => drop(feed.wait(LOOK_EVERY)),
        }
        let ack = sink.ack(Duration::ZERO)?;
        // An op or a commit may have taken long: as many looks as there should have been in it, at what
        // was there then.
        while looked.elapsed() >= LOOK_EVERY {
            looked += LOOK_EVERY;
            let behind = looked.elapsed().as_nanos() as u64;
            let age = there_ns.map(|ns| now_ns().saturating_sub(behind).saturating_sub(ns));
            ages.extend(age.map(|ns| ns as f64 / 1e9));
        }
        if let Some(ack) = ack {
            while syncs.front().is_some_and(|(token, _)| *token <= ack.token) {
                there_ns = syncs.pop_front().map(|(_, ns)| ns);
            }
            feed.acked(&ack);
        }
    }
    Ok(ages)
}
