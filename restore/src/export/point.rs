//! A volume at a point over NBD, read-only: the bottom of every export.
//!
//! What always holds: a read gives the bytes of the point or an error, whatever is captured
//! meanwhile; a damaged record costs the ranges that need it, and is named in the log once.

use super::cache::PayloadCache;
use super::volume::{Piece, VolumeAt};
use afterimage_nbd::proto::{STATE_HOLE, STATE_ZERO};
use afterimage_nbd::{Errno, Export, ExportInfo, Payload, StatusSink, WriteFlags, ZeroFlags};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Damaged places that the log names; further ones are refused to clients all the same.
const NAMED_DAMAGE_MAX: usize = 1000;

thread_local! {
    static PIECES: RefCell<Vec<Piece>> = const { RefCell::new(Vec::new()) };
}

/// A volume at a point.
pub(super) struct PointExport {
    volume: VolumeAt,
    cache: Arc<PayloadCache>,
    /// GUEST/NODE, and the point: for the log and for clients.
    description: String,
    named: Mutex<BTreeSet<u64>>,
}

impl PointExport {
    pub(super) fn new(volume: VolumeAt, cache: Arc<PayloadCache>, description: String) -> Self {
        Self { volume, cache, description, named: Mutex::default() }
    }

    /// Calls `take` with each piece of the range, ascending, until it has enough.
    fn each_piece(
        &self,
        at: u64,
        end: u64,
        mut take: impl FnMut(&Piece) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        // Taken out while it is used: `take` may come here again.
        let mut pieces = PIECES.take();
        let mut at = at;
        let mut walk = || {
            while at < end {
                self.volume
                    .pieces(at, end, &mut pieces)
                    .map_err(|error| self.failed(at, &error))?;
                let Some(last) = pieces.last() else { return Err(Errno::Io) };
                at = last.end;
                for piece in &pieces {
                    if !take(piece)? {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        let done = walk();
        PIECES.set(pieces);
        done
    }

    fn failed(&self, at: u64, error: &afterimage_journal::Error) -> Errno {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < NAMED_DAMAGE_MAX && named.insert(at) {
            tracing::error!("{} can't be read at byte {at}: {error}", self.description);
        }
        Errno::Io
    }
}

impl Export for PointExport {
    fn bytes(&self) -> u64 {
        self.volume.bytes()
    }

    fn info(&self) -> ExportInfo {
        ExportInfo {
            description: self.description.clone(),
            read_only: true,
            // Nothing is ever written: any connection reads the same, and a flush is done.
            multi_conn: true,
            ..ExportInfo::default()
        }
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let end = at + buf.len() as u64;
        self.each_piece(at, end, |piece| {
            let part = &mut buf[(piece.start - at) as usize..(piece.end - at) as usize];
            match piece.data {
                None => part.fill(0),
                Some(data) => self
                    .volume
                    .read_data(data, part, &self.cache)
                    .map_err(|error| self.failed(piece.start, &error))?,
            }
            Ok(true)
        })
    }

    fn write(&self, _: u64, _: &mut Payload<'_>, _: WriteFlags) -> Result<(), Errno> {
        Err(Errno::Perm)
    }

    fn write_zeroes(&self, _: u64, _: u64, _: ZeroFlags) -> Result<(), Errno> {
        Err(Errno::Perm)
    }

    fn trim(&self, _: u64, _: u64, _: WriteFlags) -> Result<(), Errno> {
        Err(Errno::Perm)
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn block_status(
        &self,
        _context: &str,
        at: u64,
        len: u64,
        sink: &mut StatusSink<'_>,
    ) -> Result<(), Errno> {
        self.each_piece(at, at + len, |piece| {
            let state = if piece.data.is_some() { 0 } else { STATE_HOLE | STATE_ZERO };
            Ok(sink.push(piece.end - piece.start, state))
        })
    }
}
