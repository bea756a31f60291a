//! The bytes of NBD: constants, headers, options. Pure encoding and decoding, no I/O.
//!
//! All integers are big-endian. Decoders take a slice and check every length in it; they
//! allocate nothing that the slice does not already hold. The names and numbers are those of
//! `doc/proto.md` of the NetworkBlockDevice project.

pub mod flags;
pub mod option;
pub mod reply;
pub mod request;

/// First greeting of a server, ASCII `NBDMAGIC`.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second greeting of a newstyle server, and the magic of each option: ASCII `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Magic of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Magic of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Magic of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Magic of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The longest string that the protocol allows: export names, context names, messages.
pub const STRING_BYTES_MAX: usize = 4096;

/// The metadata context that every server of block data knows.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Flag of [`BASE_ALLOCATION`]: nothing is allocated there.
pub const STATE_HOLE: u32 = 1;
/// Flag of [`BASE_ALLOCATION`]: reads as zeroes.
pub const STATE_ZERO: u32 = 2;

/// Which headers a connection uses in transmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Compact requests and simple replies only.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies with 64-bit lengths.
    Extended,
}

/// Reads fields off the front of a slice; `None` where it ends too early.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    /// The next 16-bit field.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32-bit field.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64-bit field.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next string, preceded by its length in 32 bits; `None` when it is too long for the
    /// protocol, not UTF-8, or contains a NUL.
    pub fn string(&mut self) -> Option<&'a str> {
        let bytes = self.u32()? as usize;
        if bytes > STRING_BYTES_MAX {
            return None;
        }
        as_string(self.bytes(bytes)?)
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The bytes as a string of the protocol: UTF-8, no NUL, at most [`STRING_BYTES_MAX`] bytes.
pub fn as_string(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > STRING_BYTES_MAX || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}
