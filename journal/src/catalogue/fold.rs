//! Adding a sealed unit to the catalogue: first everything that could refuse, then all of it.

use super::facts::has_body;
use super::{Border, Catalogue, Extended};
use crate::Seq;
use crate::error::{Error, Result};
use crate::format::meta::{EpochStart, Lost, META_BYTES_MAX, Meta};
use crate::format::record::Kind;
use crate::format::unit_header::{FLAG_EPOCH_START, UnitHeader};
use crate::history::{Entry, Unit, is_void, open_file};
use crate::pool::FileName;
use crate::storage::Storage;
use crate::unit::{ScanEnd, UnitContents, read_merged, read_payload};
use uuid::Uuid;

/// Most records that wait for numbers of the next unit.
const BORDER_RECORDS_MAX: usize = 1 << 16;

/// The epoch that begins with a unit, if one does.
pub(crate) fn epoch_start(header: &UnitHeader) -> Option<EpochStart> {
    (header.flags & FLAG_EPOCH_START != 0).then_some(EpochStart {
        epoch: header.epoch,
        first_seq: header.after_seq + 1,
        prev_last_seq: header.prev_last_seq,
        id: Some(Uuid::from_bytes(header.salt)),
        unit: Some(header.number),
    })
}

/// The number that is due behind all below `expected` when `seq` comes: a new epoch may jump
/// ahead, since numbers of lost records are not used again.
pub(crate) fn due(epochs: &[EpochStart], expected: Seq, seq: Seq) -> Seq {
    if seq <= expected {
        return expected;
    }
    let start = epochs.iter().rev().find(|e| e.first_seq <= seq);
    let Some(start) = start else { return expected };
    // An epoch that began while the start of another was on a member that was away: that one ended what came
    // before it, and nothing of its own counts.
    let ends_here = |e: &EpochStart| {
        expected == e.prev_last_seq + 1
            && e.first_seq <= start.first_seq
            && e.first_seq > start.prev_last_seq
    };
    // The first record of an epoch may be the one that is missing.
    if epochs.iter().any(ends_here) { start.first_seq } else { expected }
}

/// The first number from this one on that is not among those that are known to be lost; `lost` ascends within
/// each unit.
pub(crate) fn pass_lost<'l>(lost: impl Iterator<Item = &'l Lost> + Clone, mut seq: Seq) -> Seq {
    while let Some(l) = lost.clone().find(|l| l.from <= seq && seq <= l.last) {
        seq = l.last + 1;
    }
    seq
}

impl Catalogue {
    /// See [`Catalogue::extend`]; `later` are epochs that are known to have begun since.
    pub(super) fn fold(
        &mut self,
        storage: &dyn Storage,
        name: FileName,
        unit: &UnitContents,
        later: &[EpochStart],
    ) -> Extended {
        match self.try_fold(storage, name, unit, later) {
            Ok(()) => Extended::Added,
            Err(why) => Extended::NotYet(why.to_string()),
        }
    }

