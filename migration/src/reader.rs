//! The reader: pieces of a stream in, pages out.
//!
//! ```text
//!  feed ──► carry (only the item that a piece cut) ──► opening ─► sizes ─► entries ◄─► sections ─► tail
//!                                                        │          │         │                     │
//!                                                      head    Sink::blocks  Sink::page, ::zero    tail
//! ```
//!
//! What always holds: a page that lies whole in a piece is handed on without a copy; memory is the
//! head, the blocks, the tail, each within its limit, and at most one item.

use crate::block::{self, Block};
use crate::head::{Opening, footer, start};
use crate::wire::{self, Scan, Stop};
use crate::{Error, Fault, Limits, PAGE_BYTES, Parts, Sink, tail};

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Something of the head.
    Opening,
    /// The first word of the list of blocks.
    Total,
    /// A block; so many bytes of memory are not in the list yet.
    Sizes { left: u64 },
    /// A page or the end of a section of memory.
    Entries,
    /// The footer behind it.
    Footer,
    /// The next section's type.
    Section,
    /// The tail, up to the stream's end.
    Tail,
}

/// Reads a stream that comes in pieces.
#[derive(Debug)]
pub struct Reader {
    limits: Limits,
    state: State,
    /// Where the next item begins, in bytes from the stream's first one.
    at: u64,
    opening: Opening,
    /// Whether sections of memory end with footers: the first one tells.
    has_footers: Option<bool>,
    /// Whether pages came in a section behind the one that lists the blocks, and in the last one.
    is_sent: bool,
    is_ended: bool,
    has_failed: bool,
    /// The block of the page before.
    last: Option<usize>,
    sent_pages: u64,
    head: Vec<u8>,
    blocks: Vec<Block>,
    tail: Vec<u8>,
    /// The part of an item that has come, and how many bytes it needs.
    carry: Vec<u8>,
    need: usize,
}

