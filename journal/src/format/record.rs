//! A record: a 64-byte header, then its payload, padded to 64 bytes.
//!
//! The header is written in two steps. The *frame* (magic, payload length, their checksum) is
//! written when space is reserved, before the payload arrives; the *commit* (everything else,
//! the sequence number last) when it is whole. A frame without a commit is legal anywhere: a scan
//! steps over it (I-2). A sequence number of 0 means "not committed".

use super::checksum;
use super::payload::is_possible;
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a record header.
pub const HEADER_BYTES: u64 = 64;
/// Largest payload of any record, in bytes: no length beyond it is believed, nor allocated.
pub const PAYLOAD_BYTES_MAX: u32 = 4 << 20;
/// Bytes of the frame at the start of a header.
pub const FRAME_BYTES: usize = 12;
/// Byte offset of the sequence number in a header: the commit word, written last.
pub const SEQ_AT: usize = 56;
/// Id of "encrypted with the key of its unit"; 0 is "not encrypted".
const KEY_OF_UNIT: u16 = 1;
const MAGIC: u32 = u32::from_le_bytes(*b"AIrc");

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// A write: the payload is the data at `addr`.
    Write = 1,
    /// `len` bytes at `addr` read as zeroes.
    Zero = 2,
    /// A run of memory pages (reserved for memory volumes).
    Pages = 3,
    /// A checkpoint ([`super::meta::Checkpoint`]).
    Mark = 4,
    /// Nothing happened: idle, not dead.
    Tick = 5,
    /// A session opened or closed ([`super::meta::Session`]).
    Session = 6,
    /// A copy started, got on or ended ([`super::meta::Copy`]).
    Copy = 7,
    /// The whole configuration of the group ([`super::meta::Config`]).
    Config = 8,
    /// Everything up to the number in `addr` survives power loss (I-3).
    Watermark = 9,
    /// A FLUSH arrived: for a mirror, the instant at which its guest was stopped.
    Flush = 10,
    /// The journal was closed cleanly: no record follows in this epoch.
    Close = 11,
    /// What a merged unit replaces ([`super::meta::Merged`]): its first record, which is none of
    /// the sequence and takes no number.
    Merged = 12,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Write,
            2 => Self::Zero,
            3 => Self::Pages,
            4 => Self::Mark,
            5 => Self::Tick,
            6 => Self::Session,
            7 => Self::Copy,
            8 => Self::Config,
            9 => Self::Watermark,
            10 => Self::Flush,
            11 => Self::Close,
            12 => Self::Merged,
            _ => return None,
        })
    }

    /// Whether the record changes a volume's blocks.
    #[must_use]
    pub fn is_data(self) -> bool {
        matches!(self, Self::Write | Self::Zero | Self::Pages)
    }
}

/// Flag: copied by initial sync or resync, ranks by where its copy began (I-5); `scope` is the
/// copy's id. Without it `scope` is the session's id, 0 outside of any.
pub const FLAG_COPIED: u8 = 1;
/// The flags that version 1 knows; a record with another one is not understood, hence refused.
pub const FLAGS_KNOWN: u8 = FLAG_COPIED;

/// A decoded, checked record header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it says.
    pub kind: Kind,
    /// [`FLAG_COPIED`].
    pub flags: u8,
    /// The volume, for data.
    pub volume: u16,
    /// Byte address in the volume (any sector boundary), or a kind's own number.
    pub addr: u64,
    /// Bytes of the volume that it covers.
    pub len: u32,
    /// Session or copy id.
    pub scope: u32,
    /// Milliseconds of monotonic time since the unit was made.
    pub mono_ms: u32,
    /// Wall time, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// Checksum of the payload as stored.
    pub payload_crc: u32,
    /// Bytes stored behind the header.
    pub payload_bytes: u32,
    /// How they are compressed: [`super::payload::PLAIN`] or [`super::payload::ZSTD`].
    #[serde(default, skip_serializing_if = "is_plain")]
    pub compression: u8,
    /// Whether they are encrypted, with the key of their unit ([`super::cipher`]).
    #[serde(default, skip_serializing_if = "is_clear")]
    pub encrypted: bool,
    /// Position in the journal.
    pub seq: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_plain(compression: &u8) -> bool {
    *compression == super::payload::PLAIN
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_clear(encrypted: &bool) -> bool {
    !encrypted
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: U32,
    payload_bytes: U32,
    frame_crc: U32,
    kind: u8,
    flags: u8,
    volume: U16,
    addr: U64,
    len: U32,
    scope: U32,
    mono_ms: U32,
    payload_crc: U32,
    wall_ns: U64,
    checksum: u8,
    compression: u8,
    key: U16,
    header_crc: U32,
    seq: U64,
}

const _: () = assert!(size_of::<Raw>() == HEADER_BYTES as usize);

/// What a header's bytes turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// No valid frame: the end of the log, or rot.
    None,
    /// Space was reserved, but never committed.
    Reserved {
        /// Bytes to step over behind the header.
        payload_bytes: u32,
    },
    /// Committed, but the header's checksum or a field is wrong: being written, torn, or rot.
    Broken {
        /// Bytes to step over behind the header.
        payload_bytes: u32,
        /// The number in the commit word, unproven.
        seq: u64,
    },
    /// A whole header.
    Record(Record),
}

