//! What units say without their records: the epochs that began in them, edge and floor.

use super::fold::epoch_start;
use crate::Seq;
use crate::error::Result;
use crate::format::meta::EpochStart;
use crate::pool::table::UnitTable;
use crate::pool::{FileName, Found};
use crate::storage::{Storage, several};
use crate::unit::{read_header, read_merged};

/// What the headers of units say of them all.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// All epochs that began in them.
    pub(super) epochs: Vec<EpochStart>,
    /// The highest edge as of which any was merged.
    pub(super) edge: Seq,
    /// The highest floor.
    pub(super) floor: Seq,
}

impl Outline {
    /// Adds what the table keeps of units that are not there: an epoch above `newest` that began in one took
    /// numbers back, too.
    pub(super) fn take_table(&mut self, table: &UnitTable, newest: u64) {
        self.epochs.extend(table.epochs.values().filter(|e| e.epoch > newest));
        self.edge = self.edge.max(table.edge);
        self.floor = self.floor.max(table.floor);
    }
}

/// Reads the headers of units. What is damaged is judged where its records are read.
///
/// # Errors
/// The host can't read one.
pub(super) fn outline(storage: &dyn Storage, group: [u8; 16], found: &[&Found]) -> Result<Outline> {
    let mut outline = Outline::default();
    let sound = |read: Result<_>| match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if e.is_host() => Err(e),
        Err(_) => Ok(None),
    };
    let read = |found: &&Found| {
        let Some((file, header)) = sound(read_header(storage, found, group))? else {
            return Ok(None);
        };
        let merged = match found.name {
            FileName::Unit(_) => None,
            FileName::Merged(..) => match read_merged(&*file, &found.path, &header) {
                Ok(merged) => Some(merged),
                Err(e) if e.is_host() => return Err(e),
                Err(_) => None,
            },
        };
        Ok(Some((header, merged)))
    };
    for read in several::map(storage, found, read) {
        let Some((header, merged)) = read? else { continue };
        outline.epochs.extend(epoch_start(&header));
        if let Some(merged) = merged {
            outline.edge = outline.edge.max(merged.edge);
            outline.floor = outline.floor.max(merged.floor());
            outline.epochs.extend(merged.epochs);
        }
    }
    Ok(outline)
}
