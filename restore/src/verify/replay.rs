//! A second, deliberately simple way to a volume's state: every record that counts, one after the
//! other in the order of its rank, onto a plain file.
//!
//! Shares no code with plan, apply, map and view; it finds copies and payloads by itself, so that
//! a mistake there shows as a different digest. Slow: overwritten data is written all the same.

use super::at::scratch_error;
use crate::error::Result;
use afterimage_journal::format::checksum::crc32c;
use afterimage_journal::format::record::{FLAG_COPIED, HEADER_BYTES, Kind, Record};
use afterimage_journal::history::Entry;
use afterimage_journal::meta::{Copy, CopyEvent, Volume};
use afterimage_journal::{History, Seq, VolumeId};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What stands where a damaged record's data would be: if any of it is left at the end, the
/// digest is no restore's.
const POISON: u8 = 0xdb;
/// Bytes of zeroes written at a time.
const ZERO_BYTES: usize = 1 << 20;

/// A copy, as the records themselves tell of it.
struct Copied {
    /// Number of the record that began it.
    start: Seq,
    /// The last number among its data.
    last: Seq,
}

/// A replay up to a position. Memory: a unit's index, however long the journal is.
pub(super) struct Replay<'h> {
    history: &'h History,
    upto: Seq,
    /// By id.
    copies: HashMap<u32, Copied>,
    /// Bytes that the records of each volume cover, counted as often as they are written.
    bytes: HashMap<VolumeId, u64>,
}

impl<'h> Replay<'h> {
    /// Finds the copies up to `upto`.
    ///
    /// # Errors
    /// The host can't read the journal.
    pub(super) fn new(history: &'h History, upto: Seq) -> Result<Self> {
        let mut replay = Self { history, upto, copies: HashMap::new(), bytes: HashMap::new() };
        // Merging moves nothing in the order of numbers: a copy's start comes before its data.
        for entry in sound(history.entries()) {
            let entry = entry?;
            let record = &entry.record;
            if record.seq > upto {
                break;
            }
            if record.kind == Kind::Copy {
                replay.note(&entry)?;
            } else if is_data(record) {
                let copied = record.flags & FLAG_COPIED != 0;
                let copy = replay.copies.get_mut(&record.scope).filter(|_| copied);
                if !copied || copy.is_some() {
                    *replay.bytes.entry(record.volume).or_default() += u64::from(record.len);
                }
                if let Some(copy) = copy {
                    copy.last = record.seq;
                }
            }
        }
        Ok(replay)
    }

    fn note(&mut self, entry: &Entry) -> Result<()> {
        let start = payload(self.history, entry)?
            .and_then(|bytes| serde_json::from_slice::<Copy>(&bytes).ok())
            .filter(|copy| copy.event == CopyEvent::Start);
        if let Some(copy) = start {
            let start = entry.record.seq;
            self.copies.insert(copy.id, Copied { start, last: start });
        }
        Ok(())
    }

    /// Bytes that a volume's records cover, counted as often as they are written.
    pub(super) fn bytes(&self, volume: VolumeId) -> u64 {
        self.bytes.get(&volume).copied().unwrap_or(0)
    }

    /// Applies a volume's records to a file of its size, all zero: captured ones in the order of
    /// their numbers, those of a copy where it began.
    ///
    /// # Errors
    /// The file can't be written, or the host can't read the journal.
    pub(super) fn run(
        &self,
        volume: &Volume,
        file: &File,
        report: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut done = 0;
        let mut put = |entry: &Entry| {
            put(self.history, volume, entry, file)?;
            done += u64::from(entry.record.len);
            report(done);
            Result::Ok(())
        };
        for entry in sound(self.history.entries()) {
            let entry = entry?;
            let record = &entry.record;
            if record.seq > self.upto {
                break;
            }
            let begun = self.copies.iter().find(|(_, copy)| copy.start == record.seq);
            if let Some((id, copy)) = begun {
                let of_it = |e: &Entry| {
                    let record = &e.record;
                    record.flags & FLAG_COPIED != 0 && record.scope == *id && is_data(record)
                };
                for entry in sound(self.history.entries_from(copy.start)) {
                    let entry = entry?;
                    if entry.record.seq > copy.last {
                        break;
                    }
                    if of_it(&entry) && entry.record.volume == volume.id {
                        put(&entry)?;
                    }
                }
            } else if is_data(record)
                && record.flags & FLAG_COPIED == 0
                && record.volume == volume.id
            {
                put(&entry)?;
            }
        }
        Ok(())
    }
}

fn is_data(record: &Record) -> bool {
    record.kind == Kind::Write || record.kind == Kind::Zero
}

/// Applies one record.
fn put(history: &History, volume: &Volume, entry: &Entry, file: &File) -> Result<()> {
    let record = &entry.record;
    let room = volume.bytes.saturating_sub(record.addr);
    let len = u64::from(record.len).min(room) as usize;
    if record.kind == Kind::Zero {
        return zero(file, record.addr, len).map_err(scratch_error);
    }
    let whole = payload(history, entry)?.filter(|p| p.len() >= len);
    let bytes = whole.unwrap_or_else(|| vec![POISON; len]);
    file.write_all_at(&bytes[..len], record.addr).map_err(scratch_error)
}

fn zero(file: &File, addr: u64, len: usize) -> io::Result<()> {
    let zeroes = vec![0; len.min(ZERO_BYTES)];
    let mut done = 0;
    while done < len {
        let step = zeroes.len().min(len - done);
        file.write_all_at(&zeroes[..step], addr + done as u64)?;
        done += step;
    }
    Ok(())
}

/// The entries that can be read; what is damaged is left out, and the digest tells.
fn sound(
    entries: impl Iterator<Item = afterimage_journal::Result<Entry>>,
) -> impl Iterator<Item = Result<Entry>> {
    entries.filter_map(|entry| match entry {
        Ok(entry) => Some(Ok(entry)),
        Err(e) if e.is_host() => Some(Err(e.into())),
        Err(_) => None,
    })
}

/// A record's payload as it was captured; `None`: its checksum doesn't match.
///
/// # Errors
/// The host can't read it.
fn payload(history: &History, entry: &Entry) -> Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; entry.record.payload_bytes as usize];
    let read = history.file(entry.unit).and_then(|file| {
        let read = file.read_exact_at(&mut bytes, entry.at + HEADER_BYTES);
        read.map_err(|e| afterimage_journal::Error::io("read unit", &history.dir, e))
    });
    match read {
        Ok(()) => {}
        Err(e) if e.is_host() => return Err(e.into()),
        Err(_) => return Ok(None),
    }
    if crc32c(&bytes) != entry.record.payload_crc {
        return Ok(None);
    }
    let mut data = Vec::new();
    Ok(history.unpack(entry, &bytes, &mut data).ok().map(<[u8]>::to_vec))
}
