//! Reading many records in the journal's order: neighbours with one system call, each one's
//! payload checked before it is handed out (I-12). Bounded memory: one run, or one record.

use afterimage_journal::History;
use afterimage_journal::format::checksum;
use afterimage_journal::format::record::HEADER_BYTES;
use afterimage_journal::history::Entry;

/// Most bytes read at a time, unless a single record is larger.
const RUN_BYTES_MAX: u64 = 4 << 20;
/// Largest stretch that is read and thrown away rather than stepped over with another call.
const SKIP_BYTES_MAX: u64 = 64 << 10;

/// A record as it lies in its unit.
pub(crate) struct Stored<'b> {
    /// The header's bytes, unchecked.
    pub header: &'b [u8],
    /// The payload; `Err`: its checksum doesn't match, or it can't be read.
    pub payload: Result<&'b [u8], String>,
}

/// Calls `take` with the position in `entries` and the bytes of each record. `entries` come in the
/// order of units and offsets.
pub(crate) fn for_each<E>(
    history: &History,
    entries: &[Entry],
    mut take: impl FnMut(usize, Stored<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = Vec::new();
    let mut first = 0;
    while first < entries.len() {
        let behind = run_end(entries, first);
        read_run(history, entries, first..behind, &mut buffer, &mut take)?;
        first = behind;
    }
    Ok(())
}

/// Where a record's bytes start and end in its unit.
fn span(entry: &Entry) -> (u64, u64) {
    (entry.at, entry.at + HEADER_BYTES + u64::from(entry.record.payload_bytes))
}

fn run_end(entries: &[Entry], first: usize) -> usize {
    let unit = entries[first].unit;
    let (start, mut end) = span(&entries[first]);
    let mut behind = first + 1;
    while let Some(next) = entries.get(behind) {
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

fn read_run<E>(
    history: &History,
    entries: &[Entry],
    run: std::ops::Range<usize>,
    buffer: &mut Vec<u8>,
    take: &mut impl FnMut(usize, Stored<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let (start, _) = span(&entries[run.start]);
    let (_, end) = span(&entries[run.end - 1]);
    let read = read(history, &entries[run.start], start, end, buffer);
    if read.is_err() && run.len() > 1 {
        // One of them can't be read: each alone tells which.
        for i in run {
            read_run(history, entries, i..i + 1, buffer, take)?;
        }
        return Ok(());
    }
    for i in run {
        if let Err(e) = &read {
            let why = format!("its data can't be read: {e}");
            take(i, Stored { header: &[], payload: Err(why) })?;
            continue;
        }
        let (from, to) = span(&entries[i]);
        let bytes = &buffer[(from - start) as usize..(to - start) as usize];
        let (header, payload) = bytes.split_at(HEADER_BYTES as usize);
        let whole = checksum::crc32c(payload) == entries[i].record.payload_crc;
        let payload = if whole { Ok(payload) } else { Err(MISMATCH.to_owned()) };
        take(i, Stored { header, payload })?;
    }
    Ok(())
}

const MISMATCH: &str = "its data doesn't match its checksum";

fn read(
    history: &History,
    entry: &Entry,
    start: u64,
    end: u64,
    buffer: &mut Vec<u8>,
) -> Result<(), String> {
    let file = history.file(entry.unit).map_err(|e| e.to_string())?;
    buffer.resize((end - start) as usize, 0);
    file.read_exact_at(buffer, start).map_err(|e| e.to_string())
}
