//! QEMU's migration stream: reader and writer; what QEMU answers to a live one.

use super::Target;
use afterimage_migration::{Answer, Answers, Block, Error, Limits, Parts, Reader, Sink, Writer};
use std::convert::Infallible;

pub(super) fn targets() -> [Target; 2] {
    [
        Target { name: "migration", examples: streams, words: WORDS, run: stream },
        Target { name: "migration_answers", examples: answers, words: ANSWERS, run: answer },
    ]
}

const ANSWERS: &[&[u8]] = &[
    b"\0\x01\0\x04\0\0\0\0",
    b"\0\x02\0\x04\0\0\0\x01",
    b"\0\x03\0\x13\0\0\0\0\x05\x5d\xa0\0\0\0\x10\0\x06pc.ram",
    b"\0\x04\0\x0c\0\0\0\0\x05\x5d\x90\0\0\0\x10\0",
];

fn answers() -> Vec<Vec<u8>> {
    vec![ANSWERS.concat(), ANSWERS[2].to_vec()]
}

/// However it is cut, the same is taken from it; a request names no more than it holds.
fn answer(input: &[u8]) {
    let taken = |piece: usize| {
        let (mut answers, mut all) = (Answers::default(), Vec::new());
        for piece in input.chunks(piece.max(1)) {
            answers.push(piece);
            loop {
                match answers.take() {
                    Ok(Some(answer)) => all.push(answer),
                    Ok(None) => break,
                    Err(_) => return (all, true),
                }
            }
        }
        (all, false)
    };
    let whole = taken(input.len());
    assert_eq!(whole, taken(1));
    for answer in &whole.0 {
        if let Answer::Pages { block: Some(id), .. } = answer {
            assert!(id.len() <= 255 && id.len() < input.len());
        }
    }
}

const WORDS: &[&[u8]] = &[
    b"QEVM\0\0\0\x03",
    b"\x07\0\0\0\x02pc",
    b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0ax-ignore",
    b"\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x0c",
    b"\x05\x12configuration/uuid\0\0\0\x01",
    b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04",
    b"\0\0\0\0\0\0\x10\x04\x01a\0\0\0\0\0\0\x10\0",
    b"\0\0\0\0\0\0\0\x10",
    b"\x7e\0\0\0\x01",
    b"\x02\0\0\0\x01",
    b"\x03\0\0\0\x01",
    b"\0\0\0\0\0\0\0\x02\x01a\0",
    b"\0\0\0\0\0\0\0\x22\0",
    b"\0\0\0\0\0\0\0\x08\x01a",
    b"\0\0\0\0\0\0\x02\x40",
    b"\x08\0\x0b\0\0",
    b"\x04\0\0\0\x02\x05timer\0\0\0\0\0\0\0\x02",
    b"\0\x06\0\0\0\x02{}",
];

