//! The epochs that a replica holds records of, with the ids of their openings: what tells one branch of a
//! journal from another, in merged units too.

use crate::catalogue::epoch_start;
use crate::error::{Error, Result};
use crate::format::meta::EpochStart;
use crate::format::unit_header::UnitHeader;
use crate::pool::{FileName, Found};
use crate::storage::StoredFile;
use crate::unit::read_merged;
use crate::wire::{HELD_EPOCHS_MAX, HeldEpoch};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct EpochsHeld {
    with_records: BTreeSet<u64>,
    /// Those that are known to have begun, by epoch.
    pub starts: BTreeMap<u64, EpochStart>,
}

impl EpochsHeld {
    /// Adds what a file tells.
    ///
    /// # Errors
    /// A merged unit can't be read; one that is damaged tells nothing.
    pub fn add(
        &mut self,
        (found, file): (&Found, &dyn StoredFile),
        header: &UnitHeader,
        has_records: bool,
    ) -> Result<()> {
        let starts: Vec<EpochStart> = match found.name {
            FileName::Unit(_) => epoch_start(header).into_iter().collect(),
            FileName::Merged(..) => match read_merged(file, &found.path, header) {
                Ok(merged) => merged.epochs,
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(_) => Vec::new(),
            },
        };
        if has_records {
            self.with_records.insert(header.epoch);
            if let FileName::Merged(..) = found.name {
                self.with_records.extend(starts.iter().map(|start| start.epoch));
            }
        }
        self.starts.extend(starts.into_iter().map(|start| (start.epoch, start)));
        Ok(())
    }

    /// The newest of them, ascending.
    pub fn newest(&self) -> Vec<HeldEpoch> {
        let surplus = self.with_records.len().saturating_sub(HELD_EPOCHS_MAX);
        let newest = self.with_records.iter().skip(surplus);
        let id = |epoch| self.starts.get(epoch)?.id.map(uuid::Uuid::into_bytes);
        newest.map(|epoch| HeldEpoch { epoch: *epoch, id: id(epoch) }).collect()
    }
}
