//! A stream whose guest runs before its memory is there (QEMU's postcopy), and what it asks for.
//!
//! ```text
//!  head, OPEN_RETURN_PATH, ADVISE, blocks, DISCARD .., PACKAGED { LISTEN, devices, PING, RUN }
//!                                                                                 ◄─ PONG: the guest runs
//!  then sections of pages in any order, each page at most once                    ◄─ requests
//!  END, end mark                                                                  ◄─ SHUT
//! ```
//!
//! What always holds: no page is given twice, which QEMU would refuse; a page that is never given is
//! one of zeroes. A block's host pages have [`PAGE_BYTES`]: memory of larger ones can't be given so.
//!
//! The stream may end only behind the PONG. A device's state may look at memory when it is loaded (an
//! APIC's does), and wait for a page; QEMU takes what was never given for zeroes only when all that is
//! loaded, and would wait for ever for the other one.
//!
//! Facts are from QEMU 8.2 to 10.0: `migration/savevm.c`, `migration/ram.c`, `migration/postcopy-ram.c`,
//! `docs/devel/migration/postcopy.rst`, and from what two QEMU 10.0.2 said to each other.

use crate::block::{Block, ID_BYTES_MAX};
use crate::head::{Head, footer};
use crate::writer::{check_blocks, refused, write_id};
use crate::{PAGE_BYTES, tail, wire};
use std::io::{self, BufWriter, Write};

/// Bytes that are gathered before they are written out; a section is written out at its end.
const GATHERED_BYTES: usize = 256 << 10;
/// Most bytes of an answer on the return path: the header, a place, the longest name.
const ANSWER_BYTES_MAX: usize = 13 + ID_BYTES_MAX;

/// Writes a stream to a guest that runs meanwhile.
#[derive(Debug)]
pub struct LiveWriter<W: Write> {
    out: BufWriter<W>,
    section: u32,
    has_footers: bool,
    blocks: Vec<Block>,
    /// A bit a page of each block: it was given.
    given: Vec<Vec<u64>>,
}

impl<W: Write> LiveWriter<W> {
    /// Writes everything that the guest needs to run: from the head to RUN. Parts and blocks are as
    /// [`crate::Parts`] hold them.
    ///
    /// # Errors
    /// `InvalidInput` when they are not what a reader gives; and those of `out`.
    pub fn new(out: W, head: &[u8], blocks: &[Block], tail: &[u8]) -> io::Result<Self> {
        let (parsed, before) = Head::split(head).map_err(|e| refused(format!("head: {e}")))?;
        let total = check_blocks(blocks).map_err(|e| refused(e.to_string()))?;
        let devices = tail::devices(tail)
            .ok_or_else(|| refused(format!("a tail of {} bytes that is none", tail.len())))?;
        let Head { section, has_footers, start_bytes, .. } = parsed;
        let begin = before.saturating_sub(start_bytes);
        if total > RAM_BYTES_MAX {
            return Err(refused(format!(
                "{total} bytes of memory, more than the {RAM_BYTES_MAX} that a guest can have here"
            )));
        }
        let bits = |block: &Block| vec![0; (block.bytes / PAGE).div_ceil(64) as usize];
        let mut writer = Self {
            out: BufWriter::with_capacity(GATHERED_BYTES, out),
            section,
            has_footers,
            blocks: blocks.to_vec(),
            given: blocks.iter().map(bits).collect(),
        };
        writer.out.write_all(&head[..begin])?;
        writer.command(wire::OPEN_RETURN_PATH, &[])?;
        let sizes = [PAGE.to_be_bytes(), PAGE.to_be_bytes()].concat();
        writer.command(wire::POSTCOPY_ADVISE, &sizes)?;
        writer.out.write_all(&head[begin..before])?;
        writer.out.write_all(&(total | wire::SIZES).to_be_bytes())?;
        for block in blocks {
            write_id(&mut writer.out, &block.id)?;
            writer.out.write_all(&block.bytes.to_be_bytes())?;
        }
        writer.end_section()?;
        // As a source does that sent pages before: only then QEMU 10.0 sees to its own in the right order.
        for block in blocks {
            let name = block.id.as_bytes();
            let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
            let range = [0, block.bytes].map(u64::to_be_bytes).concat();
            let body = [&[DISCARD_VERSION, length], name, &[0], &range].concat();
            writer.command(wire::POSTCOPY_RAM_DISCARD, &body)?;
        }
        // Bytes of the package: two commands without a body, one with four bytes, and the devices.
        let bytes =
            u32::try_from(devices.len() + 2 * 5 + 9).ok().filter(|b| *b < PACKAGE_BYTES_MAX);
        let bytes = bytes.ok_or_else(|| refused("device state that is too large".into()))?;
        writer.command(wire::PACKAGED, &bytes.to_be_bytes())?;
        writer.command(wire::POSTCOPY_LISTEN, &[])?;
        writer.out.write_all(devices)?;
        writer.command(wire::PING, &LOADED.to_be_bytes())?;
        writer.command(wire::POSTCOPY_RUN, &[])?;
        writer.out.flush()?;
        Ok(writer)
    }

    /// Whether a page was given; one that there isn't counts as given.
    pub fn is_given(&self, block: usize, offset: u64) -> bool {
        self.bit(block, offset).is_none_or(|(word, bit)| self.given[block][word] & bit != 0)
    }

