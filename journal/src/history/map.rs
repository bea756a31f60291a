//! Which record holds each byte of a volume at a position: the runs that the journal has, and the
//! indexes of the units that none of them covers.
//!
//! What always holds: captured records rank at their own number, copied ones where their copy
//! began (I-5); where a volume was made smaller, what lay behind is gone, though it may grow
//! again; what nothing covers is a hole.

use super::{Entry, History};
use crate::error::{Error, Result};
use crate::format::record::{FLAG_COPIED, Kind};
use crate::map::levels::{UnitRow, cover};
use crate::map::{Layer, MemRun, Piece, Placed, Run, RunName, Span, Stack, record_pieces};
use crate::planted;
use crate::{Seq, VolumeId};
use std::ops::Range;
use std::sync::Arc;

/// Pieces that are sorted in memory at a time.
const BATCH_PIECES: usize = 1 << 19;

/// A volume's map at a position; needs nothing else to answer.
#[derive(Debug, Clone)]
pub struct Map {
    volume: VolumeId,
    bytes: u64,
    stack: Stack,
}

impl Map {
    /// Size of the volume at that position, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What covers a range (in bytes): disjoint pieces, ascending, cut to it; in bounded memory.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Result<Piece>> + Send + use<> {
        self.stack.resolve(self.volume, range.start..range.end.min(self.bytes))
    }

    /// As [`Map::pieces`], for the small range of one request.
    ///
    /// # Errors
    /// A run is damaged or can't be read.
    pub fn find(&self, range: Range<u64>) -> Result<Vec<Piece>> {
        self.stack.find(self.volume, range.start..range.end.min(self.bytes))
    }
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

impl History {
    /// The map of a volume at a position (which need not be restorable: a resync compares there).
    ///
    /// # Errors
    /// The volume isn't in the configuration of that position; an index can't be read.
    pub fn map(&self, volume: VolumeId, seq: Seq) -> Result<Map> {
        let bytes = self
            .config_at(seq)
            .and_then(|c| c.volumes.iter().find(|v| v.id == volume))
            .map(|v| v.bytes)
            .ok_or_else(|| Error::Invalid(format!("there is no volume {volume} at {seq}")))?;
        let mut layers: Vec<Layer> = Vec::new();
        let cuts = self.cuts(volume, seq);
        if !cuts.is_empty() && !planted::is("resize-drops-tracking") {
            layers.push(Arc::new(MemRun::build(cuts)).into());
        }
        let (units, runs) = self.covering(seq);
        layers.extend(runs.into_iter().map(Layer::from));
        let mut batch: Vec<Placed> = Vec::new();
        for unit in units {
            let records = self.records(unit as u32)?;
            let counting = records.iter().map(|(_, r)| r);
            let counting = counting.filter(|r| r.volume == volume && r.seq <= seq);
            let as_of =
                |copy| self.copies.get(&copy).map(|c| c.as_of).filter(|as_of| *as_of <= seq);
            batch.extend(record_pieces(counting, as_of));
            if batch.len() >= BATCH_PIECES {
                layers.push(Arc::new(MemRun::build(std::mem::take(&mut batch))).into());
            }
        }
        layers.push(Arc::new(MemRun::build(batch)).into());
        Ok(Map { volume, bytes, stack: Stack::new(layers) })
    }

    /// Where the volume was made smaller: zeroes that rank at the configuration that says so.
    fn cuts(&self, volume: VolumeId, seq: Seq) -> Vec<Placed> {
        let configs = self.configs.iter().take_while(|(at, _)| *at <= seq);
        let sizes: Vec<(Seq, u64)> = configs
            .filter_map(|(at, c)| c.volumes.iter().find(|v| v.id == volume).map(|v| (*at, v.bytes)))
            .collect();
        let smaller = sizes.windows(2).filter(|p| p[1].1 < p[0].1).map(|p| p[1]);
        let piece =
            |(at, bytes)| Piece { start: bytes, end: u64::MAX, rank: at, seq: at, zero: true };
        smaller.map(|cut| (volume, piece(cut))).collect()
    }

