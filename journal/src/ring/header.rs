//! The first 4096 bytes of a ring, as bytes: whose it is, and for each unit with bytes that are not
//! in its file yet, where they lie.
//!
//! What always holds: a slot's identity (number, salt, base) is covered by a checksum that is salted
//! with the opening, so that one that is being changed, or is left from another opening, is none.
//! `flushed` and `placed` are single words.

use crate::format::checksum;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header; the ring's data starts behind it.
pub const HEADER_BYTES: u64 = 4096;
/// Units that can have bytes in the ring at one time.
pub const SLOTS: usize = 62;
/// Byte offset of the first slot.
pub const SLOTS_AT: usize = 128;
/// Bytes of one slot.
pub const SLOT_BYTES: usize = 64;
/// Byte offset of `flushed` in a slot.
pub const FLUSHED_AT: usize = 40;
/// Byte offset of `placed` in a slot.
pub const PLACED_AT: usize = 48;
const MAGIC: [u8; 8] = *b"AIMGRING";
const VERSION: u32 = 1;

/// Whose ring it is, and of which opening: it counts nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingHeader {
    /// The group whose journal it belongs to.
    pub group: [u8; 16],
    /// The boot in which it was opened.
    pub boot_id: [u8; 16],
    /// The mount that it lies on, within that boot; 0: unknown.
    pub mount_id: u64,
    /// Tells the file from a copy of it; 0: unknown.
    pub file_id: u64,
    /// When the file was made, nanoseconds since the Unix epoch; 0: unknown.
    pub file_born_ns: u64,
    /// The epoch of its records.
    pub epoch: u64,
    /// Bytes of data behind the header.
    pub ring_bytes: u64,
    /// Random, for each opening.
    pub opening: [u8; 16],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    group: [u8; 16],
    boot_id: [u8; 16],
    mount_id: U64,
    file_id: U64,
    epoch: U64,
    ring_bytes: U64,
    opening: [u8; 16],
}

/// Byte offset of the file's time of birth, and of the checksum of that. Added later: a ring without
/// them has zeroes there.
const BORN_AT: usize = size_of::<Raw>();
/// Byte offset of the checksum of the time of birth.
const BORN_CRC_AT: usize = BORN_AT + 8;

const _: () = assert!(BORN_CRC_AT + 4 <= SLOTS_AT);
const _: () = assert!(SLOTS_AT + SLOTS * SLOT_BYTES <= HEADER_BYTES as usize);

impl RingHeader {
    /// The header's bytes, without slots.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = Raw {
            magic: MAGIC,
            version: VERSION.into(),
            crc: 0.into(),
            group: self.group,
            boot_id: self.boot_id,
            mount_id: self.mount_id.into(),
            file_id: self.file_id.into(),
            epoch: self.epoch.into(),
            ring_bytes: self.ring_bytes.into(),
            opening: self.opening,
        };
        raw.crc = checksum::crc32c(raw.as_bytes()).into();
        let mut bytes = raw.as_bytes().to_vec();
        let born = self.file_born_ns.to_le_bytes();
        bytes.extend_from_slice(&born);
        bytes.extend_from_slice(&checksum::salted(&self.opening, &born).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    }

    fn born_ns(page: &[u8], opening: &[u8; 16]) -> Option<u64> {
        let born = page.get(BORN_AT..BORN_CRC_AT)?.first_chunk()?;
        let crc = page.get(BORN_CRC_AT..)?.first_chunk()?;
        let is_whole = checksum::salted(opening, born) == u32::from_le_bytes(*crc);
        is_whole.then(|| u64::from_le_bytes(*born))
    }

    /// Decodes a header; `None` when it is none of this version.
    #[must_use]
    pub fn decode(page: &[u8]) -> Option<Self> {
        let (mut raw, _) = Raw::read_from_prefix(page).ok()?;
        let crc = raw.crc.get();
        raw.crc = 0.into();
        let fits = raw.magic == MAGIC && raw.version.get() == VERSION && raw.ring_bytes.get() > 0;
        (fits && crc == checksum::crc32c(raw.as_bytes())).then(|| Self {
            group: raw.group,
            boot_id: raw.boot_id,
            mount_id: raw.mount_id.get(),
            file_id: raw.file_id.get(),
            file_born_ns: Self::born_ns(page, &raw.opening).unwrap_or(0),
            epoch: raw.epoch.get(),
            ring_bytes: raw.ring_bytes.get(),
            opening: raw.opening,
        })
    }
}

/// A unit with bytes in the ring. Positions run on from unit to unit; byte `at` of the unit lies at
/// position `base + at` (wrapping), and position p at byte p mod `ring_bytes` of the ring's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The unit's number.
    pub number: u64,
    /// Its salt.
    pub salt: [u8; 16],
    /// Position of its byte 0.
    pub base: u64,
    /// Below this position, everything that will ever be there is in the unit's file.
    pub flushed: u64,
    /// At and above this position, nothing was handed out.
    pub placed: u64,
    /// Tells the unit's file from a copy of it; 0: unknown.
    pub file_id: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSlot {
    number: U64,
    salt: [u8; 16],
    base: U64,
    crc: U32,
    reserved: U32,
    flushed: U64,
    placed: U64,
    file_id: U64,
}

const _: () = assert!(size_of::<RawSlot>() == SLOT_BYTES);

fn slot_crc(opening: &[u8; 16], raw: &RawSlot) -> u32 {
    checksum::salted(opening, &raw.as_bytes()[..32])
}

impl Slot {
    /// The slot's bytes in a ring of this opening.
    #[must_use]
    pub fn encode(&self, opening: &[u8; 16]) -> [u8; SLOT_BYTES] {
        let mut raw = RawSlot {
            number: self.number.into(),
            salt: self.salt,
            base: self.base.into(),
            crc: 0.into(),
            reserved: 0.into(),
            flushed: self.flushed.into(),
            placed: self.placed.into(),
            file_id: self.file_id.into(),
        };
        raw.crc = slot_crc(opening, &raw).into();
        let mut bytes = [0; SLOT_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// The slots of a header page that are in use.
    #[must_use]
    pub fn decode_all(header: &RingHeader, page: &[u8]) -> Vec<Self> {
        let slots = page.get(SLOTS_AT..).unwrap_or_default().chunks_exact(SLOT_BYTES).take(SLOTS);
        slots.filter_map(|bytes| Self::decode(header, bytes)).collect()
    }

    fn decode(header: &RingHeader, bytes: &[u8]) -> Option<Self> {
        let raw = RawSlot::read_from_bytes(bytes).ok()?;
        let slot = Self {
            number: raw.number.get(),
            salt: raw.salt,
            base: raw.base.get(),
            flushed: raw.flushed.get(),
            placed: raw.placed.get(),
            file_id: raw.file_id.get(),
        };
        let whole = slot.number > 0 && raw.crc.get() == slot_crc(&header.opening, &raw);
        // One that says more than the ring can hold says nothing.
        (whole && slot.placed.saturating_sub(slot.flushed) <= header.ring_bytes).then_some(slot)
    }

    /// The bytes of the unit that are in the ring only.
    #[must_use]
    pub fn unflushed(&self) -> std::ops::Range<u64> {
        let end = self.placed.wrapping_sub(self.base);
        self.flushed.wrapping_sub(self.base).min(end)..end
    }
}
