//! Thinning: which positions beyond the window stay restorable, and what that leaves of the units there.
//!
//! What always holds: the catalogue that says which positions are kept is durable before anything that
//! only others need is merged away; a position that was given up is never chosen again.

use super::Keeper;
use super::advance::{LiveBytes, PIECE_BYTES, stopped};
use super::sight::Thinned;
use crate::Seq;
use crate::error::Result;
use crate::history::level::{Copied, level_ranges};
use crate::history::{CheckpointAt, History};
use crate::merge::{Part, Sight};
use crate::meta::LevelRange;
use crate::planted;
use crate::window::age::{ages, spans};
use crate::window::keep::{Candidate, judges};
use crate::window::{AlarmLevel, Edge, Group, Row, Stamp, victims};
use std::ops::Range;

/// The edge moves when so many units have aged, though no checkpoint in them is kept. Fewer behind the
/// newest kept position wait for the next: they would be merged twice.
const OPEN_UNITS: usize = 8;
/// Kept positions are given up in numbers, at least this part of all: each time, what is still needed of
/// the units is counted anew.
const GIVEN_UP_DIVISOR: usize = 64;
/// Most units that are counted in one step.
const COUNTED_UNITS_MAX: usize = 64;

impl Keeper {
    /// Moves the edge, and chooses again what stays restorable before it; `false`: nothing changes.
    pub(super) fn thin(&mut self) -> Result<bool> {
        let (present, floor) = (self.catalogue.edge(), self.catalogue.floor());
        let thins = self.setup.limits.keep.thins();
        // An edge that came with a merged unit says what that one lost, no more.
        let is_other = self.catalogue.kept().is_none() && !planted::is("sites-thin-for-the-sender");
        if !thins && (floor == present || is_other) {
            return Ok(false);
        }
        let target = self.actions.edge.map_or(0, |e| e.seq).max(present);
        let rows = self.rows()?;
        if !self.is_thinning_due(&rows, target, &self.chosen(&rows, target).0) {
            return Ok(false);
        }
        self.look_behind()?;
        let (kept, memory) = self.chosen(&rows, target);
        let is_due = self.is_thinning_due(&rows, target, &kept);
        if is_due {
            self.catalogue.thin(target, kept, memory);
            // Should it not be saved now, it is before anything else is done.
            self.unsaved = true;
            self.save()?;
        }
        Ok(is_due)
    }

    fn is_thinning_due(&self, rows: &[Row], target: Seq, kept: &[Seq]) -> bool {
        let present = self.catalogue.edge();
        let Some(known) = self.catalogue.kept() else { return true };
        let aged = rows.iter().filter(|r| r.last_seq > present && r.last_seq <= target).count();
        let is_new = target > present && kept.last().is_some_and(|k| *k >= present);
        let fewer = known.iter().filter(|k| kept.binary_search(k).is_err()).count();
        is_new || aged >= OPEN_UNITS || (fewer > 0 && fewer * GIVEN_UP_DIVISOR >= known.len())
    }

    /// Finds the checkpoints whose record is in no sealed unit yet. One with memory lies before that
    /// record, where the edge may want to pass.
    fn look_behind(&mut self) -> Result<()> {
        if planted::is("unsealed-commit-not-looked-for") {
            return Ok(());
        }
        let history = History::load_unpinned(&self.setup.storage, &self.setup.dir)?;
        self.unsealed = history.checkpoints.into_iter().filter(CheckpointAt::is_warm).collect();
        Ok(())
    }

    /// What is to be kept of the checkpoints up to a position that are restorable now: their positions,
    /// and the numbers of the records that commit the memory of those that have one.
    fn chosen(&self, rows: &[Row], upto: Seq) -> (Vec<Seq>, Vec<Seq>) {
        let catalogue = &self.catalogue;
        let (floor, edge) = (catalogue.floor(), catalogue.edge());
        let facts = &catalogue.facts;
        let head = catalogue.settled_below().saturating_sub(1);
        let mut level: Option<Vec<LevelRange>> = None;
        let mut is_level = |seq: Seq| {
            let ranges =
                level.get_or_insert_with(|| level_ranges(&facts.configs, &facts.sessions, head));
            let at = ranges.partition_point(|r| r.to < seq);
            ranges.get(at).is_some_and(|r| r.from <= seq)
        };
        let merged = || catalogue.units().iter().filter_map(|u| u.merged.as_ref());
        let copied =
            Copied { configs: &facts.configs, sessions: &facts.sessions, copies: &facts.copies };
        let lost = merged().flat_map(|m| &m.lost);
        let lost: Vec<(Seq, Option<Seq>)> =
            lost.map(|l| (l.from, copied.whole_from(l.last))).collect();
        let is_lost =
            |seq: Seq| lost.iter().any(|(from, to)| *from <= seq && to.is_none_or(|to| seq < to));
        let mut is_restorable = |seq: Seq| match catalogue.kept() {
            _ if is_lost(seq) => false,
            Some(kept) if seq < edge => kept.binary_search(&seq).is_ok(),
            _ => is_level(seq) && merged().all(|m| m.is_exact_at(seq)),
        };
        let is_warm = |point: &CheckpointAt| {
            let seq = point.committed;
            point.is_warm()
                && match catalogue.kept() {
                    Some(_) if seq < edge => catalogue.kept_memory().binary_search(&seq).is_ok(),
                    _ => merged().all(|m| m.is_memory_exact_at(seq)),
                }
        };
        let ages = ages(rows, &self.now());
        let (mut row, mut reach) = (0, rows.first().map_or(0, |r| r.last_seq));
        let (mut candidates, mut commits) = (Vec::new(), Vec::new());
        let settled = catalogue.settled_below();
        let unsealed = self.unsealed.iter().filter(|c| c.committed >= settled);
        let mut points: Vec<_> = facts.checkpoints.iter().chain(unsealed).collect();
        points.sort_by_key(|c| c.seq);
        for point in points.into_iter().filter(|c| (floor..=upto).contains(&c.seq)) {
            while reach < point.seq && row + 1 < rows.len() {
                row += 1;
                reach = reach.max(rows[row].last_seq);
            }
            if is_restorable(point.seq) {
                let warm = is_warm(point);
                if warm {
                    commits.push((point.seq, point.committed));
                }
                candidates.push(Candidate {
                    seq: point.seq,
                    wall_ns: point.wall_ns,
                    // What nothing proves to be old is young.
                    age_ns: ages.get(row).copied().flatten().unwrap_or(0),
                    tagged: point.checkpoint.tag.is_some(),
                    warm,
                });
            }
        }
        let keep = &self.setup.limits.keep;
        let mut kept = keep.choose(&candidates);
        // The window was made longer since: what of it is left stays.
        let young = candidates.iter().filter(|c| c.age_ns < keep.every_write_ns());
        kept.extend(young.map(|c| c.seq));
        kept.sort_unstable();
        kept.dedup();
        let mut memory: Vec<Seq> = commits
            .into_iter()
            .filter(|(seq, _)| kept.binary_search(seq).is_ok())
            .map(
                |(seq, commit)| {
                    if planted::is("memory-kept-at-instant-only") { seq } else { commit }
                },
            )
            .collect();
        memory.sort_unstable();
        (kept, memory)
    }