impl Reader {
    /// A reader at a stream's first byte.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Reader {
            limits,
            state: State::Opening,
            at: 0,
            opening: Opening::default(),
            has_footers: None,
            is_sent: false,
            is_ended: false,
            has_failed: false,
            last: None,
            sent_pages: 0,
            head: Vec::new(),
            blocks: Vec::new(),
            tail: Vec::new(),
            carry: Vec::new(),
            need: 0,
        }
    }

    /// Bytes of the stream that have been understood.
    #[must_use]
    pub fn position_bytes(&self) -> u64 {
        self.at
    }

    /// Takes the next piece, of any length.
    ///
    /// # Errors
    /// The stream is not one that is supported, or the sink failed: [`Error::kind`] says what to
    /// do. The reader takes nothing more then.
    pub fn feed<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<(), Error<S::Error>> {
        if self.has_failed {
            return Err(Error::Stream { at: self.at, fault: Fault::Failed });
        }
        self.pieces(bytes, sink).map_err(|stop| {
            self.has_failed = true;
            match stop {
                Stop::Sink(error) => Error::Sink { at: self.at, error },
                Stop::Fault(fault) => Error::Stream { at: self.at, fault },
                // Never comes out of `items`.
                Stop::Needs(_) => Error::Stream { at: self.at, fault: Fault::Failed },
            }
        })
    }

    /// Says that the stream has ended.
    ///
    /// # Errors
    /// It is not whole: cut short, pages missing, or an earlier piece was refused.
    pub fn finish(self) -> Result<Parts, Error> {
        let fault = if self.has_failed {
            Fault::Failed
        } else if self.state != State::Tail {
            Fault::Cut { within: self.place() }
        } else if !tail::is_whole(&self.tail) {
            Fault::NoEnd
        } else {
            let Reader { head, blocks, tail, .. } = self;
            return Ok(Parts { head, blocks, tail });
        };
        Err(Error::Stream { at: self.at + self.carry.len() as u64, fault })
    }

    fn place(&self) -> &'static str {
        match self.state {
            State::Opening => self.opening.place(),
            State::Total | State::Sizes { .. } => "the list of RAM blocks",
            State::Entries | State::Footer => "memory",
            State::Section => "memory, or between it and the device state",
            State::Tail => "the device state",
        }
    }

    fn pieces<S: Sink>(&mut self, mut bytes: &[u8], sink: &mut S) -> Result<(), Stop<S::Error>> {
        while !bytes.is_empty() {
            if self.carry.is_empty() {
                let used = self.items(bytes, sink)?;
                self.carry.extend_from_slice(&bytes[used..]);
                return Ok(());
            }
            let more = (self.need - self.carry.len()).min(bytes.len());
            self.carry.extend_from_slice(&bytes[..more]);
            bytes = &bytes[more..];
            if self.carry.len() == self.need {
                let mut carry = std::mem::take(&mut self.carry);
                let used = self.items(&carry, sink)?;
                carry.drain(..used);
                self.carry = carry;
            }
        }
        Ok(())
    }

    /// Takes what is whole and returns how many bytes that is. What remains is less than `need`.
    fn items<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, Stop<S::Error>> {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            let taken = match self.state {
                State::Entries => self.entry(rest, sink),
                State::Opening => self.opening(rest),
                State::Total => self.total(rest),
                State::Sizes { left } => self.size(rest, left, sink),
                State::Footer => self.footer(rest),
                State::Section => self.section(rest),
                State::Tail => self.tail(rest),
            };
            match taken {
                Ok(taken) => {
                    used += taken;
                    self.at += taken as u64;
                }
                Err(Stop::Needs(need)) => {
                    self.need = need;
                    return Ok(used);
                }
                Err(stop) => return Err(stop),
            }
        }
    }

    fn opening<E>(&mut self, bytes: &[u8]) -> Result<usize, Stop<E>> {
        let used = self.opening.item(bytes, &self.limits)?;
        self.keep_head(&bytes[..used])?;
        if self.opening.section.is_some() {
            self.state = State::Total;
        }
        Ok(used)
    }

    fn keep_head<E>(&mut self, bytes: &[u8]) -> Result<(), Stop<E>> {
        let max = self.limits.head_bytes_max;
        if bytes.len() > max - self.head.len() {
            return Err(Fault::Limit { what: "bytes of the head", max: max as u64 }.into());
        }
        self.head.extend_from_slice(bytes);
        Ok(())
    }

    fn total<E>(&mut self, bytes: &[u8]) -> Result<usize, Stop<E>> {
        let mut scan = Scan::new(bytes);
        let word = scan.be64()?;
        let left = word & !wire::FLAGS_MASK;
        if word & wire::FLAGS_MASK != wire::SIZES || left == 0 {
            return Err(Fault::word(word).into());
        }
        self.state = State::Sizes { left };
        Ok(scan.used())
    }

    fn size<S: Sink>(
        &mut self,
        bytes: &[u8],
        left: u64,
        sink: &mut S,
    ) -> Result<usize, Stop<S::Error>> {
        let mut scan = Scan::new(bytes);
        let block = Block { id: scan.name()?.into(), bytes: scan.be64()? };
        block::check(&self.blocks, &block, left, self.limits.block_count_max)?;
        let left = left - block.bytes;
        self.blocks.push(block);
        self.state = State::Sizes { left };
        if left == 0 {
            sink.blocks(&self.blocks).map_err(Stop::Sink)?;
            self.state = State::Entries;
        }
        Ok(scan.used())
    }

    /// A page, or the end of a section of memory.
    #[inline]
    fn entry<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, Stop<S::Error>> {
        let mut scan = Scan::new(bytes);
        let word = scan.be64()?;
        let (offset, flags) = (word & !wire::FLAGS_MASK, word & wire::FLAGS_MASK);
        if word == wire::END_OF_SECTION {
            self.state = State::Footer;
            return Ok(scan.used());
        }
        let what = flags & !wire::CONTINUE;
        if what != wire::PAGE && what != wire::ZERO {
            return Err(Fault::word(word).into());
        }
        let index = if flags & wire::CONTINUE != 0 {
            self.last.ok_or(Fault::NoBlock)?
        } else {
            self.find(scan.name()?)?
        };
        let block = &self.blocks[index];
        // Lengths are multiples of a page, and so are offsets.
        if offset >= block.bytes {
            let (id, bytes) = (block.id.clone(), block.bytes);
            return Err(Fault::Outside { id, offset, bytes }.into());
        }
        if what == wire::PAGE {
            let data = scan.take(PAGE_BYTES)?;
            sink.page(index, offset, data).map_err(Stop::Sink)?;
        } else {
            match scan.byte()? {
                0 => sink.zero(index, offset).map_err(Stop::Sink)?,
                fill => return Err(Fault::Fill { fill }.into()),
            }
        }
        self.last = Some(index);
        self.sent_pages += 1;
        Ok(scan.used())
    }

    fn find(&self, id: &str) -> Result<usize, Fault> {
        let found = self.blocks.iter().position(|block| block.id == id);
        found.ok_or_else(|| Fault::UnknownBlock { id: id.into() })
    }

    fn footer<E>(&mut self, bytes: &[u8]) -> Result<usize, Stop<E>> {
        let mut scan = Scan::new(bytes);
        let ram = self.opening.section.unwrap_or_default();
        let is_there = scan.byte()? == wire::FOOTER;
        if is_there {
            let _section = scan.be32()?;
        }
        let found = &bytes[..scan.used()];
        let is_first = self.has_footers.is_none();
        let wanted = *self.has_footers.get_or_insert(is_there);
        if is_there != wanted || (is_there && found != footer(ram)) {
            return Err(Fault::Footer { found: found.into(), ram }.into());
        }
        self.state = State::Section;
        if !is_there {
            return Ok(0);
        }
        if is_first {
            self.keep_head(found)?;
        }
        Ok(found.len())
    }

    fn section<E>(&mut self, bytes: &[u8]) -> Result<usize, Stop<E>> {
        let mut scan = Scan::new(bytes);
        let ram = self.opening.section.unwrap_or_default();
        match scan.byte()? {
            kind @ (wire::PART | wire::END) if !self.is_ended => {
                let found = scan.be32()?;
                if found != ram {
                    return Err(Fault::SectionId { found, ram }.into());
                }
                (self.is_sent, self.is_ended) = (true, kind == wire::END);
                self.state = State::Entries;
            }
            wire::COMMAND => match (scan.be16()?, scan.be16()?) {
                (wire::SWITCHOVER_START, 0) => {}
                (number, _) => return Err(Fault::command(number).into()),
            },
            wire::FULL | wire::EOF if self.is_sent => {
                self.check_pages()?;
                self.state = State::Tail;
                return Ok(0);
            }
            wire::FULL => {
                let _section = scan.be32()?;
                return Err(Fault::Early { name: scan.name()?.into() }.into());
            }
            wire::START => return Err(self.started(&mut scan)?.into()),
            found => return Err(Fault::Section { found, place: "behind memory" }.into()),
        }
        Ok(scan.used())
    }

    /// What is wrong with a START behind that of memory.
    fn started<E>(&self, scan: &mut Scan<'_>) -> Result<Fault, Stop<E>> {
        start(scan)?;
        Ok(Fault::ListAgain)
    }

    fn check_pages(&self) -> Result<(), Fault> {
        let bytes: u64 = self.blocks.iter().map(|block| block.bytes).sum();
        let (sent, pages) = (self.sent_pages, bytes / PAGE_BYTES as u64);
        if sent < pages { Err(Fault::PagesMissing { sent, pages }) } else { Ok(()) }
    }

    fn tail<E>(&mut self, bytes: &[u8]) -> Result<usize, Stop<E>> {
        if bytes.is_empty() {
            return Err(Stop::Needs(1));
        }
        let max = self.limits.tail_bytes_max;
        let bytes = &bytes[..bytes.len().min(max - self.tail.len())];
        if bytes.is_empty() {
            let what = "bytes of device state behind memory";
            return Err(Fault::Limit { what, max: max as u64 }.into());
        }
        let needed = self.tail.len() + bytes.len();
        if needed > self.tail.capacity() {
            // Twice as much each time, but never past the limit.
            let room = (2 * needed).min(max);
            self.tail.reserve_exact(room - self.tail.len());
        }
        self.tail.extend_from_slice(bytes);
        Ok(bytes.len())
    }
}
