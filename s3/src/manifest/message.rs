//! The bytes of a manifest: a header of 64 bytes, then a message that is known by field numbers, packed
//! with zstd (`docs/s3.md`). No I/O.
//!
//! What always holds: nothing is unpacked before its checksum was right, and never to more than
//! [`MANIFEST_BYTES_MAX`].

use crate::object::crc32c;
use prost::Message;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Largest manifest, unpacked, in bytes: some millions of segments.
pub const MANIFEST_BYTES_MAX: u64 = 256 << 20;
const MAGIC: [u8; 8] = *b"AIMGMANI";
const VERSION: u32 = 1;
const ZSTD_LEVEL: i32 = 3;

/// One step of what a bucket holds of a journal.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Manifest {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The epoch of its writer.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Number of the first manifest since its writer opened.
    #[prost(uint64, tag = "3")]
    pub opening: u64,
    /// Whether it says all, or only what differs from the one before.
    #[prost(bool, tag = "4")]
    pub whole: bool,
    /// Number of the last one that says all.
    #[prost(uint64, tag = "5")]
    pub base: u64,
    /// Checksum of all bytes of the one before; 0 where there is none.
    #[prost(uint32, tag = "6")]
    pub before_crc: u32,
    /// The journal's `journal.json`; only where it is whole.
    #[prost(bytes = "vec", tag = "7")]
    pub identity: Vec<u8>,
    /// Every number up to it is in the files, or merged away, or was never given.
    #[prost(uint64, tag = "8")]
    pub watermark: u64,
    /// When the record of that number was written, nanoseconds since the Unix epoch.
    #[prost(uint64, tag = "9")]
    pub record_wall_ns: u64,
    /// When the manifest was written.
    #[prost(uint64, tag = "10")]
    pub wall_ns: u64,
    /// Manifests below it may be gone.
    #[prost(uint64, tag = "11")]
    pub floor: u64,
    /// Manifests below it are gone, but for those that stay.
    #[prost(uint64, tag = "12")]
    pub swept: u64,
    /// The next floor; 0: none is chosen.
    #[prost(uint64, tag = "13")]
    pub next_floor: u64,
    /// When it was chosen.
    #[prost(uint64, tag = "14")]
    pub next_floor_ns: u64,
    /// First manifests of openings from `swept` on; only where it is whole.
    #[prost(uint64, repeated, tag = "15")]
    pub firsts: Vec<u64>,
    /// All files, or those that changed.
    #[prost(message, repeated, tag = "16")]
    pub files: Vec<FileEntry>,
    /// Files that are gone.
    #[prost(string, repeated, tag = "17")]
    pub gone: Vec<String>,
    /// Objects that nothing names any more; all, or those that came.
    #[prost(message, repeated, tag = "18")]
    pub dead: Vec<Dead>,
    /// Dead objects that were deleted.
    #[prost(string, repeated, tag = "19")]
    pub buried: Vec<String>,
    /// Openings whose objects were not compared with what is named; only where it is whole.
    #[prost(message, repeated, tag = "20")]
    pub unswept: Vec<Opening>,
    /// Openings for which that was done.
    #[prost(message, repeated, tag = "21")]
    pub swept_openings: Vec<Opening>,
}

/// A file of the journal.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileEntry {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The salt of its header.
    #[prost(bytes = "vec", tag = "2")]
    pub salt: Vec<u8>,
    /// Its size.
    #[prost(uint64, tag = "3")]
    pub file_bytes: u64,
    /// 1: open; 2: a part of it came; 3: whole.
    #[prost(uint32, tag = "4")]
    pub holding: u32,
    /// All below this byte is there; for a whole one, its size.
    #[prost(uint64, tag = "5")]
    pub end: u64,
    /// Checksum of its index, of a whole one.
    #[prost(uint32, tag = "6")]
    pub index_crc: u32,
    /// The window's edge that a merged unit names.
    #[prost(uint64, tag = "7")]
    pub edge: u64,
    /// How many of its segments are as they were in the manifest before.
    #[prost(uint32, tag = "8")]
    pub keep: u32,
    /// Those behind them. What no segment holds reads as zeroes.
    #[prost(message, repeated, tag = "9")]
    pub segments: Vec<SegmentEntry>,
    /// Of an open one: where its records end; what lies behind came in pieces.
    #[prost(uint64, tag = "10")]
    pub records: u64,
    /// The epoch in its header; 0: written by a program that did not note it.
    #[prost(uint64, tag = "11")]
    pub file_epoch: u64,
    /// The epochs of the journal that began in it.
    #[prost(message, repeated, tag = "12")]
    pub openings: Vec<FileOpening>,
}

