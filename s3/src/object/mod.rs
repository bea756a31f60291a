//! An object: a segment of a file, cut into frames that are compressed each for itself, and an index at
//! the end (`docs/s3.md`). Bytes only, no I/O.
//!
//! What always holds:
//! * a frame is read with two ranges at most: the index, then it; the last ones together with it;
//! * nothing is unpacked before its checksum was right, and never to more than was declared;
//! * an object says which it is: another one under its key is noticed.

use bytes::Bytes;
use std::cell::RefCell;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zstd::bulk::Decompressor;

/// Bytes of the file in a frame; the last one may have less.
pub const FRAME_BYTES: usize = 256 << 10;
/// Most bytes of a file that an object stands for.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Level of zstd: fast enough for one processor to feed a network of some Gbit/s.
const ZSTD_LEVEL: i32 = 1;
/// A frame is stored packed when that saves at least one in so many of its bytes: unpacking costs its
/// reader more than to fetch the few others.
const SAVED_MIN: usize = 16;
const MAGIC: [u8; 8] = *b"AIMGSEGM";
const VERSION: u32 = 1;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Entry {
    /// 0: the frame is zeroes.
    stored_bytes: U32,
    /// Of the bytes as stored.
    crc: U32,
    compression: u8,
    reserved: [u8; 7],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Footer {
    magic: [u8; 8],
    version: U32,
    index_crc: U32,
    bytes: U64,
    frame_bytes: U32,
    count: U32,
    random: [u8; 16],
    crc: U32,
    reserved: [u8; 12],
}

const ENTRY_BYTES: u64 = 16;
const FOOTER_BYTES: u64 = 64;
const _: () = assert!(size_of::<Entry>() as u64 == ENTRY_BYTES);
const _: () = assert!(size_of::<Footer>() as u64 == FOOTER_BYTES);

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn footer_crc(footer: &Footer) -> u32 {
    crc32c(Footer { crc: 0.into(), ..*footer }.as_bytes())
}

/// Bytes of index and footer, at the end of an object that stands for so many bytes of a file.
#[must_use]
pub fn tail_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(FRAME_BYTES as u64) * ENTRY_BYTES + FOOTER_BYTES
}

/// The object of these bytes of a file.
#[must_use]
pub fn encode(random: [u8; 16], plain: &[u8]) -> Vec<u8> {
    let mut object = Vec::with_capacity(plain.len() / 2 + FRAME_BYTES);
    let mut index = Vec::new();
    let mut packer = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
    for frame in plain.chunks(FRAME_BYTES) {
        let packed = packer.as_mut().and_then(|p| p.compress(frame).ok());
        let (stored, compression): (&[u8], u8) = match &packed {
            _ if frame.iter().all(|b| *b == 0) => (&[], PLAIN),
            Some(packed) if packed.len() + frame.len() / SAVED_MIN <= frame.len() => (packed, ZSTD),
            _ => (frame, PLAIN),
        };
        object.extend_from_slice(stored);
        let entry = Entry {
            stored_bytes: (stored.len() as u32).into(),
            crc: crc32c(stored).into(),
            compression,
            reserved: [0; 7],
        };
        index.extend_from_slice(entry.as_bytes());
    }
    let mut footer = Footer {
        magic: MAGIC,
        version: VERSION.into(),
        index_crc: crc32c(&index).into(),
        bytes: (plain.len() as u64).into(),
        frame_bytes: (FRAME_BYTES as u32).into(),
        count: ((index.len() as u64 / ENTRY_BYTES) as u32).into(),
        random,
        crc: 0.into(),
        reserved: [0; 12],
    };
    footer.crc = footer_crc(&footer).into();
    object.extend_from_slice(&index);
    object.extend_from_slice(footer.as_bytes());
    object
}

/// Where a frame lies in its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Byte of the object.
    pub at: u64,
    /// Bytes there; 0: the frame is zeroes.
    pub stored_bytes: u64,
    /// Bytes of the file that it stands for.
    pub bytes: usize,
    crc: u32,
    compression: u8,
}

thread_local! {
    /// Making one costs as much as a small frame.
    static UNPACKER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

impl Frame {
    /// The frame's bytes of the file; of one that is stored plainly, these very ones.
    ///
    /// # Errors
    /// They are not what was written: a clause.
    pub fn unpack(&self, stored: &Bytes) -> Result<Bytes, String> {
        if self.stored_bytes == 0 {
            return Ok(Bytes::from(vec![0; self.bytes]));
        }
        if stored.len() as u64 != self.stored_bytes || crc32c(stored) != self.crc {
            return Err(format!("the frame at byte {} doesn't match its checksum", self.at));
        }
        if self.compression == PLAIN {
            return Ok(stored.clone());
        }
        let unpacked = UNPACKER.with_borrow_mut(|unpacker| match unpacker {
            Some(unpacker) => unpacker.decompress(stored, self.bytes),
            none => none.insert(Decompressor::new()?).decompress(stored, self.bytes),
        });
        match unpacked {
            Ok(plain) if plain.len() == self.bytes => Ok(plain.into()),
            Ok(plain) => Err(format!("the frame at byte {} has {} bytes", self.at, plain.len())),
            Err(e) => Err(format!("the frame at byte {} can't be unpacked: {e}", self.at)),
        }
    }
}

/// The frames of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    frames: Vec<Frame>,
}

