//! A second, deliberately simple way to a volume's state: every record that counts, one after the
//! other in the order of its rank, onto a plain file.
//!
//! Shares no code with plan, apply, map and view; it finds copies and payloads by itself, so that
//! a mistake there shows as a different digest. Slow: overwritten data is written all the same.

use afterimage_journal::format::checksum::crc32c;
use afterimage_journal::format::record::{FLAG_COPIED, HEADER_BYTES, Kind};
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

/// A replay up to a position.
pub(super) struct Replay<'h> {
    history: &'h History,
    /// The records that count, with their rank, in its order.
    ranked: Vec<(Seq, Seq, Entry)>,
}

impl<'h> Replay<'h> {
    /// Lists the records up to `upto`.
    pub(super) fn new(history: &'h History, upto: Seq) -> Self {
        let mut starts: HashMap<u32, Seq> = HashMap::new();
        let all = || history.entries().flatten();
        for entry in all().filter(|e| e.record.kind == Kind::Copy) {
            let start = payload(history, &entry)
                .and_then(|bytes| serde_json::from_slice::<Copy>(&bytes).ok())
                .filter(|copy| copy.event == CopyEvent::Start);
            if let Some(copy) = start {
                starts.insert(copy.id, entry.record.seq);
            }
        }
        let mut ranked = Vec::new();
        for entry in all() {
            let record = &entry.record;
            let data = record.kind == Kind::Write || record.kind == Kind::Zero;
            if !data || record.seq > upto {
                continue;
            }
            let copied = record.flags & FLAG_COPIED != 0;
            let rank = if copied { starts.get(&record.scope).copied() } else { Some(record.seq) };
            ranked.extend(rank.map(|rank| (rank, record.seq, entry)));
        }
        ranked.sort_by_key(|(rank, seq, entry)| (*rank, *seq, entry.record.addr));
        Self { history, ranked }
    }

    fn of(&self, volume: VolumeId) -> impl Iterator<Item = &Entry> {
        self.ranked.iter().map(|(_, _, e)| e).filter(move |e| e.record.volume == volume)
    }

    /// Bytes that a volume's records cover, counted as often as they are written.
    pub(super) fn bytes(&self, volume: VolumeId) -> u64 {
        self.of(volume).map(|e| u64::from(e.record.len)).sum()
    }

    /// Applies a volume's records to a file of its size, all zero.
    pub(super) fn run(
        &self,
        volume: &Volume,
        file: &File,
        report: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let mut done = 0;
        for entry in self.of(volume.id) {
            let record = &entry.record;
            let room = volume.bytes.saturating_sub(record.addr);
            let len = u64::from(record.len).min(room) as usize;
            if record.kind == Kind::Zero {
                zero(file, record.addr, len)?;
            } else {
                let whole = payload(self.history, entry).filter(|p| p.len() >= len);
                let bytes = whole.unwrap_or_else(|| vec![POISON; len]);
                file.write_all_at(&bytes[..len], record.addr)?;
            }
            done += u64::from(record.len);
            report(done);
        }
        Ok(())
    }
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

/// A record's payload, if its checksum matches.
fn payload(history: &History, entry: &Entry) -> Option<Vec<u8>> {
    let mut bytes = vec![0; entry.record.payload_bytes as usize];
    let file = history.file(entry.unit).ok()?;
    file.read_exact_at(&mut bytes, entry.at + HEADER_BYTES).ok()?;
    (crc32c(&bytes) == entry.record.payload_crc).then_some(bytes)
}
