//! Pages into a migration stream: what a plan of RAM volumes writes, in the order of addresses.
//!
//! What always holds: each page of each block is in the stream once, in the order of the blocks and
//! their addresses; what no write covers is a page of zeroes, as is a page that holds nothing else;
//! memory is one page and what the writer gathers.

use super::{DeviceState, GuestPlan, WarmPoint};
use crate::apply::{Fault, apply};
use crate::batch::Order;
use crate::error::{Error, Result};
use crate::open::Recovery;
use crate::restore::Progress;
use crate::target::Target;
use afterimage_migration::{Block, PAGE_BYTES, Writer};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const PAGE: u64 = PAGE_BYTES as u64;
static ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A stream being written.
struct MemoryStream<W: Write> {
    writer: Writer<W>,
    /// Bytes of each block.
    blocks: Vec<u64>,
    /// The page that comes next: index of its block, address.
    at: (usize, u64),
    /// What is there of it, when only a part has come.
    part: Option<Box<[u8; PAGE_BYTES]>>,
    /// Bytes of pages so far.
    written_bytes: u64,
}

impl<W: Write> MemoryStream<W> {
    /// Begins a stream.
    ///
    /// # Errors
    /// Head or blocks are no stream's; `out` fails.
    fn new(out: W, head: &[u8], blocks: &[Block]) -> io::Result<Self> {
        let writer = Writer::new(out, head, blocks)?;
        let blocks = blocks.iter().map(|b| b.bytes).collect();
        Ok(Self { writer, blocks, at: (0, 0), part: None, written_bytes: 0 })
    }

    /// Takes bytes of a block; what lies behind its end is left out.
    ///
    /// # Errors
    /// They lie before what was written; `out` fails.
    fn write(&mut self, block: usize, addr: u64, bytes: &[u8]) -> io::Result<()> {
        let room = self.blocks.get(block).map_or(0, |b| b.saturating_sub(addr));
        let mut rest = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        let mut addr = addr;
        while !rest.is_empty() {
            let within = (addr % PAGE) as usize;
            self.advance(block, addr - within as u64)?;
            let whole = if within == 0 { rest.len() / PAGE_BYTES } else { 0 };
            let taken = if whole > 0 {
                let taken = whole * PAGE_BYTES;
                for page in rest[..taken].chunks_exact(PAGE_BYTES) {
                    self.put(page)?;
                }
                taken
            } else {
                let taken = rest.len().min(PAGE_BYTES - within);
                let part = self.part.get_or_insert_with(|| Box::new(ZEROES));
                part[within..within + taken].copy_from_slice(&rest[..taken]);
                taken
            };
            rest = &rest[taken..];
            addr += taken as u64;
        }
        Ok(())
    }

    /// Puts the page that comes next.
    fn put(&mut self, page: &[u8]) -> io::Result<()> {
        let (block, addr) = self.at;
        if page == ZEROES {
            self.writer.zero(block, addr)?;
        } else {
            self.writer.page(block, addr, page)?;
            self.written_bytes += PAGE;
        }
        self.at.1 += PAGE;
        Ok(())
    }

    /// Puts everything before a page.
    fn advance(&mut self, block: usize, page: u64) -> io::Result<()> {
        if self.at > (block, page) {
            return Err(io::Error::other("pages came out of order"));
        }
        while self.at < (block, page) {
            let (at, addr) = self.at;
            if let Some(part) = self.part.take() {
                self.put(&part[..])?;
            } else if addr >= self.blocks[at] {
                self.at = (at + 1, 0);
            } else {
                self.writer.zero(at, addr)?;
                self.at.1 += PAGE;
            }
        }
        Ok(())
    }

    /// Ends it: the zeroes behind the last page, the device state.
    ///
    /// # Errors
    /// The tail is no stream's; `out` fails.
    fn finish(mut self, tail: &[u8]) -> io::Result<W> {
        self.advance(self.blocks.len(), 0)?;
        self.writer.finish(tail)
    }

    /// Bytes of pages that hold data.
    fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}

/// A RAM block's place in a stream that several share.
struct RamTarget<W: Write> {
    stream: Arc<Mutex<MemoryStream<W>>>,
    /// The block's index.
    block: usize,
    /// The stream's file; `None`: it goes elsewhere.
    file: Option<Arc<StreamFile>>,
}

impl<W: Write + Send> Target for RamTarget<W> {
    fn write(&mut self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        // A stream that failed midway is thrown away.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).write(self.block, addr, bytes)
    }

    fn begin_sync(&mut self) {
        if let Some(file) = &self.file {
            file.begin_sync();
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn written_bytes(&self) -> u64 {
        0
    }
}

/// The file that a stream goes to.
pub(crate) struct StreamFile {
    file: File,
    /// Up to here the disk was told to begin, in bytes.
    begun: AtomicU64,
}

impl StreamFile {
    pub(crate) fn new(file: File) -> Arc<Self> {
        Arc::new(Self { file, begun: AtomicU64::new(0) })
    }

    /// Has the disk begin with what is new. That stays in memory, where QEMU looks for it soon.
    fn begin_sync(&self) {
        let end = self.file.metadata().map_or(0, |m| m.len());
        let from = self.begun.swap(end, Ordering::Relaxed);
        if let Some(bytes) = NonZeroU64::new(end.saturating_sub(from)) {
            let _ = fadvise(&self.file, from, Some(bytes), Advice::DontNeed);
        }
    }
}

/// A guest's stream, to be written from its journal.
pub(crate) struct StreamJob<'a> {
    pub recovery: &'a Recovery,
    pub point: &'a WarmPoint,
    pub guest: &'a GuestPlan,
}

impl StreamJob<'_> {
    /// Writes it to `out`, which `path` names; returns `out`, and the bytes of pages in it.
    ///
    /// # Errors
    /// [`Error::MemoryDamaged`]; `out` fails.
    pub(crate) fn write<W: Write + Send + 'static>(
        &self,
        out: W,
        file: Option<Arc<StreamFile>>,
        path: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(W, u64)> {
        let history = &self.recovery.history;
        let damaged = |why: String| self.recovery.memory_damaged(self.point, why);
        let state = DeviceState::read(history, &self.guest.memory, self.point.committed)
            .map_err(|e| damaged(e.to_string()))?;
        let failed = |e: io::Error| match e.kind() {
            // Head, blocks or tail are not what a stream has.
            io::ErrorKind::InvalidInput => damaged(e.to_string()),
            _ => Error::target("write", path, e),
        };
        let stream = MemoryStream::new(out, &state.head, &self.guest.blocks).map_err(failed)?;
        let stream = Arc::new(Mutex::new(stream));
        let target = |block| -> Box<dyn Target> {
            let stream = Arc::clone(&stream);
            Box::new(RamTarget { stream, block, file: file.clone() })
        };
        let mut targets: Vec<_> = (0..self.guest.blocks.len()).map(target).collect();
        apply(history, (&self.guest.ram, Order::Address), &mut targets, progress).map_err(
            |fault| match fault {
                Fault::Record(rotten) => damaged(rotten.describe(history, &self.guest.ram)),
                Fault::Target(_, e) => failed(e),
                Fault::Journal(e) => damaged(e.to_string()),
            },
        )?;
        drop(targets);
        let stream = Arc::into_inner(stream)
            .and_then(|stream| stream.into_inner().ok())
            .ok_or_else(|| failed(io::Error::other("its stream is still in use")))?;
        let bytes = stream.written_bytes();
        Ok((stream.finish(&state.tail).map_err(failed)?, bytes))
    }
}