/// The frame that a reservation writes at byte `at` of its unit.
#[must_use]
pub fn encode_frame(salt: &[u8; 16], at: u64, payload_bytes: u32) -> [u8; FRAME_BYTES] {
    let mut frame = [0u8; FRAME_BYTES];
    frame[..4].copy_from_slice(&MAGIC.to_le_bytes());
    frame[4..8].copy_from_slice(&payload_bytes.to_le_bytes());
    frame[8..].copy_from_slice(&frame_crc(salt, at, payload_bytes).to_le_bytes());
    frame
}

fn frame_crc(salt: &[u8; 16], at: u64, payload_bytes: u32) -> u32 {
    let mut covered = [0u8; 16];
    covered[..4].copy_from_slice(&MAGIC.to_le_bytes());
    covered[4..8].copy_from_slice(&payload_bytes.to_le_bytes());
    covered[8..].copy_from_slice(&at.to_le_bytes());
    checksum::salted(salt, &covered)
}

/// The whole header of `record` at byte `at` of its unit.
#[must_use]
pub fn encode(salt: &[u8; 16], at: u64, record: &Record) -> [u8; HEADER_BYTES as usize] {
    let mut raw = Raw {
        magic: MAGIC.into(),
        payload_bytes: record.payload_bytes.into(),
        frame_crc: frame_crc(salt, at, record.payload_bytes).into(),
        kind: record.kind as u8,
        flags: record.flags,
        volume: record.volume.into(),
        addr: record.addr.into(),
        len: record.len.into(),
        scope: record.scope.into(),
        mono_ms: record.mono_ms.into(),
        payload_crc: record.payload_crc.into(),
        wall_ns: record.wall_ns.into(),
        checksum: checksum::CRC32C,
        compression: record.compression,
        key: if record.encrypted { KEY_OF_UNIT } else { 0 }.into(),
        header_crc: 0.into(),
        seq: record.seq.into(),
    };
    raw.header_crc = header_crc(salt, &raw).into();
    let mut bytes = [0; HEADER_BYTES as usize];
    bytes.copy_from_slice(raw.as_bytes());
    bytes
}

fn header_crc(salt: &[u8; 16], raw: &Raw) -> u32 {
    let mut clean = *raw;
    clean.header_crc = 0.into();
    checksum::salted(salt, clean.as_bytes())
}

/// Decodes the 64 bytes at byte `at` of a unit with this salt.
#[must_use]
pub fn decode(salt: &[u8; 16], at: u64, bytes: &[u8; HEADER_BYTES as usize]) -> Decoded {
    let Ok(raw) = Raw::read_from_bytes(bytes) else { return Decoded::None };
    let payload_bytes = raw.payload_bytes.get();
    if raw.magic.get() != MAGIC || raw.frame_crc.get() != frame_crc(salt, at, payload_bytes) {
        return Decoded::None;
    }
    let seq = raw.seq.get();
    if seq == 0 {
        return Decoded::Reserved { payload_bytes };
    }
    let encrypted = raw.key.get() == KEY_OF_UNIT;
    let plain = raw.checksum == checksum::CRC32C && raw.key.get() <= KEY_OF_UNIT;
    let known = plain && raw.flags & !FLAGS_KNOWN == 0;
    let sizes = (raw.len.get(), payload_bytes);
    let stored = |kind| is_possible(kind, raw.compression, encrypted, sizes);
    match Kind::from_u8(raw.kind) {
        Some(kind) if known && stored(kind) && raw.header_crc.get() == header_crc(salt, &raw) => {
            Decoded::Record(Record {
                kind,
                flags: raw.flags,
                volume: raw.volume.get(),
                addr: raw.addr.get(),
                len: raw.len.get(),
                scope: raw.scope.get(),
                mono_ms: raw.mono_ms.get(),
                wall_ns: raw.wall_ns.get(),
                payload_crc: raw.payload_crc.get(),
                payload_bytes,
                compression: raw.compression,
                encrypted,
                seq,
            })
        }
        _ => Decoded::Broken { payload_bytes, seq },
    }
}
