//! What a second checkpoint keeps, and how soon a restored guest runs.

use super::scene::{Guest, LIMIT, NAME, Peer, Protected, State};
use crate::kit::{self, Qmp};
use crate::report::{Report, median};
use afterimage_journal::{History, Seq, layout};
use afterimage_migration::{Block, Limits, Reader, Sink};
use anyhow::{Context, Result, anyhow, ensure};
use std::convert::Infallible;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of a record that are not payload: header and index entry.
const RECORD_BYTES: u64 = 64 + 48;
/// How long memory is changed between the two checkpoints.
const BETWEEN: Duration = Duration::from_secs(2);

/// The bytes that a second checkpoint keeps, beside the pages that really changed: counted by
/// comparing the two memories as they are restored.
pub fn second_checkpoint(ours: &mut Protected, mib: u32, report: &mut Report) -> Result<()> {
    ours.checkpoint("before")?;
    ours.load(State::Writing);
    std::thread::sleep(BETWEEN);
    ours.load(State::Idle);
    ours.checkpoint("after")?;
    let streams = ["before", "after"].map(|tag| restored(ours, tag));
    let [before, after] = streams;
    let changed = differing_pages(&before?, &after?)? * 4096;
    let kept = kept_bytes(ours, "before", "after")?;
    ensure!(changed > 0, "nothing changed between two checkpoints");
    report.add(
        format!("memory, {mib} MiB: bytes kept by the second checkpoint (aim: ratio <= 1.1)"),
        (kept as f64 / 1048576.0, changed as f64 / 1048576.0),
        "pages that differ between the two memories",
        "MiB",
    );
    Ok(())
}

/// The hash of each page of each block, of a checkpoint that is restored warm.
fn restored(ours: &Protected, tag: &str) -> Result<Pages> {
    let to = ours.guest.dir.path().join(format!("restored-{tag}"));
    let at = format!("tag:{tag}");
    let to_text = to.to_str().context("a path in UTF-8")?;
    ours.agent.ok(&["restore", NAME, "--at", &at, "--to", to_text, "--warm"]);
    let mut file = File::open(to.join(format!("{NAME}.memory")))?;
    let mut reader = Reader::new(Limits::default());
    let mut pages = Pages::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        let fed = reader.feed(&buffer[..read], &mut pages);
        fed.map_err(|e| anyhow!("{}: {e}", to.display()))?;
    }
    std::fs::remove_dir_all(&to)?;
    Ok(pages)
}

/// Hashes by block and page; none is zero.
#[derive(Default)]
struct Pages(Vec<Vec<[u8; 32]>>);

impl Sink for Pages {
    type Error = Infallible;

    fn blocks(&mut self, blocks: &[Block]) -> Result<(), Infallible> {
        self.0 = blocks.iter().map(|b| vec![[0; 32]; (b.bytes / 4096) as usize]).collect();
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, data: &[u8]) -> Result<(), Infallible> {
        let is_zero = data.iter().all(|b| *b == 0);
        let hash = if is_zero { [0; 32] } else { blake3::hash(data).into() };
        self.0[block][(offset / 4096) as usize] = hash;
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64) -> Result<(), Infallible> {
        self.0[block][(offset / 4096) as usize] = [0; 32];
        Ok(())
    }
}

fn differing_pages(before: &Pages, after: &Pages) -> Result<u64> {
    ensure!(before.0.len() == after.0.len(), "the blocks of the two memories differ");
    let pairs = before.0.iter().flatten().zip(after.0.iter().flatten());
    Ok(pairs.filter(|(a, b)| a != b).count() as u64)
}