    /// Indexes of the rows of thinned history: behind the base, with nothing behind the edge.
    fn thinned_rows(&self, rows: &[Row]) -> Range<usize> {
        let (floor, edge) = (self.catalogue.floor(), self.catalogue.edge());
        let Some(kept) = self.catalogue.kept().filter(|_| floor < edge) else { return 0..0 };
        let base = self.floor().map_or(0, |f| f.unit);
        let from = rows.partition_point(|r| r.last <= base);
        let whole = |upto: Seq| {
            rows[from..].iter().take_while(|r| r.sound && r.last_seq <= upto).count() + from
        };
        let (closed, all) = (whole(kept.last().copied().unwrap_or(0)), whole(edge));
        let pressed = self.actions.alarm.as_ref().is_some_and(|a| a.level >= AlarmLevel::Shortened);
        if pressed || all - closed >= OPEN_UNITS { from..all } else { from..closed }
    }

    /// Groups of thinned history that are worth merging.
    pub(super) fn thinned_groups(&self, rows: &[Row], now: &Stamp) -> Vec<Group> {
        let thinned = self.thinned_rows(rows);
        let Some(last) = thinned.end.checked_sub(1).and_then(|i| rows.get(i)) else {
            return Vec::new();
        };
        let upto = Edge { unit: last.last, seq: self.catalogue.edge() };
        let permille = self.actions.dead_permille;
        let parts = spans(rows, thinned, now).into_iter();
        parts.flat_map(|p| victims(&rows[p], upto, permille, self.identity.unit_bytes)).collect()
    }

    /// Counts what is still needed of some units of thinned history; `false`: that is known of all.
    pub(super) fn count_thinned(&mut self) -> Result<bool> {
        let rows = self.rows()?;
        let thinned = self.thinned_rows(&rows);
        let units = self.catalogue.units();
        // The catalogue's units come first among the rows.
        let Some(from) = thinned.clone().find(|&i| rows[i].live_bytes.is_none()) else {
            return Ok(false);
        };
        let unknown = (from..thinned.end).take_while(|&i| rows[i].live_bytes.is_none());
        let part = from..from + unknown.take(COUNTED_UNITS_MAX).count();
        let Some(first) = units.get(from) else { return Ok(false) };
        let counted = &units[part.clone()];
        let seqs = || counted.iter().filter(|u| u.last_seq > 0);
        let first_seq = seqs().map(|u| u.first_seq).min().unwrap_or(0);
        let last_seq = seqs().map(|u| u.last_seq).max().unwrap_or(0);
        let memory_volumes = self.catalogue.facts.memory_volumes();
        let mut live = LiveBytes::new(counted, memory_volumes.clone());
        let mut sight = Thinned::new(self);
        let kept = self.catalogue.kept().unwrap_or_default();
        for (part, kept) in [(Part::Disks, kept), (Part::Memory, self.catalogue.kept_memory())] {
            if part == Part::Memory && memory_volumes.is_empty() {
                continue;
            }
            let mut after = first_seq.saturating_sub(1);
            for at in judges(kept, self.catalogue.edge(), first_seq, last_seq) {
                let stack = sight.stack(part, at, first.number())?;
                for placed in stack.all() {
                    let (volume, piece) = placed?;
                    if !self.setup.pace.spend(PIECE_BYTES) {
                        return Err(stopped());
                    }
                    let counts = memory_volumes.contains(&volume) == (part == Part::Memory);
                    if counts && piece.seq > after && piece.seq <= at {
                        live.add(volume, &piece);
                    }
                }
                after = at;
            }
        }
        live.store(&mut self.catalogue.units[part]);
        self.unsaved = true;
        Ok(true)
    }
}
