//! What a sender says of a file, held against what is here: no claim may take away from what the site has.
//! What the site keeps is up to its own clock and settings (`crate::arrivals`, the keeper).
//!
//! What always holds:
//! * epochs ascend with the numbers of units, whatever is added;
//! * an epoch that begins makes no number void that the site said to have, but for those it had before too;
//! * a merged unit that comes behind a history that is here moves neither the end of the base nor anything
//!   that lies before its own records.

use super::incoming::Incoming;
use super::{Replica, Taken};
use crate::Seq;
use crate::catalogue::epoch_start;
use crate::format::meta::{EpochStart, Merged};
use crate::format::record::Kind;
use crate::format::unit_header::UnitHeader;
use crate::planted;
use crate::pool::FileName;
use crate::unit::{UnitContents, read_merged};
use crate::wire::SinkError;
use std::collections::BTreeMap;

/// Units at the end that came whole, of which some numbers may be void: one that was written, those that
/// were prepared behind it.
const UNSURE_UNITS: usize = 3;

/// What a site is sure to have.
#[derive(Debug, Default)]
pub(super) struct Sure {
    /// Epoch of each file that counts, by its last unit's number.
    epochs: BTreeMap<u64, u64>,
    /// The epochs that are known to have begun: the first number, and the last one before.
    starts: BTreeMap<u64, (Seq, Seq)>,
    /// Every number up to this one, as the sender was told.
    pub told: Seq,
    /// The same without what may be void; and with what was acknowledged since, files behind it included.
    upto: Seq,
    acknowledged: Seq,
    /// Where the base ends.
    pub floor: Seq,
    /// `after_seq` of the last files; `None`: numbers in it are sure.
    last: Vec<Option<Seq>>,
}

impl Sure {
    /// Adds a file; in the order of their numbers.
    pub fn add(&mut self, name: FileName, header: &UnitHeader, is_sealed: bool) {
        self.count(name, header.epoch);
        let is_unsure = is_sealed && matches!(name, FileName::Unit(_));
        self.last.push(is_unsure.then_some(header.after_seq));
    }

    /// A file counts.
    pub fn count(&mut self, name: FileName, epoch: u64) {
        self.epochs.insert(name.numbers().1, epoch);
    }

    /// Epochs began in what is here.
    pub fn begin(&mut self, starts: impl IntoIterator<Item = EpochStart>) {
        let numbers = |start: EpochStart| (start.epoch, (start.first_seq, start.prev_last_seq));
        self.starts.extend(starts.into_iter().map(numbers));
    }

    /// All was added: numbers up to `watermark` are here, some were acknowledged before.
    pub fn tell(&mut self, watermark: Seq, acknowledged: Seq, floor: Seq) {
        let unsure = self.last.iter().rev().map_while(|after| *after).take(UNSURE_UNITS);
        self.upto = unsure.fold(watermark, Seq::min).max(acknowledged.min(watermark));
        self.acknowledged = self.upto;
        (self.told, self.floor) = (watermark, floor);
        self.last.clear();
    }

    /// They were acknowledged.
    pub fn acknowledge(&mut self, watermark: Seq) {
        self.acknowledged = self.acknowledged.max(watermark);
    }

    /// Whether a file of an epoch, in which others begin, fits what is here: why not.
    fn check(
        &self,
        (first, last): (u64, u64),
        epoch: u64,
        starts: &[EpochStart],
    ) -> Result<(), String> {
        let before = self.epochs.range(..first).next_back().map_or(0, |(_, epoch)| *epoch);
        let behind = self.epochs.range(last.saturating_add(1)..).next().map(|(_, epoch)| *epoch);
        if epoch < before || behind.is_some_and(|behind| epoch > behind) {
            return Err(format!("it is of epoch {epoch}, which is not that of its neighbours"));
        }
        // What an epoch makes void lies before it.
        let sure = match behind {
            None => self.acknowledged,
            Some(_) if before > 0 => self.upto,
            Some(_) => 0,
        };
        for start in starts {
            if self.starts.get(&start.epoch) == Some(&(start.first_seq, start.prev_last_seq)) {
                continue;
            }
            let ascends = start.first_seq > start.prev_last_seq;
            if start.epoch <= before || start.epoch > epoch || !ascends {
                return Err(format!("epoch {} can't begin in it", start.epoch));
            }
            if start.prev_last_seq < sure {
                return Err(format!(
                    "epoch {} would take back the records behind {}, and the site has those up to {sure}",
                    start.epoch, start.prev_last_seq
                ));
            }
        }
        Ok(())
    }
}

fn refused(name: FileName, why: &str) -> SinkError {
    SinkError::Refused(format!(
        "{name} is not taken: {why}. Another branch of the journal is here, which is kept: move the group's \
         directory at the site aside to have this one sent anew"
    ))
}

impl Replica {
    /// A unit that begins.
    pub(super) fn check_begin(&self, header: &UnitHeader) -> Taken<()> {
        let name = FileName::Unit(header.number);
        let starts: Vec<EpochStart> = epoch_start(header).into_iter().collect();
        self.check_claims(name, header.epoch, &starts)
    }

    /// A file that came whole, and was checked by itself.
    pub(super) fn check_whole(&self, name: FileName, unit: &UnitContents) -> Taken<()> {
        let header = &unit.header;
        if let FileName::Unit(_) = name {
            return self.check_begin(header);
        }
        let merged = read_merged(&*unit.file, &unit.path, header);
        let merged = merged.map_err(|e| SinkError::Broken(e.to_string()))?;
        let within = merged.first_seq..=merged.last_seq;
        let mut records = unit.records.iter().filter(|(_, r)| r.kind != Kind::Merged);
        if records.any(|(_, r)| !within.contains(&r.seq)) {
            let why = "it has records that it doesn't say to replace";
            return Err(SinkError::Broken(format!("{name}: {why}")));
        }
        self.check_claims(name, header.epoch, &merged.epochs)?;
        self.check_reach(name, &merged)
    }

    fn check_claims(&self, name: FileName, epoch: u64, starts: &[EpochStart]) -> Taken<()> {
        if planted::is("sites-believe-what-begins") {
            return Ok(());
        }
        self.sure.check(name.numbers(), epoch, starts).map_err(|why| refused(name, &why))
    }

    /// What a merged unit says to be gone, where a history is here already.
    fn check_reach(&self, name: FileName, merged: &Merged) -> Taken<()> {
        if self.options.mirror || self.held.prefix() == 0 || planted::is("sites-believe-edges") {
            return Ok(());
        }
        if merged.floor() > self.sure.floor {
            return Err(refused(name, "it would give up what the site has before it"));
        }
        let open = self.incoming.get(&merged.first).map(Incoming::lowest).filter(|seq| *seq > 0);
        let from = open.unwrap_or(u64::MAX).min(self.sure.told + 1);
        if merged.last_seq > 0 && merged.first_seq < from {
            let why = "it speaks of records before those that the site lacks. (An older agent does so now and \
                       then: update it.)";
            return Err(refused(name, why));
        }
        if merged.edge > self.highest_here().max(merged.last_seq) {
            let why = "it names a position behind all records that came: those have to come first";
            return Err(SinkError::Broken(format!("{name}: {why}")));
        }
        Ok(())
    }
}