    fn try_fold(
        &mut self,
        storage: &dyn Storage,
        name: FileName,
        unit: &UnitContents,
        later: &[EpochStart],
    ) -> Result<()> {
        let refuse =
            |why: &str| Err(Error::Unusable { path: unit.path.clone(), why: why.to_owned() });
        if unit.end != ScanEnd::Sealed || name.numbers().0 != self.last_unit() + 1 {
            return refuse("it isn't sealed, or not the next one");
        }
        let merged = match name {
            FileName::Merged(..) => Some(read_merged(&*unit.file, &unit.path, &unit.header)?),
            FileName::Unit(_) => None,
        };
        let edge = self.edge.max(merged.as_ref().map_or(0, |m| m.edge));
        let next = self.next.max(1).max(if edge > 0 { edge + 1 } else { 0 });
        let mut next = pass_lost(merged.iter().flat_map(|m| &m.lost), next);
        let mut epochs = self.epochs.clone();
        epochs.extend(merged.iter().flat_map(|m| &m.epochs));
        let start = epoch_start(&unit.header);
        match start {
            Some(s) if s.prev_last_seq > edge && s.prev_last_seq + 1 < self.next => {
                return refuse("its epoch takes back what is settled");
            }
            None if merged.is_none()
                && !unit.records.is_empty()
                && next <= unit.header.after_seq =>
            {
                // What was given out before the unit was made lies in the units before. (One that was
                // prepared and never used says nothing: a power cut may have taken those numbers.)
                return refuse("numbers before it are missing");
            }
            _ => {}
        }
        epochs.extend(start.filter(|s| epochs.last() != Some(s)));
        let known: Vec<EpochStart> = epochs.iter().chain(later).copied().collect();

        let floor = merged.as_ref().map_or(0, crate::format::meta::Merged::floor);
        let row = Unit::of(name, unit, merged);
        let mut entries = self.unsettled(&known, &row, unit);
        let settled = entries
            .iter()
            .take_while(|b| {
                let seq = b.record.seq;
                next = due(&epochs, next, seq);
                let comes = seq <= next;
                if seq == next {
                    next = seq + 1;
                }
                comes
            })
            .count();
        let border = entries.split_off(settled);
        if border.len() > BORDER_RECORDS_MAX {
            return refuse("too much is missing before it");
        }
        let bodies = self.bodies(storage, &entries, &row, unit)?;
        // Nothing can fail from here on.
        for (entry, body) in entries.iter().zip(bodies) {
            if let Some(body) = body {
                self.facts.reach(&epochs, entry.record.seq);
                let entry = Entry { unit: 0, at: entry.at, record: entry.record };
                self.facts.take(&entry, body);
            }
            self.facts.note(&entry.record);
        }
        self.units.push(row);
        self.epochs = epochs;
        self.raise(edge, floor);
        self.next = next;
        self.border = border;
        Ok(())
    }

    /// The records that are not settled, with those of a unit, by (number, address).
    fn unsettled(&self, epochs: &[EpochStart], row: &Unit, unit: &UnitContents) -> Vec<Border> {
        let number = row.number();
        let own = unit.records.iter().map(|(at, r)| Border { unit: number, at: *at, record: *r });
        let mut all: Vec<Border> = self.border.iter().copied().chain(own).collect();
        all.retain(|b| {
            let epoch = match b.unit == number {
                true => row.header.epoch,
                false => self.row(b.unit).map_or(row.header.epoch, |u| u.header.epoch),
            };
            b.record.kind != Kind::Merged && !is_void(epochs, epoch, b.record.seq)
        });
        all.sort_by_key(|b| (b.record.seq, b.record.addr));
        all
    }

    /// The row of the unit that stands for a number.
    pub(crate) fn row(&self, number: u64) -> Option<&Unit> {
        let at = self.units.partition_point(|u| u.name.numbers().1 < number);
        self.units.get(at).filter(|u| u.number() <= number)
    }

    /// The bodies of the records that have one.
    fn bodies(
        &self,
        storage: &dyn Storage,
        entries: &[Border],
        row: &Unit,
        unit: &UnitContents,
    ) -> Result<Vec<Option<Meta>>> {
        let mut bodies = Vec::with_capacity(entries.len());
        for entry in entries {
            let record = &entry.record;
            if !has_body(record.kind) {
                bodies.push(None);
                continue;
            }
            let broken = |why: String| Error::Unusable { path: unit.path.clone(), why };
            if record.payload_bytes as usize > META_BYTES_MAX {
                return Err(broken(format!("record {} is too large", record.seq)));
            }
            let mut payload = vec![0; record.payload_bytes as usize];
            match self.row(entry.unit) {
                Some(other) if entry.unit != row.number() => {
                    let file = open_file(storage, other)?;
                    read_payload(&*file, &other.path, entry.at, record, &mut payload)?;
                }
                _ => read_payload(&*unit.file, &unit.path, entry.at, record, &mut payload)?,
            }
            match Meta::decode(record.kind, &payload) {
                Some(Ok(body)) => bodies.push(Some(body)),
                Some(Err(e)) => return Err(broken(format!("record {}: {e}", record.seq))),
                None => bodies.push(None),
            }
        }
        Ok(bodies)
    }
}