/// Bytes that the journal keeps for the memory of the second of two checkpoints, device state included.
fn kept_bytes(ours: &Protected, before: &str, after: &str) -> Result<u64> {
    let dir = layout::journal_dir(ours.agent.state(), NAME)?;
    let history = History::load(&dir)?;
    let committed = |tag: &str| -> Result<Seq> {
        let mut all = history.checkpoints.iter();
        let found = all.find(|c| c.checkpoint.tag.as_deref() == Some(tag));
        Ok(found.with_context(|| format!("there is no checkpoint {tag}"))?.committed)
    };
    let (from, to) = (committed(before)?, committed(after)?);
    let config = history.config_at(to).context("a configuration")?;
    let memory: Vec<u16> = config.memory_volumes().map(|v| v.id).collect();
    let mut bytes = 0;
    for entry in history.entries_from(from + 1) {
        let record = entry?.record;
        if record.seq > to {
            break;
        }
        if record.kind.is_data() && memory.contains(&record.volume) {
            bytes += u64::from(record.payload_bytes).next_multiple_of(64) + RECORD_BYTES;
        }
    }
    Ok(bytes)
}

/// From the start of the command to the first instruction of the guest: `export --warm` and the QEMU that
/// its script starts, beside QEMU's own `-incoming file:` of a stream that it wrote.
pub fn warm(ours: &mut Protected, peer: Peer, mib: u32, report: &mut Report) -> Result<()> {
    let middle = |seconds: Vec<f64>| median(seconds);
    let live = (0..RESUMED).map(|_| resumed_by_us(ours, &[])).collect::<Result<Vec<_>>>()?;
    let whole = (0..RESUMED).map(|_| resumed_by_us(ours, &["--preload"]));
    let whole = whole.collect::<Result<Vec<_>>>()?;
    let by_qemu = middle(resumed_by_qemu(peer, mib)?);
    let peer = "QEMU's -incoming of its own file";
    let title = format!("memory, {mib} MiB: warm restore to the first instruction");
    report.add(format!("{title} (aim: ratio <= 1.2)"), (middle(live), by_qemu), peer, "s");
    report.add(format!("{title}, --preload"), (middle(whole), by_qemu), peer, "s");
    Ok(())
}

/// Copies that are resumed each way; the median counts.
const RESUMED: usize = 5;

/// A child that is ended when it is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn resumed_by_us(ours: &Protected, more: &[&str]) -> Result<f64> {
    let dir = ours.guest.dir.path();
    let (socket, qmp) = (dir.join("x.sock"), dir.join("x.qmp"));
    let begun = Instant::now();
    let mut command = Command::new(ours.agent.program());
    command.args(["export", NAME, "--at", "tag:after", "--warm", "--writable", "--json"]);
    command.args(more).arg("--socket").arg(&socket).arg("--scratch").arg(dir);
    command.arg("--state").arg(ours.agent.state());
    let mut export = Ended(command.stdout(Stdio::piped()).spawn()?);
    let out = export.0.stdout.take().context("the export's output")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    let ready: serde_json::Value = serde_json::from_str(&line).context("the ready line")?;
    let script = ready["memories"][0]["script"].as_str();
    let script = script.with_context(|| format!("no script in {ready}"))?.to_owned();
    let log = File::create(dir.join("resumed.log"))?;
    let mut command = Command::new(&script);
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())]);
    command.stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
    let _qemu = Ended(command.spawn().with_context(|| format!("start {script}"))?);
    wait_running(&qmp)?;
    Ok(begun.elapsed().as_secs_f64())
}

fn resumed_by_qemu(mut peer: Peer, mib: u32) -> Result<Vec<f64>> {
    let file = peer.guest.dir.path().join("stream");
    peer.migrate(&format!("file:{}", file.display()))?;
    let Guest { vm, disk, dir, .. } = peer.guest;
    vm.kill();
    let mut seconds = Vec::new();
    for _ in 0..RESUMED {
        let begun = Instant::now();
        let copy = Guest::builder(&disk, mib).incoming_file(&file).boot();
        wait_running(&copy.agent_qmp())?;
        seconds.push(begun.elapsed().as_secs_f64());
        copy.kill();
    }
    drop(dir);
    Ok(seconds)
}

fn wait_running(socket: &Path) -> Result<()> {
    let mut qmp = kit::poll(LIMIT, || Qmp::connect(socket).ok()).context("no monitor answers")?;
    let ask = || {
        let status = qmp.execute("query-status", serde_json::json!({}));
        (status["status"] == "running").then_some(())
    };
    kit::poll(LIMIT, ask).context("the restored guest does not run")
}
