//! Reply headers of the transmission phase: simple, structured chunk, extended chunk.

use super::{
    EXTENDED_REPLY_MAGIC, Fields, Mode, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, flags,
};

/// Length of a simple reply.
pub const SIMPLE_BYTES: usize = 16;
/// Length of the header of a structured chunk.
pub const STRUCTURED_BYTES: usize = 20;
/// Length of the header of an extended chunk; the longest of the three.
pub const EXTENDED_BYTES: usize = 32;

/// The header of one reply or reply chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A simple reply; data follows it only after a READ without error.
    Simple {
        /// Error number, 0 for success.
        error: u32,
        /// The request's cookie.
        cookie: u64,
    },
    /// One chunk of a reply.
    Chunk(Chunk),
}

/// The header of a structured or extended chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Chunk flags (`CHUNK_DONE`).
    pub flags: u16,
    /// Chunk type (`CHUNK_*`).
    pub kind: u16,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset; only extended headers carry it.
    pub offset: u64,
    /// Bytes of payload that follow.
    pub length: u64,
}

/// A reply that no reply of the mode starts like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reply starts with {0:#010x}, which is no reply in this mode")]
pub struct BadMagic(pub u32);

impl Chunk {
    /// Whether this is the last chunk of its reply.
    pub fn is_done(&self) -> bool {
        self.flags & flags::CHUNK_DONE != 0
    }

    /// Whether the chunk reports an error.
    pub fn is_error(&self) -> bool {
        self.kind & flags::CHUNK_IS_ERROR != 0
    }
}

impl Reply {
    /// Reads a header from the front of `bytes` and gives it with its length; `Ok(None)` when
    /// they do not hold all of it.
    pub fn decode(mode: Mode, bytes: &[u8]) -> Result<Option<(Self, usize)>, BadMagic> {
        let mut fields = Fields::new(bytes);
        let Some(magic) = fields.u32() else { return Ok(None) };
        let mut read = || match (magic, mode) {
            (SIMPLE_REPLY_MAGIC, Mode::Simple | Mode::Structured) => {
                let (error, cookie) = (fields.u32()?, fields.u64()?);
                Some(Ok((Self::Simple { error, cookie }, SIMPLE_BYTES)))
            }
            (STRUCTURED_REPLY_MAGIC, Mode::Structured) => {
                let (flags, kind) = (fields.u16()?, fields.u16()?);
                let cookie = fields.u64()?;
                let length = u64::from(fields.u32()?);
                let chunk = Chunk { flags, kind, cookie, offset: 0, length };
                Some(Ok((Self::Chunk(chunk), STRUCTURED_BYTES)))
            }
            (EXTENDED_REPLY_MAGIC, Mode::Extended) => {
                let (flags, kind) = (fields.u16()?, fields.u16()?);
                let (cookie, offset, length) = (fields.u64()?, fields.u64()?, fields.u64()?);
                let chunk = Chunk { flags, kind, cookie, offset, length };
                Some(Ok((Self::Chunk(chunk), EXTENDED_BYTES)))
            }
            _ => Some(Err(BadMagic(magic))),
        };
        read().transpose()
    }

    /// Writes the header into `out` and gives its length. A chunk is written as extended when
    /// the mode is, else as structured, whose length must fit 32 bits.
    pub fn encode(&self, mode: Mode, out: &mut [u8; EXTENDED_BYTES]) -> usize {
        match self {
            Self::Simple { error, cookie } => {
                out[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
                out[4..8].copy_from_slice(&error.to_be_bytes());
                out[8..16].copy_from_slice(&cookie.to_be_bytes());
                SIMPLE_BYTES
            }
            Self::Chunk(chunk) => {
                let extended = mode == Mode::Extended;
                let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
                out[0..4].copy_from_slice(&magic.to_be_bytes());
                out[4..6].copy_from_slice(&chunk.flags.to_be_bytes());
                out[6..8].copy_from_slice(&chunk.kind.to_be_bytes());
                out[8..16].copy_from_slice(&chunk.cookie.to_be_bytes());
                if extended {
                    out[16..24].copy_from_slice(&chunk.offset.to_be_bytes());
                    out[24..32].copy_from_slice(&chunk.length.to_be_bytes());
                    EXTENDED_BYTES
                } else {
                    debug_assert!(chunk.length <= u64::from(u32::MAX));
                    out[16..20].copy_from_slice(&(chunk.length as u32).to_be_bytes());
                    STRUCTURED_BYTES
                }
            }
        }
    }
}
