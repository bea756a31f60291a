//! Whether the files of a replica are still where they were: somebody may remove them, or mount something
//! over their directory, and the files that are open here take in what they are sent all the same.
//!
//! What always holds: nothing is acknowledged for more than [`LOOK_EVERY_NS`] behind such a loss; the sender
//! comes again, and is told what is there then.

use super::Replica;
use crate::error::{Error, Result};
use crate::planted;
use crate::pool::Places;
use crate::storage::{Access, Storage};
use std::io;
use std::path::Path;

/// Time between two looks.
const LOOK_EVERY_NS: u64 = 1_000_000_000;

/// The journal's own directory, as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Whereabouts {
    /// Of its `journal.json`; 0: unknown.
    identity: u64,
    mount_id: u64,
    looked_ns: u64,
}

pub(super) fn gone(what: &'static str, path: &Path) -> Error {
    let why = "it is not there any more, or is another file: was it removed, or something mounted over it? \
               What is missing is sent again";
    Error::io(what, path, io::Error::other(why))
}

fn identity(storage: &dyn Storage, path: &Path) -> io::Result<u64> {
    storage.open(path, Access::Read).map(|file| file.identity())
}

impl Replica {
    /// Takes note of where it is.
    pub(super) fn settle_home(&mut self) {
        let path = self.dir.join("journal.json");
        self.home = Whereabouts {
            identity: identity(&*self.storage, &path).unwrap_or(0),
            mount_id: self.storage.mount_id(&self.dir),
            looked_ns: self.options.clock.mono_ns(),
        };
    }

    /// Whether its directory is the one that was opened; one that has no journal yet is.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        let path = self.dir.join("journal.json");
        self.identity.is_none()
            || self.home.identity == 0
            || identity(&*self.storage, &path).is_ok_and(|there| {
                there == self.home.identity
                    && self.storage.mount_id(&self.dir) == self.home.mount_id
            })
    }

    /// Looks, now and then, whether all files are where they were.
    ///
    /// # Errors
    /// One is not.
    pub(super) fn check_files(&mut self) -> Result<()> {
        let now_ns = self.options.clock.mono_ns();
        if now_ns.saturating_sub(self.home.looked_ns) < LOOK_EVERY_NS
            || planted::is("sites-never-look-at-their-files")
        {
            return Ok(());
        }
        self.home.looked_ns = now_ns;
        if !self.is_in_place() {
            return Err(gone("find the journal", &self.dir));
        }
        for unit in self.incoming.values() {
            let path = &unit.found.path;
            match identity(&*self.storage, path) {
                Ok(there) if there == unit.identity() => {}
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("open unit", path, e));
                }
                _ => return Err(gone("find unit", path)),
            }
        }
        // A keeper may merge meanwhile: what a listing lacks is looked for once more.
        if self.lists_all()? || self.lists_all()? {
            return Ok(());
        }
        Err(gone("find all units in", &self.dir))
    }

    fn lists_all(&self) -> Result<bool> {
        let mut ranges: Vec<(u64, u64)> = Places::of(&self.storage, &self.dir)?
            .units()?
            .iter()
            .map(|found| found.name.numbers())
            .collect();
        ranges.sort_unstable();
        let mut there = super::inventory::Held::default();
        let mut last: Option<(u64, u64)> = None;
        for (first, end) in ranges {
            last = match last {
                Some((from, to)) if first <= to.saturating_add(1) => Some((from, to.max(end))),
                before => {
                    before.into_iter().for_each(|(from, to)| there.add(from, to));
                    Some((first, end))
                }
            };
        }
        last.into_iter().for_each(|(from, to)| there.add(from, to));
        Ok(self.held.ranges().all(|range| there.covers_all(range)))
    }
}
