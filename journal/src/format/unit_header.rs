//! The first 4096 bytes of a unit: whose it is, which epoch, and when it was made.
//!
//! A unit's file gets its name only after this header is durable, so a named file without a valid
//! header is damage, never a torn creation.

use super::checksum;
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header block; records start behind it.
pub const BLOCK_BYTES: u64 = 4096;
const MAGIC: [u8; 8] = *b"AIMGUNIT";
/// Flag: the first unit of its epoch; `prev_last_seq` closes the epochs before it.
pub const FLAG_EPOCH_START: u32 = 1;
/// Flag: what is left of several units ([`super::meta::Merged`]); named `merged-A-B`, with the
/// number of the first and the epoch of the last.
pub const FLAG_MERGED: u32 = 2;

/// A decoded unit header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitHeader {
    /// The group whose journal this is.
    pub group: [u8; 16],
    /// Random; salts every checksum of a structure in the unit.
    pub salt: [u8; 16],
    /// Number of the unit in its journal: contiguous, from 1.
    pub number: u64,
    /// Size of the unit's file.
    pub unit_bytes: u64,
    /// The epoch of every record in it (I-9).
    pub epoch: u64,
    /// [`FLAG_EPOCH_START`], [`FLAG_MERGED`].
    pub flags: u32,
    /// The newest number given out when the unit was made: its own are above, or (a reservation
    /// made before the turn to the next unit) at most one unit's worth later.
    pub after_seq: u64,
    /// Last valid number of the epochs before; numbers above it in older units are void.
    pub prev_last_seq: u64,
    /// Wall time of its making, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// Monotonic time of its making.
    pub mono_ns: u64,
    /// The boot to which `mono_ns` belongs.
    pub boot_id: [u8; 16],
    /// The mount that the unit was made on (0: unknown). Same boot and same mount: the page cache
    /// that the records went to is still there.
    pub mount_id: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    flags: U32,
    group: [u8; 16],
    salt: [u8; 16],
    number: U64,
    unit_bytes: U64,
    epoch: U64,
    after_seq: U64,
    prev_last_seq: U64,
    wall_ns: U64,
    mono_ns: U64,
    boot_id: [u8; 16],
    mount_id: U64,
    crc: U32,
}

/// Why a header can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// Not the start of a unit.
    Magic,
    /// A version that this program doesn't know.
    Version(u32),
    /// The checksum doesn't match.
    Checksum,
}

impl UnitHeader {
    /// The header's bytes (the rest of the block is zero).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = Raw {
            magic: MAGIC,
            version: super::VERSION.into(),
            flags: self.flags.into(),
            group: self.group,
            salt: self.salt,
            number: self.number.into(),
            unit_bytes: self.unit_bytes.into(),
            epoch: self.epoch.into(),
            after_seq: self.after_seq.into(),
            prev_last_seq: self.prev_last_seq.into(),
            wall_ns: self.wall_ns.into(),
            mono_ns: self.mono_ns.into(),
            boot_id: self.boot_id,
            mount_id: self.mount_id.into(),
            crc: 0.into(),
        };
        raw.crc = checksum::crc32c(raw.as_bytes()).into();
        let mut block = vec![0; BLOCK_BYTES as usize];
        block[..size_of::<Raw>()].copy_from_slice(raw.as_bytes());
        block
    }

    /// Decodes and checks a header block.
    ///
    /// # Errors
    /// The magic, version or checksum is not right; the version is judged before the checksum,
    /// as a newer one may check differently.
    pub fn decode(block: &[u8]) -> Result<Self, HeaderError> {
        let (mut raw, _) = Raw::read_from_prefix(block).map_err(|_| HeaderError::Magic)?;
        if raw.magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        if raw.version.get() != super::VERSION {
            return Err(HeaderError::Version(raw.version.get()));
        }
        let crc = raw.crc.get();
        raw.crc = 0.into();
        if crc != checksum::crc32c(raw.as_bytes()) {
            return Err(HeaderError::Checksum);
        }
        Ok(Self {
            group: raw.group,
            salt: raw.salt,
            number: raw.number.get(),
            unit_bytes: raw.unit_bytes.get(),
            epoch: raw.epoch.get(),
            flags: raw.flags.get(),
            after_seq: raw.after_seq.get(),
            prev_last_seq: raw.prev_last_seq.get(),
            wall_ns: raw.wall_ns.get(),
            mono_ns: raw.mono_ns.get(),
            boot_id: raw.boot_id,
            mount_id: raw.mount_id.get(),
        })
    }
}
