//! Ops of the log's end: units begin, get records, are sealed. What arrives is checked record by record, as
//! whoever reads it will.

use super::gather::Gather;
use super::live::{Live, Tail};
use super::verify;
use crate::manifest::{File, Holding};
use afterimage_journal::format::checksum::crc32c;
use afterimage_journal::format::index::{self, FOOTER_BYTES, Footer};
use afterimage_journal::format::meta::{EpochStart, Merged};
use afterimage_journal::format::record::{self, Decoded, HEADER_BYTES, Record};
use afterimage_journal::format::unit_header::{BLOCK_BYTES, FLAG_MERGED, UnitHeader};
use afterimage_journal::format::{ALIGN_BYTES, align_up};
use afterimage_journal::pool::FileName;
use afterimage_journal::unit::{UNIT_BYTES_MAX, UNIT_BYTES_MIN, record_bytes_max};
use afterimage_journal::wire::{OP_BYTES_MAX, Op, SinkError};
use std::time::Instant;
use uuid::Uuid;

/// Zeroes that are stored, not stepped over: frames of them cost nothing, a segment does.
pub(super) const HOLE_BYTES_MIN: u64 = 1 << 20;

pub(super) fn broken(name: FileName, what: &str) -> SinkError {
    SinkError::Broken(format!("{name}: {what}"))
}

impl Live {
    /// Takes one op.
    pub fn apply(&mut self, op: Op) -> Result<(), SinkError> {
        match op {
            Op::Begin(header) => self.begin(&header),
            Op::Bytes { unit, at, bytes } => self.bytes(FileName::Unit(unit), at, &bytes),
            Op::Seal { unit, end, index_crc } => self.seal(FileName::Unit(unit), end, index_crc),
            Op::Put { name, file_bytes, at, bytes, len } => {
                self.put(name, file_bytes, at, &bytes, len)
            }
            Op::PutEnd { name, index_crc } => self.put_end(name, index_crc),
            Op::Release(names) => {
                for name in names {
                    self.give_up(name);
                }
                self.background_since.get_or_insert_with(Instant::now);
                Ok(())
            }
            Op::Sync { token, watermark, wall_ns } => {
                if token > self.sync.0 {
                    self.sync = (token, watermark.max(self.sync.1), wall_ns);
                    self.fresh_since.get_or_insert_with(Instant::now);
                }
                Ok(())
            }
        }
    }

    /// Whether a header may be that of a file of this name.
    pub fn check_header(&self, name: FileName, header: &UnitHeader) -> Result<(), SinkError> {
        let merged = matches!(name, FileName::Merged(..));
        if header.group != self.group {
            return Err(broken(name, "its header is another journal's"));
        }
        if header.number != name.numbers().0 || merged != (header.flags & FLAG_MERGED != 0) {
            return Err(broken(name, "its header is another file's"));
        }
        // What is left of units may be small.
        let least = if merged { BLOCK_BYTES + FOOTER_BYTES } else { UNIT_BYTES_MIN };
        if !(least..=UNIT_BYTES_MAX).contains(&header.unit_bytes) {
            return Err(broken(name, "its header names a size that no unit has"));
        }
        if header.epoch > self.epoch {
            return Err(broken(name, "it is of a later epoch than the journal"));
        }
        Ok(())
    }

