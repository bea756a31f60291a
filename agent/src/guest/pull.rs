//! Copying blocks from QEMU's own NBD export into the journal: blocking, on a thread of its own.
//!
//! What always holds: what is read may be newer than the copy's as-of position, never older, and
//! every record behind that position overrides it (I-5); equality is judged by bytes (I-12).

use super::face::Progress;
use crate::group::{CopyWriter, Group};
use afterimage_journal::History;
use afterimage_journal::meta::{CopyCause, Volume};
use afterimage_journal::view::Blocks;
use afterimage_nbd::client::{Client, ClientOptions, Content};
use anyhow::{Context as _, Result, bail};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes of a disk that are copied between two looks at the clock and the cancel flag.
const WINDOW_BYTES: u64 = 8 << 20;
/// Bytes between two progress records.
const PROGRESS_BYTES: u64 = 64 << 20;
/// Requests in flight.
const DEPTH: usize = 8;
/// Differences are found in blocks of this size.
const BLOCK_BYTES: usize = 4096;
/// How long QEMU's export may leave a read unanswered.
const READ_LIMIT: Duration = Duration::from_secs(30);
const ALLOCATION: &str = "base:allocation";
/// `base:allocation`: the range reads as zeroes (NBD protocol, NBD_STATE_ZERO).
const STATE_ZERO: u32 = 2;
/// `qemu:dirty-bitmap`: the range was written to.
const STATE_DIRTY: u32 = 1;

/// One volume's copy.
pub struct Job {
    /// Its group.
    pub group: Arc<Group>,
    /// The volume.
    pub volume: Volume,
    /// Why.
    pub cause: CopyCause,
    /// Everything is written, whatever the journal has.
    pub whole: bool,
    /// From which address on.
    pub from: u64,
    /// QEMU's NBD socket.
    pub socket: PathBuf,
    /// The export's name there.
    pub export: String,
    /// Bitmaps whose blocks are copied, for [`CopyCause::Bitmap`].
    pub bitmaps: Vec<String>,
    /// Progress and cancelling.
    pub progress: Arc<Progress>,
}

/// Runs a copy to its end.
///
/// # Errors
/// QEMU's export failed, the journal stopped, or it was cancelled.
pub fn run(job: &Job) -> Result<()> {
    let mut contexts = vec![ALLOCATION.to_owned()];
    contexts.extend(job.bitmaps.iter().map(|b| dirty_context(b)));
    let options = ClientOptions {
        export: job.export.clone(),
        contexts,
        wait_max: Some(READ_LIMIT),
        ..ClientOptions::default()
    };
    let mut client = Client::connect(&job.socket, &options)
        .with_context(|| format!("read disk {} from QEMU", job.volume.node))?;
    if client.bytes() < job.volume.bytes {
        bail!(
            "disk {} has {} bytes in QEMU's export, {} were expected: was it resized?",
            job.volume.node,
            client.bytes(),
            job.volume.bytes
        );
    }
    // A first copy that goes on lacks what the one before it wrote.
    let begins = job.cause == CopyCause::Initial && job.from == 0;
    let whole = job.whole
        || begins
        || (job.cause == CopyCause::Compare && lacks_units(&job.group.journal()?.history()?));
    let writer = job.group.begin_copy(job.volume.id, (job.cause, whole))?;
    let mut pace = Pace::new(&job.progress);
    let mut recorded = job.from;
    let ranges = wanted(job, &mut client)?;
    let total: u64 = ranges.iter().map(|r| r.end - r.start).sum();
    job.progress.total_bytes.fetch_add(total, Ordering::Relaxed);
    let mut compare = Comparison::begin(job, &writer, whole)?;
    for range in windows(&ranges) {
        if job.progress.cancel.load(Ordering::Relaxed) {
            bail!("the copy was ended");
        }
        match &mut compare {
            Some(comparison) => comparison.window(&mut client, &writer, range.clone())?,
            None => copy_window(job, &mut client, &writer, range.clone())?,
        }
        let done = range.end - range.start;
        job.progress.done_bytes.fetch_add(done, Ordering::Relaxed);
        if job.cause == CopyCause::Initial && range.end - recorded >= PROGRESS_BYTES {
            writer.progress(range.end)?;
            recorded = range.end;
        }
        pace.spent(&job.progress, done);
    }
    writer.end(job.volume.bytes)?;
    let _ = client.disconnect();
    Ok(())
}

