//! Which records count in thinned history: each is judged at the first kept position from its own on at
//! which volumes of its part, disks or memory, are read.
//!
//! Only what was written up to there and not before it can hide a captured record, so the map that it
//! is looked for in needs the units from its own on alone. A copied one may be hidden by what was
//! written earlier: then it stays though nobody sees it, which costs space and harms nothing.

use super::Keeper;
use super::runs::row_of;
use crate::Seq;
use crate::error::Result;
use crate::format::meta::EpochStart;
use crate::format::record::Record;
use crate::map::levels::{UnitRow, cover};
use crate::map::{Layer, MemRun, Placed, Run, Stack, record_pieces};
use crate::merge::{Part, Sight};
use crate::planted;
use crate::window::keep::{Interval, intervals};
use std::collections::VecDeque;
use std::sync::Arc;

/// Units whose records are held: many kept positions may lie in one.
const HELD_UNITS_MAX: usize = 4;
/// Pieces that are sorted in memory at a time.
const BATCH_PIECES: usize = 1 << 19;

/// See the module. Units are to be asked for in ascending order.
pub(super) struct Thinned<'k> {
    keeper: &'k Keeper,
    epochs: Vec<EpochStart>,
    disks: Vec<Interval>,
    memory: Vec<Interval>,
    rows: Vec<UnitRow>,
    levels: Vec<Arc<Run>>,
    held: VecDeque<(usize, Arc<[Record]>)>,
    last: Option<((Part, Seq), Arc<Stack>)>,
}

impl<'k> Thinned<'k> {
    pub(super) fn new(keeper: &'k Keeper) -> Self {
        let catalogue = &keeper.catalogue;
        let kept = catalogue.kept().unwrap_or_default();
        Self {
            keeper,
            epochs: keeper.epochs(),
            disks: intervals(kept, 0, catalogue.edge()),
            memory: intervals(catalogue.kept_memory(), 0, catalogue.edge()),
            rows: catalogue.units().iter().map(|u| row_of(u, catalogue)).collect(),
            levels: keeper.runs.levels().cloned().collect(),
            held: VecDeque::new(),
            last: None,
        }
    }

    fn interval(&self, part: Part, seq: Seq) -> Interval {
        let intervals = match part {
            Part::Disks => &self.disks,
            Part::Memory => &self.memory,
        };
        let at = intervals.partition_point(|i| i.upto < seq);
        let edge = self.keeper.catalogue.edge();
        intervals.get(at).copied().unwrap_or(Interval { after: 0, upto: edge })
    }

    fn records(&mut self, index: usize) -> Result<Arc<[Record]>> {
        if let Some((_, records)) = self.held.iter().find(|(i, _)| *i == index) {
            return Ok(Arc::clone(records));
        }
        let Some(unit) = self.keeper.catalogue.units().get(index) else { return Ok([].into()) };
        let mut unit = unit.clone();
        unit.path = self.keeper.found(unit.name)?.path;
        let mut records = self.keeper.runs.records_of(&unit, &self.epochs)?;
        records.sort_unstable_by_key(|r| (r.seq, r.addr));
        let records: Arc<[Record]> = records.into();
        if self.held.len() >= HELD_UNITS_MAX {
            self.held.pop_front();
        }
        self.held.push_back((index, Arc::clone(&records)));
        Ok(records)
    }

    /// What lies in `after+1..=upto` in the units from this one on, and in whole runs of them.
    fn layers(&mut self, of: Interval, unit: u64) -> Result<Vec<Layer>> {
        let from = self.rows.partition_point(|r| r.last < unit);
        let runs: Vec<&Arc<Run>> =
            self.levels.iter().filter(|r| r.span().first_unit >= unit).collect();
        let spans: Vec<_> = runs.iter().map(|r| *r.span()).collect();
        let cover = cover(of.upto, &spans, &self.rows[from..]);
        let chosen = cover.runs.iter().filter_map(|&i| runs.get(i));
        let mut layers: Vec<Layer> = chosen.map(|r| Layer::from(Arc::clone(r))).collect();
        let catalogue = &self.keeper.catalogue;
        let as_of = |copy| catalogue.facts.copies.get(&copy).map(|c| c.as_of);
        let mut batch: Vec<Placed> = Vec::new();
        for index in cover.units {
            let records = self.records(from + index)?;
            let first = records.partition_point(|r| r.seq <= of.after);
            let behind = records.partition_point(|r| r.seq <= of.upto);
            batch.extend(record_pieces(&records[first..behind.max(first)], as_of));
            if batch.len() >= BATCH_PIECES {
                layers.push(Arc::new(MemRun::build(std::mem::take(&mut batch))).into());
            }
        }
        layers.push(Arc::new(MemRun::build(batch)).into());
        Ok(layers)
    }
}

impl Sight for Thinned<'_> {
    fn judged_at(&self, part: Part, seq: Seq) -> Seq {
        if planted::is("thinning-drops-what-a-kept-point-needs") {
            return self.keeper.catalogue.edge();
        }
        self.interval(part, seq).upto
    }

    fn stack(&mut self, part: Part, at: Seq, unit: u64) -> Result<Arc<Stack>> {
        if let Some((_, stack)) = self.last.as_ref().filter(|(of, _)| *of == (part, at)) {
            return Ok(Arc::clone(stack));
        }
        let of = match planted::is("thinning-drops-what-a-kept-point-needs") {
            true => Interval { after: 0, upto: at },
            false => self.interval(part, at),
        };
        let stack = Arc::new(Stack::new(self.layers(of, unit)?));
        self.last = Some(((part, at), Arc::clone(&stack)));
        Ok(stack)
    }
}
