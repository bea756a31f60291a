//! Memory for a guest that runs already: device state first, then each page when the guest asks for it
//! or when its turn comes.
//!
//! ```text
//!  journal ─ batches, in order of addresses ─► giver ─┐
//!  journal ─ 64 KiB around what is asked for ─► asked ─┴─► LiveWriter ─► socket ─► QEMU
//!                                                 ▲──────────── requests ◄──┘
//! ```
//!
//! What always holds: no page is given whose record failed its checksum (I-12): the guest then stands
//! still at it; what is asked for goes before what has its turn; the stream ends only when QEMU has
//! loaded its devices, for those may ask too; memory is two batches, the pages of one request, and a
//! bit a page (I-11).

use super::cache::PayloadCache;
use super::volume::{Piece, VolumeAt};
use crate::apply::{Fault, apply};
use crate::batch::Order;
use crate::error::{Error, Result};
use crate::open::Recovery;
use crate::target::Target;
use crate::warm::{DeviceState, GuestPlan, WarmPoint};
use afterimage_migration::{Answer, Answers, LiveWriter, PAGE_BYTES};
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of memory that are given around one that is asked for: what a compressed record covers.
const ASKED_BYTES: u64 = 64 << 10;
/// Most bytes that are given in turn before somebody who asked is let in.
const TURN_BYTES: usize = 256 << 10;
/// Payloads kept for requests that hit the same record, in bytes.
const CACHE_BYTES_MAX: usize = 16 << 20;
/// Bytes that are taken off the return path at a time.
const ANSWERS_BYTES: usize = 4096;
/// How long QEMU may take to say that it has everything.
const SHUT_MAX: Duration = Duration::from_secs(60);

/// The stream, and who waits for it.
struct Stream {
    writer: Option<LiveWriter<UnixStream>>,
    /// QEMU has loaded its devices, or is gone: the stream may end.
    may_end: bool,
}

/// One guest's memory on its way.
struct Giver {
    stream: Mutex<Stream>,
    /// Requests that are not answered yet: one more before its lock is there, which somebody who has
    /// taken turn after turn might not leave to it; one less under it.
    asked: AtomicUsize,
    /// A request was answered, or the stream may end.
    changed: Condvar,
    /// Its RAM volumes, in the order of the stream's blocks.
    volumes: Vec<VolumeAt>,
    /// Each block of RAM as the stream names it, and its bytes; its volume may have more.
    blocks: Vec<(String, u64)>,
    cache: PayloadCache,
}

/// Sends a guest's memory to who is connected: a QEMU with the capability `postcopy-ram`.
pub(super) fn send(
    recovery: &Arc<Recovery>,
    point: &WarmPoint,
    guest: &GuestPlan,
    socket: &UnixStream,
) -> Result<()> {
    let history = &recovery.history;
    let damaged = |why: String| recovery.memory_damaged(point, why);
    let failed = |e: io::Error| Error::target("write", Path::new("the guest's QEMU"), e);
    let state = DeviceState::read(history, &guest.memory, point.committed)
        .map_err(|e| damaged(e.to_string()))?;
    let volumes =
        guest.ram.volumes.iter().map(|planned| {
            VolumeAt::new(Arc::clone(recovery), &planned.volume, guest.ram.point.seq)
        });
    let volumes = volumes.collect::<afterimage_journal::Result<Vec<_>>>();
    let volumes = volumes.map_err(|e| damaged(e.to_string()))?;
    let out = socket.try_clone().map_err(failed)?;
    let writer = LiveWriter::new(out, &state.head, &guest.blocks, &state.tail);
    let writer = writer.map_err(|e| match e.kind() {
        io::ErrorKind::InvalidInput => damaged(e.to_string()),
        _ => failed(e),
    })?;
    let giver = Arc::new(Giver {
        stream: Mutex::new(Stream { writer: Some(writer), may_end: false }),
        asked: AtomicUsize::new(0),
        changed: Condvar::new(),
        volumes,
        blocks: guest.blocks.iter().map(|b| (b.id.clone(), b.bytes)).collect(),
        cache: PayloadCache::new(CACHE_BYTES_MAX),
    });
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let answered = giver.answer_all(socket);
            // Who waits for its word waits in vain.
            giver.let_end();
            answered
        });
        let given = give_all(recovery, guest, &giver).and_then(|()| {
            giver.finish().map_err(|e| Fault::Target(0, e))?;
            // From here on nothing is asked for: what wasn't given is zero.
            socket.set_read_timeout(Some(SHUT_MAX)).map_err(|e| Fault::Target(0, e))
        });
        if given.is_err() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        let asked = asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        given.map_err(|fault| match fault {
            Fault::Record(rotten) => damaged(rotten.describe(history, &guest.ram)),
            Fault::Target(_, e) => failed(e),
            Fault::Journal(e) => damaged(e.to_string()),
        })?;
        asked.map_err(failed)
    })
}

/// Gives every page that holds data, in the order of addresses.
fn give_all(
    recovery: &Recovery,
    guest: &GuestPlan,
    giver: &Arc<Giver>,
) -> std::result::Result<(), Fault> {
    let target =
        |block| -> Box<dyn Target> { Box::new(LiveTarget { giver: Arc::clone(giver), block }) };
    let mut targets: Vec<_> = (0..guest.blocks.len()).map(target).collect();
    apply(&recovery.history, (&guest.ram, Order::Address), &mut targets, &mut |_| {})
}

/// A block of RAM that is given in turn.
struct LiveTarget {
    giver: Arc<Giver>,
    /// The block's index.
    block: usize,
}

