//! Files that came whole, and what they replace.

use super::draft::Wanted;
use super::{Replica, Taken, sink_error};
use crate::pool::{FileName, Found, Places, strays, table};
use crate::unit::UnitContents;
use crate::wire::SinkError;
use std::collections::BTreeSet;
use std::path::PathBuf;

impl Replica {
    /// All pieces of a file came: it is checked, named, and counts. What it replaces is given up.
    pub(super) fn put_end(&mut self, name: FileName, index_crc: u32) -> Taken<()> {
        let identity = self.identity_of_sender()?;
        let wanted = Wanted {
            group: identity.group.into_bytes(),
            index_crc,
            epoch_max: self.sender_epoch(),
            is_encrypted: identity.encryption.is_some(),
        };
        let range = name.numbers();
        let covered = self.held.covers_all(range);
        let Some(draft) = self.draft.take_if(|d| d.name == name) else {
            // It came before.
            return match covered {
                true => Ok(()),
                false => Err(SinkError::Broken(format!("{name} did not begin"))),
            };
        };
        if covered && !self.options.mirror {
            draft.discard(&*self.storage);
            return Ok(());
        }
        let checked = draft.check(&*self.storage, &wanted).and_then(|unit| {
            self.check_whole(name, &unit)?;
            let replaced = self.replaced(name, &unit)?;
            let highest = unit.records.iter().map(|(_, r)| r.seq).max().unwrap_or(0);
            Ok((unit.header, highest, replaced))
        });
        let (header, highest, replaced) = match checked {
            Ok(checked) => checked,
            Err(e) => {
                // It would not be better the second time.
                draft.discard(&*self.storage);
                return Err(e);
            }
        };
        if let FileName::Merged(first, _) = name {
            // No more will come of the unit before it: what lacked is in this one.
            self.seal_here(first.saturating_sub(1))?;
        }
        let dir = draft.dir.clone();
        strays::make_way(&self.storage, &dir.join(name.to_string()), &header.group)
            .map_err(sink_error)?;
        let named = draft.name(&*self.storage).map_err(sink_error)?;
        table::note_made(&self.storage, &self.dir, &named.path, (name, &header))
            .map_err(sink_error)?;
        let (first, last) = range;
        self.incoming.retain(|number, _| !(first..=last).contains(number));
        self.held.epoch = self.held.epoch.max(header.epoch);
        self.highest = self.highest.max(highest);
        self.counts(name);
        self.sure.count(name, header.epoch);
        let left: Vec<PathBuf> =
            replaced.into_iter().map(|f| f.path).filter(|p| *p != named.path).collect();
        self.give_up(&left).map_err(sink_error)?;
        tracing::debug!(unit = %name, dir = %dir.display(), "came whole");
        Ok(())
    }

    /// What a whole file takes the place of; refused where that would lose something.
    fn replaced(&self, name: FileName, unit: &UnitContents) -> Taken<Vec<Found>> {
        let (first, last) = name.numbers();
        let (inside, across) = self.within((first, last), name).map_err(sink_error)?;
        let is_across = across.iter().any(|f| self.held.covers_all(f.name.numbers()));
        // What the catalogue here may name is not for the source to replace.
        let is_ours = !self.options.mirror && first <= self.held.prefix();
        if is_across || is_ours {
            return Err(SinkError::Refused(format!(
                "{name} would take the place of a part of what this site has merged itself"
            )));
        }
        if let (FileName::Unit(number), Some(here)) = (name, self.incoming.get(&first)) {
            let new: BTreeSet<(u64, u64)> =
                unit.records.iter().map(|(at, r)| (*at, r.seq)).collect();
            let has_all = here.records.iter().all(|(at, r)| new.contains(&(*at, r.seq)));
            let same = here.header == unit.header || here.records.is_empty();
            if !same || !has_all {
                return Err(SinkError::Refused(format!(
                    "unit {number} is here with records that the source doesn't have: the site \
                     holds another branch of the journal, which is kept"
                )));
            }
        }
        Ok(inside)
    }

    /// The source gave files up: those here that something else stands for go, too.
    pub(super) fn release(&mut self, names: &[FileName]) -> Taken<()> {
        self.identity_of_sender()?;
        if !self.options.mirror {
            let why = "this site keeps a window of its own: nothing is given up for the source";
            return Err(SinkError::Broken(why.into()));
        }
        let places = Places::of(&self.storage, &self.dir).map_err(sink_error)?;
        let units = places.units().map_err(sink_error)?;
        let left = crate::merge::release::leftovers(&units);
        let named = units.into_iter().filter(|f| names.contains(&f.name)).map(|f| f.path);
        // One that nothing stands for stays, whoever says what.
        let given: Vec<PathBuf> = named.filter(|path| left.contains(path)).collect();
        self.give_up(&given).map_err(sink_error)
    }
}
