//! Moving the base's end: the base run for the new one first, then the catalogue that says so.

use super::Keeper;
use crate::error::{Error, Result};
use crate::format::align_up;
use crate::format::index::ENTRY_BYTES;
use crate::format::record::HEADER_BYTES;
use crate::format::unit_header::BLOCK_BYTES;
use crate::history::Unit;
use crate::map::{Layer, Piece, Span};
use crate::merge::release;
use crate::window::{AlarmLevel, Edge};
use crate::{Seq, VolumeId};
use std::collections::BTreeSet;

/// Most layers that become one run in one step: bounds its memory.
const LAYERS_MAX: usize = 32;
/// The aged part is added to the base when it is at least this part of it.
const GROWTH_DIVISOR: u64 = 8;
/// What a merged unit takes besides its records, bytes: header, what it replaces, and index.
const OVERHEAD_BYTES: u64 = 3 * BLOCK_BYTES;

/// Bytes that are read and written for a piece of a run.
pub(super) const PIECE_BYTES: u64 = 64;

/// Ends the making of a run, of which nothing stays.
pub(super) fn stopped() -> Error {
    Error::Invalid("the keeper was told to stop".into())
}

impl Keeper {
    /// Moves the base's end where it is to be, when enough has aged or space is wanted; a large move
    /// takes several steps.
    pub(super) fn advance_floor(&mut self) -> Result<bool> {
        let present = self.floor();
        let base_unit = self.runs.base().map_or(0, |b| b.span().last_unit);
        // A base run that got lost is made again where the base ends.
        let lost = present.filter(|e| e.unit != base_unit || !self.base_is_of(e.seq));
        let target = match lost {
            Some(edge) if edge.unit > base_unit => Some(edge),
            _ => self.actions.floor.filter(|e| Some(*e) > present && self.is_due(present, *e)),
        };
        let Some(target) = target else { return Ok(false) };
        if self.extend_base(target)? {
            self.catalogue.set_floor(target.seq);
            // Should it not be saved now, it is before anything else is done.
            self.unsaved = true;
            self.save()?;
        }
        Ok(true)
    }

    fn base_is_of(&self, edge: Seq) -> bool {
        self.runs.base().is_some_and(|b| b.span().last_seq == edge)
    }

    fn is_due(&self, present: Option<Edge>, target: Edge) -> bool {
        let pressed = self.actions.alarm.as_ref().is_some_and(|a| a.level >= AlarmLevel::Shortened);
        let from = present.map_or(0, |e| e.unit);
        let (mut base_bytes, mut aged_bytes, mut aged_records) = (0, 0, 0);
        for unit in self.catalogue.units() {
            let last = unit.name.numbers().1;
            if last <= from {
                base_bytes += unit.header.unit_bytes;
            } else if last <= target.unit {
                aged_bytes += unit.header.unit_bytes;
                aged_records += unit.count;
            }
        }
        let pieces = self.runs.base().map_or(0, |b| b.pieces());
        pressed
            || aged_bytes * GROWTH_DIVISOR >= base_bytes
            || aged_records * GROWTH_DIVISOR >= pieces
    }