impl Target for LiveTarget {
    fn write(&mut self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        let page = PAGE_BYTES as u64;
        // What lies behind its end is left out.
        let room = self.giver.bytes(self.block).saturating_sub(addr);
        let bytes = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        let head = (addr.next_multiple_of(page) - addr).min(bytes.len() as u64) as usize;
        let whole = (bytes.len() - head) / PAGE_BYTES * PAGE_BYTES;
        for (at, part) in bytes[head..head + whole].chunks(TURN_BYTES).enumerate() {
            let at = addr + (head + at * TURN_BYTES) as u64;
            let mut stream = self.giver.turn();
            if let Some(writer) = &mut stream.writer {
                writer.pages(self.block, at, part)?;
            }
        }
        // Parts of pages: other records have the rest.
        if head > 0 {
            self.giver.give(self.block, addr - addr % page, page)?;
        }
        if head + whole < bytes.len() {
            self.giver.give(self.block, addr + (head + whole) as u64, page)?;
        }
        Ok(())
    }

    fn begin_sync(&mut self) {}

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn written_bytes(&self) -> u64 {
        0
    }
}

impl Giver {
    fn locked(&self) -> MutexGuard<'_, Stream> {
        // A stream that failed midway is thrown away.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a block of RAM.
    fn bytes(&self, block: usize) -> u64 {
        self.blocks[block].1
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire) > 0
    }

    /// The stream, once nobody waits for pages that were asked for.
    fn turn(&self) -> MutexGuard<'_, Stream> {
        let mut stream = self.locked();
        while self.is_asked() {
            stream = self.changed.wait(stream).unwrap_or_else(PoisonError::into_inner);
        }
        stream
    }

    /// Answers requests until QEMU has everything.
    fn answer_all(&self, socket: &UnixStream) -> io::Result<()> {
        let mut socket = socket;
        let (mut answers, mut bytes) = (Answers::default(), [0; ANSWERS_BYTES]);
        let mut last = 0;
        loop {
            while let Some(answer) = answers.take()? {
                match answer {
                    Answer::Shut(0) => return Ok(()),
                    Answer::Shut(code) => {
                        return Err(io::Error::other(format!("QEMU gave up ({code})")));
                    }
                    Answer::Pages { block, offset, bytes } => {
                        last = self.block(block.as_deref(), last)?;
                        self.answer(last, offset, bytes.into())?;
                    }
                    Answer::Loaded => self.let_end(),
                    Answer::Other(_) => {}
                }
            }
            match socket.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => answers.push(&bytes[..read]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The index of the block that is asked for.
    fn block(&self, id: Option<&str>, last: usize) -> io::Result<usize> {
        let Some(id) = id else { return Ok(last) };
        let at = self.blocks.iter().position(|(known, _)| known == id);
        at.ok_or_else(|| io::Error::other(format!("QEMU asks for a block {id} that isn't there")))
    }

    fn answer(&self, block: usize, offset: u64, bytes: u64) -> io::Result<()> {
        if offset >= self.bytes(block) {
            let what = format!("QEMU asks for byte {offset:#x} of a block that ends before it");
            return Err(io::Error::other(what));
        }
        self.asked.fetch_add(1, Ordering::AcqRel);
        let from = offset - offset % ASKED_BYTES;
        let end = offset.saturating_add(bytes).next_multiple_of(ASKED_BYTES);
        let answered = (from..end.min(self.bytes(block)))
            .step_by(ASKED_BYTES as usize)
            .try_for_each(|at| self.give(block, at, ASKED_BYTES));
        let stream = self.locked();
        self.asked.fetch_sub(1, Ordering::AcqRel);
        drop(stream);
        self.changed.notify_all();
        answered
    }

    /// Reads memory from the journal and gives it.
    fn give(&self, block: usize, from: u64, bytes: u64) -> io::Result<()> {
        let end = from.saturating_add(bytes).min(self.bytes(block));
        let pages = (from..end).step_by(PAGE_BYTES);
        let needed = match &self.locked().writer {
            Some(writer) => pages.clone().any(|at| !writer.is_given(block, at)),
            None => false,
        };
        if !needed {
            return Ok(());
        }
        let mut data = vec![0; (end.saturating_sub(from)) as usize];
        self.read(block, from, &mut data)?;
        match &mut self.locked().writer {
            Some(writer) => writer.pages(block, from, &data),
            None => Ok(()),
        }
    }

    fn read(&self, block: usize, from: u64, data: &mut [u8]) -> io::Result<()> {
        let (volume, end) = (&self.volumes[block], from + data.len() as u64);
        let (mut pieces, mut at) = (Vec::new(), from);
        while at < end {
            volume.pieces(at, end, &mut pieces).map_err(io::Error::other)?;
            for &Piece { start, end, data: lies } in &pieces {
                let part = &mut data[(start - from) as usize..(end - from) as usize];
                if let Some(lies) = lies {
                    volume.read_data(lies, part, &self.cache).map_err(io::Error::other)?;
                }
            }
            at = pieces.last().map_or(end, |piece| piece.end);
        }
        Ok(())
    }

    fn let_end(&self) {
        self.locked().may_end = true;
        self.changed.notify_all();
    }

    /// Ends the stream, once QEMU can do without.
    fn finish(&self) -> io::Result<()> {
        let mut stream = self.locked();
        while self.is_asked() || !stream.may_end {
            stream = self.changed.wait(stream).unwrap_or_else(PoisonError::into_inner);
        }
        let writer = stream.writer.take();
        drop(stream);
        writer.map_or(Ok(()), |writer| writer.finish().map(drop))
    }
}
