//! Whether the journal is still where its paths lead: its directory, and the units that are written.
//!
//! What always holds: the directory is held open from before anything is read, so that no other one gets its
//! number; once a look finds that a path leads elsewhere, the journal takes no record more, and no unit
//! is made in the new place. Nothing is judged by a path that merely can't be looked at.

use super::tail::Ending;
use super::unit::OpenUnit;
use super::{Inner, Journal, lock};
use crate::error::{Error, Result};
use crate::planted;
use crate::storage::{Storage, is_missing, leads_to};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked at, at least.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The journal's directory, held open; nothing where a storage has no directories.
pub(super) fn hold(storage: &dyn Storage, dir: &Path) -> Result<Option<File>> {
    storage.hold_dir(dir).map_err(|e| Error::io("open directory", dir, e))
}

impl Journal {
    /// Looks whether the journal's directory and open units are still where their paths lead. A journal
    /// that is not there any more stops. It is looked at twice a second in any case.
    ///
    /// # Errors
    /// The journal stopped, now or before.
    pub fn look_at_home(&self) -> Result<()> {
        match self.inner.is_in_place() && self.stopped().is_none() {
            true => Ok(()),
            false => Err(self.inner.stop_error()),
        }
    }
}

impl Inner {
    /// Looks at it, and stops the journal if it is not.
    pub(super) fn is_in_place(&self) -> bool {
        let Some(why) = self.misplaced() else { return true };
        self.stop(&mut lock(&self.tail), why, Ending::Failed);
        false
    }

    fn misplaced(&self) -> Option<String> {
        let home = self.home.as_ref()?;
        if planted::is("directories-are-not-looked-at") {
            return None;
        }
        if let Some(what) = gone(&self.dir, home) {
            return Some(format!("the journal's directory {} {what}", self.dir.display()));
        }
        let identity = self.dir.join("journal.json");
        if is_missing(&identity) {
            return Some(format!("{} was removed", identity.display()));
        }
        let lost = |unit: &Arc<OpenUnit>| {
            let what = gone(&unit.path, unit.file.as_file()?)?;
            Some((what, Arc::clone(unit)))
        };
        let (what, unit) = self.open_units().iter().find_map(lost)?;
        // A unit that was sealed meanwhile may have been merged and released.
        let is_open = self.open_units().iter().any(|u| Arc::ptr_eq(u, &unit));
        is_open.then(|| format!("the journal's unit {} {what}", unit.path.display()))
    }

    fn open_units(&self) -> Vec<Arc<OpenUnit>> {
        let tail = lock(&self.tail);
        tail.full.iter().chain([&tail.unit]).chain(&tail.next).map(Arc::clone).collect()
    }
}

fn gone(path: &Path, held: &File) -> Option<&'static str> {
    match leads_to(path, held) {
        Ok(true) => None,
        Ok(false) => Some("is another one now: it was replaced, or something was mounted over it"),
        Err(_) => is_missing(path).then_some("was removed"),
    }
}