impl Index {
    /// Bytes of the frames that are stored plainly.
    #[must_use]
    pub fn plain_bytes(&self) -> u64 {
        self.frames.iter().filter(|f| f.compression == PLAIN).map(|f| f.stored_bytes).sum()
    }

    /// The index in the last [`tail_bytes`] of an object of `object_bytes`, which stands for `bytes`
    /// (at most [`SEGMENT_BYTES_MAX`]).
    ///
    /// # Errors
    /// It isn't that object's, or is damaged, or a newer program wrote it: a clause.
    pub fn decode(
        random: [u8; 16],
        bytes: u64,
        object_bytes: u64,
        tail: &[u8],
    ) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("it is not the object that was written: {what}"));
        if tail.len() as u64 != tail_bytes(bytes) || (tail.len() as u64) > object_bytes {
            return wrong("it has another size");
        }
        let (index, footer) = tail.split_at(tail.len() - FOOTER_BYTES as usize);
        let Ok(footer) = Footer::read_from_bytes(footer) else { return wrong("no footer") };
        if footer.magic == MAGIC && footer.version.get() > VERSION {
            return Err(format!("a newer program wrote it (version {})", footer.version.get()));
        }
        let sound = footer.magic == MAGIC && footer.crc.get() == footer_crc(&footer);
        if !sound || footer.index_crc.get() != crc32c(index) {
            return wrong("its checksum doesn't match");
        }
        if footer.random != random
            || footer.bytes.get() != bytes
            || footer.frame_bytes.get() as usize != FRAME_BYTES
            || u64::from(footer.count.get()) * ENTRY_BYTES != index.len() as u64
        {
            return wrong("its footer says something else");
        }
        let mut frames = Vec::with_capacity(index.len() / ENTRY_BYTES as usize);
        let (mut at, mut left) = (0, bytes);
        for entry in index.chunks_exact(ENTRY_BYTES as usize) {
            let Ok(entry) = Entry::read_from_bytes(entry) else { return wrong("its index") };
            let frame_bytes = left.min(FRAME_BYTES as u64);
            let stored_bytes = u64::from(entry.stored_bytes.get());
            let fits = match entry.compression {
                PLAIN => stored_bytes == 0 || stored_bytes == frame_bytes,
                ZSTD => 0 < stored_bytes && stored_bytes < frame_bytes,
                _ => false,
            };
            if !fits {
                return wrong("a frame of no possible size");
            }
            frames.push(Frame {
                at,
                stored_bytes,
                bytes: frame_bytes as usize,
                crc: entry.crc.get(),
                compression: entry.compression,
            });
            at += stored_bytes;
            left -= frame_bytes;
        }
        if at + tail.len() as u64 != object_bytes {
            return wrong("its frames have another size");
        }
        Ok(Self { frames })
    }

    /// The frames, in the file's order.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mixed(bytes: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let mut plain = vec![0; bytes];
        for (i, byte) in plain.iter_mut().enumerate() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = match i / FRAME_BYTES {
                0 => (state >> 56) as u8,
                1 => 0,
                _ => (i % 7) as u8,
            };
        }
        plain
    }

    fn decode(random: [u8; 16], bytes: u64, object: &[u8]) -> Result<Vec<u8>, String> {
        let tail = object.len().saturating_sub(tail_bytes(bytes) as usize);
        let index = Index::decode(random, bytes, object.len() as u64, &object[tail..])?;
        let mut plain = Vec::new();
        for frame in index.frames() {
            let stored = frame.at as usize..(frame.at + frame.stored_bytes) as usize;
            plain.extend(frame.unpack(&Bytes::copy_from_slice(&object[stored]))?);
        }
        Ok(plain)
    }

    #[test]
    fn frames_come_back_as_they_were_and_zeroes_cost_nothing() {
        for bytes in [0, 1, FRAME_BYTES, 3 * FRAME_BYTES + 5] {
            let plain = mixed(bytes);
            let object = encode([3; 16], &plain);
            assert_eq!(decode([3; 16], bytes as u64, &object).unwrap(), plain, "{bytes}");
        }
        assert!(encode([3; 16], &vec![0; 8 << 20]).len() < 1024);
    }

    #[test]
    fn each_flipped_bit_and_each_wrong_name_is_noticed() {
        let plain = mixed(2 * FRAME_BYTES + 4097);
        let object = encode([3; 16], &plain);
        let bytes = plain.len() as u64;
        assert!(decode([4; 16], bytes, &object).is_err(), "another object");
        assert!(decode([3; 16], bytes - 1, &object).is_err(), "another size");
        let tail = object.len() - tail_bytes(bytes) as usize;
        let places = (0..tail).step_by(997).chain(tail..object.len());
        for at in places {
            let mut rotten = object.clone();
            rotten[at] ^= 0x10;
            assert!(decode([3; 16], bytes, &rotten).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(tail in prop::collection::vec(any::<u8>(), 0..256),
                                           bytes in 0..2_000_000_u64, object in any::<u64>()) {
            let _ = Index::decode([0; 16], bytes, object, &tail);
        }
    }
}
