//! Reading many records in the journal's order: neighbours with one system call, several calls in
//! flight, each record's payload checked before it is handed out (I-12).
//!
//! What always holds: memory is bounded, [`THREADS`] runs of records, or single records that are
//! larger; where a run can't be read, its records are read one by one, so that only those that
//! can't be are lost.

use crate::direct::{self, Aligned};
use afterimage_journal::History;
use afterimage_journal::format::checksum;
use afterimage_journal::format::record::HEADER_BYTES;
use afterimage_journal::history::{Entry, open_files_max};
use afterimage_journal::unit::ScanEnd;
use afterimage_planted as planted;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Threads that read or write: enough to keep a disk busy, whatever the number of processors.
const THREADS: usize = 8;
/// Most units that are open past the page cache.
const OPEN_FILES_MAX: usize = 128;
/// Most bytes read at a time, unless a single record is larger.
const RUN_BYTES_MAX: u64 = 2 << 20;
/// Largest stretch that is read and thrown away rather than stepped over with another call.
const SKIP_BYTES_MAX: u64 = 64 << 10;

/// A record as it lies in its unit.
pub(crate) struct Stored<'b> {
    /// The header's bytes, unchecked.
    pub header: &'b [u8],
    /// The payload as it was captured.
    pub payload: Result<&'b [u8], Unread>,
}

/// Why a record's payload can't be had.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It is not what was written: why.
    Damaged(String),
    /// The host could not read it, or the unit was released meanwhile: it may be whole.
    Host(afterimage_journal::Error),
}

impl Unread {
    fn of(error: afterimage_journal::Error) -> Self {
        match error.is_host() && !planted::is("host-errors-are-damage") {
            true => Self::Host(error),
            false => Self::Damaged(format!("its data can't be read: {error}")),
        }
    }
}

/// Something that names a record.
pub(crate) trait Lies {
    /// The record, and where it lies.
    fn entry(&self) -> &Entry;
}

impl Lies for Entry {
    fn entry(&self) -> &Entry {
        self
    }
}

/// Where a record's bytes start and end in its unit.
fn span(entry: &Entry) -> (u64, u64) {
    (entry.at, entry.at + HEADER_BYTES + u64::from(entry.record.payload_bytes))
}

/// Cuts records, which come in the order of units and offsets, into runs to be read at once.
pub(crate) fn runs(records: &[impl Lies]) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut first = 0;
    while first < records.len() {
        let behind = run_end(records, first);
        runs.push(first..behind);
        first = behind;
    }
    runs
}

fn run_end(records: &[impl Lies], first: usize) -> usize {
    let unit = records[first].entry().unit;
    let (start, mut end) = span(records[first].entry());
    let mut behind = first + 1;
    while let Some(next) = records.get(behind).map(Lies::entry) {
        let (from, to) = span(next);
        let near = from >= end && from - end <= SKIP_BYTES_MAX && to - start <= RUN_BYTES_MAX;
        if next.unit != unit || !near {
            break;
        }
        end = to;
        behind += 1;
    }
    behind
}

/// Reads records of a journal: sealed units past the page cache, where that can be had.
pub(crate) struct Reader<'h> {
    history: &'h History,
    /// By unit; `None`: read through the page cache.
    direct: Mutex<HashMap<u32, Option<Arc<File>>>>,
    /// What threads read into, one for each.
    buffers: Mutex<Vec<Aligned>>,
}

impl<'h> Reader<'h> {
    pub(crate) fn new(history: &'h History) -> Self {
        Self { history, direct: Mutex::default(), buffers: Mutex::default() }
    }

