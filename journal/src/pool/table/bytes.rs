//! The bytes of a unit table: `docs/format.md`. No I/O.
//!
//! What always holds: a row is 64 bytes, lies within one sector, and fails its CRC when it is torn or of
//! another table.

use super::{Change, HOME, Row, UnitTable};
use crate::format::checksum::crc32c;
use crate::meta::EpochStart;
use crate::pool::name::FileName;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of its format.
pub(super) const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"AIMGUNTS";
/// Bytes of the header, and of a row.
pub(super) const ROW_BYTES: usize = 64;

const KIND_UNIT: u32 = 1;
const KIND_GONE: u32 = 2;
const KIND_KNOWN: u32 = 3;
const KIND_MERGED: u32 = 4;
const KIND_BEGINS: u32 = 5;
const KIND_EDGE: u32 = 6;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    group: [u8; 16],
    id: [u8; 16],
    reserved: [u8; 16],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRow {
    kind: U32,
    crc: U32,
    first: U64,
    /// Of a merged unit its last number; of a unit of the log `after_seq`.
    second: U64,
    epoch: U64,
    salt: [u8; 16],
    member: [u8; 16],
}

const _: () = assert!(size_of::<RawHeader>() == ROW_BYTES && size_of::<RawRow>() == ROW_BYTES);

/// The header of a table.
pub(super) fn encode_header(group: [u8; 16], id: [u8; 16]) -> [u8; ROW_BYTES] {
    let version = VERSION.into();
    let mut header =
        RawHeader { magic: MAGIC, version, crc: 0.into(), group, id, reserved: [0; 16] };
    header.crc = crc32c(header.as_bytes()).into();
    let mut bytes = [0; ROW_BYTES];
    bytes.copy_from_slice(header.as_bytes());
    bytes
}

/// A row.
pub(super) fn encode_row(id: &[u8; 16], change: &Change) -> [u8; ROW_BYTES] {
    let (kind, first, second) = match change {
        Change::Made(FileName::Unit(number), row) => (KIND_UNIT, *number, row.after_seq),
        Change::Made(FileName::Merged(first, last), _) => (KIND_MERGED, *first, *last),
        Change::Gone(name) => (KIND_GONE, name.numbers().0, 0),
        Change::Known(_) => (KIND_KNOWN, 0, 0),
        Change::Begins(start) => (KIND_BEGINS, start.first_seq, start.prev_last_seq),
        Change::Edge(edge, floor) => (KIND_EDGE, *edge, *floor),
    };
    let (epoch, salt, member) = match change {
        Change::Made(_, row) => (row.epoch, row.salt, row.member),
        Change::Known(member) => (0, [0; 16], *member),
        // In the member's place the number of the epoch's first unit.
        Change::Begins(start) => {
            let (id, unit) = (start.id.unwrap_or_default(), start.unit.unwrap_or(0));
            (start.epoch, id.into_bytes(), Uuid::from_u128_le(unit.into()))
        }
        Change::Gone(_) | Change::Edge(..) => (0, [0; 16], HOME),
    };
    let mut raw = RawRow {
        kind: kind.into(),
        crc: 0.into(),
        first: first.into(),
        second: second.into(),
        epoch: epoch.into(),
        salt,
        member: member.into_bytes(),
    };
    raw.crc = row_crc(id, &raw).into();
    let mut bytes = [0; ROW_BYTES];
    bytes.copy_from_slice(raw.as_bytes());
    bytes
}

fn row_crc(id: &[u8; 16], raw: &RawRow) -> u32 {
    let mut clean = *raw;
    clean.crc = 0.into();
    crc32c(&[id.as_slice(), clean.as_bytes()].concat())
}

/// `None`: it is no row that this version knows.
fn decode_row(id: &[u8; 16], bytes: &[u8]) -> Option<Change> {
    let raw = RawRow::read_from_bytes(bytes).ok()?;
    if raw.crc.get() != row_crc(id, &raw) {
        return None;
    }
    let (first, second) = (raw.first.get(), raw.second.get());
    let (epoch, member) = (raw.epoch.get(), Uuid::from_bytes(raw.member));
    let row = |after_seq| Row { salt: raw.salt, epoch, after_seq, member };
    match raw.kind.get() {
        KIND_UNIT if first > 0 => Some(Change::Made(FileName::Unit(first), row(second))),
        KIND_MERGED if first > 0 && first <= second => {
            Some(Change::Made(FileName::Merged(first, second), row(0)))
        }
        KIND_GONE if first > 0 => Some(Change::Gone(FileName::Unit(first))),
        KIND_KNOWN => Some(Change::Known(member)),
        KIND_BEGINS => Some(Change::Begins(EpochStart {
            epoch,
            first_seq: first,
            prev_last_seq: second,
            id: Some(Uuid::from_bytes(raw.salt)).filter(|id| !id.is_nil()),
            unit: u64::try_from(member.to_u128_le()).ok().filter(|unit| *unit > 0),
        })),
        KIND_EDGE => Some(Change::Edge(first, second)),
        _ => None,
    }
}

/// Reads the bytes of a table.
///
/// # Errors
/// The version that it has, when this program doesn't know it; else why it can't be used.
pub fn decode(bytes: &[u8]) -> std::result::Result<UnitTable, (Option<u32>, String)> {
    let damaged = |why: &str| Err((None, why.to_owned()));
    let Ok((mut raw, rows)) = RawHeader::read_from_prefix(bytes) else {
        return damaged("it is too short");
    };
    if raw.magic != MAGIC {
        return damaged("it is not a table of units");
    }
    if raw.version.get() != VERSION {
        return Err((Some(raw.version.get()), "it is of another version".into()));
    }
    let crc = raw.crc.get();
    raw.crc = 0.into();
    if crc != crc32c(raw.as_bytes()) {
        return damaged("its header's checksum doesn't match");
    }
    let mut table = UnitTable { group: raw.group, id: raw.id, ..UnitTable::default() };
    for row in rows.chunks_exact(ROW_BYTES) {
        table.rows_in_file += 1;
        match decode_row(&raw.id, row) {
            Some(change) => table.apply(&change),
            // A row lies within one sector: it is there or it isn't.
            None => table.is_partial |= row.iter().any(|byte| *byte != 0),
        }
    }
    if table.is_partial {
        table.known.clear();
    }
    Ok(table)
}