    /// Adds aged units to the base run; `true` when it reaches the target.
    fn extend_base(&mut self, target: Edge) -> Result<bool> {
        let epochs = self.epochs();
        let mut layers: Vec<Layer> = Vec::new();
        let mut covered = 0;
        if let Some(base) = self.runs.base() {
            covered = base.span().last_unit;
            layers.push(Layer::from(std::sync::Arc::clone(base)));
        }
        for unit in self.catalogue.units() {
            let (first, last) = unit.name.numbers();
            if last <= covered {
                continue;
            }
            if last > target.unit || layers.len() >= LAYERS_MAX {
                break;
            }
            if first > covered + 1 {
                let why =
                    format!("units {} to {} are not in the catalogue", covered + 1, first - 1);
                return Err(Error::Unusable { path: self.setup.dir.clone(), why });
            }
            // A thinned unit may go on behind a run, or begin within what one covered.
            let run = self.runs.reaching(first, target.unit);
            match run.filter(|r| r.span().last_unit >= last) {
                Some(run) => {
                    covered = run.span().last_unit;
                    layers.push(Layer::from(std::sync::Arc::clone(run)));
                }
                None => {
                    covered = last;
                    let mut unit = unit.clone();
                    unit.path = self.found(unit.name)?.path;
                    layers.push(self.runs.layer_of(&unit, &self.catalogue, &epochs)?);
                }
            }
        }
        let done = covered == target.unit;
        let rows = self.catalogue.units().iter().take_while(|u| u.name.numbers().1 <= covered);
        let seqs = || rows.clone().filter(|u| u.last_seq > 0);
        let highest = seqs().map(|u| u.last_seq).max().unwrap_or(0);
        let span = Span {
            level: 0,
            first_unit: 1,
            last_unit: covered,
            first_seq: seqs().map(|u| u.first_seq).min().unwrap_or(0),
            last_seq: if done { target.seq } else { highest },
        };
        let within = self.catalogue.units().partition_point(|u| u.name.numbers().1 <= covered);
        let memory_volumes = self.catalogue.facts.memory_volumes();
        let mut live = LiveBytes::new(&self.catalogue.units()[..within], memory_volumes);
        let pace = self.setup.pace.as_ref();
        self.runs.make(&span, &layers, |volume, piece| {
            live.add(volume, piece);
            if pace.spend(PIECE_BYTES) { Ok(()) } else { Err(stopped()) }
        })?;
        let made = self.base_is_of(span.last_seq);
        if made && done {
            live.store(&mut self.catalogue.units);
        }
        Ok(made && done)
    }

    /// Gives up runs that are of no use behind the edge.
    pub(super) fn give_up_runs(&mut self) -> Result<bool> {
        if self.runs.base().is_none_or(|b| b.span().last_seq != self.catalogue.floor()) {
            return Ok(false);
        }
        let useless = self.runs.take_useless(&self.catalogue);
        let (storage, dir) = (&self.setup.storage, &self.setup.dir);
        release::release(storage, dir, &crate::merge::Remove, &useless)?;
        Ok(!useless.is_empty())
    }
}

/// Counts what a merged unit would take for what is left of each unit. Units overlap in a few numbers at
/// their borders, which may count for the wrong one: it is an estimate.
pub(super) struct LiveBytes {
    /// Highest number in each unit and all before.
    reach: Vec<Seq>,
    bytes: Vec<u64>,
    /// Of payload in each unit that is compressed: bytes as stored, and as captured.
    packed: Vec<(u64, u64)>,
    memory_volumes: BTreeSet<VolumeId>,
}

impl LiveBytes {
    /// Of these units, which ascend by number.
    pub(super) fn new(units: &[Unit], memory_volumes: BTreeSet<VolumeId>) -> Self {
        let mut highest = 0;
        let reach: Vec<Seq> = units
            .iter()
            .map(|u| {
                highest = highest.max(u.last_seq);
                highest
            })
            .collect();
        let bytes = vec![OVERHEAD_BYTES; reach.len()];
        let packed = units.iter().map(|u| u.packed_bytes).collect();
        Self { reach, bytes, packed, memory_volumes }
    }

    pub(super) fn add(&mut self, volume: VolumeId, piece: &Piece) {
        let unit = self.reach.partition_point(|highest| *highest < piece.seq);
        let payload = match self.packed.get(unit) {
            _ if piece.zero => 0,
            // As the others of its unit are, on average.
            Some((stored, data)) if *data > 0 && self.memory_volumes.contains(&volume) => {
                (u128::from(piece.bytes()) * u128::from(*stored) / u128::from(*data)) as u64
            }
            _ => piece.bytes(),
        };
        if let Some(bytes) = self.bytes.get_mut(unit) {
            *bytes += align_up(HEADER_BYTES + payload) + ENTRY_BYTES;
        }
    }

    /// Notes it in the same units.
    pub(super) fn store(self, units: &mut [Unit]) {
        for (unit, bytes) in units.iter_mut().zip(self.bytes) {
            unit.live_bytes = Some(bytes);
        }
    }
}
