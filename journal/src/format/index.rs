//! The index at the end of a sealed unit: one 48-byte entry a record, sorted by (number, address),
//! then a 64-byte footer. Older units have it in the order of offsets; readers take any order.
//!
//! It holds all that a record header holds, so that no payload is read to find a block, and a
//! rotten record header costs nothing while the index is good.

use super::checksum;
use super::payload::{PLAIN, ZSTD, is_possible};
use super::record::{HEADER_BYTES, Kind, PAYLOAD_BYTES_MAX, Record};
use super::unit_header::UnitHeader;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of one entry.
pub const ENTRY_BYTES: u64 = 48;
/// Bytes of the footer: the last bytes of the unit's file.
pub const FOOTER_BYTES: u64 = 64;
const MAGIC: [u8; 8] = *b"AIMGSEAL";
/// Flag of an entry alone: the record is compressed with zstd.
const FLAG_ZSTD: u8 = 0x80;
/// Flag of an entry alone: the record is encrypted with the key of its unit.
const FLAG_ENCRYPTED: u8 = 0x40;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Entry {
    seq: U64,
    addr: U64,
    wall_ns: U64,
    len: U32,
    payload_bytes: U32,
    payload_crc: U32,
    /// Offset of the record in units of 64 bytes.
    at: U32,
    scope: U32,
    kind: u8,
    flags: u8,
    volume: U16,
}

const _: () = assert!(size_of::<Entry>() as u64 == ENTRY_BYTES);

/// What a footer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Records in the unit.
    pub count: u64,
    /// Lowest number in it (0 when empty).
    pub first_seq: u64,
    /// Highest number in it (0 when empty).
    pub last_seq: u64,
    /// Byte offset of the index.
    pub index_at: u64,
    /// Checksum over the index.
    pub index_crc: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawFooter {
    magic: [u8; 8],
    count: U64,
    first_seq: U64,
    last_seq: U64,
    index_at: U64,
    index_crc: U32,
    crc: U32,
    reserved: [u8; 16],
}

const _: () = assert!(size_of::<RawFooter>() as u64 == FOOTER_BYTES);

