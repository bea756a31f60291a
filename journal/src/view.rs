//! A volume as it was at a position: a block map over the records, and reads through it.
//!
//! What always holds: captured records count in the order of their numbers; copied ones rank
//! where their copy began, below every record captured after that (I-5). What no record covers
//! reads as zeroes. No byte is handed out whose record fails its checksum (I-12).

use crate::error::{Error, Result};
use crate::format::record::{FLAG_COPIED, Kind};
use crate::history::{Entry, History};
use crate::map::{Extent, ExtentMap};
use crate::{Seq, VolumeId};

/// Where an extent's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Zeroes.
    Zero,
    /// The payload of the entry with this index in [`History::entries`].
    Entry(usize),
}

/// The block map of a volume at a position, apart from the history that it was made from.
pub struct Blocks {
    map: ExtentMap<Source>,
    bytes: u64,
    cached: Option<usize>,
    payload: Vec<u8>,
}

/// A volume at a position.
pub struct View<'h> {
    history: &'h History,
    blocks: Blocks,
}

/// Where a data record ranks at a position, or `None` when it doesn't count there.
#[must_use]
pub fn rank(history: &History, entry: &Entry, at: Seq) -> Option<Seq> {
    let record = &entry.record;
    if record.seq > at || !matches!(record.kind, Kind::Write | Kind::Zero) {
        return None;
    }
    if record.flags & FLAG_COPIED == 0 {
        return Some(record.seq);
    }
    let as_of = history.copies.get(&record.scope)?.as_of;
    (as_of <= at).then_some(as_of)
}

impl<'h> View<'h> {
    /// Maps a volume at a position (which need not be restorable: a resync compares there).
    ///
    /// # Errors
    /// The volume isn't in the configuration of that position.
    pub fn at(history: &'h History, volume: VolumeId, seq: Seq) -> Result<Self> {
        Ok(Self { history, blocks: Blocks::at(history, volume, seq)? })
    }

    /// Size of the volume at that position.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.bytes
    }

    /// The history it was made from.
    #[must_use]
    pub fn history(&self) -> &'h History {
        self.history
    }

    /// The extents, ascending; what lies between them is zero.
    pub fn extents(&self) -> impl Iterator<Item = &Extent<Source>> {
        self.blocks.map.iter()
    }

    /// Fills `buffer` with the bytes at `at`.
    ///
    /// # Errors
    /// The range lies outside of the volume, or a record that it needs is damaged.
    pub fn read(&mut self, at: u64, buffer: &mut [u8]) -> Result<()> {
        self.blocks.read(self.history, at, buffer)
    }
}

/// Where the volume was made smaller, and to what size: what lay behind is gone, though the volume
/// may grow again.
fn cuts(history: &History, volume: VolumeId, seq: Seq) -> Vec<(Seq, u64)> {
    let sizes =
        history.configs.iter().take_while(|(at, _)| *at <= seq).filter_map(|(at, c)| {
            c.volumes.iter().find(|v| v.id == volume).map(|v| (*at, v.bytes))
        });
    let sizes: Vec<_> = sizes.collect();
    sizes.windows(2).filter(|p| p[1].1 < p[0].1).map(|p| p[1]).collect()
}

impl Blocks {
    /// See [`View::at`].
    ///
    /// # Errors
    /// As there.
    pub fn at(history: &History, volume: VolumeId, seq: Seq) -> Result<Self> {
        let config = history.config_at(seq);
        let bytes = config
            .and_then(|c| c.volumes.iter().find(|v| v.id == volume))
            .map(|v| v.bytes)
            .ok_or_else(|| Error::Invalid(format!("there is no volume {volume} at {seq}")))?;
        let mut ranked: Vec<(Seq, usize)> = history
            .entries
            .iter()
            .enumerate()
            .filter(|(_, e)| e.record.volume == volume)
            .filter_map(|(i, e)| Some((rank(history, e, seq)?, i)))
            .collect();
        // Entries are in the order of their numbers, so that the index breaks a tie.
        ranked.sort_unstable();
        let mut map = ExtentMap::default();
        let mut cuts = cuts(history, volume, seq).into_iter().peekable();
        for (rank, i) in ranked {
            while let Some((_, from)) = cuts.next_if(|(at, _)| *at < rank) {
                map.insert(from, bytes.saturating_sub(from), Source::Zero);
            }
            let record = &history.entries[i].record;
            let source = match record.kind {
                Kind::Write => Source::Entry(i),
                _ => Source::Zero,
            };
            let len = u64::from(record.len).min(bytes.saturating_sub(record.addr));
            map.insert(record.addr, len, source);
        }
        for (_, from) in cuts {
            map.insert(from, bytes.saturating_sub(from), Source::Zero);
        }
        Ok(Self { map, bytes, cached: None, payload: Vec::new() })
    }

    /// See [`View::read`]; `history` is the one that the map was made from.
    ///
    /// # Errors
    /// As there.
    pub fn read(&mut self, history: &History, at: u64, buffer: &mut [u8]) -> Result<()> {
        let end = at.checked_add(buffer.len() as u64).filter(|end| *end <= self.bytes);
        let Some(end) = end else {
            return Err(Error::Invalid(format!(
                "{} bytes at {at} lie outside of a volume of {} bytes",
                buffer.len(),
                self.bytes
            )));
        };
        buffer.fill(0);
        let pieces: Vec<_> = self.map.overlapping(at, end).collect();
        for piece in pieces {
            let Source::Entry(i) = piece.source else { continue };
            if self.cached != Some(i) {
                self.cached = None;
                history.read_payload(&history.entries[i], &mut self.payload)?;
                self.cached = Some(i);
            }
            let target = (piece.start - at) as usize..(piece.end - at) as usize;
            let from = piece.skip as usize;
            let len = target.len();
            let bytes = self.payload.get(from..from + len).ok_or_else(|| {
                Error::Invalid(format!(
                    "record {} is shorter than what it covers",
                    history.entries[i].record.seq
                ))
            })?;
            buffer[target].copy_from_slice(bytes);
        }
        Ok(())
    }
}
