//! A volume at a point, as the exports see it: the only file here that knows how the journal maps
//! blocks and where it keeps payloads.
//!
//! What always holds: the journal is pinned as long as this lives (I-7); nothing of it changes,
//! so any number of threads read without a lock; no byte is handed out whose record failed its
//! checksum (I-12).

use super::cache::{Key, PayloadCache};
use crate::open::Recovery;
use afterimage_journal::map::Extent;
use afterimage_journal::meta::Volume;
use afterimage_journal::view::Source;
use afterimage_journal::{Error, Result, Seq, View};
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

/// A place in a payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Data {
    entry: usize,
    skip: u64,
}

/// A volume as it was at a point.
pub(super) struct VolumeAt {
    recovery: Arc<Recovery>,
    extents: Vec<Extent<Source>>,
    bytes: u64,
}

impl VolumeAt {
    /// The volume at a position.
    ///
    /// # Errors
    /// It isn't in the configuration of that position.
    pub(super) fn new(recovery: Arc<Recovery>, volume: &Volume, seq: Seq) -> Result<Self> {
        let view = View::at(&recovery.history, volume.id, seq)?;
        let extents = view.extents().copied().collect();
        let bytes = view.bytes();
        drop(view);
        Ok(Self { recovery, extents, bytes })
    }

    /// Its size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The pieces from `at` on, ascending and without a hole between them, into `pieces`, which is
    /// cleared first: all up to `end`, or as many as fit. At least one when `at < end`.
    ///
    /// # Errors
    /// The map can't be read.
    pub(super) fn pieces(&self, at: u64, end: u64, pieces: &mut Vec<Piece>) -> Result<()> {
        pieces.clear();
        let mut at = at;
        let first = self.extents.partition_point(|e| e.end <= at);
        for extent in &self.extents[first..] {
            if extent.start >= end || pieces.len() + 2 > PIECES_MAX {
                break;
            }
            if extent.start > at {
                pieces.push(Piece { start: at, end: extent.start, data: None });
                at = extent.start;
            }
            let data = match extent.source {
                Source::Zero => None,
                Source::Entry(entry) => {
                    Some(Data { entry, skip: extent.skip + (at - extent.start) })
                }
            };
            pieces.push(Piece { start: at, end: extent.end.min(end), data });
            at = extent.end.min(end);
        }
        if at < end && pieces.len() < PIECES_MAX - 1 {
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
        let history = &self.recovery.history;
        let entry = history
            .entries
            .get(data.entry)
            .ok_or_else(|| Error::Invalid("the map names a record that isn't there".into()))?;
        let payload_bytes = entry.record.payload_bytes as usize;
        if data.skip == 0 && buf.len() == payload_bytes {
            return history.read_payload_into(entry, buf);
        }
        let key: Key = (u64::from(entry.unit), entry.at);
        let payload =
            cache.get(key, payload_bytes, |whole| history.read_payload_into(entry, whole))?;
        let from = data.skip as usize;
        let bytes = payload.get(from..from.saturating_add(buf.len())).ok_or_else(|| {
            Error::Invalid(format!("record {} is shorter than what it covers", entry.record.seq))
        })?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}