/// A whole stream of a block of `pages` pages, of which the last `full` ones hold something.
fn made(pages: u64, full: u64, footers: bool, configuration: &[u8]) -> Vec<u8> {
    let end = |stream: &mut Vec<u8>| {
        stream.extend(0x10_u64.to_be_bytes());
        stream.extend(if footers { b"\x7e\0\0\0\x01".as_slice() } else { b"" });
    };
    let mut stream = b"QEVM\0\0\0\x03".to_vec();
    stream.extend(configuration);
    stream.extend(b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04");
    stream.extend(((pages << 12) | 4).to_be_bytes());
    stream.extend(b"\x01a");
    stream.extend((pages << 12).to_be_bytes());
    end(&mut stream);
    stream.extend(b"\x02\0\0\0\x01");
    for page in 0..pages {
        let is_full = page >= pages - full;
        let flags = if is_full { 8 } else { 2 } | if page == 0 { 0 } else { 0x20 };
        stream.extend(((page << 12) | flags).to_be_bytes());
        stream.extend(if page == 0 { b"\x01a".as_slice() } else { b"" });
        stream.extend(vec![0x5a * u8::from(is_full); if is_full { 4096 } else { 1 }]);
    }
    end(&mut stream);
    stream.extend(b"\x08\0\x0b\0\0\x03\0\0\0\x01");
    end(&mut stream);
    stream.extend(b"\x04\0\0\0\x02\x05timer\0\0\0\0\0\0\0\x02state\x7e\0\0\0\x02");
    stream.extend(b"\0\x06\0\0\0\x02{}");
    stream
}

fn streams() -> Vec<Vec<u8>> {
    let configured = b"\x07\0\0\0\x02pc\x05\x12configuration/uuid\0\0\0\x01abcdefghijklmnop";
    vec![
        made(1, 0, true, b""),
        made(3, 0, false, b"\x07\0\0\0\x02pc"),
        made(4, 0, true, configured),
        made(2, 1, true, b"\x07\0\0\0\x02pc"),
    ]
}

/// What a reader said, each call as it came.
#[derive(Debug, Default, PartialEq)]
struct Calls {
    blocks: Vec<Block>,
    pages: Vec<(usize, u64, Option<Vec<u8>>)>,
}

impl Calls {
    fn check(&self, block: usize, offset: u64) {
        let end = offset.checked_add(4096).expect("a page past 2^64");
        assert!(
            end <= self.blocks[block].bytes && offset.is_multiple_of(4096),
            "a page outside of its block"
        );
    }
}

impl Sink for Calls {
    type Error = Infallible;

    fn blocks(&mut self, blocks: &[Block]) -> Result<(), Infallible> {
        assert!(self.blocks.is_empty(), "the list came twice");
        self.blocks = blocks.to_vec();
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, data: &[u8]) -> Result<(), Infallible> {
        self.check(block, offset);
        assert_eq!(data.len(), 4096);
        self.pages.push((block, offset, Some(data.to_vec())));
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64) -> Result<(), Infallible> {
        self.check(block, offset);
        self.pages.push((block, offset, None));
        Ok(())
    }
}

const LIMITS: Limits =
    Limits { head_bytes_max: 512, tail_bytes_max: 4096, block_count_max: 4, name_bytes_max: 64 };

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Calls, Result<Parts, Error>) {
    let (mut reader, mut calls) = (Reader::new(LIMITS), Calls::default());
    for piece in pieces {
        if let Err(error) = reader.feed(piece, &mut calls) {
            return (calls, Err(error));
        }
    }
    (calls, reader.finish())
}

/// Each split says the same; what is whole is written so that it reads back the same.
fn stream(input: &[u8]) {
    let whole = read(std::iter::once(input));
    for piece in [1, 2, 13, 1000, 4095, 4104] {
        assert!(read(input.chunks(piece)) == whole, "pieces of {piece} bytes say something else");
    }
    // Two pieces, at a place that the input chooses.
    let at = input.iter().fold(7_usize, |at, byte| at.wrapping_mul(31) ^ usize::from(*byte));
    let (first, second) = input.split_at(at.checked_rem(input.len()).unwrap_or(0));
    assert!(
        read([first, second].into_iter()) == whole,
        "cut at {} it says something else",
        first.len()
    );
    let (calls, parts) = match whole {
        (calls, Ok(parts)) => (calls, parts),
        (_, Err(error)) => return assert!(!error.to_string().is_empty()),
    };
    assert!(parts.tail.len() <= 4096 && parts.head.len() <= 512 && parts.blocks.len() <= 4);
    let mut writer = Writer::new(Vec::new(), &parts.head, &parts.blocks).expect("parts are taken");
    for (block, offset, data) in &calls.pages {
        let written = match data {
            Some(data) => writer.pages(*block, *offset, data),
            None => writer.zero(*block, *offset),
        };
        written.expect("a page is taken");
    }
    let written = writer.finish(&parts.tail).expect("the tail is taken");
    assert!(read(std::iter::once(&*written)) == (calls, Ok(parts)), "it reads back otherwise");
}