/// An epoch that began in a file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileOpening {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// The salt of its first unit; empty: not known.
    #[prost(bytes = "vec", tag = "2")]
    pub id: Vec<u8>,
}

/// A stretch of a file, in an object of its own.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SegmentEntry {
    /// Byte of the file.
    #[prost(uint64, tag = "1")]
    pub at: u64,
    /// Bytes of the file.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Bytes of the object.
    #[prost(uint64, tag = "3")]
    pub object_bytes: u64,
    /// Epoch of who wrote it.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    /// Its opening.
    #[prost(uint64, tag = "5")]
    pub opening: u64,
    /// The random part of its key.
    #[prost(bytes = "vec", tag = "6")]
    pub random: Vec<u8>,
}

/// An object that nothing names any more.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Dead {
    /// Its key, below the journal's.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Since when, nanoseconds since the Unix epoch.
    #[prost(uint64, tag = "2")]
    pub since_ns: u64,
}

/// An opening.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Opening {
    /// Its epoch.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// Number of its first manifest.
    #[prost(uint64, tag = "2")]
    pub number: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    body_crc: U32,
    body_bytes: U64,
    plain_bytes: U64,
    number: U64,
    nonce: [u8; 16],
    crc: U32,
    reserved: [u8; 4],
}

const HEADER_BYTES: usize = 64;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

fn header_crc(header: &Header) -> u32 {
    crc32c(Header { crc: 0.into(), ..*header }.as_bytes())
}

/// The bytes of a manifest, which no other writer's have: `nonce` is random.
///
/// # Errors
/// It is larger than [`MANIFEST_BYTES_MAX`].
pub fn encode(manifest: &Manifest, nonce: [u8; 16]) -> Result<Vec<u8>, String> {
    let plain = manifest.encode_to_vec();
    if plain.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(format!("a manifest of {} bytes is larger than a reader takes", plain.len()));
    }
    let body = zstd::bulk::compress(&plain, ZSTD_LEVEL).map_err(|e| format!("pack: {e}"))?;
    let mut header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        body_crc: crc32c(&body).into(),
        body_bytes: (body.len() as u64).into(),
        plain_bytes: (plain.len() as u64).into(),
        number: manifest.number.into(),
        nonce,
        crc: 0.into(),
        reserved: [0; 4],
    };
    header.crc = header_crc(&header).into();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Why bytes are no manifest that this program reads. Shown, it is a clause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A newer program wrote it, in this version.
    #[error("a newer program wrote it (version {0})")]
    Newer(u32),
    /// It is damaged, or another manifest.
    #[error("{0}")]
    Damaged(String),
}

impl From<String> for Unreadable {
    fn from(why: String) -> Self {
        Self::Damaged(why)
    }
}

impl From<&str> for Unreadable {
    fn from(why: &str) -> Self {
        Self::Damaged(why.to_owned())
    }
}

/// Reads the bytes of manifest `number`.
///
/// # Errors
/// They are damaged, another manifest's, or a newer program's.
pub fn decode(number: u64, bytes: &[u8]) -> Result<Manifest, Unreadable> {
    let Ok((header, body)) = Header::read_from_prefix(bytes) else { return Err("cut off".into()) };
    if header.magic != MAGIC {
        return Err("it is no manifest".into());
    }
    if header.version.get() > VERSION {
        return Err(Unreadable::Newer(header.version.get()));
    }
    let sound = header.crc.get() == header_crc(&header)
        && header.body_bytes.get() == body.len() as u64
        && header.body_crc.get() == crc32c(body);
    if !sound {
        return Err("its checksum doesn't match".into());
    }
    let plain_bytes = header.plain_bytes.get();
    if plain_bytes > MANIFEST_BYTES_MAX {
        return Err(format!("it says that it has {plain_bytes} bytes").into());
    }
    let plain = zstd::bulk::decompress(body, plain_bytes as usize)
        .map_err(|e| format!("it can't be unpacked: {e}"))?;
    let manifest =
        Manifest::decode(&plain[..]).map_err(|e| format!("its fields can't be read: {e}"))?;
    if manifest.number != number || header.number.get() != number {
        return Err(format!("it is manifest {}", manifest.number).into());
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_flipped_bit_of_a_manifest_is_noticed() {
        let manifest = Manifest { number: 12, epoch: 3, gone: vec!["x".into()], ..<_>::default() };
        let bytes = encode(&manifest, [9; 16]).unwrap();
        assert_eq!(decode(12, &bytes).unwrap(), manifest);
        assert!(decode(13, &bytes).is_err());
        for at in 0..bytes.len() {
            let mut rotten = bytes.clone();
            rotten[at] ^= 1;
            assert!(decode(12, &rotten).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(1, &bytes);
            let _ = Manifest::decode(&bytes[..]);
        }
    }
}
