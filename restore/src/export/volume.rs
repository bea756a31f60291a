//! A volume at a point, as the exports see it: the only file here that knows how the journal maps
//! blocks and where it keeps payloads.
//!
//! What always holds: the journal is pinned as long as this lives (I-7); nothing of it changes,
//! so any number of threads read without a lock; no byte is handed out whose record failed its
//! checksum (I-12).

use super::cache::{Key, PayloadCache};
use crate::open::Recovery;
use afterimage_journal::history::{Entry, Map};
use afterimage_journal::meta::Volume;
use afterimage_journal::{Error, Result, Seq};
use std::sync::Arc;

/// Most pieces that are handed out at a time.
const PIECES_MAX: usize = 1024;

/// A part of a volume: zeroes, or a part of one record's payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Byte address of its start.
    pub(super) start: u64,
    /// Byte address behind its end.
    pub(super) end: u64,
    /// Where its bytes are; `None`: it is zero.
    pub(super) data: Option<Data>,
}

/// A byte of a volume in one record: its number, since the record may move when units are merged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Data {
    seq: Seq,
    addr: u64,
}

/// A volume as it was at a point.
pub(super) struct VolumeAt {
    recovery: Arc<Recovery>,
    map: Map,
}

impl VolumeAt {
    /// The volume at a position.
    ///
    /// # Errors
    /// It isn't in the configuration of that position.
    pub(super) fn new(recovery: Arc<Recovery>, volume: &Volume, seq: Seq) -> Result<Self> {
        let map = recovery.history.map(volume.id, seq)?;
        Ok(Self { recovery, map })
    }

    /// Its size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.map.bytes()
    }

    /// The pieces from `at` on, ascending and without a hole between them, into `pieces`, which is
    /// cleared first: all up to `end`, or as many as fit. At least one when `at < end`.
    ///
    /// # Errors
    /// The map can't be read.
    pub(super) fn pieces(&self, at: u64, end: u64, pieces: &mut Vec<Piece>) -> Result<()> {
        pieces.clear();
        let mut at = at;
        for piece in self.map.pieces(at..end) {
            let piece = piece?;
            if pieces.len() + 2 > PIECES_MAX {
                return Ok(());
            }
            if piece.start > at {
                pieces.push(Piece { start: at, end: piece.start, data: None });
            }
            let data = Data { seq: piece.seq, addr: piece.start };
            let data = (!piece.zero).then_some(data);
            pieces.push(Piece { start: piece.start, end: piece.end, data });
            at = piece.end;
        }
        if at < end {
            pieces.push(Piece { start: at, end, data: None });
        }
        Ok(())
    }

    /// Fills `buf` with the bytes of a piece; a payload of which only a part is wanted is kept in
    /// `cache`.
    ///
    /// # Errors
    /// The record can't be read, or is damaged.
    pub(super) fn read_data(&self, data: Data, buf: &mut [u8], cache: &PayloadCache) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let addr = data.addr + done as u64;
            let entry = self.recovery.history.locate(data.seq, addr)?;
            let skip = addr - entry.record.addr;
            let left = u64::from(entry.record.len) - skip;
            let len = (buf.len() - done).min(usize::try_from(left).unwrap_or(usize::MAX));
            self.read_part(&entry, skip as usize, &mut buf[done..done + len], cache)?;
            done += len;
        }
        Ok(())
    }

    fn read_part(
        &self,
        entry: &Entry,
        skip: usize,
        buf: &mut [u8],
        cache: &PayloadCache,
    ) -> Result<()> {
        let history = &self.recovery.history;
        let data_bytes = entry.record.data_bytes() as usize;
        if skip == 0 && buf.len() == data_bytes {
            return history.read_payload_into(entry, buf);
        }
        let key: Key = (u64::from(entry.unit), entry.at);
        let payload =
            cache.get(key, data_bytes, |whole| history.read_payload_into(entry, whole))?;
        let bytes = payload.get(skip..skip.saturating_add(buf.len())).ok_or_else(|| {
            Error::Invalid(format!("record {} is shorter than what it covers", entry.record.seq))
        })?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}
