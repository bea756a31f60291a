//! The bytes of a run, without I/O: blocks of 4 KiB that all end in the same trailer.
//!
//! ```text
//! | header | data x254 | index | data x254 | index | ... | top ... | footer |
//! ```
//!
//! Each index block names the first key of each data block before it; the top names the first key
//! of each index block. The run's UUID and the block's number are in every block's checksum, so
//! that neither a block of another run nor one from another place passes.

use super::name::Span;
use crate::format::{VERSION, checksum};
use crate::map::piece::{Piece, Placed};
use crate::{Seq, VolumeId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a block before its trailer.
pub const BODY_BYTES: usize = BLOCK_BYTES - size_of::<Trailer>();
/// Pieces of a data block.
pub const PIECES_MAX: usize = BODY_BYTES / size_of::<RawPiece>();
/// Keys of an index block: the data blocks that belong to it.
pub const KEYS_MAX: usize = BODY_BYTES / size_of::<RawKey>();
/// Longest piece, in bytes, but for one that reaches to the end of all addresses; a multiple of any
/// usual block.
pub const PIECE_BYTES_MAX: u64 = (1 << 32) - (1 << 20);

const MAGIC_HEADER: [u8; 8] = *b"AIMGMAPR";
const MAGIC_FOOTER: [u8; 8] = *b"AIMGMAPE";
/// Flag of a piece: it reads as zeroes.
const ZERO: u16 = 1;
/// Flag of a piece: it reaches to the end of all addresses.
const TO_THE_END: u16 = 2;

/// A block of 4 KiB.
pub type Block = [u8; BLOCK_BYTES];
/// Where a piece begins: what runs are sorted by.
pub type Key = (VolumeId, u64);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct Trailer {
    run: [u8; 16],
    number: U64,
    count: U32,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawPiece {
    start: U64,
    bytes: U32,
    volume: U16,
    flags: U16,
    rank: U64,
    seq: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawKey {
    start: U64,
    volume: U16,
    reserved: [u8; 6],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    level: U32,
    group: [u8; 16],
    first_unit: U64,
    last_unit: U64,
    first_seq: U64,
    last_seq: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawFooter {
    magic: [u8; 8],
    pieces: U64,
    rank_min: U64,
    rank_max: U64,
}

const _: () = assert!(size_of::<RawPiece>() == 32 && size_of::<RawKey>() == 16);

/// How many of what a run holds, known at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Pieces.
    pub pieces: u64,
    /// The lowest rank of a piece.
    pub rank_min: Seq,
    /// The highest rank of a piece; 0: there is none.
    pub rank_max: Seq,
}

impl Totals {
    /// Data blocks.
    #[must_use]
    pub fn data_blocks(&self) -> u64 {
        self.pieces.div_ceil(PIECES_MAX as u64)
    }

    /// Index blocks.
    #[must_use]
    pub fn index_blocks(&self) -> u64 {
        self.data_blocks().div_ceil(KEYS_MAX as u64)
    }

    /// Blocks of the top.
    #[must_use]
    pub fn top_blocks(&self) -> u64 {
        self.index_blocks().div_ceil(KEYS_MAX as u64)
    }

    /// Number of the first block of the top.
    #[must_use]
    pub fn top_at(&self) -> u64 {
        1 + self.data_blocks() + self.index_blocks()
    }

    /// Blocks of the whole file.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.top_at() + self.top_blocks() + 1
    }

    /// Number of an index block.
    #[must_use]
    pub fn index_at(&self, index: u64) -> u64 {
        1 + ((index + 1) * KEYS_MAX as u64).min(self.data_blocks()) + index
    }
}

/// Number of a data block.
#[must_use]
pub fn data_at(data: u64) -> u64 {
    1 + data + data / KEYS_MAX as u64
}

/// Fills in a block's trailer.
pub fn close_block(block: &mut Block, run: [u8; 16], number: u64, count: u32) {
    let mut trailer = Trailer { run, number: number.into(), count: count.into(), crc: 0u32.into() };
    block[BODY_BYTES..].copy_from_slice(trailer.as_bytes());
    trailer.crc = checksum::crc32c(&block[..BLOCK_BYTES - 4]).into();
    block[BODY_BYTES..].copy_from_slice(trailer.as_bytes());
}

/// Checks a block; says how many entries it has, and whose it is.
///
/// # Errors
/// What is wrong.
pub fn check_block(block: &Block, number: u64) -> Result<(u32, [u8; 16]), &'static str> {
    let trailer = Trailer::read_from_bytes(&block[BODY_BYTES..]).map_err(|_| "it is short")?;
    if trailer.crc.get() != checksum::crc32c(&block[..BLOCK_BYTES - 4]) {
        return Err("its checksum doesn't match");
    }
    if trailer.number.get() != number {
        return Err("it is a block from another place");
    }
    Ok((trailer.count.get(), trailer.run))
}

/// Writes the header's fields.
pub fn encode_header(block: &mut Block, group: [u8; 16], span: &Span) {
    let raw = RawHeader {
        magic: MAGIC_HEADER,
        version: VERSION.into(),
        level: u32::from(span.level).into(),
        group,
        first_unit: span.first_unit.into(),
        last_unit: span.last_unit.into(),
        first_seq: span.first_seq.into(),
        last_seq: span.last_seq.into(),
    };
    block[..size_of::<RawHeader>()].copy_from_slice(raw.as_bytes());
}

/// The version, the group and what is covered; `None`: it isn't a header.
#[must_use]
pub fn decode_header(block: &Block) -> Option<(u32, [u8; 16], Span)> {
    let raw = RawHeader::read_from_prefix(block).ok()?.0;
    let span = Span {
        level: u8::try_from(raw.level.get()).ok()?,
        first_unit: raw.first_unit.get(),
        last_unit: raw.last_unit.get(),
        first_seq: raw.first_seq.get(),
        last_seq: raw.last_seq.get(),
    };
    (raw.magic == MAGIC_HEADER).then_some((raw.version.get(), raw.group, span))
}

/// Writes the footer's fields.
pub fn encode_footer(block: &mut Block, totals: &Totals) {
    let raw = RawFooter {
        magic: MAGIC_FOOTER,
        pieces: totals.pieces.into(),
        rank_min: totals.rank_min.into(),
        rank_max: totals.rank_max.into(),
    };
    block[..size_of::<RawFooter>()].copy_from_slice(raw.as_bytes());
}

/// The counts; `None`: it isn't a footer.
#[must_use]
pub fn decode_footer(block: &Block) -> Option<Totals> {
    let raw = RawFooter::read_from_prefix(block).ok()?.0;
    let totals = Totals {
        pieces: raw.pieces.get(),
        rank_min: raw.rank_min.get(),
        rank_max: raw.rank_max.get(),
    };
    (raw.magic == MAGIC_FOOTER).then_some(totals)
}

/// Writes a piece of at most [`PIECE_BYTES_MAX`], or one that ends at `u64::MAX`.
pub fn encode_piece(block: &mut Block, index: usize, volume: VolumeId, piece: &Piece) {
    let to_the_end = piece.end == u64::MAX;
    let bytes = if to_the_end { 0 } else { piece.bytes() as u32 };
    let flags = if piece.zero { ZERO } else { 0 } | if to_the_end { TO_THE_END } else { 0 };
    let raw = RawPiece {
        start: piece.start.into(),
        bytes: bytes.into(),
        volume: volume.into(),
        flags: flags.into(),
        rank: piece.rank.into(),
        seq: piece.seq.into(),
    };
    let at = index * size_of::<RawPiece>();
    block[at..at + size_of::<RawPiece>()].copy_from_slice(raw.as_bytes());
}

/// The piece with this index; `None` behind the end of the block, or when it can't be one.
#[must_use]
pub fn decode_piece(block: &Block, index: usize) -> Option<Placed> {
    let at = index * size_of::<RawPiece>();
    let raw = RawPiece::read_from_bytes(block.get(at..at + size_of::<RawPiece>())?).ok()?;
    let (start, flags) = (raw.start.get(), raw.flags.get());
    let end = match flags & TO_THE_END {
        0 => start.checked_add(raw.bytes.get().into())?,
        _ => u64::MAX,
    };
    let (rank, seq, zero) = (raw.rank.get(), raw.seq.get(), flags & ZERO != 0);
    let known = flags & !(ZERO | TO_THE_END) == 0;
    (start < end && known).then_some((raw.volume.get(), Piece { start, end, rank, seq, zero }))
}

/// Writes a key of an index or top block.
pub fn encode_key(block: &mut Block, index: usize, key: Key) {
    let raw = RawKey { start: key.1.into(), volume: key.0.into(), reserved: [0; 6] };
    let at = index * size_of::<RawKey>();
    block[at..at + size_of::<RawKey>()].copy_from_slice(raw.as_bytes());
}

/// The key with this index; `None` behind the end of the block.
#[must_use]
pub fn decode_key(block: &Block, index: usize) -> Option<Key> {
    let at = index * size_of::<RawKey>();
    let raw = RawKey::read_from_bytes(block.get(at..at + size_of::<RawKey>())?).ok()?;
    Some((raw.volume.get(), raw.start.get()))
}