    /// The units as the choice of runs sees them.
    #[must_use]
    pub fn unit_rows(&self) -> Vec<UnitRow> {
        let row = |u: &super::Unit| {
            let (first, last) = u.name.numbers();
            let sealed = u.end == crate::unit::ScanEnd::Sealed;
            let first_seq = if u.first_seq == 0 { Seq::MAX } else { u.first_seq };
            UnitRow { first, last, first_seq, last_seq: u.last_seq, sealed }
        };
        self.units.iter().map(row).collect()
    }

    /// What to read for the map at a position: units whose own index is needed, and runs. Of the
    /// runs, which are many in a long journal, only these are opened.
    fn covering(&self, seq: Seq) -> (Vec<usize>, Vec<Arc<Run>>) {
        let rows = self.unit_rows();
        let mut known = self.runs(&rows);
        loop {
            let spans: Vec<Span> = known.iter().map(|k| k.span).collect();
            let cover = cover(seq, &spans, &rows);
            let chosen: Vec<usize> = cover.base.iter().chain(&cover.runs).copied().collect();
            let bad = chosen.iter().copied().find(|&i| !known[i].open(self, seq));
            match bad {
                // Derived, so that one that can't be used is as good as none.
                Some(bad) => drop(known.remove(bad)),
                None => {
                    let opened = chosen.into_iter().filter_map(|i| known[i].opened.clone());
                    return (cover.units, opened.collect());
                }
            }
        }
    }

    /// The runs that there are and count. A base run is opened, of the others their names and the units say
    /// what they cover. Where numbers of a unit are void or torn off, what a run over it was made of may not
    /// be what counts; runs over other units have none of its records.
    fn runs(&self, rows: &[UnitRow]) -> Vec<KnownRun> {
        let void = self.units.iter().filter(|u| u.last_seq > u.valid_to);
        let void: Vec<(u64, u64)> = void.map(|u| u.name.numbers()).collect();
        if planted::is("one-void-number-hides-all-runs") && !void.is_empty() {
            return Vec::new();
        }
        let mut names = self.storage.list(&self.dir).unwrap_or_default();
        names.sort();
        let names = names.iter().filter_map(|name| RunName::parse(name));
        let known = names.filter_map(|name| KnownRun::of(self, name, rows));
        let counts = |run: &KnownRun| {
            let span = &run.span;
            !void.iter().any(|(first, last)| *first <= span.last_unit && *last >= span.first_unit)
        };
        known.filter(counts).collect()
    }
}

/// A run, opened when it is needed.
struct KnownRun {
    name: RunName,
    /// What it covers; until it is opened, as far as the units tell.
    span: Span,
    opened: Option<Arc<Run>>,
}

impl KnownRun {
    fn of(history: &History, name: RunName, rows: &[UnitRow]) -> Option<Self> {
        let RunName::Level(level, first_unit, last_unit) = name else {
            let span = Span { level: 0, first_unit: 1, last_unit: 1, first_seq: 0, last_seq: 0 };
            let mut base = Self { name, span, opened: None };
            base.open(history, Seq::MAX);
            base.span = *base.opened.as_ref()?.span();
            return Some(base);
        };
        // Where a merged unit reaches out of it this says too much, and the run is not used.
        let inside = rows.iter().filter(|r| r.first <= last_unit && r.last >= first_unit);
        let seqs = inside.filter(|r| r.first_seq <= r.last_seq).map(|r| (r.first_seq, r.last_seq));
        let (first_seq, last_seq) =
            seqs.fold((Seq::MAX, 0), |all, one| (all.0.min(one.0), all.1.max(one.1)));
        let first_seq = first_seq.min(last_seq);
        let span = Span { level, first_unit, last_unit, first_seq, last_seq };
        Some(Self { name, span, opened: None })
    }

    /// Opens it; `false`: it can't be used for this position.
    fn open(&mut self, history: &History, seq: Seq) -> bool {
        if self.opened.is_none() {
            let path = history.dir.join(self.name.to_string());
            match Run::open(&history.storage, &path, history.identity.group) {
                Ok(run) => self.opened = Some(Arc::new(run)),
                Err(e) => tracing::debug!(run = %path.display(), error = %e, "not used"),
            }
        }
        self.opened.as_ref().is_some_and(|run| run.span().last_seq <= seq)
    }
}
