//! A migration stream read from memory, beside a `memcpy` of the same bytes: understood, with each word of
//! memory added up, for a checkpoint has to keep up with QEMU; then with the keyed BLAKE3 of each page, by
//! which a checkpoint tells what changed; and written by the writer.

use crate::report::{Report, median};
use crate::{Scale, journal};
use afterimage_migration::{Block, Limits, PAGE_BYTES, Reader, Sink, Writer};
use anyhow::{Context, Result, ensure};
use std::convert::Infallible;
use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

/// Memory of the guest.
const RAM_BYTES: u64 = 1 << 30;
/// What one read of a socket gives.
const PIECE_BYTES: usize = 1 << 20;
/// The head of a stream of q35, and a tail as small as one can be.
const HEAD: &[u8] =
    b"QEVM\0\0\0\x03\x07\0\0\0\x0bpc-q35-10.0\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04\x7e\0\0\0\x01";
const TAIL: &[u8] = b"\0\x06\0\0\0\x02{}";

/// Adds up the words of each page: a page that nobody looks at would never leave memory.
#[derive(Default)]
struct Touch {
    pages: u64,
    sum: u64,
}

/// Hashes each page.
struct Hash {
    key: [u8; 32],
    pages: u64,
    sum: u64,
}

impl Sink for Touch {
    type Error = Infallible;

    fn blocks(&mut self, _: &[Block]) -> Result<(), Infallible> {
        Ok(())
    }

    fn page(&mut self, _: usize, _: u64, data: &[u8]) -> Result<(), Infallible> {
        self.pages += 1;
        let words = data.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word));
        self.sum = words.fold(self.sum, u64::wrapping_add);
        Ok(())
    }

    fn zero(&mut self, _: usize, _: u64) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Sink for Hash {
    type Error = Infallible;

    fn blocks(&mut self, _: &[Block]) -> Result<(), Infallible> {
        Ok(())
    }

    fn page(&mut self, _: usize, _: u64, data: &[u8]) -> Result<(), Infallible> {
        self.pages += 1;
        self.sum ^= u64::from(blake3::keyed_hash(&self.key, data).as_bytes()[0]);
        Ok(())
    }

    fn zero(&mut self, _: usize, _: u64) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Measures.
pub fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    let stream = stored().context("make a stream")?;
    // Written before, so that no copy pays for its pages.
    let (mut whole, mut piece) = (vec![1; stream.len()], vec![1; PIECE_BYTES]);
    let [mut copied, mut cached, mut read, mut hashed, mut written] = [const { Vec::new() }; 5];
    for round in 0..scale.rounds {
        // Each takes its turn at being the first.
        for turn in 0..5 {
            match (round + turn) % 5 {
                0 => copied.push(copied_mib_s(&stream, &mut whole)),
                1 => cached.push(copied_mib_s(&stream, &mut piece)),
                2 => read.push(read_mib_s(&stream, &mut Touch::default(), |sink| {
                    black_box(sink.sum);
                    sink.pages
                })?),
                3 => {
                    let mut hash = Hash { key: [7; 32], pages: 0, sum: 0 };
                    hashed.push(read_mib_s(&stream, &mut hash, |sink| {
                        black_box(sink.sum);
                        sink.pages
                    })?);
                }
                _ => written.push(written_mib_s(&stream)?),
            }
        }
    }
    let (copied, cached) = (median(copied), median(cached));
    let (read, hashed) = (median(read), median(hashed));
    let (memory, cache) = ("memcpy of its bytes", "memcpy of its bytes, into the cache only");
    let (added, keyed) = ("read, each word added up", "read, keyed BLAKE3 of each page");
    for (what, aim, ours, peer, name) in [
        (added, " (aim: ratio >= 0.5)", read, copied, memory),
        (keyed, " (aim: ratio >= 0.15)", hashed, copied, memory),
        (added, "", read, cached, cache),
        (keyed, "", hashed, cached, cache),
        ("written, into the cache", "", median(written), cached, cache),
    ] {
        report.add(format!("migration stream of 1 GiB {what}{aim}"), (ours, peer), name, "MiB/s");
    }
    Ok(())
}

/// A stream of a guest whose pages all hold something.
fn stored() -> Result<Vec<u8>> {
    let blocks = [Block { id: "pc.ram".into(), bytes: RAM_BYTES }];
    let mut out = Vec::new();
    out.try_reserve_exact((RAM_BYTES + RAM_BYTES / 256) as usize).context("memory of 1 GiB")?;
    let mut writer = Writer::new(out, HEAD, &blocks)?;
    let mut rng = journal::Rng(0x9e37_79b9_7f4a_7c15);
    let mut page = [0; PAGE_BYTES];
    for offset in (0..RAM_BYTES).step_by(PAGE_BYTES) {
        for word in page.as_chunks_mut::<8>().0 {
            *word = rng.next().to_ne_bytes();
        }
        writer.page(0, offset, &page)?;
    }
    Ok(writer.finish(TAIL)?)
}

fn mib_s(bytes: usize, begun: Instant) -> f64 {
    bytes as f64 / (1 << 20) as f64 / begun.elapsed().as_secs_f64()
}

/// Copies again and again into a buffer that is as large as the stream, or that the cache holds.
fn copied_mib_s(stream: &[u8], into: &mut [u8]) -> f64 {
    let begun = Instant::now();
    for piece in stream.chunks(into.len()) {
        into[..piece.len()].copy_from_slice(piece);
        black_box(&mut *into);
    }
    mib_s(stream.len(), begun)
}

fn read_mib_s<S: Sink<Error = Infallible>>(
    stream: &[u8],
    sink: &mut S,
    pages: impl Fn(&S) -> u64,
) -> Result<f64> {
    let begun = Instant::now();
    let mut reader = Reader::new(Limits::default());
    for piece in stream.chunks(PIECE_BYTES) {
        reader.feed(piece, sink)?;
    }
    reader.finish()?;
    let figure = mib_s(stream.len(), begun);
    ensure!(pages(sink) == RAM_BYTES / PAGE_BYTES as u64, "not every page was read");
    Ok(figure)
}

/// Takes what it is given and keeps the last piece of it.
struct Into(Vec<u8>);

impl Write for Into {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.0.len());
        self.0[..taken].copy_from_slice(&bytes[..taken]);
        black_box(&mut self.0);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Pages come from memory in pieces, as a restore has them.
fn written_mib_s(memory: &[u8]) -> Result<f64> {
    let blocks = [Block { id: "pc.ram".into(), bytes: RAM_BYTES }];
    let begun = Instant::now();
    let mut writer = Writer::new(Into(vec![0; PIECE_BYTES]), HEAD, &blocks)?;
    for (index, piece) in memory[..RAM_BYTES as usize].chunks(PIECE_BYTES).enumerate() {
        writer.pages(0, (index * PIECE_BYTES) as u64, piece)?;
    }
    writer.finish(TAIL)?;
    Ok(mib_s(RAM_BYTES as usize, begun))
}
