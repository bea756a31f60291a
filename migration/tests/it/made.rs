//! Streams made by hand, and a sink that notes what it is told.

use std::collections::BTreeMap;
use std::convert::Infallible;

use afterimage_migration::{Block, Error, Fault, Limits, PAGE_BYTES, Parts, Reader, Sink};

/// Everything that a reader said.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Calls {
    pub blocks: Vec<Block>,
    pub pages: Vec<(usize, u64, Option<Vec<u8>>)>,
}

impl Sink for Calls {
    type Error = Infallible;

    fn blocks(&mut self, blocks: &[Block]) -> Result<(), Infallible> {
        assert!(self.blocks.is_empty() && self.pages.is_empty(), "the list came late or again");
        self.blocks = blocks.to_vec();
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, data: &[u8]) -> Result<(), Infallible> {
        assert_eq!(data.len(), PAGE_BYTES);
        self.pages.push((block, offset, Some(data.to_vec())));
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64) -> Result<(), Infallible> {
        self.pages.push((block, offset, None));
        Ok(())
    }
}

/// Memory as the last pages make it.
pub struct Memory(pub BTreeMap<String, Vec<u8>>);

impl Calls {
    pub fn memory(&self) -> Memory {
        let empty = |block: &Block| (block.id.clone(), vec![0xee; block.bytes as usize]);
        let mut all: BTreeMap<_, _> = self.blocks.iter().map(empty).collect();
        for (block, offset, data) in &self.pages {
            let block = all.get_mut(&self.blocks[*block].id).unwrap();
            let place = &mut block[*offset as usize..][..PAGE_BYTES];
            place.copy_from_slice(data.as_deref().unwrap_or(&[0; PAGE_BYTES]));
        }
        Memory(all)
    }
}

/// Reads a stream in pieces of at most `piece` bytes.
pub fn read(stream: &[u8], piece: usize) -> Result<(Calls, Parts), Error> {
    let (mut reader, mut calls) = (Reader::new(Limits::default()), Calls::default());
    for piece in stream.chunks(piece) {
        reader.feed(piece, &mut calls)?;
    }
    Ok((calls, reader.finish()?))
}

/// What a stream is refused for, and where.
pub fn fault(stream: &[u8]) -> (u64, Fault) {
    match read(stream, usize::MAX).map(drop).unwrap_err() {
        Error::Stream { at, fault } => (at, fault),
        Error::Sink { error, .. } => match error {},
    }
}

/// A stream in the making.
#[derive(Clone)]
pub struct Made {
    pub bytes: Vec<u8>,
    pub footers: bool,
}

pub const RAM: u32 = 5;

impl Made {
    pub fn begin() -> Made {
        Made { bytes: b"QEVM\0\0\0\x03".to_vec(), footers: true }
    }

    /// A head with a configuration, and RAM blocks `a` (two pages) and `b` (one).
    pub fn listed() -> Made {
        Made::begin().configuration("pc-q35-10.0").start("ram", 0, 4).list(&[("a", 2), ("b", 1)])
    }

    /// The same with all of its pages, up to the device state.
    pub fn filled() -> Made {
        let made = Made::listed().section(2).page("a", 0, 0x11).page("", 1, 0x22);
        made.eos().section(3).zero("b", 0).eos()
    }

    /// A whole one.
    pub fn whole() -> Made {
        Made::filled().devices()
    }

    pub fn raw(mut self, bytes: &[u8]) -> Made {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn name(self, name: &str) -> Made {
        self.raw(&[name.len() as u8]).raw(name.as_bytes())
    }

    pub fn word(self, word: u64) -> Made {
        self.raw(&word.to_be_bytes())
    }

    pub fn number(self, number: u32) -> Made {
        self.raw(&number.to_be_bytes())
    }

    pub fn configuration(self, machine: &str) -> Made {
        self.raw(&[7]).number(machine.len() as u32).raw(machine.as_bytes())
    }

    pub fn subsection(self, name: &str) -> Made {
        self.raw(&[5]).name(name).number(1)
    }

    pub fn start(self, name: &str, instance: u32, version: u32) -> Made {
        self.raw(&[1]).number(RAM).name(name).number(instance).number(version)
    }

    pub fn list(self, blocks: &[(&str, u64)]) -> Made {
        let total: u64 = blocks.iter().map(|b| b.1 * 4096).sum();
        let begun = self.word(total | 4);
        blocks.iter().fold(begun, |made, (id, pages)| made.name(id).word(pages * 4096)).eos()
    }

    pub fn section(self, kind: u8) -> Made {
        self.raw(&[kind]).number(RAM)
    }

    fn place(self, block: &str, page: u64, flag: u64) -> Made {
        let more = if block.is_empty() { 0x20 } else { 0 };
        let made = self.word((page * 4096) | flag | more);
        if block.is_empty() { made } else { made.name(block) }
    }

    /// A page of the block before if `block` is empty.
    pub fn page(self, block: &str, page: u64, fill: u8) -> Made {
        self.place(block, page, 8).raw(&[fill; 4096])
    }

    pub fn zero(self, block: &str, page: u64) -> Made {
        self.place(block, page, 2).raw(&[0])
    }

    pub fn eos(self) -> Made {
        let made = self.word(0x10);
        if made.footers { made.raw(&[0x7e]).number(RAM) } else { made }
    }

    pub fn device(self, name: &str) -> Made {
        let made = self.raw(&[4]).number(9).name(name).number(0).number(1).raw(b"state");
        made.raw(&[0x7e]).number(9)
    }

    pub fn devices(self) -> Made {
        self.device("timer").device("cpu").raw(&[0, 6]).number(11).raw(b"{\"size\":42}")
    }
}