    fn begin(&mut self, header: &UnitHeader) -> Result<(), SinkError> {
        let name = FileName::Unit(header.number);
        self.check_header(name, header)?;
        if let Some(there) = self.state.files.get(&name)
            && there.salt == header.salt
            && there.holding != Holding::Part
        {
            return Ok(());
        }
        // Another file of this name, or a part of this one that came the other way.
        self.give_up(name);
        let file = File::begun(header, Holding::Open);
        self.state.files.insert(name, file);
        self.change.touch(name, 0);
        let mut gather = Gather::at(0);
        gather.push(&header.encode(), |_| {});
        self.tails.insert(name, Tail { gather, records: Some(Vec::new()), in_pieces: false });
        self.fresh_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// What is said of a file that began and isn't whole; `None`: it is whole.
    fn open_file(&self, name: FileName) -> Result<Option<([u8; 16], u64)>, SinkError> {
        match self.state.files.get(&name) {
            Some(file) if file.holding == Holding::Open => Ok(Some((file.salt, file.file_bytes))),
            Some(file) if file.holding == Holding::Whole => Ok(None),
            _ => Err(broken(name, "it did not begin")),
        }
    }

    fn bytes(&mut self, name: FileName, at: u64, bytes: &[u8]) -> Result<(), SinkError> {
        if bytes.len() > OP_BYTES_MAX {
            return Err(broken(name, "an op with more bytes than one has"));
        }
        let Some((salt, file_bytes)) = self.open_file(name)? else { return Ok(()) };
        self.take_records(name)?;
        let tail = self.tail(name)?;
        let end = tail.gather.end();
        let Some(skip) = end.checked_sub(at) else {
            return Err(broken(name, &format!("bytes from {at} on, but it ends at {end}")));
        };
        let Some(bytes) = bytes.get(skip as usize..).filter(|b| !b.is_empty()) else {
            return Ok(());
        };
        if end + bytes.len() as u64 > file_bytes - FOOTER_BYTES {
            return Err(broken(name, "more bytes than it has room for"));
        }
        let records = decode(name, &salt, file_bytes, end, bytes)?;
        if let Some(known) = &mut tail.records {
            known.extend(records);
        }
        let mut cuts = Vec::new();
        tail.gather.push(bytes, |cut| cuts.push(cut));
        for cut in cuts {
            self.write(name, cut)?;
        }
        self.fresh_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn seal(&mut self, name: FileName, end: u64, index_crc: u32) -> Result<(), SinkError> {
        let Some((salt, file_bytes)) = self.open_file(name)? else {
            let known = self.state.files.get(&name).map(|f| f.index_crc);
            return match known == Some(index_crc) {
                true => Ok(()),
                false => Err(broken(name, "it was sealed with another index")),
            };
        };
        self.take_records(name)?;
        let found = self.tail(name)?.gather.end();
        if found != end {
            return Err(broken(name, &format!("sealed at {end}, but it ends at {found}")));
        }
        let records = match self.tails.get_mut(&name).and_then(|t| t.records.take()) {
            Some(records) => records,
            None => self.read_records(name)?,
        };
        let header = UnitHeader { salt, unit_bytes: file_bytes, ..blank(self.group) };
        let (index_at, area) = index::area(&header, &records);
        let footer = area.len().checked_sub(FOOTER_BYTES as usize).map(|at| &area[at..]);
        let footer = footer.and_then(|f| Footer::decode(&salt, file_bytes, f));
        if index_at < end || footer.is_none_or(|f| f.index_crc != index_crc) {
            return Err(broken(name, "its records give another index than the source's"));
        }
        self.append(name, index_at - end, &area)?;
        self.finish(name, index_crc, None)
    }

    /// The records of a unit of which a part came before this opening.
    fn read_records(&mut self, name: FileName) -> Result<Vec<(u64, Record)>, SinkError> {
        if let Some(cut) = self.tails.get_mut(&name).and_then(|t| t.gather.settle()) {
            self.write(name, cut)?;
        }
        self.settle()?;
        let unit = verify::read(self, name)?;
        Ok(unit.records)
    }

    /// Adds zeroes and then bytes to a file.
    pub fn append(&mut self, name: FileName, zeroes: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let mut cuts = Vec::new();
        let tail = self.tail(name)?;
        if zeroes >= HOLE_BYTES_MIN {
            cuts.extend(tail.gather.finish());
            let behind = tail.gather.end() + zeroes;
            tail.gather.skip_to(behind);
        } else {
            tail.gather.push(&vec![0; zeroes as usize], |cut| cuts.push(cut));
        }
        tail.gather.push(bytes, |cut| cuts.push(cut));
        let end = tail.gather.end();
        for cut in cuts {
            self.write(name, cut)?;
        }
        if bytes.is_empty()
            && zeroes >= HOLE_BYTES_MIN
            && let Some(file) = self.state.files.get_mut(&name)
        {
            // What is only zeroes is there without being written.
            file.end = end;
            let keep = file.segments.len();
            self.change.touch(name, keep);
        }
        Ok(())
    }

    /// A file is whole: the last of it is written, and it counts with the next manifest.
    pub fn finish(
        &mut self,
        name: FileName,
        index_crc: u32,
        merged: Option<&Merged>,
    ) -> Result<(), SinkError> {
        if let Some(cut) = self.tail(name)?.gather.finish() {
            self.write(name, cut)?;
        }
        self.tails.remove(&name);
        if let Some(file) = self.state.files.get_mut(&name) {
            file.holding = Holding::Whole;
            (file.end, file.index_crc) = (file.file_bytes, index_crc);
            if let Some(merged) = merged {
                file.edge = merged.edge;
                let id = |start: &EpochStart| (start.epoch, start.id.map(Uuid::into_bytes));
                file.openings = merged.epochs.iter().map(id).collect();
            }
            let keep = file.segments.len();
            self.change.touch(name, keep);
        }
        self.whole.push(name);
        self.fresh_since.get_or_insert_with(Instant::now);
        Ok(())
    }
}

/// What an index is made for: nothing but group, salt and size counts.
fn blank(group: [u8; 16]) -> UnitHeader {
    UnitHeader {
        group,
        salt: [0; 16],
        number: 0,
        unit_bytes: 0,
        epoch: 0,
        flags: 0,
        after_seq: 0,
        prev_last_seq: 0,
        wall_ns: 0,
        mono_ns: 0,
        boot_id: [0; 16],
        mount_id: 0,
    }
}

/// The records in bytes of a unit from `at` on: whole ones, each with its checksums right.
fn decode(
    name: FileName,
    salt: &[u8; 16],
    file_bytes: u64,
    at: u64,
    bytes: &[u8],
) -> Result<Vec<(u64, Record)>, SinkError> {
    let wrong = |at: u64| broken(name, &format!("what came for byte {at} is no whole record"));
    let mut records = Vec::new();
    let mut next = 0;
    while next < bytes.len() {
        let place = at + next as u64;
        let header = bytes[next..].first_chunk::<{ HEADER_BYTES as usize }>();
        let header = header.ok_or_else(|| wrong(place))?;
        let (record, payload_bytes) = match record::decode(salt, place, header) {
            Decoded::Record(r) => (Some(r), r.payload_bytes),
            Decoded::Reserved { payload_bytes } => (None, payload_bytes),
            Decoded::None | Decoded::Broken { .. } => return Err(wrong(place)),
        };
        if !place.is_multiple_of(ALIGN_BYTES)
            || u64::from(payload_bytes) > record_bytes_max(file_bytes)
        {
            return Err(wrong(place));
        }
        let end = align_up(next as u64 + HEADER_BYTES + u64::from(payload_bytes)) as usize;
        let from = next + HEADER_BYTES as usize;
        let payload = bytes.get(from..from + payload_bytes as usize).filter(|_| end <= bytes.len());
        let payload = payload.ok_or_else(|| wrong(place))?;
        if let Some(record) = record {
            if crc32c(payload) != record.payload_crc {
                return Err(broken(name, &format!("the data of the record at {place} is damaged")));
            }
            records.push((place, record));
        }
        next = end;
    }
    Ok(records)
}