/// Whether a part of the journal is lost, or away and may come back: what it had of a disk then is not what a
/// compare sees now.
fn lacks_units(history: &History) -> bool {
    history.damage.iter().any(|d| d.to.is_none())
}

fn dirty_context(bitmap: &str) -> String {
    format!("qemu:dirty-bitmap:{bitmap}")
}

/// What is to be read, ascending and disjoint.
fn wanted(job: &Job, client: &mut Client) -> Result<Vec<Range<u64>>> {
    if job.cause != CopyCause::Bitmap {
        return Ok(std::iter::once(job.from..job.volume.bytes).filter(|r| !r.is_empty()).collect());
    }
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for bitmap in &job.bitmaps {
        let mut at = 0;
        for (len, flags) in client.block_status(&dirty_context(bitmap), 0, job.volume.bytes)? {
            if flags & STATE_DIRTY != 0 {
                ranges.push(at..at + len);
            }
            at += len;
        }
    }
    Ok(union(ranges))
}

/// Joins ranges that touch.
fn union(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|r| r.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

fn windows(ranges: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> + '_ {
    ranges.iter().flat_map(|r| {
        let (start, end) = (r.start, r.end);
        (start..end).step_by(WINDOW_BYTES as usize).map(move |at| at..(at + WINDOW_BYTES).min(end))
    })
}

/// The parts of a range that hold data, by the export's own word.
fn data_in(client: &mut Client, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
    if !client.has_context(ALLOCATION) {
        return Ok(vec![range.clone()]);
    }
    let mut at = range.start;
    let mut parts = Vec::new();
    for (len, flags) in client.block_status(ALLOCATION, range.start, range.end - range.start)? {
        if flags & STATE_ZERO == 0 {
            parts.push(at..at + len);
        }
        at += len;
    }
    Ok(parts)
}

/// Copies a window. Zeroes become records only where the journal may hold something else: the
/// first copy of a disk starts from nothing, and what was captured before it is level.
fn copy_window(
    job: &Job,
    client: &mut Client,
    writer: &CopyWriter,
    range: Range<u64>,
) -> Result<()> {
    let zeroes_count = job.cause != CopyCause::Initial;
    let data = data_in(client, &range)?;
    if zeroes_count {
        let mut at = range.start;
        for part in data.iter().cloned().chain(std::iter::once(range.end..range.end)) {
            if part.start > at {
                writer.zero(at, part.start - at)?;
            }
            at = part.end;
        }
    }
    let mut failed = None;
    client.read_many(data, DEPTH, |at, content| {
        let put = match content {
            Content::Data(bytes) if is_zero(bytes) && !zeroes_count => Ok(()),
            Content::Data(bytes) if is_zero(bytes) => writer.zero(at, bytes.len() as u64),
            Content::Data(bytes) => writer.put(at, bytes),
            Content::Hole(bytes) if zeroes_count => writer.zero(at, bytes),
            Content::Hole(_) => Ok(()),
        };
        put.map_err(|e| {
            let text = std::io::Error::other(e.to_string());
            failed = Some(e);
            text
        })
    })?;
    failed.map_or(Ok(()), |e| Err(e.into()))
}

fn is_zero(bytes: &[u8]) -> bool {
    // SAFETY: any bytes make valid 128-bit numbers.
    let (head, body, tail) = unsafe { bytes.align_to::<u128>() };
    head.iter().chain(tail).all(|b| *b == 0) && body.iter().all(|w| *w == 0)
}

/// Comparing the disk with what the journal says of it at the copy's as-of position.
struct Comparison {
    source: Vec<u8>,
    ours: Vec<u8>,
    blocks: Blocks,
    history: History,
}

impl Comparison {
    fn begin(job: &Job, writer: &CopyWriter, whole: bool) -> Result<Option<Self>> {
        if job.cause != CopyCause::Compare || whole {
            return Ok(None);
        }
        let history = job.group.journal()?.history()?;
        if lacks_units(&history) {
            bail!(
                "a part of the journal of disk {} went away: it is copied whole at the next try",
                job.volume.node
            );
        }
        // All that is committed by now may be used: it is overridden by what comes later only.
        let at = writer.as_of();
        let blocks = Blocks::at(&history, job.volume.id, at)?;
        Ok(Some(Self { source: Vec::new(), ours: Vec::new(), blocks, history }))
    }

    fn window(
        &mut self,
        client: &mut Client,
        writer: &CopyWriter,
        range: Range<u64>,
    ) -> Result<()> {
        let bytes = (range.end - range.start) as usize;
        self.source.clear();
        self.source.resize(bytes, 0);
        self.ours.resize(bytes, 0);
        let parts = data_in(client, &range)?;
        let source = &mut self.source;
        client.read_many(parts, DEPTH, |at, content| {
            if let Content::Data(data) = content {
                let from = (at - range.start) as usize;
                source[from..from + data.len()].copy_from_slice(data);
            }
            Ok(())
        })?;
        // What is damaged in the journal differs from everything.
        let known = self.blocks.read(&self.history, range.start, &mut self.ours).is_ok();
        let mut run: Option<usize> = None;
        for at in (0..bytes).step_by(BLOCK_BYTES) {
            let end = (at + BLOCK_BYTES).min(bytes);
            let same = known && self.source[at..end] == self.ours[at..end];
            match (same, run) {
                (false, None) => run = Some(at),
                (true, Some(start)) => {
                    put_run(writer, range.start, &self.source, start..at)?;
                    run = None;
                }
                _ => {}
            }
        }
        run.map_or(Ok(()), |start| put_run(writer, range.start, &self.source, start..bytes))
    }
}

fn put_run(writer: &CopyWriter, base: u64, source: &[u8], run: Range<usize>) -> Result<()> {
    let (at, bytes) = (base + run.start as u64, &source[run]);
    if is_zero(bytes) {
        writer.zero(at, bytes.len() as u64)?;
    } else {
        writer.put(at, bytes)?;
    }
    Ok(())
}

/// Holds a copy to its rate, which may change under way.
struct Pace {
    rate: u64,
    begun: Instant,
    bytes: u64,
}

impl Pace {
    fn new(progress: &Progress) -> Self {
        let rate = progress.rate_bytes_per_s.load(Ordering::Relaxed);
        Self { rate, begun: Instant::now(), bytes: 0 }
    }

    fn spent(&mut self, progress: &Progress, bytes: u64) {
        self.bytes += bytes;
        // Short sleeps: a cancelled copy must end soon, and a new rate count at once.
        loop {
            if progress.rate_bytes_per_s.load(Ordering::Relaxed) != self.rate {
                *self = Self::new(progress);
            }
            if self.rate == 0 || progress.cancel.load(Ordering::Relaxed) {
                return;
            }
            let due = Duration::from_millis(self.bytes.saturating_mul(1000) / self.rate);
            let wait = due.saturating_sub(self.begun.elapsed());
            if wait.is_zero() {
                return;
            }
            std::thread::sleep(wait.min(Duration::from_millis(100)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_joined_without_a_block_twice() {
        assert_eq!(union(vec![8..12, 0..4, 3..6, 6..7, 20..30, 22..25]), [0..7, 8..12, 20..30]);
    }

    #[test]
    fn only_all_zero_bytes_are_zero() {
        let mut bytes = vec![0u8; 4096 + 7];
        assert!(is_zero(&bytes[1..]));
        for at in [0, 5, 2048, 4102] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }
}