    /// Gives pages that follow each other: a multiple of [`PAGE_BYTES`] of `data`, at most a quarter of a
    /// MiB is sensible. Those that were given are left out. They are written out when this returns.
    ///
    /// # Errors
    /// `InvalidInput` when there are no such pages; and those of `out`.
    pub fn pages(&mut self, block: usize, offset: u64, data: &[u8]) -> io::Result<()> {
        let (pages, rest) = data.as_chunks::<PAGE_BYTES>();
        let places = (offset..).step_by(PAGE_BYTES);
        if !rest.is_empty() {
            return Err(refused(format!("pages of {} bytes", data.len())));
        }
        let mut is_begun = false;
        for (page, offset) in pages.iter().zip(places) {
            let (word, bit) = self
                .bit(block, offset)
                .ok_or_else(|| refused(format!("no page of RAM block {block} at {offset:#x}")))?;
            if self.given[block][word] & bit != 0 {
                continue;
            }
            self.given[block][word] |= bit;
            let is_zero = *page == ZEROES;
            let what = if is_zero { wire::ZERO } else { wire::PAGE };
            self.header(block, offset | what, &mut is_begun)?;
            self.out.write_all(if is_zero { &[0] } else { page })?;
        }
        if is_begun {
            self.end_section()?;
        }
        self.out.flush()
    }

    /// Ends the stream: pages that were not given are zero. Gives `out` back, flushed. Only behind
    /// [`Answer::Loaded`], or QEMU may wait for ever.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[wire::END])?;
        self.out.write_all(&self.section.to_be_bytes())?;
        self.end_section()?;
        self.out.write_all(&[wire::EOF])?;
        self.out.into_inner().map_err(io::IntoInnerError::into_error)
    }

    fn bit(&self, block: usize, offset: u64) -> Option<(usize, u64)> {
        let bytes = self.blocks.get(block)?.bytes;
        let page = offset / PAGE;
        let is_there = offset < bytes && offset.is_multiple_of(PAGE);
        is_there.then_some(((page / 64) as usize, 1 << (page % 64)))
    }

    fn header(&mut self, block: usize, word: u64, is_begun: &mut bool) -> io::Result<()> {
        if *is_begun {
            return self.out.write_all(&(word | wire::CONTINUE).to_be_bytes());
        }
        *is_begun = true;
        self.out.write_all(&[wire::PART])?;
        self.out.write_all(&self.section.to_be_bytes())?;
        self.out.write_all(&word.to_be_bytes())?;
        write_id(&mut self.out, &self.blocks[block].id)
    }

    fn end_section(&mut self) -> io::Result<()> {
        self.out.write_all(&wire::END_OF_SECTION.to_be_bytes())?;
        if self.has_footers {
            self.out.write_all(&footer(self.section))?;
        }
        Ok(())
    }

    fn command(&mut self, command: u16, body: &[u8]) -> io::Result<()> {
        let bytes = u16::try_from(body.len()).map_err(|_| refused("a long command".into()))?;
        self.out.write_all(&[wire::COMMAND])?;
        self.out.write_all(&command.to_be_bytes())?;
        self.out.write_all(&bytes.to_be_bytes())?;
        self.out.write_all(body)
    }
}

/// Most memory of a guest: a bit a page of it is kept, 2 GiB for all of these.
const RAM_BYTES_MAX: u64 = 1 << 46;
/// What the PING behind the devices says, and QEMU repeats.
const LOADED: u32 = 3;
/// `postcopy_ram_discard_version`.
const DISCARD_VERSION: u8 = 0;
const PAGE: u64 = PAGE_BYTES as u64;
static ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
/// QEMU takes packages below this size (`MAX_VM_CMD_PACKAGED_SIZE`), in bytes.
const PACKAGE_BYTES_MAX: u32 = 1 << 24;

/// What the guest's QEMU says on the return path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It wants pages: the id of a block (not there: the one of the request before), byte offset, bytes.
    Pages {
        /// The block.
        block: Option<String>,
        /// Byte offset in it.
        offset: u64,
        /// Bytes.
        bytes: u32,
    },
    /// It is done; 0: it has everything.
    Shut(u32),
    /// It has loaded its devices.
    Loaded,
    /// Something that needs no reply.
    Other(u16),
}

/// Takes the return path in pieces of any size.
#[derive(Debug, Default)]
pub struct Answers {
    held: Vec<u8>,
}

impl Answers {
    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole answer, if there is one.
    ///
    /// # Errors
    /// `InvalidData`: it isn't what QEMU says.
    pub fn take(&mut self) -> io::Result<Option<Answer>> {
        let Some((kind, body)) = self.held.split_first_chunk::<2>() else { return Ok(None) };
        let Some((bytes, body)) = body.split_first_chunk::<2>() else { return Ok(None) };
        let (kind, bytes) = (u16::from_be_bytes(*kind), usize::from(u16::from_be_bytes(*bytes)));
        let odd = || {
            let what = format!("QEMU answers {kind} with {bytes} bytes");
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        if bytes > ANSWER_BYTES_MAX {
            return Err(odd());
        }
        let Some(body) = body.get(..bytes) else { return Ok(None) };
        let answer = answer(kind, body).ok_or_else(odd)?;
        self.held.drain(..4 + bytes);
        Ok(Some(answer))
    }
}

fn answer(kind: u16, body: &[u8]) -> Option<Answer> {
    match kind {
        1 => Some(Answer::Shut(u32::from_be_bytes(body.try_into().ok()?))),
        2 if body == LOADED.to_be_bytes() => Some(Answer::Loaded),
        3 | 4 => {
            let (offset, rest) = body.split_first_chunk()?;
            let (bytes, rest) = rest.split_first_chunk()?;
            let (offset, bytes) = (u64::from_be_bytes(*offset), u32::from_be_bytes(*bytes));
            let block = match (kind, rest) {
                (4, []) => None,
                (3, [length, id @ ..]) if usize::from(*length) == id.len() => {
                    Some(String::from_utf8(id.to_vec()).ok()?)
                }
                _ => return None,
            };
            Some(Answer::Pages { block, offset, bytes })
        }
        other => Some(Answer::Other(other)),
    }
}
