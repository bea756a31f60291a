//! Request headers of the transmission phase, compact and extended.

use super::{EXTENDED_REQUEST_MAGIC, Fields, Mode, REQUEST_MAGIC};

/// Length of a compact request header.
pub const COMPACT_BYTES: usize = 28;
/// Length of an extended request header.
pub const EXTENDED_BYTES: usize = 32;

/// One request, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Command flags (`CMD_*` bits).
    pub flags: u16,
    /// The command.
    pub command: u16,
    /// Chosen by the client, repeated in each reply.
    pub cookie: u64,
    /// Where in the export, in bytes.
    pub offset: u64,
    /// Bytes of payload or of effect; compact headers carry 32 bits of it.
    pub length: u64,
}

/// Length of a request header in the mode.
pub fn header_bytes(mode: Mode) -> usize {
    if mode == Mode::Extended { EXTENDED_BYTES } else { COMPACT_BYTES }
}

/// A header that starts with the wrong magic: the stream is out of step for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request starts with {0:#010x}, not with its magic")]
pub struct BadMagic(pub u32);

impl Request {
    /// Reads a header from the front of `bytes`; `Ok(None)` when they do not hold all of it.
    pub fn decode(mode: Mode, bytes: &[u8]) -> Result<Option<Self>, BadMagic> {
        let mut fields = Fields::new(bytes);
        let Some(magic) = fields.u32() else { return Ok(None) };
        let extended = mode == Mode::Extended;
        let wanted = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        if magic != wanted {
            return Err(BadMagic(magic));
        }
        let mut rest = || {
            Some(Self {
                flags: fields.u16()?,
                command: fields.u16()?,
                cookie: fields.u64()?,
                offset: fields.u64()?,
                length: if extended { fields.u64()? } else { u64::from(fields.u32()?) },
            })
        };
        Ok(rest())
    }

    /// Writes the header into `out` and gives its length. In a compact header the length must
    /// fit 32 bits; the upper ones are dropped.
    pub fn encode(&self, mode: Mode, out: &mut [u8; EXTENDED_BYTES]) -> usize {
        let extended = mode == Mode::Extended;
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        out[0..4].copy_from_slice(&magic.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        if extended {
            out[24..32].copy_from_slice(&self.length.to_be_bytes());
        } else {
            debug_assert!(self.length <= u64::from(u32::MAX));
            out[24..28].copy_from_slice(&(self.length as u32).to_be_bytes());
        }
        header_bytes(mode)
    }
}