impl Footer {
    /// The footer's bytes.
    #[must_use]
    pub fn encode(&self, salt: &[u8; 16]) -> [u8; FOOTER_BYTES as usize] {
        let mut raw = RawFooter {
            magic: MAGIC,
            count: self.count.into(),
            first_seq: self.first_seq.into(),
            last_seq: self.last_seq.into(),
            index_at: self.index_at.into(),
            index_crc: self.index_crc.into(),
            crc: 0.into(),
            reserved: [0; 16],
        };
        raw.crc = checksum::salted(salt, raw.as_bytes()).into();
        let mut bytes = [0; FOOTER_BYTES as usize];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// The footer in the last bytes of a unit, if there is a valid one: the unit is sealed.
    #[must_use]
    pub fn decode(salt: &[u8; 16], unit_bytes: u64, bytes: &[u8]) -> Option<Self> {
        let mut raw = RawFooter::read_from_bytes(bytes).ok()?;
        let crc = raw.crc.get();
        raw.crc = 0.into();
        if raw.magic != MAGIC || crc != checksum::salted(salt, raw.as_bytes()) {
            return None;
        }
        let footer = Self {
            count: raw.count.get(),
            first_seq: raw.first_seq.get(),
            last_seq: raw.last_seq.get(),
            index_at: raw.index_at.get(),
            index_crc: raw.index_crc.get(),
        };
        let index_bytes = footer.count.checked_mul(ENTRY_BYTES)?;
        let end = footer.index_at.checked_add(index_bytes)?;
        // Each record takes a header in front of the index, too.
        let heads_bytes = footer.count.checked_mul(HEADER_BYTES)?;
        let fits = end <= unit_bytes.checked_sub(FOOTER_BYTES)? && heads_bytes <= footer.index_at;
        fits.then_some(footer)
    }
}

/// The end of a sealed unit: byte offset of its index, and all bytes from there to the end of the
/// unit. The records come in any order. The caller sees to it that they fit.
#[must_use]
pub fn area(header: &UnitHeader, records: &[(u64, Record)]) -> (u64, Vec<u8>) {
    let mut sorted = records.to_vec();
    sort(&mut sorted);
    let mut bytes = encode(&sorted);
    let behind = header.unit_bytes.saturating_sub(FOOTER_BYTES + bytes.len() as u64);
    let index_at = behind & !(super::ALIGN_BYTES - 1);
    let footer = Footer {
        count: records.len() as u64,
        first_seq: records.iter().map(|(_, r)| r.seq).min().unwrap_or(0),
        last_seq: records.iter().map(|(_, r)| r.seq).max().unwrap_or(0),
        index_at,
        index_crc: checksum::crc32c(&bytes),
    };
    bytes.resize(header.unit_bytes.saturating_sub(FOOTER_BYTES + index_at) as usize, 0);
    bytes.extend_from_slice(&footer.encode(&header.salt));
    (index_at, bytes)
}

/// Brings records into an index's order.
pub fn sort(records: &mut [(u64, Record)]) {
    // Merging leaves pieces of one record: the address tells them apart.
    records.sort_by_key(|(_, r)| (r.seq, r.addr));
}

/// Encodes the records (with their byte offsets in the unit) as an index.
#[must_use]
pub fn encode(records: &[(u64, Record)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(records.len() * ENTRY_BYTES as usize);
    for (at, record) in records {
        let entry = Entry {
            seq: record.seq.into(),
            addr: record.addr.into(),
            wall_ns: record.wall_ns.into(),
            len: record.len.into(),
            payload_bytes: record.payload_bytes.into(),
            payload_crc: record.payload_crc.into(),
            at: u32::try_from(at / super::ALIGN_BYTES).unwrap_or(u32::MAX).into(),
            scope: record.scope.into(),
            kind: record.kind as u8,
            flags: record.flags | stored_flags(record),
            volume: record.volume.into(),
        };
        bytes.extend_from_slice(entry.as_bytes());
    }
    bytes
}

fn stored_flags(record: &Record) -> u8 {
    let zstd = if record.compression == ZSTD { FLAG_ZSTD } else { 0 };
    zstd | if record.encrypted { FLAG_ENCRYPTED } else { 0 }
}

/// Decodes an index whose checksum matched. `None` when an entry can't be right, or carries a flag
/// of a later version.
#[must_use]
pub fn decode(bytes: &[u8], unit_bytes: u64) -> Option<Vec<(u64, Record)>> {
    let mut records = Vec::with_capacity(bytes.len() / ENTRY_BYTES as usize);
    for chunk in bytes.chunks_exact(ENTRY_BYTES as usize) {
        records.push(decode_entry(chunk, unit_bytes)?);
    }
    Some(records)
}

/// Decodes one entry: the byte offset of the record in its unit, and the record.
#[must_use]
pub fn decode_entry(bytes: &[u8], unit_bytes: u64) -> Option<(u64, Record)> {
    let entry = Entry::read_from_bytes(bytes).ok()?;
    let at = u64::from(entry.at.get()) * super::ALIGN_BYTES;
    let end = at + HEADER_BYTES + u64::from(entry.payload_bytes.get());
    let kind = Kind::from_u8(entry.kind)?;
    let flags = entry.flags & !(FLAG_ZSTD | FLAG_ENCRYPTED);
    let compression = if entry.flags & FLAG_ZSTD == 0 { PLAIN } else { ZSTD };
    let encrypted = entry.flags & FLAG_ENCRYPTED != 0;
    let sizes = (entry.len.get(), entry.payload_bytes.get());
    let stored = is_possible(kind, compression, encrypted, sizes);
    let is_long = entry.payload_bytes.get() > PAYLOAD_BYTES_MAX;
    if end > unit_bytes || is_long || flags & !super::record::FLAGS_KNOWN != 0 || !stored {
        return None;
    }
    let record = Record {
        kind,
        flags,
        volume: entry.volume.get(),
        addr: entry.addr.get(),
        len: entry.len.get(),
        scope: entry.scope.get(),
        mono_ms: 0,
        wall_ns: entry.wall_ns.get(),
        payload_crc: entry.payload_crc.get(),
        payload_bytes: entry.payload_bytes.get(),
        compression,
        encrypted,
        seq: entry.seq.get(),
    };
    Some((at, record))
}

/// Number and address of an entry: what entries are sorted by. `None` when it is cut off.
#[must_use]
pub fn key(bytes: &[u8]) -> Option<(u64, u64)> {
    let (seq, rest) = bytes.split_first_chunk::<8>()?;
    let (addr, _) = rest.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*seq), u64::from_le_bytes(*addr)))
}
