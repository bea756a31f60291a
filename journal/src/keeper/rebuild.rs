//! Making what is derived anew, from the units alone.

use super::{Keeper, Setup};
use crate::catalogue;
use crate::error::{Error, Result};
use crate::map::RunName;
use std::io;

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// Units in the catalogue.
    pub units: u64,
    /// Map runs.
    pub runs: u64,
}

/// Removes a journal's catalogue and map runs and makes them anew. The caller holds the journal's lock.
/// Units are only read, and nothing is merged.
///
/// # Errors
/// Something can't be read, removed or written; what is missing is derived, so the journal opens
/// all the same.
pub fn rebuild(setup: Setup) -> Result<Rebuilt> {
    let (storage, dir) = (setup.storage.clone(), setup.dir.clone());
    let names = storage.list(&dir).map_err(|e| Error::io("list journal", &dir, e))?;
    let derived = |n: &&String| *n == catalogue::NAME || RunName::parse(n).is_some();
    let mut names: Vec<&String> = names.iter().filter(derived).collect();
    names.sort();
    for path in names.into_iter().map(|n| dir.join(n)) {
        match storage.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, e));
            }
            _ => {}
        }
    }
    storage.sync_dir(&dir).map_err(|e| Error::io("sync directory", &dir, e))?;
    // Made from the units, and saved, as there is none.
    let mut keeper = Keeper::open(setup)?;
    while keeper.take_sealed()? || keeper.build_runs()? {}
    Ok(Rebuilt { units: keeper.catalogue.units().len() as u64, runs: keeper.runs.count() })
}
