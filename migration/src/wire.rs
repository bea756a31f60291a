//! The stream's numbers, and reading them from a slice that may end too early.
//!
//! An item is parsed from its first byte each time; [`Stop::Needs`] says how many bytes of it have
//! to be there before it is worth trying again. What always holds: an item takes exactly the bytes
//! that it last asked for.

use crate::Fault;

/// The first four bytes, and the only version since 2009.
pub const MAGIC: [u8; 4] = *b"QEVM";
pub const VERSION: u32 = 3;

/// Types of sections: `migration/savevm.h`.
pub const EOF: u8 = 0x00;
pub const START: u8 = 0x01;
pub const PART: u8 = 0x02;
pub const END: u8 = 0x03;
pub const FULL: u8 = 0x04;
pub const SUBSECTION: u8 = 0x05;
pub const DESCRIPTION: u8 = 0x06;
pub const CONFIGURATION: u8 = 0x07;
pub const COMMAND: u8 = 0x08;
pub const FOOTER: u8 = 0x7e;

/// Flags in the low bits of a word of `ram`: `migration/ram.c`.
pub const FLAGS_MASK: u64 = 0xfff;
pub const ZERO: u64 = 0x02;
pub const SIZES: u64 = 0x04;
pub const PAGE: u64 = 0x08;
pub const END_OF_SECTION: u64 = 0x10;
pub const CONTINUE: u64 = 0x20;
pub const XBZRLE: u64 = 0x40;
pub const HOOK: u64 = 0x80;
pub const COMPRESSED: u64 = 0x100;
pub const MULTIFD_FLUSH: u64 = 0x200;

/// The section of memory, and its version.
pub const RAM: &str = "ram";
pub const RAM_VERSION: u32 = 4;

/// Commands: `migration/savevm.h`, `enum qemu_vm_cmd`.
pub const OPEN_RETURN_PATH: u16 = 1;
pub const PING: u16 = 2;
pub const POSTCOPY_ADVISE: u16 = 3;
pub const POSTCOPY_LISTEN: u16 = 4;
pub const POSTCOPY_RUN: u16 = 5;
pub const POSTCOPY_RAM_DISCARD: u16 = 6;
pub const PACKAGED: u16 = 7;
/// The one command that means nothing here: the source has stopped (QEMU 10.0 and later).
pub const SWITCHOVER_START: u16 = 11;

/// Why an item was not taken.
#[derive(Debug)]
pub enum Stop<E> {
    /// This many bytes from its first one on have to be there.
    Needs(usize),
    /// It never will be.
    Fault(Fault),
    /// The sink failed.
    Sink(E),
}

impl<E> From<Fault> for Stop<E> {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

/// Reads an item's fields.
pub struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Scan { bytes, at: 0 }
    }

    /// Bytes taken.
    pub fn used(&self) -> usize {
        self.at
    }

    #[inline]
    pub fn take<E>(&mut self, bytes: usize) -> Result<&'a [u8], Stop<E>> {
        let end = self.at + bytes;
        let taken = self.bytes.get(self.at..end).ok_or(Stop::Needs(end))?;
        self.at = end;
        Ok(taken)
    }

    #[inline]
    pub fn array<const N: usize, E>(&mut self) -> Result<[u8; N], Stop<E>> {
        let end = self.at + N;
        let taken = self.bytes.get(self.at..).and_then(|b| b.first_chunk());
        let taken = *taken.ok_or(Stop::Needs(end))?;
        self.at = end;
        Ok(taken)
    }

    pub fn byte<E>(&mut self) -> Result<u8, Stop<E>> {
        self.array().map(|[byte]| byte)
    }

    pub fn be16<E>(&mut self) -> Result<u16, Stop<E>> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn be32<E>(&mut self) -> Result<u32, Stop<E>> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn be64<E>(&mut self) -> Result<u64, Stop<E>> {
        self.array().map(u64::from_be_bytes)
    }

    /// A name behind its length of one byte.
    pub fn name<E>(&mut self) -> Result<&'a str, Stop<E>> {
        let bytes = usize::from(self.byte()?);
        self.text(bytes)
    }

    /// A name of `bytes` bytes.
    pub fn text<E>(&mut self, bytes: usize) -> Result<&'a str, Stop<E>> {
        let name = self.take(bytes)?;
        str::from_utf8(name).map_err(|_| Fault::Name { found: name.into() }.into())
    }
}
