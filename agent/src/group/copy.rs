//! Blocks copied into the journal beside the captured writes (I-5).

use super::{Group, VolumeState};
use afterimage_journal::format::record::{FLAG_COPIED, Kind};
use afterimage_journal::history::CopyState;
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{Copy, CopyCause, CopyEvent, Meta};
use afterimage_journal::{History, Journal, Result, Seq, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Longest zero range in one record, in bytes.
const ZERO_BYTES_MAX: u64 = 1 << 30;
/// Longest payload of one copied record, in bytes. A payload is checked whole before any of it is
/// used, and an export reads a few blocks at a time: what is copied is mostly read that way, so
/// its records are small; beside 112 bytes of header and index that still is next to nothing.
const COPIED_BYTES_MAX: usize = 128 << 10;

/// A copy that is going on. Dropped without [`CopyWriter::end`] it stays unfinished, and what it
/// brought still ranks where it began.
pub struct CopyWriter {
    group: Arc<Group>,
    journal: Journal,
    volume: VolumeId,
    cause: CopyCause,
    whole: bool,
    id: u32,
    as_of: Seq,
}

impl CopyWriter {
    pub(super) fn begin(
        group: Arc<Group>,
        volume: VolumeId,
        (cause, whole): (CopyCause, bool),
        id: u32,
    ) -> Result<Self> {
        let journal = group.journal()?;
        let mut writer = Self { group, journal, volume, cause, whole, id, as_of: 0 };
        writer.as_of = writer.say(CopyEvent::Start, 0)?;
        writer.group.change_volume(volume, |v| {
            v.has_data = true;
            v.owes_compare |= cause == CopyCause::Compare;
            v.owes_maps |= cause == CopyCause::Bitmap;
        });
        Ok(writer)
    }

    fn say(&self, event: CopyEvent, upto: u64) -> Result<Seq> {
        self.journal.append_meta(&Meta::Copy(Copy {
            id: self.id,
            volume: self.volume,
            event,
            cause: self.cause,
            upto,
            whole: self.whole && event == CopyEvent::Start,
        }))
    }

    /// Where its blocks rank.
    #[must_use]
    pub fn as_of(&self) -> Seq {
        self.as_of
    }

    fn draft(&self, kind: Kind, addr: u64, len: u32) -> Draft {
        Draft { kind, flags: FLAG_COPIED, volume: self.volume, addr, len, scope: self.id }
    }

    /// Adds blocks.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let limit = COPIED_BYTES_MAX.min(self.journal.payload_bytes_max() as usize);
        let mut addr = at;
        for piece in bytes.chunks(limit) {
            let len = piece.len() as u32;
            self.journal.append(&self.draft(Kind::Write, addr, len), piece)?;
            addr += u64::from(len);
        }
        Ok(())
    }

    /// Adds a range of zeroes.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn zero(&self, at: u64, bytes: u64) -> Result<()> {
        let (mut addr, end) = (at, at + bytes);
        while addr < end {
            let len = (end - addr).min(ZERO_BYTES_MAX) as u32;
            self.journal.append(&self.draft(Kind::Zero, addr, len), &[])?;
            addr += u64::from(len);
        }
        Ok(())
    }

    /// Everything below this byte address is in.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn progress(&self, upto: u64) -> Result<()> {
        self.say(CopyEvent::Progress, upto)?;
        if self.cause == CopyCause::Initial {
            self.group.change_volume(self.volume, |v| v.initial_upto = upto);
        }
        Ok(())
    }

    /// All of it is in.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn end(self, volume_bytes: u64) -> Result<Seq> {
        let seq = self.say(CopyEvent::End, volume_bytes)?;
        self.group.change_volume(self.volume, |v| match self.cause {
            CopyCause::Bitmap => v.owes_maps = false,
            CopyCause::Initial => v.complete = true,
            CopyCause::Compare => (v.complete, v.owes_compare) = (true, false),
        });
        Ok(seq)
    }
}

/// What a journal has of each volume.
pub(super) fn volume_states(history: &History) -> BTreeMap<VolumeId, VolumeState> {
    let mut states: BTreeMap<VolumeId, VolumeState> = BTreeMap::new();
    for volume in &history.has_data {
        states.entry(*volume).or_default().has_data = true;
    }
    for copy in history.copies.values() {
        let state = states.entry(copy.volume).or_default();
        state.has_data = true;
        match copy.cause {
            CopyCause::Bitmap => {}
            CopyCause::Initial => {
                state.initial_upto = state.initial_upto.max(copy.upto);
                state.complete |= copy.ended.is_some();
            }
            CopyCause::Compare => state.complete |= copy.ended.is_some(),
        }
        if is_owed(history, copy) {
            state.owes_compare |= copy.cause == CopyCause::Compare;
            state.owes_maps |= copy.cause == CopyCause::Bitmap;
        }
    }
    states
}

/// Whether a copy was begun, or found necessary, and neither one of its cause ended behind that
/// nor a session of its guest opened.
fn is_owed(history: &History, copy: &CopyState) -> bool {
    let made = history.copies.values().any(|c| {
        c.volume == copy.volume
            && c.cause == copy.cause
            && c.as_of >= copy.as_of
            && c.ended.is_some()
    });
    let volumes = history.config().map(|c| c.volumes.as_slice()).unwrap_or_default();
    let guest = volumes.iter().find(|v| v.id == copy.volume).map(|v| v.guest.as_str());
    let level =
        history.sessions.iter().any(|s| Some(s.guest.as_str()) == guest && s.from > copy.as_of);
    !made && !level
}
