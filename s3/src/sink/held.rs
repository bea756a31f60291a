//! What a bucket holds of a journal, as its agent is told.

use super::live::Live;
use crate::manifest::Holding;
use afterimage_journal::format::unit_header::BLOCK_BYTES;
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::{Extent, HELD_EPOCHS_MAX, Held, HeldEpoch, Inventory};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

impl Live {
    /// What is there.
    pub fn inventory(&self) -> Inventory {
        let mut files: Vec<Held> = self
            .state
            .files
            .iter()
            .map(|(name, file)| Held {
                name: *name,
                salt: file.salt,
                epoch: file.epoch,
                lowest: 0,
                extent: match file.holding {
                    Holding::Open => Extent::Open(file.records),
                    Holding::Part => Extent::Part(file.end),
                    Holding::Whole => Extent::Whole,
                },
            })
            .collect();
        files.sort_by_key(|held| {
            let (first, last) = held.name.numbers();
            (first, Reverse(last), matches!(held.name, FileName::Unit(_)))
        });
        let whole = self.state.files.values().filter(|f| f.holding == Holding::Whole);
        Inventory {
            files,
            epochs: self.epochs(),
            watermark: self.state.watermark,
            edge: whole.map(|f| f.edge).max().unwrap_or(0),
        }
    }

    /// The epochs of which records are there, the newest, with the ids of their openings.
    fn epochs(&self) -> Vec<HeldEpoch> {
        let (mut held, mut ids) = (BTreeSet::new(), BTreeMap::new());
        for (name, file) in self.state.files.iter().filter(|(_, f)| f.holding != Holding::Part) {
            let has_records = file.holding == Holding::Whole || file.records > BLOCK_BYTES;
            if has_records && file.epoch > 0 {
                held.insert(file.epoch);
                if let FileName::Merged(..) = name {
                    held.extend(file.openings.iter().map(|(epoch, _)| *epoch));
                }
            }
            let known = file.openings.iter().filter_map(|(epoch, id)| Some((*epoch, (*id)?)));
            ids.extend(known);
        }
        let surplus = held.len().saturating_sub(HELD_EPOCHS_MAX);
        let newest = held.iter().skip(surplus);
        newest.map(|epoch| HeldEpoch { epoch: *epoch, id: ids.get(epoch).copied() }).collect()
    }
}