    /// Reads all runs, several at a time: calls `take` with each run's own `S`, and the index and
    /// the bytes of each record. The runs' order is no order of calls.
    pub(crate) fn read<S: Send>(
        &self,
        records: &[impl Lies + Sync],
        runs: Vec<(Range<usize>, S)>,
        take: impl Fn(&mut S, usize, Stored<'_>) + Sync,
    ) {
        in_parallel(runs, |jobs| {
            let mut buffer = locked(&self.buffers).pop().unwrap_or_default();
            while let Some((run, mut with)) = jobs() {
                self.read_run(records, run, &mut buffer, &mut |i, stored| {
                    take(&mut with, i, stored);
                });
            }
            locked(&self.buffers).push(buffer);
        });
    }

    fn read_run(
        &self,
        records: &[impl Lies],
        run: Range<usize>,
        buffer: &mut Aligned,
        take: &mut impl FnMut(usize, Stored<'_>),
    ) {
        let (start, _) = span(records[run.start].entry());
        let (_, end) = span(records[run.end - 1].entry());
        let unit = records[run.start].entry().unit;
        let read = self.read_range(unit, start, end, buffer);
        if read.is_err() && run.len() > 1 {
            // One of them can't be read: each alone tells which.
            for i in run {
                self.read_run(records, i..i + 1, buffer, take);
            }
            return;
        }
        let begin = match read {
            Ok(begin) => begin,
            Err(e) => {
                return take(run.start, Stored { header: &[], payload: Err(Unread::of(e)) });
            }
        };
        let mut unpacked = Vec::new();
        for i in run {
            let entry = records[i].entry();
            let (from, to) = span(entry);
            let bytes = &buffer[begin + (from - start) as usize..begin + (to - start) as usize];
            let (header, payload) = bytes.split_at(HEADER_BYTES as usize);
            let is_whole = checksum::crc32c(payload) == entry.record.payload_crc;
            let payload = match is_whole {
                true => self.history.unpack(entry, payload, &mut unpacked),
                false => Err(MISMATCH),
            };
            let payload = payload.map_err(|why| self.damaged(unit, why));
            take(i, Stored { header, payload });
        }
    }

    /// What was read of a unit is not what was written, if it is that unit still.
    fn damaged(&self, unit: u32, why: &str) -> Unread {
        if self.history.is_there(unit) {
            return Unread::Damaged(why.to_owned());
        }
        let path = self.history.units.get(unit as usize).map(|u| u.path.clone());
        Unread::Host(afterimage_journal::Error::Unusable {
            path: path.unwrap_or_default(),
            why: "it was released while it was read: start again".into(),
        })
    }

    /// Reads a range of a unit; says where in `buffer` it begins.
    fn read_range(
        &self,
        unit: u32,
        start: u64,
        end: u64,
        buffer: &mut Aligned,
    ) -> Result<usize, afterimage_journal::Error> {
        if let Some(direct) = self.direct(unit)
            && let Some(begin) = direct::read(&direct, start, end, buffer)
        {
            return Ok(begin);
        }
        let file = self.history.file(unit)?;
        buffer.resize((end - start) as usize);
        let read = file.read_exact_at(buffer, start);
        let path = || self.history.units.get(unit as usize).map(|u| u.path.clone());
        read.map_err(|e| {
            afterimage_journal::Error::io("read unit", &path().unwrap_or_default(), e)
        })?;
        Ok(0)
    }

    fn direct(&self, unit: u32) -> Option<Arc<File>> {
        if let Some(known) = locked(&self.direct).get(&unit) {
            return known.clone();
        }
        // Of one that isn't sealed some may be in the ring only.
        let sealed = self.history.units.get(unit as usize)?.end == ScanEnd::Sealed;
        let file = self.history.file(unit).ok().filter(|_| sealed);
        let file = file.and_then(|f| direct::reopen(f.as_file()?, false)).map(Arc::new);
        let mut known = locked(&self.direct);
        if known.len() >= open_files_max(OPEN_FILES_MAX) {
            known.clear();
        }
        known.insert(unit, file.clone());
        file
    }
}

const MISMATCH: &str = "its data doesn't match its checksum";

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they guard is only ever changed by one call that can't stop midway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on up to [`THREADS`] threads, each taking jobs until there are none; ends when all
/// are done.
fn in_parallel<J: Send>(jobs: Vec<J>, work: impl Fn(&dyn Fn() -> Option<J>) + Sync) {
    let threads = THREADS.min(jobs.len());
    let jobs = Mutex::new(jobs.into_iter());
    let next = || locked(&jobs).next();
    if threads <= 1 {
        return work(&next);
    }
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&next));
        }
    });
}

/// Does jobs, several at a time, until one fails.
///
/// # Errors
/// That of the first job that failed.
pub(crate) fn try_in_parallel<J: Send, E: Send>(
    jobs: Vec<J>,
    work: impl Fn(J) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let failed = Mutex::new(None);
    in_parallel(jobs, |next| {
        while let Some(job) = next() {
            if let Err(e) = work(job) {
                locked(&failed).get_or_insert(e);
            }
            if locked(&failed).is_some() {
                return;
            }
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
