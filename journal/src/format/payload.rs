//! A record's payload as it was captured, and as it is stored: the one place that knows how they differ.
//!
//! What always holds: the checksum is over what is stored, and is judged before anything here is asked; a
//! compressed record covers at most [`PACKED_LEN_BYTES_MAX`] bytes and holds fewer, which is seen to where
//! headers and indexes are decoded, so that no length is believed beyond that; what doesn't come to just
//! the length that it covers is broken.

use super::cipher::{self, Origin};
use super::record::{HEADER_BYTES, Kind, Record};
use super::{ALIGN_BYTES, align_up};
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

/// Id of "stored as it was captured".
pub const PLAIN: u8 = 0;
/// Id of zstd: one frame, without a checksum of its own.
pub const ZSTD: u8 = 1;
/// Most bytes of a volume that a compressed record covers.
pub const PACKED_LEN_BYTES_MAX: u32 = 64 << 10;
/// The quickest usual one: memory is compressed while a guest waits for its checkpoint to end.
const LEVEL: i32 = 1;
/// Compression pays when it saves at least this part of what the record takes.
const SAVING_DIVISOR: u64 = 8;
const BROKEN: &str = "its data can't be unpacked";

/// Whether a record of this kind can be stored this way, with these lengths: of what it covers, and of
/// what is stored.
pub(super) fn is_possible(
    kind: Kind,
    compression: u8,
    encrypted: bool,
    (len, payload_bytes): (u32, u32),
) -> bool {
    if !cipher::is_possible(kind, encrypted, payload_bytes) {
        return false;
    }
    match compression {
        PLAIN => true,
        ZSTD => {
            let tag_bytes = if encrypted { cipher::TAG_BYTES } else { 0 };
            let packed_bytes = payload_bytes - tag_bytes.min(payload_bytes);
            let fits = len <= PACKED_LEN_BYTES_MAX && (1..len).contains(&packed_bytes);
            kind == Kind::Write && fits
        }
        _ => false,
    }
}

/// Whether what is stored of a record is its payload as it was captured.
///
/// # Errors
/// It is not stored as its journal stores data, or its key is missing.
pub fn is_as_captured(origin: &Origin<'_>, record: &Record) -> Result<bool, &'static str> {
    Ok(record.compression == PLAIN && origin.key(record)?.is_none())
}

/// Fills `data`, which has [`Record::data_bytes`], with a record's payload as it was captured.
///
/// # Errors
/// What is wrong with what is stored.
pub fn unpack_into(
    origin: &Origin<'_>,
    record: &Record,
    stored: &[u8],
    data: &mut [u8],
) -> Result<(), &'static str> {
    if data.len() != record.data_bytes() as usize || stored.len() != record.payload_bytes as usize {
        return Err("it is read into memory of another size");
    }
    match (origin.key(record)?, record.compression) {
        (None, PLAIN) => {
            data.copy_from_slice(stored);
            Ok(())
        }
        (Some(key), PLAIN) => key.open(record, origin.at, stored, data),
        (None, _) => decompress(record, stored, data),
        (Some(key), _) => {
            let mut packed = [0; PACKED_LEN_BYTES_MAX as usize];
            let packed = &mut packed[..record.packed_bytes() as usize];
            key.open(record, origin.at, stored, packed)?;
            decompress(record, packed, data)
        }
    }
}

fn decompress(record: &Record, packed: &[u8], data: &mut [u8]) -> Result<(), &'static str> {
    match with_decompressor(|zstd| zstd.decompress_to_buffer(packed, data)) {
        Some(bytes) if bytes == record.len as usize => Ok(()),
        _ => Err(BROKEN),
    }
}

/// A record's payload as it was captured: what is stored, or that unpacked into `room`.
///
/// # Errors
/// What is wrong with what is stored.
pub fn unpack<'b>(
    origin: &Origin<'_>,
    record: &Record,
    stored: &'b [u8],
    room: &'b mut Vec<u8>,
) -> Result<&'b [u8], &'static str> {
    if is_as_captured(origin, record)? {
        return Ok(stored);
    }
    room.resize(record.data_bytes() as usize, 0);
    unpack_into(origin, record, stored, room)?;
    Ok(room)
}

/// Makes of what is stored of a record its payload decrypted, still compressed if it was; `room` is memory
/// for that, and holds what is stored afterwards.
///
/// # Errors
/// What is wrong with what is stored.
pub fn decrypt(
    origin: &Origin<'_>,
    record: &Record,
    stored: &mut Vec<u8>,
    room: &mut Vec<u8>,
) -> Result<(), &'static str> {
    if let Some(key) = origin.key(record)? {
        room.resize(record.packed_bytes() as usize, 0);
        key.open(record, origin.at, stored, room)?;
        std::mem::swap(stored, room);
    }
    Ok(())
}

/// A decrypted payload as it was captured: itself, or unpacked into `room`.
///
/// # Errors
/// What is wrong with it.
pub fn expand<'b>(
    record: &Record,
    packed: &'b [u8],
    room: &'b mut Vec<u8>,
) -> Result<&'b [u8], &'static str> {
    if record.compression == PLAIN {
        return Ok(packed);
    }
    room.resize(record.data_bytes() as usize, 0);
    decompress(record, packed, room)?;
    Ok(room)
}

thread_local! {
    /// Made once a thread: its memory is larger than what it unpacks.
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn with_decompressor<T>(
    work: impl FnOnce(&mut Decompressor<'static>) -> std::io::Result<T>,
) -> Option<T> {
    DECOMPRESSOR.with_borrow_mut(|held| {
        if held.is_none() {
            *held = Decompressor::new().ok();
        }
        held.as_mut().and_then(|zstd| work(zstd).ok())
    })
}

/// Compresses payloads, one after the other.
pub struct Packer {
    zstd: Compressor<'static>,
    packed: Vec<u8>,
}

impl Packer {
    /// One with memory of its own, some hundred KiB.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new() -> std::io::Result<Self> {
        let mut zstd = Compressor::new(LEVEL)?;
        // The record says both, and has a checksum.
        zstd.set_parameter(CParameter::ContentSizeFlag(false))?;
        zstd.set_parameter(CParameter::ChecksumFlag(false))?;
        Ok(Self { zstd, packed: vec![0; PACKED_LEN_BYTES_MAX as usize] })
    }

    /// The id of the compression, and what is to be stored of a payload: it as it is, where compressing
    /// doesn't pay or can't be had.
    pub fn pack<'p>(&'p mut self, data: &'p [u8]) -> (u8, &'p [u8]) {
        let plain_bytes = align_up(HEADER_BYTES + data.len() as u64);
        let limit = plain_bytes - plain_bytes / SAVING_DIVISOR;
        let room = (limit / ALIGN_BYTES * ALIGN_BYTES).saturating_sub(HEADER_BYTES) as usize;
        let room = room.min(data.len().saturating_sub(1));
        if data.len() > PACKED_LEN_BYTES_MAX as usize || room == 0 {
            return (PLAIN, data);
        }
        match self.zstd.compress_to_buffer(data, &mut self.packed[..room]) {
            Ok(bytes) if bytes > 0 => (ZSTD, &self.packed[..bytes]),
            _ => (PLAIN, data),
        }
    }
}
