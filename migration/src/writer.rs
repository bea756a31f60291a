//! The writer: a stream made of parts and pages, for `-incoming`.
//!
//! Memory is one END section, whatever sections it came in. What always holds: what was written is
//! a prefix of one stream that [`crate::Reader`] takes, if each page was given; a stream that
//! wasn't finished has no device state, and QEMU refuses it.

use crate::block::{self, Block};
use crate::head::footer;
use crate::wire;
use crate::{Fault, Head, PAGE_BYTES, tail};
use std::io::{self, BufWriter, Write};

/// Bytes that are gathered before they are written out.
const GATHERED_BYTES: usize = 256 << 10;

/// Writes a stream.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: BufWriter<W>,
    section: u32,
    has_footers: bool,
    blocks: Vec<Block>,
    /// The block of the page before.
    last: Option<usize>,
}

impl<W: Write> Writer<W> {
    /// Begins a stream with a head and the RAM blocks as [`crate::Parts`] hold them.
    ///
    /// # Errors
    /// `InvalidInput` when head or blocks are not what a reader gives; and those of `out`.
    pub fn new(out: W, head: &[u8], blocks: &[Block]) -> io::Result<Self> {
        let (parsed, before) = Head::split(head).map_err(|e| refused(format!("head: {e}")))?;
        let total = check_blocks(blocks).map_err(|e| refused(e.to_string()))?;
        let mut out = BufWriter::with_capacity(GATHERED_BYTES, out);
        out.write_all(&head[..before])?;
        out.write_all(&(total | wire::SIZES).to_be_bytes())?;
        for block in blocks {
            write_id(&mut out, &block.id)?;
            out.write_all(&block.bytes.to_be_bytes())?;
        }
        let Head { section, has_footers, .. } = parsed;
        let mut writer = Writer { out, section, has_footers, blocks: blocks.to_vec(), last: None };
        writer.end_section()?;
        writer.out.write_all(&[wire::END])?;
        writer.out.write_all(&section.to_be_bytes())?;
        Ok(writer)
    }

    /// Writes a page of `blocks[block]` at `offset` bytes: [`PAGE_BYTES`] of `data`.
    ///
    /// # Errors
    /// `InvalidInput` when there is no such page; and those of `out`.
    pub fn page(&mut self, block: usize, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.len() != PAGE_BYTES {
            return Err(refused(format!("a page of {} bytes", data.len())));
        }
        self.header(block, offset, wire::PAGE)?;
        self.out.write_all(data)
    }

    /// Writes pages that follow each other: a multiple of [`PAGE_BYTES`] of `data`. None of them is
    /// looked at: zeroes are written as a page.
    ///
    /// # Errors
    /// `InvalidInput` when there are no such pages; and those of `out`.
    pub fn pages(&mut self, block: usize, offset: u64, data: &[u8]) -> io::Result<()> {
        let (pages, rest) = data.as_chunks::<PAGE_BYTES>();
        if !rest.is_empty() {
            return Err(refused(format!("pages of {} bytes", data.len())));
        }
        let mut offset = offset;
        for page in pages {
            self.page(block, offset, page)?;
            offset += PAGE_BYTES as u64;
        }
        Ok(())
    }

    /// Writes a page of zeroes.
    ///
    /// # Errors
    /// `InvalidInput` when there is no such page; and those of `out`.
    pub fn zero(&mut self, block: usize, offset: u64) -> io::Result<()> {
        self.header(block, offset, wire::ZERO)?;
        self.out.write_all(&[0])
    }

    /// Ends memory, writes the tail as [`crate::Parts`] hold it, and gives `out` back, flushed.
    ///
    /// # Errors
    /// `InvalidInput` when the tail is not what a reader gives; and those of `out`.
    pub fn finish(mut self, tail: &[u8]) -> io::Result<W> {
        if !tail::is_whole(tail) {
            return Err(refused(format!("a tail of {} bytes that is none", tail.len())));
        }
        self.end_section()?;
        self.out.write_all(tail)?;
        self.out.flush()?;
        self.out.into_inner().map_err(io::IntoInnerError::into_error)
    }

    fn end_section(&mut self) -> io::Result<()> {
        self.out.write_all(&wire::END_OF_SECTION.to_be_bytes())?;
        if self.has_footers {
            self.out.write_all(&footer(self.section))?;
        }
        Ok(())
    }

    #[inline]
    fn header(&mut self, block: usize, offset: u64, what: u64) -> io::Result<()> {
        let bytes = self.blocks.get(block).map_or(0, |block| block.bytes);
        if offset >= bytes || offset & wire::FLAGS_MASK != 0 {
            return Err(refused(format!("no page of RAM block {block} at byte {offset:#x}")));
        }
        let word = offset | what;
        if self.last == Some(block) {
            return self.out.write_all(&(word | wire::CONTINUE).to_be_bytes());
        }
        self.out.write_all(&word.to_be_bytes())?;
        write_id(&mut self.out, &self.blocks[block].id)?;
        self.last = Some(block);
        Ok(())
    }
}

/// Checks a list of blocks and returns its total in bytes.
pub(crate) fn check_blocks(blocks: &[Block]) -> Result<u64, Fault> {
    let mut total = 0;
    for (index, block) in blocks.iter().enumerate() {
        // The total shares its word with flags, so it can't be all of 2^64.
        let left = !wire::FLAGS_MASK - total;
        block::check(&blocks[..index], block, left, usize::MAX)?;
        total += block.bytes;
    }
    if total == 0 {
        return Err(Fault::Block { id: String::new(), bytes: 0, why: "there is no block" });
    }
    Ok(total)
}

pub(crate) fn write_id(out: &mut impl Write, id: &str) -> io::Result<()> {
    // Checked to fit when the writer was made.
    let bytes = u8::try_from(id.len()).map_err(|_| refused(format!("block id {id:?}")))?;
    out.write_all(&[bytes])?;
    out.write_all(id.as_bytes())
}

pub(crate) fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("migration stream to write: {why}"))
}
